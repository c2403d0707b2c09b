"""Updates of the installed box: signed files that come on a stick, put in place whole or not at all."""

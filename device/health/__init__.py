"""Whether the box is well: one small class a check, what they find, and what is handed to support."""

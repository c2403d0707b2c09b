"""The bedside appliance around the reader: capture, loop, display, phantom."""

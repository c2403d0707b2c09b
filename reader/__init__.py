"""Pixels in, verdict out. No threads, no screen, no clock of its own."""

"""Data sets, splits, networks, fitting and evaluation."""

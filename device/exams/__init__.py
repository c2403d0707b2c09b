"""Exams: zones, clips, what the network and the clinician read in them, and the store that keeps them."""

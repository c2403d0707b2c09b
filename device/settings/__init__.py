"""The configuration, the scanners' profiles, and the first hour with a scanner."""

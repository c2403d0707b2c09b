"""What can go wrong on the way from a file or frame to a verdict.

SonoglanceError
├── ClipError (also ValueError)       a clip or picture cannot be read
├── BundleError (also ValueError)     a model bundle is damaged, unknown or inconsistent
├── KeyFileError (also ValueError)    a key cannot be used (reader.signing)
└── RunnerError (also RuntimeError)   the network cannot be run here

The command line prints these as one line and exits with 1. Their message says what, where, and
what to do.
"""

from __future__ import annotations


class SonoglanceError(Exception):
    """Base of every error that is told to the user in one line."""


class ClipError(SonoglanceError, ValueError):
    """A clip or picture cannot be read."""


class BundleError(SonoglanceError, ValueError):
    """A model bundle is damaged, of an unknown schema, or disagrees with itself."""


class RunnerError(SonoglanceError, RuntimeError):
    """The network cannot be run here."""

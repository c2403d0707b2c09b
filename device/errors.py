"""What can go wrong in the box around the reader.

SonoglanceError
└── SourceError (also OSError)      a source cannot be opened, or is gone
"""

from __future__ import annotations

from reader.errors import SonoglanceError


class SourceError(SonoglanceError, OSError):
    """A source cannot be opened, or is gone."""

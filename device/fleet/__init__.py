"""How the box fares, told to a broker and to Prometheus: health and counts, never pictures or names."""

from __future__ import annotations

from reader.errors import SonoglanceError


class FleetError(SonoglanceError, OSError):
    """What is to be told cannot be kept, or reaches nobody."""

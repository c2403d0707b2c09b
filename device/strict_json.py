"""JSON files that users write or hand on, read strictly: whatever is odd in one is told, never guessed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from reader.errors import SonoglanceError


def read_strictly(path: Path, what: str, largest: int, error: type[SonoglanceError]) -> Any:
    """What a JSON file holds (RFC 8259). ``what``: it should be, in words. ``largest``: bytes, at most.

    Raises ``error``, one line, for a file that cannot be read, is longer, or is not JSON: neither NaN nor a
    key that stands in a table twice is.
    """
    try:
        if path.exists() and not path.is_file():
            raise error(f"{path}: not a file")
        with path.open("rb") as file:
            raw = file.read(largest + 1)
    except OSError as failure:
        raise error(f"{path}: cannot be read ({failure.strerror})") from failure
    if len(raw) > largest:
        raise error(f"{path}: longer than {largest} bytes: no {what}")
    try:
        return json.loads(raw.decode(), object_pairs_hook=_once, parse_constant=_no_number)
    except (ValueError, RecursionError) as failure:
        raise error(f"{path}: not JSON, so no {what} ({failure})") from failure


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key stands there twice")
    return values


def _no_number(word: str) -> float:
    raise ValueError(f"{word} is no number")

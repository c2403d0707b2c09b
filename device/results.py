"""Readings as JSON lines, one a frame, for programs outside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO, Any

from reader.reader import Reading


class Results:
    """A results file: ``t``, ``frame``, ``state``, ``p``, ``age_ms``, ``read_ms`` and, where a
    folder is read, ``file``. Every line is whole as soon as it is written."""

    def __init__(self, path: Path | None) -> None:
        """None writes nothing. The file is made with its first line."""
        self._path = path
        self._file: IO[str] | None = None

    def write(self, reading: Reading, t: float, age_ms: float, read_ms: float, file: str | None) -> None:
        """One line for one frame. Raises OSError where it cannot be written."""
        if self._path is None:
            return
        if self._file is None:
            self._file = self._path.open("w", encoding="utf-8", buffering=1)
        line: dict[str, Any] = {
            "t": round(t, 4),
            "frame": reading.frame.sequence,
            "state": reading.state,
            "p": reading.p,
            "age_ms": round(age_ms, 2),
            "read_ms": round(read_ms, 3),
        }
        if file is not None:
            line["file"] = file
        self._file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        """Let go of the file. Raises OSError, for one when the disk is full."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def discard(self) -> None:
        """Take back what was written: the clip turned out to be damaged."""
        if self._file is not None and self._path is not None:
            self._file.close()
            self._path.unlink(missing_ok=True)
            self._file = None

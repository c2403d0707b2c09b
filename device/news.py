"""What became of updates, told on the screen and in the audit log.

The one who updates this box runs apart from the bedside loop and leaves a line for each thing that it did in
``history.jsonl``; the loop looks there.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from device.clock import now
from device.state import write_whole
from reader.errors import SonoglanceError

HISTORY = Path("/opt/sonoglance/history.jsonl")
TOLD_FILE = "update-told"
SHOWN_FOR = 60.0
"""Seconds for which the screen tells of it."""
LOOK_EVERY = 1.0
WITH_RELEASE = ("installed", "confirmed", "rolled-back", "bundle-installed")
REASONS = (
    "no-keys", "unsigned", "wrong-key", "damaged", "older", "other-machine", "no-room", "not-a-file",
    "too-large", "self-test", "busy", "set-by-hand", "pulled",
    "put-back",
)  # fmt: skip
"""Codes of reasons that the screen has words for; of others it says to look into the log."""
QUIET = "nothing"
"""What needs no telling: the stick held what is here already."""


class UpdateNews:
    """Tells each line of the history once. ``badge``: what the screen must say now; often empty."""

    def __init__(self, state_folder: Path, note: Callable[[str, str], None], history: Path = HISTORY) -> None:
        """``state_folder``: where it is kept which line was told last. ``note``: takes what happened and the
        whole line for the audit log."""
        self._history, self._told_file, self._note = history, state_folder / TOLD_FILE, note
        self._seen: tuple[int, int] | None = None
        self._badge, self._until = "", 0.0

    @property
    def badge(self) -> str:
        """``update-WHAT [RELEASE]`` or ``update-refused-CODE``, for a minute."""
        return self._badge if now() < self._until else ""

    def follow(self) -> None:
        """Look every second from now on, in a thread of its own: the disk may take its time, or be full."""
        threading.Thread(target=self._follow, name="update news", daemon=True).start()

    def _follow(self) -> None:
        pause, complaint = threading.Event(), ""
        while True:
            try:
                self.look()
            except (SonoglanceError, OSError) as error:
                if str(error) != complaint:
                    print(f"\nnews of updates cannot be kept: {error}", file=sys.stderr)
                # What was not told is told when that can be kept.
                self._seen, complaint = None, str(error)
            pause.wait(LOOK_EVERY)

    def look(self) -> None:
        """See whether there is news. Raises OSError where the state folder cannot be written, and what the
        audit log raises."""
        try:
            status = self._history.stat()
        except FileNotFoundError:
            return
        if (status.st_size, status.st_mtime_ns) == self._seen:
            return
        self._seen = status.st_size, status.st_mtime_ns
        for line in self._untold():
            self._tell(line)

    def _untold(self) -> list[str]:
        # The last line may be half written.
        before = self._history.with_suffix(".before.jsonl")
        lines = [*(_lines(before) if before.exists() else []), *_lines(self._history)[:-1]]
        if not self._told_file.exists():
            return lines[-1:]
        told = self._told_file.read_text(encoding="utf-8")
        return lines[len(lines) - lines[::-1].index(told) :] if told in lines else lines

    def _tell(self, line: str) -> None:
        entry = _entry(line)
        # First: one that is told twice after a power cut is better than one that never is.
        if entry:
            self._note(f"update {entry['what']}", line)
            if entry["what"] != QUIET:
                self._badge, self._until = _badge(entry), now() + SHOWN_FOR
        write_whole(self._told_file, line.encode())


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8", errors="replace").split("\n")


def _entry(line: str) -> dict[str, Any]:
    """A line of the history; empty for one that a power cut has damaged."""
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) and isinstance(entry.get("what"), str) else {}


def _badge(entry: dict[str, Any]) -> str:
    """What happened, with the release that is there now, or with the code of the reason for none."""
    badge, code = f"update-{entry['what']}", entry.get("code")
    if code in REASONS:
        return f"update-refused-{code}"
    # Of a release with a network of its own, that name is enough.
    release = str(entry.get("to", "")).rpartition("+")[2]
    return f"{badge} {release}" if entry["what"] in WITH_RELEASE else badge

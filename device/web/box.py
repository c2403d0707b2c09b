"""What the web process is told of the box that it serves."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Box:
    """How the page is set.

    ``store``: folder of exams. ``port``: the one it answers on. ``secure``: whether it speaks TLS. ``names``:
    host names beside the box's own. ``destination``: where signed exams are queued for, empty for nowhere.
    ``bundle``: the network, as one line. ``quota``: bytes that clips may take. ``advice``: a clinic's own
    table, None for the one that comes with the program.
    """

    store: Path
    port: int
    secure: bool = False
    language: str = "en"
    names: tuple[str, ...] = ()
    destination: str = ""
    bundle: str = ""
    quota: int | None = None
    advice: Path | None = None

    def to_json(self) -> str:
        """As one line of text, for a process of its own."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> Box:
        """The inverse of ``to_json``."""
        values = json.loads(text)
        values["store"], values["names"] = Path(values["store"]), tuple(values["names"])
        values["advice"] = Path(values["advice"]) if values["advice"] else None
        return cls(**values)

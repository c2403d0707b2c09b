"""Scanning protocols: which zones an exam has, in which order, and where each lies on the chest.

One JSON file a protocol: those of the field come with the program, each naming its source; a clinic can lay
its own into the folder ``protocols`` of the box's state folder, or name a file. See docs/exam.md.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from device.state import default_state_folder
from device.strict_json import read_strictly
from reader.errors import SonoglanceError

BUILT_IN = Path(__file__).parent / "protocols"
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
VIEWS = ("front", "side", "back")
SIDES = ("right", "left")
MOST_ZONES = 28
"""The summary on the screen has room for no more."""
LONGEST_TITLE = 40
"""Letters; the screen's line for a zone has no room for more."""
LARGEST = 64 * 1024
"""Bytes from which a file is no protocol."""


class ProtocolError(SonoglanceError, ValueError):
    """A scanning protocol is not there, or its file is not one."""


@dataclass(frozen=True)
class ZonePlace:
    """One zone. ``side``: the patient's own. ``view``: from where it is seen: ``front``, ``side``, ``back``.

    ``x``, ``y``: its middle on the drawing of that view, from 0 (left, top) to 1 (right, bottom), as the
    examiner sees the patient. ``title``: by language; ``en`` or the name stands in where one is missing.
    """

    name: str
    side: str
    view: str
    x: float
    y: float
    title: dict[str, str] = field(hash=False)

    def titled(self, language: str) -> str:
        """What the zone is called in a language."""
        return _titled(self.title, language, self.name)


@dataclass(frozen=True)
class Protocol:
    """The zones of an exam, in the order in which they are scanned. ``source``: where it was published."""

    name: str
    title: dict[str, str] = field(hash=False)
    zones: tuple[ZonePlace, ...]
    source: str = ""

    def zone(self, name: str) -> ZonePlace:
        """A zone by name. Raises KeyError without one."""
        for zone in self.zones:
            if zone.name == name:
                return zone
        raise KeyError(name)

    def titled(self, language: str) -> str:
        """What the protocol is called in a language."""
        return _titled(self.title, language, self.name)


def _titled(titles: dict[str, str], language: str, name: str) -> str:
    return titles.get(language) or titles.get("en") or name


def protocols(folder: Path | None = None) -> tuple[str, ...]:
    """The names of all protocols that ``load_protocol`` finds without a path; those of the program first."""
    built_in = sorted(BUILT_IN.glob("*.json"), key=lambda path: (len(_read(path).zones), path.stem))
    own = sorted(path.stem for path in (folder or own_folder()).glob("[!.]*.json"))
    names = [path.stem for path in built_in]
    return (*names, *(name for name in own if name not in names))


def own_folder() -> Path:
    """Where a clinic keeps protocols of its own."""
    return default_state_folder() / "protocols"


def load_protocol(name_or_path: str, folder: Path | None = None) -> Protocol:
    """A protocol by its name or its file's path, read strictly.

    ``folder``: where a clinic's own are kept, ``own_folder()`` where not given; a name that comes with the
    program is never replaced by one of these. Raises ProtocolError, one line, for every mistake.
    """
    if "/" in name_or_path or name_or_path.endswith(".json"):
        return _read(Path(name_or_path))
    if not NAME.fullmatch(name_or_path):
        raise ProtocolError(f"{name_or_path!r}: a protocol's name has small letters, digits and -")
    for place in (BUILT_IN, folder or own_folder()):
        path = place / f"{name_or_path}.json"
        if path.exists():
            return _read(path)
    known = ", ".join(protocols(folder))
    raise ProtocolError(f"no protocol {name_or_path!r}: there are {known}; or name a file, PATH.json")


def _read(path: Path) -> Protocol:
    values = read_strictly(path, "protocol", LARGEST, ProtocolError)
    try:
        protocol = _protocol(values)
        if protocol.name != path.stem:
            raise ValueError(f"it is named {protocol.name}: the file must be {protocol.name}.json")
    except ValueError as error:
        raise ProtocolError(f"{path}: not a protocol: {error}") from error
    return protocol


def _protocol(values: Any) -> Protocol:
    _expect("the file", values, {"name", "title", "zones"}, ("source",))
    if not isinstance(values["zones"], list) or not 1 <= len(values["zones"]) <= MOST_ZONES:
        raise ValueError(f"zones must be a list of 1 to {MOST_ZONES}")
    zones = tuple(_zone(f"zone {number}", zone) for number, zone in enumerate(values["zones"], 1))
    names = [zone.name for zone in zones]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two zones are named {name}")
    title = _title("title", values["title"])
    return Protocol(_name("name", values["name"]), title, zones, _line("source", values.get("source", "-")))


def _zone(where: str, values: Any) -> ZonePlace:
    _expect(where, values, {"name", "side", "view", "x", "y", "title"})
    for key, allowed in (("side", SIDES), ("view", VIEWS)):
        if values[key] not in allowed:
            raise ValueError(f"{where}: {key} must be {' or '.join(allowed)}")
    for key in ("x", "y"):
        if type(values[key]) not in (int, float) or not 0 <= values[key] <= 1:
            raise ValueError(f"{where}: {key} must be a number from 0 to 1")
    return ZonePlace(
        _name(f"{where}: name", values["name"]),
        values["side"],
        values["view"],
        float(values["x"]),
        float(values["y"]),
        _title(f"{where}: title", values["title"]),
    )


def _expect(where: str, values: Any, needed: set[str], allowed: Collection[str] = ()) -> None:
    if not isinstance(values, dict):
        raise ValueError(f"{where} must be a table")
    for key in sorted(needed - values.keys()):
        raise ValueError(f"{where} has no {key}")
    for key in sorted(values.keys() - needed - set(allowed)):
        raise ValueError(f"{where} has {key!r}, which is not known")


def _name(where: str, value: Any) -> str:
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise ValueError(f"{where} must be 1 to 32 small letters, digits or -")
    return value


def _line(where: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or not value.isprintable() or len(value) > 300:
        raise ValueError(f"{where} must be a line of text")
    return value


def _title(where: str, value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not value:
        raise ValueError(f'{where} must be a table such as {{"en": "Right, upper front"}}')
    for language, text in value.items():
        if len(_line(f"{where} {language}", text)) > LONGEST_TITLE:
            raise ValueError(f"{where} {language} has more than {LONGEST_TITLE} letters")
    return value

"""Scanner profiles: what is known of one scanner and its cable, kept from one day to the next.

A profile is a JSON file of its own in the state folder. It holds an outline and numbers, never a
picture or a patient's name, so it can be sent to another box.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from device.state import write_whole
from device.strict_json import read_strictly
from reader.beam import Beam
from reader.errors import SonoglanceError

SCHEMA = 1
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
LARGEST = 64 * 1024
"""Bytes from which a file is no profile."""
MOST_CORNERS = 512
LARGEST_SIDE = 7680
"""Pixels."""
LONGEST_DELAY = 5000.0
"""Milliseconds."""
OUTSIDE = 1.0
"""Pixels by which an outline may reach over the picture's edge."""


class ProfileError(SonoglanceError, ValueError):
    """A scanner profile is damaged, unknown, or must not be overwritten."""


@dataclass(frozen=True)
class ScannerProfile:
    """What ``sonoglance setup`` found out about a scanner.

    ``grabber``: its stable name, ``/dev/v4l/by-id/...`` or ``VID:PID``, or what else gave the picture.
    ``mode``: how the grabber was set, in words. ``beam``: outline, picture size and level range.
    ``delay_ms``: from the light on a screen to the frame's arrival here, milliseconds; None where it
    was not measured. ``made_at``: ISO 8601 with time zone, by this box's clock.
    """

    name: str
    grabber: str
    mode: str
    beam: Beam
    delay_ms: float | None
    made_at: str
    schema: int = SCHEMA

    def to_json(self) -> str:
        """The profile as its file holds it."""
        values = asdict(self) | {"beam": self.beam.to_json()}
        return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def fits(profile: ScannerProfile, grabber: str, size: tuple[int, int]) -> str | None:
    """In words, why a profile is not of this grabber or picture size; None where it may be."""
    if profile.grabber.lower() != grabber.lower():
        return f"scanner profile {profile.name} was made with {profile.grabber}, this is {grabber}"
    if profile.beam.size != size:
        made, here = ("x".join(map(str, pixels)) for pixels in (profile.beam.size, size))
        return f"scanner profile {profile.name} was made for a picture of {made}, this is {here}"
    return None


def profile_path(state_folder: Path, name: str) -> Path:
    """Where a profile is kept. Raises ProfileError for a name that no file may have."""
    if not NAME.fullmatch(name):
        raise ProfileError(
            f"{name!r}: a scanner's name has 1 to 64 letters, digits, . _ or -, the first a letter or digit"
        )
    return state_folder / "scanners" / f"{name}.json"


def list_profiles(state_folder: Path) -> tuple[list[ScannerProfile], list[str]]:
    """The profiles by name, and a line for each file that is damaged."""
    profiles, damaged = [], []
    for path in sorted((state_folder / "scanners").glob("[!.]*.json")):
        try:
            profiles.append(load_profile(state_folder, path.stem))
        except ProfileError as error:
            damaged.append(str(error))
    return profiles, damaged


def load_profile(state_folder: Path, name: str) -> ScannerProfile:
    """A profile by name. Raises ProfileError where there is none, or it is damaged."""
    path = profile_path(state_folder, name)
    if not path.exists():
        raise ProfileError(f"{path}: no such scanner profile; sonoglance scanner list names those there")
    profile = read_profile(path)
    if profile.name != name:
        raise ProfileError(f"{path}: holds the profile {profile.name}; import it under its own name")
    return profile


def save_profile(state_folder: Path, profile: ScannerProfile, replace: bool = False) -> Path:
    """Keep a profile, whole or not at all; returns its file.

    Raises ProfileError where one of that name is there and ``replace`` is not set, OSError where it
    cannot be written.
    """
    refuse_taken(state_folder, profile.name, replace)
    path = profile_path(state_folder, profile.name)
    write_whole(path, profile.to_json().encode())
    return path


def refuse_taken(state_folder: Path, name: str, replace: bool) -> None:
    """Raises ProfileError for a name that cannot be saved under."""
    path = profile_path(state_folder, name)
    if path.exists() and not replace:
        raise ProfileError(f"{path}: a profile of this name is there; choose another name, or --replace")


def remove_profile(state_folder: Path, name: str) -> None:
    """Forget a profile, a damaged one too. Raises ProfileError where there is none."""
    path = profile_path(state_folder, name)
    try:
        path.unlink()
    except FileNotFoundError:
        raise ProfileError(f"{path}: no such scanner profile") from None


def export_profile(state_folder: Path, name: str, file: Path) -> None:
    """Write a profile to a file of the user's. Raises ProfileError or OSError."""
    profile = load_profile(state_folder, name)
    if file.exists():
        raise ProfileError(f"{file}: is there already; nothing is overwritten")
    write_whole(file, profile.to_json().encode())


def import_profile(state_folder: Path, file: Path, replace: bool = False) -> ScannerProfile:
    """Take a profile in from a file of the user's. Raises ProfileError or OSError."""
    profile = read_profile(file)
    save_profile(state_folder, profile, replace)
    return profile


def read_profile(path: Path) -> ScannerProfile:
    """A profile's file, read strictly. Raises ProfileError, one line, for every kind of damage."""
    values = read_strictly(path, "scanner profile", LARGEST, ProfileError)
    try:
        return _profile(values)
    except (ValueError, OverflowError) as error:
        raise ProfileError(f"{path}: not a whole scanner profile ({error}); export it again") from error


def _profile(values: Any) -> ScannerProfile:
    if not isinstance(values, dict):
        raise ValueError("it holds no table")
    if values.get("schema") != SCHEMA or type(values["schema"]) is not int:
        raise ValueError(f"schema {values.get('schema')!r}, this program reads {SCHEMA}")
    _expect_keys("profile", values, {field.name for field in fields(ScannerProfile)})
    for key in ("name", "grabber", "mode", "made_at"):
        if not isinstance(values[key], str) or not values[key].isprintable() or len(values[key]) > 300:
            raise ValueError(f"{key} must be a line of text")
    if not NAME.fullmatch(values["name"]):
        raise ValueError(f"name {values['name']!r} must be letters, digits, . _ or -")
    if datetime.fromisoformat(values["made_at"]).tzinfo is None:
        raise ValueError("made_at has no time zone")
    delay = values["delay_ms"]
    if delay is not None and not (_is_number(delay) and 0 <= delay <= LONGEST_DELAY):
        raise ValueError(f"delay_ms must be null or 0 to {LONGEST_DELAY:g}")
    return ScannerProfile(**(values | {"beam": _beam(values["beam"])}))


def _beam(values: Any) -> Beam:
    if not isinstance(values, dict):
        raise ValueError("beam must be a table")
    _expect_keys("beam", values, {field.name for field in fields(Beam)})
    for key, length in (("size", 2), ("levels", 2)):
        if not _is_list(values[key], length) or not all(type(n) is int for n in values[key]):
            raise ValueError(f"beam {key} must be two whole numbers")
    if max(values["size"]) > LARGEST_SIDE:
        raise ValueError(f"beam size must be at most {LARGEST_SIDE} pixels a side")
    corners = values["polygon"]
    if not isinstance(corners, list) or not all(
        _is_list(corner, 2) and all(_is_number(n) for n in corner) for corner in corners
    ):
        raise ValueError("beam polygon must be corners [x, y]")
    beam = Beam.from_json(values)
    fault = outline_fault(beam)
    if fault:
        raise ValueError(fault)
    return beam


def _expect_keys(what: str, values: dict[str, Any], expected: set[str]) -> None:
    if values.keys() != expected:
        missing, unknown = sorted(expected - values.keys()), sorted(values.keys() - expected)
        parts = [f"lacks {', '.join(missing)}"] * bool(missing)
        parts += [f"has unknown {', '.join(map(repr, unknown))}"] * bool(unknown)
        raise ValueError(f"{what} {' and '.join(parts)}")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_list(value: Any, length: int) -> bool:
    return isinstance(value, list) and len(value) == length


def outline_fault(beam: Beam) -> str | None:
    """In words, why an outline can be nobody's beam; None where it can."""
    width, height = beam.size
    corners = beam.polygon
    if not 3 <= len(corners) <= MOST_CORNERS:
        return f"an outline has 3 to {MOST_CORNERS} corners, not {len(corners)}"
    for x, y in corners:
        if not (-OUTSIDE <= x <= width + OUTSIDE and -OUTSIDE <= y <= height + OUTSIDE):
            return f"corner {x:g},{y:g} lies outside the picture of {width}x{height}"
    if abs(_area(corners)) < 0.01 * width * height:
        return "the outline covers less than a hundredth of the picture"
    if _crosses_itself(corners):
        return "the outline crosses itself"
    return None


def _area(corners: tuple[tuple[float, float], ...]) -> float:
    follow = corners[1:] + corners[:1]
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(corners, follow, strict=True)) / 2


def _crosses_itself(corners: tuple[tuple[float, float], ...]) -> bool:
    sides = list(zip(corners, corners[1:] + corners[:1], strict=True))
    return any(
        _cross(*sides[i], *sides[j])
        for i in range(len(sides))
        for j in range(i + 2, len(sides))
        if (i, j) != (0, len(sides) - 1)
    )


Point = tuple[float, float]


def _cross(a: Point, b: Point, c: Point, d: Point) -> bool:
    """Whether two stretches cut each other at a point inside both."""

    def turn(p: Point, q: Point, r: Point) -> float:
        return (q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0])

    return turn(a, b, c) * turn(a, b, d) < 0 and turn(c, d, a) * turn(c, d, b) < 0

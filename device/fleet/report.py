"""What is told of a box: how it fares, and counts by day. Never pictures, names or codes of patients,
operators, comments, exams' ids, or files' names.

Health is taken over field by field, never as a whole, and a text only where the program chose its words: so
nothing that somebody typed gets out, whatever is added to ``health.json``.
"""

from __future__ import annotations

import json
import math
import re
import secrets
from collections import Counter
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from device.clock import boot_id, now, time_verified, wall_time
from device.exams.exam import Exam
from device.exams.store import DATABASE, Store
from device.fleet import FleetError
from device.fleet.broker import COUNTS, HEALTH
from device.fleet.outbox import Outbox
from device.health.box import Box
from device.health.check import Check
from device.health.doctor import examine
from device.health.installed import Configuration, Update
from device.health.machine import Clock, Lasting, Power, Space, Temperature, Wear
from device.health.running import ReadingCheck
from device.settings.config import Config
from device.state import write_whole
from device.worklist.trends import Tally, count

FRESH_SECONDS = 10.0
"""Age from which what the reader's service wrote says nothing of now."""
NUMBERS = ("reading", "age_ms", "read_ms", "fps", "healthy_s", "battery_mv")
SWITCHES = ("fed", "busy")
WORDS = ("state", "cause", "runner", "display", "panel")
"""Texts that are one of the program's own words."""
NAMES = ("release", "program", "bundle", "grabber")
WORD = re.compile(r"[A-Za-z0-9]+(-[A-Za-z0-9]+)*", re.ASCII)
NAME = re.compile(r"[\w.+@ -]{1,80}", re.ASCII)
SPLIT = "seconds_by_state"
CHECKS: tuple[type[Check], ...] = (
    ReadingCheck,
    Configuration,
    Power,
    Temperature,
    Wear,
    Space,
    Lasting,
    Clock,
    Update,
)
"""Of the doctor's, those that look at files alone: this service sees no devices."""
NAME_FILE = "name"


def fleet_folder(config: Config) -> Path:
    """Where the outbox and the box's own name lie."""
    return config.state.folder / "fleet"


def box_name(config: Config) -> str:
    """What the box is called: as configured, else a number drawn once. Raises FleetError where that number
    cannot be kept."""
    if config.fleet.name:
        return config.fleet.name
    path = fleet_folder(config) / NAME_FILE
    try:
        if not path.exists():
            write_whole(path, f"box-{secrets.token_hex(4)}\n".encode())
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise FleetError(f"{path}: this box's name cannot be kept ({error}); or set fleet.name") from error


def has_name(config: Config) -> bool:
    """Whether the box is called something already: ``box_name`` draws nothing."""
    return bool(config.fleet.name) or (fleet_folder(config) / NAME_FILE).exists()


def read_health(path: Path) -> dict[str, Any] | None:
    """What the reader's service wrote last; None where there is none, or it is old."""
    try:
        health = json.loads(path.read_bytes())
    except (OSError, ValueError):
        # Another program's file, gone while that one is stopped: no reader is what there is to tell.
        return None
    fresh = isinstance(health, dict) and _is_number(health.get("at"))
    return health if fresh and now() - health["at"] < FRESH_SECONDS else None


def told_health(health: dict[str, Any] | None) -> dict[str, Any] | None:
    """The fields of ``health.json`` that are told."""
    if health is None:
        return None
    told = {key: health[key] for key in NUMBERS if _is_number(health.get(key))}
    told |= {key: health[key] for key in SWITCHES if isinstance(health.get(key), bool)}
    told |= {key: health[key] for key in WORDS if _is(WORD, health.get(key))}
    told |= {key: health[key] for key in NAMES if _is(NAME, health.get(key))}
    split = health.get(SPLIT)
    if isinstance(split, dict):
        told[SPLIT] = {state: s for state, s in split.items() if _is(WORD, state) and _is_number(s)}
    return told


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and bool(pattern.fullmatch(value))


def stamp(name: str) -> dict[str, Any]:
    """Who says so and when. ``verified``: whether the clock was in step with a time source; where not,
    ``boot`` and ``uptime`` (seconds) still order what one boot said."""
    return {
        "box": name,
        "at": wall_time(),
        "verified": time_verified(),
        "boot": boot_id(),
        "uptime": round(now(), 1),
    }


def health_report(box: Box, health: dict[str, Any] | None) -> dict[str, Any]:
    """How the box fares now: ``reader`` is null where nothing reads; ``checks``: states, without findings,
    which name files, looked at in a process of their own: some device may hang whoever asks it."""
    return {
        "program": version("sonoglance"),
        "reader": told_health(health),
        "checks": {each.check: each.state for each in examine(box, CHECKS)},
    }


def counts_by_day(exams: Iterable[Exam]) -> list[dict[str, Any]]:
    """Counts of each day that the box's clock had, oldest first; ``day_verified``: that clock was in step.
    All sites together. ``states``: clips by the network's reading, or the reason that there is none."""
    days: dict[tuple[str, bool], tuple[Tally, Counter[str]]] = {}
    for exam in exams:
        counted = count(exam)
        key = counted.day, counted.verified
        tally, states = days.get(key, (Tally(), Counter()))
        states.update(clip.reading.state for zone in exam.zones for clip in zone.clips)
        days[key] = tally + counted.tally, states
    return [_told_day(*day, tally, states) for day, (tally, states) in sorted(days.items())]


def _told_day(day: str, verified: bool, tally: Tally, states: Counter[str]) -> dict[str, Any]:
    return {
        "day": day,
        "day_verified": verified,
        "exams": tally.exams,
        "signed": tally.signed,
        "clips": tally.clips,
        "states": dict(sorted(states.items())),
        "findings": tally.findings,
        "abstained": tally.abstained,
        "unread": tally.unread,
        "zones_read": tally.human,
        "zones_accepted": tally.accepted,
        "zones_changed": tally.edited,
    }


def counts(config: Config) -> list[dict[str, Any]] | None:
    """Counts of this box's store; None where there is no store. Raises StoreError where it cannot be read."""
    if not (config.store_folder / DATABASE).exists():
        return None
    store = Store(config.store_folder)
    try:
        return counts_by_day(store.exam(line.id) for line in store.exams(limit=None))
    finally:
        store.close()


def put_report(config: Config, box: Box, health: Path, outbox: Outbox) -> None:
    """Have the box's health wait to be told, and the counts of days that changed, those whose exams are all
    gone among them. Raises FleetError or StoreError."""
    name = box_name(config)
    outbox.put(HEALTH, stamp(name), health_report(box, read_health(health)))
    days = counts(config)
    if days is None:
        return  # no store at its place: its disk may not be mounted, and no exam is gone
    told = {_about(day): day for day in days}
    for said in outbox.said():
        told.setdefault(_about(said), _told_day(said["day"], said["day_verified"], Tally(), Counter()))
    for about, day in sorted(told.items()):
        outbox.put(COUNTS, stamp(name), day, about)


def _about(day: Mapping[str, Any]) -> str:
    return f"{day['day']} {day['day_verified']}"

"""Exams for the tests of the worklist: as plain values, and in a real store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from device.exams.exam import Clip, ClipReading, Exam, HumanReading, Patient, Stamp, Zone
from device.exams.protocols import load_protocol
from device.exams.store import Store
from reader.verdict import UNCERTAIN

LABELS = ("normal", "opacity")
BLUE = tuple(zone.name for zone in load_protocol("blue-6").zones)
SURE = {"normal": 0.05, "opacity": 0.95, UNCERTAIN: 0.5}


def reading(state: str, p: float | None = None) -> ClipReading:
    """What the network said; of a state that is none of its own, that there was no reading."""
    chance = SURE.get(state) if p is None else p
    chances = None if chance is None else {"normal": 1 - chance, "opacity": chance}
    return ClipReading(state, chances, 0, bundle="net 1 0123")


def at(sequence: int = 1, wall: str = "2026-11-21T09:00:00.000+00:00", verified: bool = True) -> Stamp:
    return Stamp(sequence, "boot", 100.0 * sequence, wall, verified)


def exam(
    read: Mapping[str, str],
    grades: Mapping[str, int] | None = None,
    protocol: str = "blue-6",
    stamp: Stamp | None = None,
) -> Exam:
    """An exam with a clip in every zone of ``read``, and a clinician's grade in those of ``grades``."""
    names = BLUE if protocol == "blue-6" else tuple(read)
    return Exam(
        "an-exam", protocol, "", "", Patient("17"), LABELS, "normal", stamp or at(),
        tuple(_zone(name, read.get(name), (grades or {}).get(name)) for name in names),
    )  # fmt: skip


def _zone(name: str, state: str | None, grade: int | None) -> Zone:
    clips = () if state is None else (
        Clip("c", name, "f", "", (0.0,), None, True, at(), reading(state)),
    )  # fmt: skip
    if grade is None:
        return Zone(name, clips)
    return Zone(name, clips, (HumanReading(name, LABELS[grade > 0], grade, "", "dr", False, at()),))


def with_pattern(of: Exam, zone: str, name: str, p: float) -> Exam:
    """The exam with a pattern in one zone's clip."""
    kept = of.zone(zone)
    clip = replace(kept.clips[0], reading=replace(kept.clips[0].reading, patterns={name: p}))
    changed = replace(kept, clips=(clip,))
    return replace(of, zones=tuple(changed if each.name == zone else each for each in of.zones))


def keep(
    store: Store, read: Mapping[str, str], patient: str = "", site: str = "", p: float | None = None
) -> str:
    """Put an exam into a store; returns its id."""
    begun = store.begin("blue-6", BLUE, LABELS, "normal", Patient(patient), site)
    for zone, state in read.items():
        store.add_picture(begun.id, zone, Path("/elsewhere.png"), "00", reading(state, p))
    return begun.id

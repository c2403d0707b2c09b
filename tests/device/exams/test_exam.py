"""What an exam adds up to, and whose reading stands."""

from __future__ import annotations

import pytest

from device.exams.exam import Clip, ClipReading, HumanReading, Stamp, Zone, summarize


def at(sequence: int) -> Stamp:
    return Stamp(sequence, "boot", float(sequence), "2026-11-21T10:00:00.000+00:00", True)


def clip(sequence: int, state: str = "normal", opacity: float | None = 0.1) -> Clip:
    p = None if opacity is None else {"normal": 1 - opacity, "opacity": opacity}
    return Clip(f"c{sequence}", "z", "f", "0", (0.0,), None, False, at(sequence), ClipReading(state, p, 0))


def read(sequence: int, state: str, grade: int | None = None, accepted: bool = False) -> HumanReading:
    return HumanReading("z", state, grade, "", "Dr A", accepted, at(sequence))


def test_what_was_accepted_stands_only_for_the_clips_it_was_given_of() -> None:
    accepted = read(2, "normal", accepted=True)
    assert Zone("z", (clip(1),), (accepted,)).human == accepted
    discarded = Zone("z", (), (accepted,))
    assert (discarded.human, discarded.state("normal"), discarded.score("normal")) == (
        None,
        "not-scanned",
        None,
    )
    with_another = Zone("z", (clip(1), clip(3, "opacity", 0.9)), (accepted,))
    assert (with_another.human, with_another.state("normal")) == (None, "opacity")
    own = read(2, "normal")
    assert Zone("z", (clip(1), clip(3, "opacity", 0.9)), (own,)).human == own, "one's own reading stands"


@pytest.mark.parametrize(
    ("clips", "state", "score"),
    [
        ((), "not-scanned", "None"),
        ((clip(1, "no-contact", None),), "uncertain", "None"),
        ((clip(1, "uncertain", 0.5),), "uncertain", "None"),
        ((clip(1),), "normal", "0"),
        ((clip(1), clip(2, "no-contact", None)), "normal", "0"),
        ((clip(1), clip(2, "uncertain", 0.5)), "uncertain", "None"),
        ((clip(1), clip(2, "opacity", 0.7), clip(3, "uncertain", 0.5)), "opacity", "1-3"),
    ],
)
def test_the_worst_clip_is_the_zones_and_nothing_unsaid_is_normal(
    clips: tuple[Clip, ...], state: str, score: str
) -> None:
    zone = Zone("z", clips)
    assert (zone.state("normal"), str(zone.score("normal"))) == (state, score)


def test_a_total_is_a_span_until_a_clinician_grades_and_counts_what_has_no_score() -> None:
    zones = [
        Zone("a", (clip(1),)),
        Zone("b", (clip(2, "opacity", 0.9),)),
        Zone("c", (clip(3, "opacity", 0.9),), (read(4, "opacity", 2),)),
        Zone("d", (clip(5, "uncertain", 0.5),)),
        Zone("e"),
    ]
    found = summarize(zones, "normal")
    assert (str(found.total), str(found.worst)) == ("3-5", "2-3")
    assert (found.zones, found.scored, found.findings) == (5, 3, 2)
    assert (found.cannot_tell, found.not_scanned) == (1, 1)
    nothing = summarize([Zone("e")], "normal")
    assert (nothing.total, nothing.worst, nothing.not_scanned) == (None, None, 1)

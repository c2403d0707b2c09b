"""The worklist: exams by the urgency of their readings, each with the reason.

The order, the first difference decides: not signed before signed; then the gravest reading, as in
``LEVELS``; then more zones with a finding; then the likelier finding; then the one that waits longer. Two
exams of a store never tie, since each has a sequence number of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from device.clock import boot_id, now, time_verified, wall_time
from device.exams.advice import PICTURE, Advice, AdviceTable, advise, zone_sides
from device.exams.exam import NOT_SCANNED, WORST_GRADE, Exam, Score, Stamp
from device.exams.store import ExamLine
from reader.verdict import UNCERTAIN

SEVERE, FINDING, CANNOT_TELL, NORMAL, NOTHING = (
    "severe",
    "finding",
    "cannot-tell",
    "normal",
    "nothing",
)
LEVELS = (SEVERE, FINDING, CANNOT_TELL, NORMAL, NOTHING)
"""Of an exam, the gravest first. ``severe``: a zone that a clinician graded 3. ``normal``: of what was
scanned."""
HEADER = ("place", "exam", "level", "patient", "site", "protocol", "begun", "time verified", "waiting hours",
          "signed", "zones", "findings", "cannot tell", "not scanned", "score from", "score to",
          "reason")  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One line of the worklist. ``waiting``: seconds since it was begun, None where the clock does not tell.
    ``reason`` and ``next``: why it stands there, and what is usually examined next."""

    place: int
    line: ExamLine
    level: str
    waiting: float | None
    reason: str
    next: tuple[Advice, ...] = ()


def level(line: ExamLine) -> str:
    """How grave what was read is, of ``LEVELS``."""
    summary = line.summary
    if summary.worst is not None and summary.worst.low == WORST_GRADE:
        return SEVERE
    if summary.findings:
        return FINDING
    if summary.cannot_tell:
        return CANNOT_TELL
    return NORMAL if summary.scored else NOTHING


def by_urgency(lines: Iterable[ExamLine]) -> list[ExamLine]:
    """Exams in the order in which they are to be looked at."""
    return sorted(lines, key=_place)


def _place(line: ExamLine) -> tuple[bool, int, int, float, int]:
    likeliest = line.likeliest if line.likeliest is not None else 0.0
    return (
        line.signed,
        LEVELS.index(level(line)),
        -line.summary.findings,
        -likeliest,
        line.started.sequence,
    )


def present() -> Stamp:
    """This moment, as a stamp of nothing."""
    return Stamp(0, boot_id(), now(), wall_time(), time_verified())


def waiting(since: Stamp, at: Stamp) -> float | None:
    """Seconds from one moment to another: by the uptime within one boot, else by clocks that were both
    verified; None where neither tells."""
    if since.boot and since.boot == at.boot:
        return at.uptime - since.uptime
    if since.verified and at.verified:
        return (datetime.fromisoformat(at.wall) - datetime.fromisoformat(since.wall)).total_seconds()
    return None


def rows(
    lines: Iterable[ExamLine],
    look: Callable[[str], Exam],
    table: AdviceTable,
    at: Stamp,
    offset: int = 0,
    limit: int | None = 50,
) -> list[Row]:
    """A page of the worklist. ``look`` loads an exam by its id, which only the page's own need."""
    ordered = by_urgency(lines)
    end = None if limit is None else offset + limit
    return [
        _row(place, line, look(line.id), table, at)
        for place, line in enumerate(ordered[offset:end], offset + 1)
    ]


def _row(place: int, line: ExamLine, exam: Exam, table: AdviceTable, at: Stamp) -> Row:
    since = waiting(line.started, at)
    reason = f"{what_was_read(exam)}; {_told_wait(exam, since)}"
    return Row(place, line, level(line), since, reason, tuple(advise(exam, table)))


def what_was_read(exam: Exam) -> str:
    """The readings that stand, in one phrase, such as "opacity in 4 of 6 zones, both sides"."""
    states = {zone.name: zone.state(exam.negative) for zone in exam.zones}
    counts, zones = Counter(states.values()), len(states)
    if counts[NOT_SCANNED] == zones:
        return "nothing scanned"
    settled = (exam.negative, UNCERTAIN, NOT_SCANNED)
    findings = sorted((label for label in counts if label not in settled), key=lambda x: (-counts[x], x))
    if exam.protocol == PICTURE:
        return findings[0] if findings else _told_picture(exam)
    parts = [f"{label} in {counts[label]} of {zones} zones" for label in findings]
    if findings:
        parts += _told_sides(exam, [name for name, state in states.items() if state in findings])
        parts += _told_grade(exam)
    elif counts[exam.negative]:
        parts.append(f"{exam.negative} in {counts[exam.negative]} of {zones} zones")
    parts += [f"{_told(state)} in {counts[state]}" for state in (UNCERTAIN, NOT_SCANNED) if counts[state]]
    return ", ".join(parts)


def _told_picture(exam: Exam) -> str:
    """A picture without a finding; of one that could not be read, why."""
    (zone,) = exam.zones
    worst = zone.worst(exam.negative)
    if zone.human is None and worst is not None and worst.reading.p is None:
        return f"no reading, {worst.reading.state}"
    return _told(zone.state(exam.negative))


def _told(state: str) -> str:
    return {UNCERTAIN: "cannot tell", NOT_SCANNED: "not scanned"}.get(state, state)


def _told_sides(exam: Exam, zones: Sequence[str]) -> list[str]:
    side_of = zone_sides(exam.protocol)
    sides = sorted({side_of[name] for name in zones if name in side_of})
    return [] if not sides else ["both sides" if len(sides) > 1 else f"{sides[0]} side"]


def _told_grade(exam: Exam) -> list[str]:
    grades = [zone.human.grade for zone in exam.zones if zone.human and zone.human.grade is not None]
    return [f"worst grade {max(grades)}"] if grades else []


def _told_wait(exam: Exam, seconds: float | None) -> str:
    if exam.signed is not None:
        return f"signed by {exam.signed_by}"
    if seconds is None:
        return "unsigned, the clock does not tell for how long"
    return f"unsigned for {told_span(seconds)}"


def told_span(seconds: float) -> str:
    """A span of time, rounded down, in the largest unit that it fills."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return "less than 1 min"


def csv_rows(listed: Iterable[Row]) -> list[tuple[object, ...]]:
    """Rows for a CSV with ``HEADER``. Patients by their code only; a score's bounds apart, since a
    spreadsheet takes 1-3 for a day."""
    return [
        (row.place, row.line.id, row.level, row.line.patient.code, row.line.site, row.line.protocol,
         row.line.started.wall, row.line.started.verified,
         None if row.waiting is None else round(row.waiting / 3600, 1), row.line.signed,
         row.line.summary.zones, row.line.summary.findings, row.line.summary.cannot_tell,
         row.line.summary.not_scanned, *_bounds(row.line.summary.total), row.reason)
        for row in listed
    ]  # fmt: skip


def _bounds(score: Score | None) -> tuple[int | None, int | None]:
    return (None, None) if score is None else (score.low, score.high)

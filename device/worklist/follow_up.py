"""The same patient's zones side by side over days: what became better or worse, and what cannot be compared.

Zones are matched by name, and only between exams of one protocol that were read by networks of the same
labels. A change is called better or worse only where the scores allow no other order: "1 to 3" against
"1 to 3" may be either, so it cannot be told.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from device.exams.advice import PICTURE
from device.exams.exam import NOT_SCANNED, Exam, Score, Stamp
from reader.verdict import UNCERTAIN

BETTER, WORSE, SAME, CANNOT_TELL, NOT_COMPARED = "better", "worse", "same", "cannot tell", "not compared"
"""``cannot tell``: both were read, but the scores overlap. ``not compared``: one was not scanned, or could
not be told."""
SIGNS = {BETTER: "-", WORSE: "+", SAME: "=", CANNOT_TELL: "?", NOT_COMPARED: " "}


@dataclass(frozen=True)
class Cell:
    """A zone in an exam. ``change``: against the last exam before in which the zone has a score; None in the
    first exam. ``by_clinician``: whether the state is a clinician's."""

    state: str
    score: Score | None
    by_clinician: bool
    change: str | None


@dataclass(frozen=True)
class Column:
    """One exam. ``cells``: by zone, in the protocol's order. ``total``: of the zones that have a score."""

    exam: str
    started: Stamp
    signed: bool
    cells: tuple[Cell, ...]
    total: Score | None
    scored: int


@dataclass(frozen=True)
class Course:
    """Exams of one protocol and one set of labels, oldest first. ``zones``: their names."""

    protocol: str
    labels: tuple[str, ...]
    zones: tuple[str, ...]
    columns: tuple[Column, ...]

    def changes(self, zone: str) -> tuple[str, ...]:
        """How a zone changed from exam to exam."""
        place = self.zones.index(zone)
        cells = (column.cells[place] for column in self.columns)
        return tuple(cell.change for cell in cells if cell.change is not None)


def compare(before: Score | None, after: Score | None) -> str:
    """What became of a score: one of the five words above. A lower score is better."""
    if before is None or after is None:
        return NOT_COMPARED
    if after.high < before.low:
        return BETTER
    if after.low > before.high:
        return WORSE
    known = before.low == before.high == after.low == after.high
    return SAME if known else CANNOT_TELL


def follow_up(exams: Iterable[Exam]) -> list[Course]:
    """The courses of one patient's exams, the one with the newest exam first.

    Exams are ordered by their sequence number: the clock may have been wrong.
    """
    alike: dict[tuple[object, ...], list[Exam]] = {}
    for exam in sorted(exams, key=lambda each: each.started.sequence):
        zones = tuple(zone.name for zone in exam.zones)
        alike.setdefault((exam.protocol, zones, exam.labels, exam.negative), []).append(exam)
    newest_first = sorted(alike.values(), key=lambda each: -each[-1].started.sequence)
    return [_course(each) for each in newest_first]


def _course(exams: Sequence[Exam]) -> Course:
    columns: list[Column] = []
    last: dict[str, Score | None] = {}
    for exam in exams:
        cells = []
        for zone in exam.zones:
            score = zone.score(exam.negative)
            change = compare(last.get(zone.name), score) if columns else None
            last[zone.name] = score or last.get(zone.name)
            cells.append(Cell(zone.state(exam.negative), score, zone.human is not None, change))
        summary = exam.summary
        signed = exam.signed is not None
        columns.append(Column(exam.id, exam.started, signed, tuple(cells), summary.total, summary.scored))
    first = exams[0]
    names = tuple(zone.name for zone in first.zones)
    return Course(first.protocol, first.labels, names, tuple(columns))


def told(course: Course) -> list[str]:
    """A course as a table of text: a line a zone, a column an exam."""
    head = [_told_day(column.started) for column in course.columns]
    signed = ["" if column.signed else "not signed" for column in course.columns]
    body = [
        [_told_cell(column.cells[place], course.protocol) for column in course.columns]
        for place in range(len(course.zones))
    ]
    totals = [f"{column.total} over {column.scored}" if column.total else "-" for column in course.columns]
    last = [] if course.protocol == PICTURE else [["total", *totals]]
    lines = [["", *head], ["", *signed]]
    lines += [[name, *cells] for name, cells in zip(course.zones, body, strict=True)]
    lines += last
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    padded = ("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
    return [f"{course.protocol}, {', '.join(course.labels)}", *padded]


def _told_day(stamp: Stamp) -> str:
    return stamp.wall[:16].replace("T", " ") + ("" if stamp.verified else " ?")


def _told_cell(cell: Cell, protocol: str) -> str:
    state = {UNCERTAIN: "cannot tell", NOT_SCANNED: "not scanned"}.get(cell.state, cell.state)
    # The score is one of lung ultrasound; an X-ray has none.
    score = "" if cell.score is None or protocol == PICTURE else f" {cell.score}"
    whose = "*" if cell.by_clinician else ""
    return f"{' ' if cell.change is None else SIGNS[cell.change]} {state}{score}{whose}"

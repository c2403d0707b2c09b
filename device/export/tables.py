"""Exams as JSON and CSV. The fields are described in docs/export.md; their names stay."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from typing import Any

from device.exams.exam import Clip, Exam, HumanReading, Score, Stamp, Zone

SCHEMA = 1
"""Of the JSON; raised when a field changes its meaning or goes, not when one is added."""
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the beginning of a formula (OWASP, CSV injection)."""

ZONE_COLUMNS = (
    "exam", "started", "time_verified", "signed", "signed_by", "site", "operator", "patient_code",
    "patient_name", "protocol", "zone", "state", "score_low", "score_high", "clips", "network_state",
    "network_p_finding", "network_patterns", "network", "clinician_state", "clinician_grade",
    "clinician_accepted", "clinician_by", "clinician_comment",
)  # fmt: skip
CLIP_COLUMNS = (
    "exam", "zone", "clip", "taken", "time_verified", "seconds", "frames", "automatic", "state", "p_finding",
    "patterns", "key_frame", "network", "sha256",
)  # fmt: skip


def exam_json(exam: Exam) -> str:
    """One exam with everything in it but the pictures."""
    return json.dumps(exam_table(exam), indent=2, ensure_ascii=False) + "\n"


def exam_table(exam: Exam) -> dict[str, Any]:
    """The same as plain values."""
    summary = exam.summary
    return {
        "schema": SCHEMA,
        "notice": "For research use only. Not a medical device.",
        "id": exam.id,
        "protocol": exam.protocol,
        "site": exam.site,
        "operator": exam.operator,
        "patient": {"code": exam.patient.code, "name": exam.patient.name},
        "labels": list(exam.labels),
        "negative": exam.negative,
        "started": _stamp(exam.started),
        "signed": None if exam.signed is None else _stamp(exam.signed) | {"by": exam.signed_by},
        "comment": exam.comment,
        "summary": {
            "zones": summary.zones,
            "scored": summary.scored,
            "not_scanned": summary.not_scanned,
            "cannot_tell": summary.cannot_tell,
            "findings": summary.findings,
            "total": _score(summary.total),
            "worst": _score(summary.worst),
        },
        "zones": [_zone(zone, exam.negative) for zone in exam.zones],
    }


def _zone(zone: Zone, negative: str) -> dict[str, Any]:
    worst = zone.worst(negative)
    return {
        "name": zone.name,
        "state": zone.state(negative),
        "score": _score(zone.score(negative)),
        "network_state": zone.network_state(negative),
        "worst_clip": None if worst is None else worst.id,
        "clips": [_clip(clip) for clip in zone.clips],
        "readings": [_reading(reading) for reading in zone.readings],
    }


def _clip(clip: Clip) -> dict[str, Any]:
    return {
        "id": clip.id,
        "file": clip.file,
        "sha256": clip.sha256,
        "taken": _stamp(clip.taken),
        "automatic": clip.automatic,
        "times": list(clip.times),
        "beam": None if clip.beam is None else clip.beam.to_json(),
        "reading": {
            "state": clip.reading.state,
            "p": None if clip.reading.p is None else dict(clip.reading.p),
            "patterns": dict(clip.reading.patterns),
            "key_frame": clip.reading.key_frame,
            "class_map": [list(row) for row in clip.reading.class_map],
            "network": clip.reading.bundle,
        },
    }


def _reading(reading: HumanReading) -> dict[str, Any]:
    return {
        "state": reading.state,
        "grade": reading.grade,
        "accepted": reading.accepted,
        "by": reading.by,
        "comment": reading.comment,
        "at": _stamp(reading.at),
    }


def _stamp(stamp: Stamp) -> dict[str, Any]:
    return {
        "time": stamp.wall,
        "verified": stamp.verified,
        "boot": stamp.boot,
        "uptime": stamp.uptime,
        "sequence": stamp.sequence,
    }


def _score(score: Score | None) -> dict[str, int] | None:
    return None if score is None else {"low": score.low, "high": score.high}


def zones_csv(exams: Iterable[Exam]) -> str:
    """A row a zone of each exam, after a row of ``ZONE_COLUMNS``."""
    return as_csv(ZONE_COLUMNS, (row for exam in exams for row in _zone_rows(exam)))


def clips_csv(exams: Iterable[Exam]) -> str:
    """A row a clip of each exam, after a row of ``CLIP_COLUMNS``."""
    return as_csv(CLIP_COLUMNS, (row for exam in exams for row in _clip_rows(exam)))


def _zone_rows(exam: Exam) -> Iterable[Sequence[object]]:
    for zone in exam.zones:
        score, human, worst = zone.score(exam.negative), zone.human, zone.worst(exam.negative)
        yield (
            exam.id, exam.started.wall, exam.started.verified, exam.signed is not None, exam.signed_by,
            exam.site, exam.operator, exam.patient.code, exam.patient.name, exam.protocol, zone.name,
            zone.state(exam.negative), *((None, None) if score is None else (score.low, score.high)),
            len(zone.clips), zone.network_state(exam.negative),
            *((None, None, None) if worst is None else _network(worst, exam.negative)),
            *((None,) * 5 if human is None else
              (human.state, human.grade, human.accepted, human.by, human.comment)),
        )  # fmt: skip


def _clip_rows(exam: Exam) -> Iterable[Sequence[object]]:
    for zone in exam.zones:
        for clip in zone.clips:
            p, patterns, network = _network(clip, exam.negative)
            yield (
                exam.id, zone.name, clip.id, clip.taken.wall, clip.taken.verified, clip.seconds, clip.frames,
                clip.automatic, clip.reading.state, p, patterns, clip.reading.key_frame, network, clip.sha256,
            )  # fmt: skip


def _network(clip: Clip, negative: str) -> tuple[float | None, str, str]:
    """Probability of a finding, patterns and network of a clip's reading."""
    reading = clip.reading
    p = None if reading.p is None else round(1 - reading.p[negative], 4)
    return p, " ".join(f"{name}={value:.4f}" for name, value in reading.patterns.items()), reading.bundle


def as_csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table after RFC 4180. Nothing for None, ``yes`` and ``no``; text that a spreadsheet would take for a
    formula begins with an apostrophe."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\r\n")
    writer.writerow(columns)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return file.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str) and value.startswith(FORMULA_STARTS):
        return "'" + value
    return "" if value is None else value

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import pytest

from device.exams.exam import ClipReading, Exam, Patient
from device.exams.store import Store
from device.export.tables import CLIP_COLUMNS, SCHEMA, ZONE_COLUMNS, as_csv, clips_csv, exam_json, zones_csv

from .samples import small_exam, small_recording


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def read_exam(store: Store) -> Exam:
    exam = small_exam(store, 0, signed=False)
    reading = ClipReading(
        "opacity", {"normal": 0.3, "opacity": 0.7}, 2, ((0.5,),), {"B-lines": 0.66}, "net 1 ab"
    )
    store.add_clip(exam.id, "right-upper", small_recording(store.folder, 3), reading)
    store.add_reading(exam.id, "right-upper", "normal", None, "first", "Dr Achieng", False)
    store.add_reading(exam.id, "right-upper", "opacity", 2, "after all, see\nbelow", "Dr Mwangi", True)
    store.describe(exam.id, "Dr Mwangi", comment="coughs")
    return store.sign(exam.id, "Dr Mwangi")


def test_json_has_everything_that_the_store_has(store: Store) -> None:
    exam = read_exam(store)
    table = json.loads(exam_json(exam))
    assert table["schema"] == SCHEMA
    assert (table["id"], table["protocol"], table["site"], table["operator"]) == (
        exam.id, "blue-6", "Kisumu", "J. Otieno",
    )  # fmt: skip
    assert table["patient"] == {"code": "17-0042", "name": "Ada Lovelace"}
    assert table["comment"] == "coughs"
    assert table["signed"]["by"] == "Dr Mwangi"
    assert table["started"] == {
        "time": exam.started.wall,
        "verified": exam.started.verified,
        "boot": exam.started.boot,
        "uptime": exam.started.uptime,
        "sequence": exam.started.sequence,
    }
    assert table["summary"] == {
        "zones": 6, "scored": 2, "not_scanned": 4, "cannot_tell": 0, "findings": 2,
        "total": {"low": 3, "high": 5}, "worst": {"low": 2, "high": 3},
    }  # fmt: skip
    assert [zone["name"] for zone in table["zones"]] == [zone.name for zone in exam.zones]
    zone = table["zones"][0]
    assert zone["score"] == {"low": 2, "high": 2}
    assert zone["worst_clip"] == exam.zones[0].clips[1].id
    assert [reading["comment"] for reading in zone["readings"]] == ["first", "after all, see\nbelow"]
    clip, kept = zone["clips"][1], exam.zones[0].clips[1]
    assert (clip["file"], clip["sha256"], clip["times"]) == (kept.file, kept.sha256, list(kept.times))
    assert clip["reading"]["p"] == {"normal": 0.3, "opacity": 0.7}
    assert clip["reading"]["patterns"] == {"B-lines": 0.66}
    assert clip["reading"]["class_map"] == [[0.5]]
    assert table["zones"][2]["network_state"] == "not-scanned"
    assert table["zones"][2]["score"] is None


def test_a_row_a_zone_of_many_exams(store: Store) -> None:
    exams = [read_exam(store), small_exam(store, 9, patient=Patient(), signed=False)]
    table = rows(zones_csv(exams))
    assert [(row["exam"], row["zone"]) for row in table] == [
        (exam.id, zone.name) for exam in exams for zone in exam.zones
    ]
    first, second, third = table[:3]
    assert tuple(first) == ZONE_COLUMNS
    assert (first["state"], first["score_low"], first["score_high"], first["clips"]) == (
        "opacity",
        "2",
        "2",
        "2",
    )
    assert (first["network_p_finding"], first["network_patterns"]) == ("0.7", "B-lines=0.6600")
    assert (first["clinician_grade"], first["clinician_accepted"]) == ("2", "yes")
    assert first["clinician_comment"] == "after all, see\nbelow"
    assert (second["score_low"], second["score_high"], second["clinician_state"]) == ("1", "3", "")
    assert (third["network_state"], third["score_low"], third["network_p_finding"]) == ("not-scanned", "", "")
    assert {row["signed"] for row in table} == {"yes", "no"}


def test_a_row_a_clip(store: Store) -> None:
    exam = read_exam(store)
    table = rows(clips_csv([exam]))
    assert tuple(table[0]) == CLIP_COLUMNS
    assert [row["clip"] for row in table] == [clip.id for zone in exam.zones for clip in zone.clips]
    assert table[1]["p_finding"] == "0.7"
    assert table[1]["frames"] == "4"


@pytest.mark.parametrize(
    "text", ['=HYPERLINK("http://x","y")', "+1", "-1+cmd|' /C calc'!A0", "@SUM(A1)", "\t=1", "\r=1"]
)
def test_no_cell_is_a_formula(store: Store, text: str) -> None:
    exam = replace(
        small_exam(store, 0), patient=Patient(text, text), operator=text, site=text, signed_by=text
    )
    row = rows(zones_csv([exam]))[0]
    for column in ("patient_code", "patient_name", "operator", "site", "signed_by"):
        assert row[column] == "'" + text


def test_numbers_below_nothing_stay_numbers() -> None:
    assert as_csv(("a", "b"), [(-1.5, "-1.5")]) == "a,b\r\n-1.5,'-1.5\r\n"

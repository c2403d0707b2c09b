"""The worklist of a real store: what stands first, and the reason that is told."""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from device.exams.advice import load_advice
from device.exams.exam import Stamp
from device.exams.store import Store
from device.worklist import urgency
from device.worklist.csv_file import to_csv, write_csv
from device.worklist.urgency import Row, by_urgency, csv_rows, present, rows, told_span, waiting
from tests.device.worklist.making import BLUE, at, exam, keep

ALL_NORMAL = dict.fromkeys(BLUE, "normal")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "store", owner=True)
    yield store
    store.close()


def listed(store: Store) -> list[Row]:
    return rows(store.exams(limit=None), store.exam, load_advice(), present())


def test_unsigned_and_findings_stand_first_and_the_longest_waiting_of_equals(store: Store) -> None:
    normal = keep(store, ALL_NORMAL)
    signed = keep(store, {"right-upper": "opacity", "left-upper": "opacity"})
    store.sign(signed, "dr")
    untold = keep(store, {"right-upper": "uncertain"})
    one = keep(store, {**ALL_NORMAL, "right-upper": "opacity"})
    same_later = keep(store, {**ALL_NORMAL, "right-upper": "opacity"})
    likelier = keep(store, {**ALL_NORMAL, "right-upper": "opacity"}, p=0.99)
    two = keep(store, {"right-upper": "opacity", "left-upper": "opacity"})
    nothing = keep(store, {})
    severe = keep(store, {"right-upper": "opacity"})
    store.add_reading(severe, "right-upper", "opacity", 3, "", "dr", False)
    order = [severe, two, likelier, one, same_later, untold, normal, nothing, signed]
    assert [row.line.id for row in listed(store)] == order
    assert [row.level for row in listed(store)] == [
        "severe", "finding", "finding", "finding", "finding", "cannot-tell", "normal", "nothing", "finding",
    ]  # fmt: skip


def test_the_order_does_not_depend_on_the_order_in_which_exams_come(store: Store) -> None:
    chance = random.Random(3)
    for _ in range(12):
        keep(store, {chance.choice(BLUE): chance.choice(["normal", "opacity", "uncertain"])})
    lines = store.exams(limit=None)
    first = by_urgency(lines)
    for _ in range(5):
        chance.shuffle(lines)
        assert by_urgency(lines) == first


def test_the_reason_says_what_was_read_where_and_for_how_long_it_waits(store: Store) -> None:
    found = keep(
        store, {**ALL_NORMAL, "right-upper": "opacity", "left-upper": "opacity", "left-lower": "uncertain"}
    )
    line = store.exams()[0]
    later = replace(line.started, uptime=line.started.uptime + 3 * 3600 + 60)
    (row,) = rows([line], store.exam, load_advice(), later)
    assert row.reason == "opacity in 2 of 6 zones, both sides, cannot tell in 1; unsigned for 3 h"
    assert [advice.key for advice in row.next][:1] == ["both-sides"]
    store.sign(found, "Dr. A")
    assert listed(store)[0].reason.endswith("; signed by Dr. A")


@pytest.mark.parametrize(
    ("read", "grades", "told"),
    [
        ({}, {}, "nothing scanned"),
        (ALL_NORMAL, {}, "normal in 6 of 6 zones"),
        ({"left-upper": "normal"}, {}, "normal in 1 of 6 zones, not scanned in 5"),
        (
            {"left-upper": "opacity"},
            {"left-upper": 2},
            "opacity in 1 of 6 zones, left side, worst grade 2, not scanned in 5",
        ),
        ({"left-upper": "no-contact"}, {}, "cannot tell in 1, not scanned in 5"),
    ],
)
def test_what_was_read_in_one_phrase(read: dict[str, str], grades: dict[str, int], told: str) -> None:
    assert urgency.what_was_read(exam(read, grades)) == told


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ("opacity", "opacity"),
        ("normal", "normal"),
        ("uncertain", "cannot tell"),
        ("not-lung", "no reading, not-lung"),
    ],
)
def test_a_picture_says_what_it_is_or_why_it_was_not_read(state: str, told: str) -> None:
    assert urgency.what_was_read(exam({"picture": state}, protocol="picture")) == told


def test_a_wrong_clock_does_not_make_up_a_waiting_time() -> None:
    before = Stamp(1, "this boot", 50.0, "2031-01-01T00:00:00.000+00:00", False)
    assert waiting(before, Stamp(2, "this boot", 80.0, "1970-01-01T00:00:00.000+00:00", False)) == 30.0
    assert waiting(before, Stamp(2, "next boot", 80.0, "2031-01-02T00:00:00.000+00:00", True)) is None
    day = waiting(at(1, "2026-11-20T09:00:00.000+00:00"), replace(at(2), boot="next boot"))
    assert day == 86400.0
    assert [told_span(x) for x in (5, 65, 7300, 200_000)] == ["less than 1 min", "1 min", "2 h", "2 d"]


def test_pages_follow_one_another(store: Store) -> None:
    for _ in range(5):
        keep(store, {"right-upper": "opacity"})
    lines, table, now = store.exams(limit=None), load_advice(), present()
    whole = rows(lines, store.exam, table, now, limit=None)
    assert whole[2:4] == rows(lines, store.exam, table, now, offset=2, limit=2)
    assert [row.place for row in whole] == [1, 2, 3, 4, 5]


def test_only_the_exams_of_a_page_are_loaded(store: Store) -> None:
    for _ in range(5):
        keep(store, {"right-upper": "opacity"})
    looked: list[str] = []

    def look(exam_id: str) -> urgency.Exam:
        looked.append(exam_id)
        return store.exam(exam_id)

    rows(store.exams(limit=None), look, load_advice(), present(), limit=2)
    assert len(looked) == 2


def test_the_csv_has_the_code_but_no_name_and_no_formula(store: Store, tmp_path: Path) -> None:
    found = keep(store, {"right-upper": "opacity"}, patient='=HYPERLINK("x")')
    store.describe(found, "dr", replace(store.exam(found).patient, name="Ada Lovelace"))
    write_csv(tmp_path / "list.csv", urgency.HEADER, csv_rows(listed(store)))
    text = (tmp_path / "list.csv").read_text(encoding="utf-8")
    (row,) = csv.DictReader(io.StringIO(text))
    assert row["exam"] == found
    assert row["patient"] == '\'=HYPERLINK("x")'
    assert (row["findings"], row["score from"], row["score to"], row["signed"]) == ("1", "1", "3", "False")
    assert "Lovelace" not in text
    assert to_csv(("a",), [(None,), (-1,)]) == 'a\r\n""\r\n-1\r\n'

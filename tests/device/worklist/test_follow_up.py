"""One patient over days: what is called better or worse, and what is not compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from device.exams.exam import Score
from device.exams.store import Store
from device.worklist.follow_up import compare, follow_up, told
from tests.device.worklist.making import at, exam, keep

ZERO, ONE, TWO, SPAN = Score(0, 0), Score(1, 1), Score(2, 2), Score(1, 3)


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        (ZERO, SPAN, "worse"),
        (SPAN, ZERO, "better"),
        (TWO, ONE, "better"),
        (ONE, TWO, "worse"),
        (ZERO, ZERO, "same"),
        (TWO, TWO, "same"),
        (SPAN, SPAN, "cannot tell"),
        (SPAN, ONE, "cannot tell"),
        (TWO, SPAN, "cannot tell"),
        (None, ZERO, "not compared"),
        (SPAN, None, "not compared"),
    ],
)
def test_a_change_is_named_only_where_the_scores_allow_no_other_order(
    before: Score | None, after: Score | None, change: str
) -> None:
    assert compare(before, after) == change


def test_zones_over_days_side_by_side() -> None:
    days = [
        exam(
            {"right-upper": "opacity", "left-upper": "normal"}, stamp=at(1, "2026-11-18T09:00:00.000+00:00")
        ),
        exam({"right-upper": "uncertain"}, stamp=at(2, "2026-11-19T09:00:00.000+00:00", verified=False)),
        exam({"right-upper": "normal", "left-upper": "opacity"}, {"left-upper": 2}, stamp=at(3)),
    ]
    (course,) = follow_up(reversed(days))
    assert course.changes("right-upper") == ("not compared", "better")
    assert course.changes("left-upper") == ("not compared", "worse")
    assert course.changes("left-lower") == ("not compared", "not compared")
    lines = told(course)
    assert lines[1].split() == ["2026-11-18", "09:00", "2026-11-19", "09:00", "?", "2026-11-21", "09:00"]
    (right,) = [line for line in lines if line.startswith("right-upper")]
    assert right.split() == ["right-upper", "opacity", "1-3", "cannot", "tell", "-", "normal", "0"]
    (left,) = [line for line in lines if line.startswith("left-upper")]
    assert left.split() == ["left-upper", "normal", "0", "not", "scanned", "+", "opacity", "2*"]
    assert lines[-1].split() == ["total", "1-3", "over", "2", "-", "2", "over", "2"]


def test_the_order_is_the_stores_not_the_clocks() -> None:
    set_back = exam({"right-upper": "normal"}, stamp=at(2, "1970-01-01T00:00:00.000+00:00", verified=False))
    (course,) = follow_up([set_back, exam({"right-upper": "opacity"}, stamp=at(1))])
    assert course.changes("right-upper") == ("better",)


def test_other_protocols_and_labels_are_not_compared() -> None:
    lung = exam({"right-upper": "opacity"}, stamp=at(1))
    twelve = exam({"right-upper": "normal"}, protocol="zones-12", stamp=at(2))
    other_labels = replace(exam({"right-upper": "normal"}, stamp=at(3)), labels=("normal", "pneumonia"))
    found = follow_up([lung, twelve, other_labels])
    assert [len(course.columns) for course in found] == [1, 1, 1]
    assert found[0].labels == ("normal", "pneumonia")


def test_an_x_ray_has_no_score_of_lung_ultrasound() -> None:
    (course,) = follow_up([exam({"picture": "opacity"}, protocol="picture")])
    assert "1-3" not in "\n".join(told(course))


def test_only_exams_of_that_patient_are_followed(tmp_path: Path) -> None:
    store = Store(tmp_path, owner=True)
    mine = [keep(store, {"right-upper": state}, "17") for state in ("normal", "opacity")]
    keep(store, {"right-upper": "normal"}, "171")
    (course,) = follow_up(store.exam(line.id) for line in store.exams(patient="17"))
    store.close()
    assert [column.exam for column in course.columns] == mine
    assert course.changes("right-upper") == ("worse",)

"""Counts by day and site of a real store, agreement, and when the drift monitor speaks."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from device.exams.store import Store
from device.worklist.csv_file import to_csv
from device.worklist.trends import (
    BEFORE,
    HEADER,
    RECENT,
    Counted,
    Tally,
    count,
    csv_rows,
    drifts,
    trends,
    wilson,
)
from tests.device.worklist.making import at, exam, keep


def test_clips_zones_and_edits_are_counted_as_they_are(tmp_path: Path) -> None:
    store = Store(tmp_path, owner=True)
    found = keep(
        store,
        {
            "right-upper": "normal",
            "right-lower": "opacity",
            "left-upper": "uncertain",
            "left-lower": "no-beam",
        },
        site="ward",
    )
    store.add_reading(found, "right-upper", "opacity", 1, "", "dr", False)
    store.add_reading(found, "right-lower", "opacity", None, "", "dr", True)
    store.add_reading(found, "left-upper", "normal", None, "", "dr", False)
    store.add_reading(found, "left-plaps", "normal", None, "never scanned by the box", "dr", False)
    store.sign(found, "dr")
    keep(store, {"right-upper": "normal"}, site="clinic")
    result = trends(count(store.exam(line.id)) for line in store.exams(limit=None))
    store.close()
    assert result.sites["ward"] == Tally(
        exams=1, signed=1, clips=4, normal=1, findings=1, abstained=1, unread=1,
        human=3, accepted=1, edited=2, both=2, agreed=1,
    )  # fmt: skip
    assert result.sites["clinic"].exams == 1
    lines = list(csv.DictReader(io.StringIO(to_csv(HEADER, csv_rows(result)))))
    assert {(line["site"], line["clips"], line["read otherwise"]) for line in lines} == {
        ("ward", "4", "2"),
        ("clinic", "1", "0"),
    }


def test_days_of_a_clock_that_was_not_verified_stand_apart() -> None:
    day = "2026-11-21T09:00:00.000+00:00"
    exams = [exam({"right-upper": "normal"}, stamp=at(n, day, verified=n < 3)) for n in (1, 2, 3)]
    days = trends(map(count, exams)).days
    assert {key[:2]: tally.exams for key, tally in days.items()} == {
        ("2026-11-21", True): 2,
        ("2026-11-21", False): 1,
    }


def counted(number: int, abstained: int, clips: int = 6, bundle: str = "net 1") -> Counted:
    tally = Tally(exams=1, clips=clips, normal=clips - abstained, abstained=abstained)
    return Counted(number, "2026-11-21", True, "ward", frozenset({bundle}), tally)


def steady(exams: int) -> list[Counted]:
    """One abstention in every second exam."""
    return [counted(number, number % 2) for number in range(exams)]


def changed(exams: int, bundle: str = "net 1") -> list[Counted]:
    """Four times as many."""
    return [counted(number + 1000, 2, bundle=bundle) for number in range(exams)]


def test_a_change_beyond_chance_is_said_in_words() -> None:
    (abstained, finding) = drifts("ward", steady(BEFORE) + changed(RECENT))
    assert abstained.alarm
    assert abstained.told().startswith(
        "ward: The network could not tell in 33 % of the clips of the last 50 exams, 8 % in the 200 before:"
        " BEYOND CHANCE (p 0.0001)"
    )
    assert "what changed" in abstained.told()
    assert not finding.alarm


def test_a_new_network_is_named_as_what_changed() -> None:
    (abstained, _) = drifts("ward", steady(BEFORE) + changed(RECENT, "net 2"))
    assert "a new network reads" in abstained.told()


def test_nothing_changed_is_within_chance() -> None:
    (abstained, _) = drifts("ward", steady(BEFORE + RECENT))
    assert not abstained.alarm
    assert "within chance" in abstained.told()


def test_the_monitor_looks_once_a_block_and_needs_two() -> None:
    history = steady(BEFORE) + changed(RECENT)
    assert drifts("ward", steady(2 * RECENT - 1)) == []
    before_it_is_full = drifts("ward", history[:-1])
    assert before_it_is_full == drifts("ward", history[:BEFORE])
    assert drifts("ward", history) == drifts("ward", history + steady(RECENT - 1))


def test_clips_of_one_exam_do_not_count_as_independent() -> None:
    # 10 of the last 50 exams abstained in all of their 6 clips, 20 of the 200 before: as clips, that is
    # 60 of 300 against 120 of 1200, far beyond chance; as exams it is not.
    before = [counted(number, 6 * (number % 10 == 0)) for number in range(BEFORE)]
    lately = [counted(number + 1000, 6 * (number % 5 == 0)) for number in range(RECENT)]
    (abstained, _) = drifts("ward", before + lately)
    assert abstained.recent == (60, 300)
    assert abstained.before == (120, 1200)
    assert not abstained.alarm


def test_sites_are_watched_one_by_one() -> None:
    elsewhere = [Counted(x.sequence, x.day, True, "other", x.bundles, x.tally) for x in steady(2 * RECENT)]
    found = trends(steady(BEFORE) + changed(RECENT) + elsewhere).drifts
    assert {(drift.site, drift.measure, drift.alarm) for drift in found} == {
        ("ward", "abstained", True),
        ("ward", "finding", False),
        ("other", "abstained", False),
        ("other", "finding", False),
    }


@pytest.mark.parametrize(
    ("hits", "of", "interval"), [(0, 0, (0.0, 1.0)), (0, 10, (0.0, 0.2775)), (5, 10, (0.2366, 0.7634))]
)
def test_wilson_intervals(hits: int, of: int, interval: tuple[float, float]) -> None:
    assert wilson(hits, of) == pytest.approx(interval, abs=1e-4)

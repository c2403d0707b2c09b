"""The power is cut while an exam is written, on a real kernel's ext4: some cuts of many.

All of them: ``python -m tests.vm.power_cut FOLDER``.
"""

from __future__ import annotations

import os

import pytest

from tests.vm.power_cut import Log, judge, record, summary

pytestmark = pytest.mark.vm
BOUNDARIES = REORDERINGS = 8


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    """Every write of one exam, from one boot."""
    results = tmp_path_factory.mktemp("power") / "results"
    try:
        record(results, exams=1)
    except LookupError as error:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"no virtual machine here: {error}")
    return Log(results)


def test_what_was_acknowledged_survives_a_power_cut(log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    boundaries = log.boundaries()
    cuts = boundaries[:: len(boundaries) // BOUNDARIES] + log.reorderings(REORDERINGS)
    outcomes = [judge(cut, disk, log.states(cut)) for cut, disk in log.disks(cuts)]
    assert not [outcome for outcome in outcomes if outcome.lost or outcome.troubles]
    assert sum(outcome.acknowledged for outcome in outcomes) > 10 * len(outcomes)
    with capsys.disabled():
        print(f"\n  {summary(outcomes)}", end=" ")


def test_a_disk_that_did_not_keep_what_it_said_it_had_is_noticed(log: Log) -> None:
    """Or else the test above would show nothing."""
    boundaries = log.boundaries()
    before, after = boundaries[len(boundaries) // 3], boundaries[len(boundaries) // 2]
    ((_, disk),) = log.disks([before])
    outcome = judge(before, disk, log.states(after))
    assert outcome.lost
    assert outcome.troubles == ["the store shows a state that never was"]

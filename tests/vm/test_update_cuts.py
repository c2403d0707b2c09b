"""The power is cut while the box is updated, on a real kernel's ext4: a few cuts of many.

More of them: ``python -m tests.vm.update_cuts FOLDER``.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.vm.power_cut import Log, record_from
from tests.vm.update_cuts import WRITER, cuts_of, judge, summary

pytestmark = pytest.mark.vm


def test_after_a_power_cut_the_old_release_starts_or_the_new_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        record_from(WRITER, tmp_path / "results")
    except LookupError as error:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"no virtual machine here: {error}")
    log = Log(tmp_path / "results")
    outcomes = list(judge(log, cuts_of(log, 3)))
    assert not [outcome for outcome in outcomes if outcome.troubles]
    with capsys.disabled():
        print(f"\n  {summary(outcomes)}", end=" ")

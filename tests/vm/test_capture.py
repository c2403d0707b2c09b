"""Capture and console panel on a real kernel: one boot of a virtual machine, a test for each thing seen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.hil.options import PART
from tests.vm.machine import boot, find_kernel

pytestmark = [pytest.mark.vm, pytest.mark.hil]
ROOT = Path(__file__).parent.parent.parent
LIMIT = 900
"""Seconds of a boot with all its scenarios: several times what it takes beside other work, and room for some
that wait in vain."""
SHOWN = [
    "frames come in the mode asked for",
    "the kernel's own times are kept",
    "frames flagged as errors are left out and counted",
    "dropped frames are counted",
    "a device that opens and gives nothing",
    "a disconnected device comes back",
    "a fatal streaming error is survived",
    "a hung driver is named, killed and replaced",
    "a killed process gives the device back",
    "a device that another program holds",
    "no signal at a digital input",
    "no lock at a digital input",
    "timings out of range",
    "the picture changes its size midway",
    "no signal at an analog input",
    "no lock at an analog input",
    "a grabber that is put in later is found by VID:PID",
    "a node that gives no video",
    "pictures cut short are left out and named",
    "a USB grabber that gives nothing",
    "pulled and put in 20 times",
    "two grabbers of one number are told apart",
    "a stable name holds when the node's number changes",
    "compressed where raw frames come too slowly",
    "another mode than asked for is read back",
    "a device that may not be opened",
    "nothing is written to a port on which no panel has spoken",
    "a panel is found by its USB name",
    "a panel pulled and put in 5 times, every press told once",
]


@dataclass
class Played:
    """What came out of the machine: measurements by scenario, and what went wrong."""

    measured: dict[str, dict[str, Any]]
    failed: str


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    """All scenarios, played in one boot."""
    try:
        version = find_kernel()
    except LookupError as error:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"no virtual machine here: {error}")
    folder = tmp_path_factory.mktemp("machine")
    command = ["env", "PYTHONDONTWRITEBYTECODE=1", sys.executable, "-m", "tests.vm.scenarios", "/dev/ttyS1"]
    failed = ""
    try:
        boot(folder, version, ROOT, command, LIMIT)
    except subprocess.TimeoutExpired:
        failed = f"the machine was not through after {LIMIT} s\n"
    # A machine that was ended may have been within a line.
    lines = (folder / "results").read_text().splitlines(keepends=True)
    results = [json.loads(line) for line in lines if line.endswith("\n")]
    failed += "".join(result["failed"] for result in results if "failed" in result)
    if not results or results[-1].get("name") != "end":
        failed += (folder / "console").read_text(errors="replace")[-4000:]
    return Played({r["name"]: r.get("measured", {}) for r in results if "name" in r}, failed)


@pytest.mark.parametrize("name", SHOWN)
def test_on_a_real_kernel(
    name: str,
    played: Played,
    capsys: pytest.CaptureFixture[str],
    record_property: Callable[[str, object], None],
) -> None:
    record_property(PART, "USB plugs: simulated, by a virtual machine's kernel")
    assert name in played.measured, f"it did not come to this: {played.failed}"
    with capsys.disabled():
        print(f"\n  {name}: {json.dumps(played.measured[name])}", end=" ")


def test_nothing_else_went_wrong(played: Played) -> None:
    assert not played.failed
    assert list(played.measured) == [*SHOWN, "end"]

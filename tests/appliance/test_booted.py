"""The essentials of a booted box; the figures are printed by ``python -m tests.appliance.booted``."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.appliance.booted import (
    HANGS,
    LUNG_CONFIG,
    SERVICE,
    Box,
    booted,
    exposures,
    hang,
    two_clips,
    until,
)

ASK = "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8700/', timeout=30)"

pytestmark = pytest.mark.appliance


@pytest.fixture(scope="module")
def box(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    with booted(root, LUNG_CONFIG, tmp_path_factory.mktemp("box"), planted=True) as box:
        until(box.reads, "the first reading")
        yield box


def test_what_is_wanted_runs_and_nothing_has_failed(box: Box) -> None:
    assert box.show(SERVICE, "ActiveState") == "active"
    assert box.show("sonoglance-web.service", "ActiveState") == "active"
    for unit in ("send", "fleet"):
        assert box.show(f"sonoglance-{unit}.service", "ActiveState") == "inactive", "nobody asked for it"
    assert box.say("systemctl", "--failed", "--plain", "--no-legend") == ""
    # It answers, and lets no stranger in.
    until(lambda: "401" in box.call("python3", "-c", ASK).stderr, "the page")
    assert box.health()["display"] == "window"


def test_no_unit_has_rights_that_it_does_not_need(box: Box) -> None:
    figures = exposures(box)
    assert max(figures.values()) <= 2.0, figures


def test_rules_and_limits_are_understood(box: Box) -> None:
    said = box.call("udevadm", "test", "/sys/devices/virtual/mem/null")
    assert "90-sonoglance.rules" in said.stderr
    assert not [line for line in said.stderr.splitlines() if "90-sonoglance.rules:" in line]
    for name in ("journald", "sleep", "system"):
        assert "sonoglance.conf" in box.say("systemd-analyze", "cat-config", f"systemd/{name}.conf")


@pytest.mark.parametrize("name", list(HANGS))
def test_a_hang_ends_and_the_exam_goes_on(box: Box, name: str) -> None:
    box.path("/run/sonoglance.starts").unlink(missing_ok=True)
    hang(box, name)


def test_a_release_that_fails_is_taken_back_and_the_units_with_it(box: Box) -> None:
    home = box.path("/opt/sonoglance")
    old = (home / "current").readlink().name
    program = home / "programs" / "9.9.9"
    (program / "bin").mkdir(parents=True)
    shutil.copytree(home / "programs" / old / "box", program / "box")
    command = program / "bin" / "sonoglance"
    command.write_text("#!/bin/sh\nexit 1\n")
    command.chmod(0o755)
    unit = program / "box" / "units" / SERVICE
    unit.write_text(unit.read_text().replace("the bedside reader", "the broken reader"))
    (program / "complete").touch()
    release = home / "releases" / "9.9.9"
    release.mkdir()
    (release / "program").symlink_to("../../programs/9.9.9")
    (home / "trial").write_text(f"from={old}\nto=9.9.9\nstarts=0\n")
    (home / "current").unlink()
    (home / "current").symlink_to("releases/9.9.9")
    switched = time.monotonic()
    box.say("/opt/sonoglance/launch", "switched")
    until(lambda: not (home / "trial").exists(), "the roll-back")
    until(lambda: box.reads(switched) and box.health()["release"] == old, "the old release reads")
    assert (home / "current").readlink().name == old
    assert '"rolled-back", "from": "9.9.9"' in (home / "history.jsonl").read_text()
    until(lambda: "the bedside reader" in box.show(SERVICE, "Description"), "the old unit")


def test_on_a_read_only_root_the_exam_comes_through_a_power_cut(root: Path, tmp_path: Path) -> None:
    state, programs = tmp_path / "state", tmp_path / "programs"
    state.mkdir()
    shutil.copytree(root / "opt" / "sonoglance", programs, symlinks=True)
    binds = (f"--bind={state}:/var/lib/sonoglance", f"--bind={programs}:/opt/sonoglance")
    first = Box(root, LUNG_CONFIG, tmp_path / "first", *binds, planted=True)
    try:
        clips, exam = two_clips(first), first.sonoglance("exam", "list").split()[0]
    finally:
        first.end(power_cut=True)
    with booted(root, LUNG_CONFIG, tmp_path / "second", *binds, planted=True) as second:
        until(second.reads, "the first reading")
        assert clips.items() <= second.clips().items()
        assert second.sonoglance("exam", "list").split()[0] == exam
        assert second.health()["busy"]

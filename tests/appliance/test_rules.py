"""The box's rules of udev, on devices that a real kernel finds: one boot of a virtual machine."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, need
from tests.vm.machine import boot

pytestmark = pytest.mark.appliance
LIMIT = 290


def test_what_is_plugged_in_has_its_name_and_is_left_alone(kernel: str, tmp_path: Path) -> None:
    need(shutil.which("mkfs.vfat"), "mkfs.vfat", "dosfstools")
    play = [sys.executable, "-B", "-m", "tests.appliance.plugged", "/dev/ttyS1"]
    boot(tmp_path, kernel, ROOT, play, LIMIT)
    said = (tmp_path / "results").read_text()
    assert said, (tmp_path / "console").read_text()[-2000:]
    seen = json.loads(said)
    assert len(seen) == 9
    assert all(seen.values()), [what for what, right in seen.items() if not right]

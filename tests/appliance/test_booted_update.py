"""Updates of a booted box by its own units: one that is kept, and one that does not come up."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.appliance.booted import LUNG, SERVICE, Box, booted, until
from tests.device.boxes import Payload, Workshop

pytestmark = pytest.mark.appliance
STICK_UNIT = "sonoglance-stick@test.service"
FOLDER_FOR_STICK = """[Service]
ExecCondition=
ExecStart=
ExecStart=/opt/sonoglance/current/program/bin/sonoglance update stick /stick
ExecStopPost=
"""
"""A container has no disks, and its systemd waits in vain for one: the unit looks into a folder, with
all its other limits. With a disk: ``test_stick.py``."""
MAKE = """#!/bin/sh
# The installed program under another version, but for what it is called to do.
set -eu
old=$(readlink -f /opt/sonoglance/current/program)
mkdir -p "$2/bin"
cp -R "$old/box" "$2/"
cat > "$2/bin/sonoglance" <<END
#!/bin/sh
{first}
exec $old/bin/sonoglance "\\$@"
END
chmod 755 "$2/bin/sonoglance"
sync "$2/bin/sonoglance" "$2/bin" "$2"
: > "$2/complete"
"""


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("workshop"))


@pytest.fixture(scope="module")
def stick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stick")


@pytest.fixture(scope="module")
def box(
    root: Path, workshop: Workshop, stick: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Box]:
    folder = tmp_path_factory.mktemp("box")
    keys, drop_in = folder / "keys", folder / "stick-drop-in"
    keys.mkdir()
    shutil.copy(workshop.folder / "clinic.pem.pub", keys / "clinic.pub")
    drop_in.mkdir()
    (drop_in / "test.conf").write_text(FOLDER_FOR_STICK)
    binds = (
        f"--bind-ro={keys}:/etc/sonoglance/keys",
        f"--bind-ro={stick}:/stick",
        f"--bind-ro={drop_in}:/etc/systemd/system/{STICK_UNIT}.d",
    )
    with booted(root, f'[source]\ndevice = "{LUNG}\n', folder, *binds, planted=True) as box:
        until(box.reads, "the first reading")
        yield box


def put_in(box: Box, workshop: Workshop, stick: Path, version: str, first: str) -> None:
    """A stick with a release whose program runs ``first`` and then does as the installed one."""
    for old in stick.glob("*.run"):
        old.unlink()
    workshop.file(stick, Payload(version, pythons=("3.11",), make=MAKE.format(first=first).encode()))
    done = box.call("systemctl", "start", STICK_UNIT)
    assert done.returncode == 0, box.call("journalctl", "-u", STICK_UNIT, "--no-pager").stdout


def history(box: Box) -> list[tuple[str, str, str]]:
    lines = box.path("/opt/sonoglance/history.jsonl").read_text().splitlines()
    return [(line["what"], line["from"], line["to"]) for line in map(json.loads, lines)]


def runs(box: Box, release: str) -> None:
    now = time.monotonic()
    until(lambda: box.health().get("release") == release and box.reads(now), f"{release} reads")


def test_a_release_that_does_not_come_up_is_put_back_without_anybody(
    box: Box, workshop: Workshop, stick: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = box.health()["release"]
    put_in(box, workshop, stick, "7.0.0", 'if [ "\\$1" = run ]; then exit 1; fi')
    assert history(box)[-1] == ("installed", old, "7.0.0")
    began = time.monotonic()
    until(lambda: history(box)[-1][0] == "rolled-back", "the roll-back")
    assert history(box)[-1] == ("rolled-back", "7.0.0", old)
    runs(box, old)
    with capsys.disabled():
        print(f"\n  {old} reads again {time.monotonic() - began:.1f} s after the switch", end=" ")
    until(lambda: box.show(SERVICE, "ActiveState") == "active", "the service")
    # The stick is still in at the next boot.
    assert box.call("systemctl", "start", STICK_UNIT).returncode == 1
    assert history(box)[-1] == ("refused", old, old)
    assert box.health()["release"] == old
    # A technician insists.
    (file,) = stick.glob("*.run")
    box.say("sonoglance", "update", "apply", f"/stick/{file.name}")
    until(lambda: [what for what, *_ in history(box)].count("rolled-back") == 2, "the second roll-back")
    runs(box, old)


def test_a_release_that_is_healthy_is_kept(box: Box, workshop: Workshop, stick: Path) -> None:
    old = box.health()["release"]
    put_in(box, workshop, stick, "8.0.0", ":")
    runs(box, "8.0.0")
    assert box.path("/opt/sonoglance/trial").exists()
    until(lambda: history(box)[-1] == ("confirmed", old, "8.0.0"), "the end of the trial", 150.0)
    assert box.health()["healthy_s"] >= 60
    programs = box.path("/opt/sonoglance/programs")
    until(lambda: sorted(path.name for path in programs.iterdir()) == [old, "8.0.0"], "the pruning")
    assert not box.path("/opt/sonoglance/trial").exists()

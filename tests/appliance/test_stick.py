"""An update from a stick, as a whole box takes it: a real kernel, udev and systemd, the installed program,
and a USB disk with a file system. One boot of a virtual machine."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import need
from tests.device.boxes import Payload, Workshop
from tests.vm.machine import boot_box

pytestmark = pytest.mark.appliance
LIMIT = 1200
MAKE = b"""#!/bin/sh
# A program that passes its self-test, with the units of the installed one.
set -eu
mkdir -p "$2/bin"
cp -R /opt/sonoglance/current/program/box "$2/"
printf '#!/bin/sh\n' >"$2/bin/sonoglance"
chmod 755 "$2/bin/sonoglance"
sync "$2/bin/sonoglance" "$2/bin" "$2"
: >"$2/complete"
"""
IDLE = """[Service]
Type=simple
WatchdogSec=0
ExecStart=
ExecStart=/bin/sleep infinity
"""
"""The reader, its sisters and the self-test take minutes on an emulated processor: they are tried in the
container. What is done before each start of the reader is as it is."""
UNWANTED = "[Service]\nExecCondition=\nExecCondition=/bin/false\n"
SISTERS = ("web", "send", "fleet", "trial")
WATCH_UNIT = """[Unit]
After=basic.target

[Service]
ExecStart=/bin/sh /watch
StandardOutput=file:/dev/ttyS1
StandardError=file:/dev/ttyS1
"""
WATCH = """# Nobody touches the box: it is looked at until the new release has been started.
home=/opt/sonoglance
journalctl --no-pager --output=cat --follow -u 'sonoglance*' &
lines=$(wc -l <$home/history.jsonl)
settled() {
    [ "$(wc -l <$home/history.jsonl)" != "$lines" ] && [ ! -e /run/sonoglance-stick/sda ] &&
        grep -q starts=1 $home/trial && systemctl is-active --quiet sonoglance.service
}
until settled || [ "$(cut -d. -f1 /proc/uptime)" -gt 1000 ]; do
    mounted=$(findmnt --noheadings --output OPTIONS /run/sonoglance-stick/sda) && last=$mounted
    sleep 1
done
kill $!
echo
echo "mounted ${last:-never}"
echo "left [$(ls /run/sonoglance-stick)]"
echo "current $(readlink $home/current)"
echo "trial $(tr '\\n' ' ' <$home/trial)"
echo "active $(systemctl is-active sonoglance.service)"
mkdir /by-hand
mount /dev/sda /by-hand
$home/launch mount sda
echo "again $?"
sed 's/^/history /' $home/history.jsonl
systemctl poweroff --force
"""


def make_stick(folder: Path, file: Path) -> Path:
    """The image of a stick with a file on it."""
    image = folder / "stick"
    with image.open("wb") as disk:
        disk.truncate(8 << 20)
    subprocess.run(["mkfs.vfat", str(image)], check=True, capture_output=True)
    subprocess.run(["mcopy", "-i", str(image), str(file), "::"], check=True)
    return image


def test_a_stick_that_is_plugged_in_updates_the_box_without_anybody(
    root: Path, kernel: str, tmp_path: Path
) -> None:
    need(shutil.which("mkfs.vfat") and shutil.which("mcopy"), "mkfs.vfat and mcopy", "dosfstools mtools")
    (tmp_path / "workshop").mkdir()
    workshop = Workshop(tmp_path / "workshop")
    added = tmp_path / "added"
    for path, text in {
        "etc/systemd/system/sonoglance.service.d/idle.conf": IDLE,
        "etc/sonoglance/keys/clinic.pub": (workshop.folder / "clinic.pem.pub").read_text(),
        "etc/systemd/system/watch.service": WATCH_UNIT,
        "watch": WATCH,
        **{f"etc/systemd/system/sonoglance-{each}.service.d/idle.conf": UNWANTED for each in SISTERS},
    }.items():
        (added / path).parent.mkdir(parents=True, exist_ok=True)
        (added / path).write_text(text)
    wanted = added / "etc/systemd/system/multi-user.target.wants"
    wanted.mkdir()
    (wanted / "watch.service").symlink_to("../watch.service")
    file = workshop.file(tmp_path / "files", Payload("9.0.0", pythons=("3.11",), make=MAKE))
    boot_box(tmp_path, kernel, root, added, make_stick(tmp_path, file), LIMIT)
    said = (tmp_path / "results").read_text()
    told = dict(line.rstrip().split(" ", 1) for line in said.splitlines() if " " in line)
    assert {"ro", "nosuid", "nodev", "noexec"} <= set(told["mounted"].split(",")), said
    history = [json.loads(line[8:]) for line in said.splitlines() if line.startswith("history ")]
    assert [(line["what"], line["to"]) for line in history[1:]] == [("installed", "9.0.0")], said
    assert told["current"] == "releases/9.0.0"
    assert told["trial"] == f"from={history[0]['to']} to=9.0.0 starts=1", "it is on trial, and was started"
    assert told["active"] == "active"
    assert told["left"] == "[]", "the stick is let go of"
    assert told["again"] == "1", "what somebody has mounted is left alone"

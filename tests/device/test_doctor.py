from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from device.clock import now
from device.exams.exam import Patient
from device.exams.store import Store
from device.health import doctor
from device.health.box import Box
from device.health.check import FAIL, OK, STATES, UNKNOWN, WARN, Check, Result
from device.health.commands import doctor as command
from device.health.doctor import CHECKS, examine, reference
from device.health.installed import Configuration, Permissions, Units, Update
from device.health.machine import Clock, Lasting, Power, Temperature, Wear
from device.health.picture import BeamProfile, BundleCheck, Golden, GrabberCheck, RunnerCheck
from device.health.running import Display, PanelCheck, ReadingCheck
from device.health.support import collect
from device.service import LATE, Heartbeat
from device.settings.scanners import ScannerProfile, save_profile
from device.web.words import page_languages, page_words
from reader.bundle import CHECKSUMS, DEFAULT_BUNDLE, GOLDEN, MANIFEST, load_bundle, write_bundle
from reader.clips import Frame
from reader.reader import Reading
from reader.signing import generate_key, sign_bundle
from tests.conftest import ROOT, need, need_right
from tests.device.web.samples import phantom_beam, sample_exam

DOCTOR = (sys.executable, "-m", "sonoglance", "doctor")
GRABBER = "534d:2109"
PATIENCE = 60.0
CAPTURED = f'[source]\ndevice = "v4l2:{GRABBER}"\n'


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The files of a box that has nothing."""
    return tmp_path / "root"


def lay(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def configured(root: Path, text: str) -> None:
    lay(root, {"etc/sonoglance/sonoglance.toml": text})
    (root / "var/lib/sonoglance").mkdir(parents=True, exist_ok=True)


def installed(root: Path) -> None:
    """Release 0.2.0, as an update leaves it."""
    at = datetime.now(timezone.utc) - timedelta(days=1)
    lay(
        root,
        {
            "opt/sonoglance/programs/0.2.0/complete": "",
            "opt/sonoglance/programs/0.2.0/appliance.json": json.dumps(
                {"released": f"{at:%Y-%m-%dT%H:%M:%SZ}"}
            ),
        },
    )
    (root / "opt/sonoglance/releases/0.2.0").mkdir(parents=True)
    (root / "opt/sonoglance/releases/0.2.0/program").symlink_to("../../programs/0.2.0")
    (root / "opt/sonoglance/current").symlink_to("releases/0.2.0")


def running(root: Path, **told: Any) -> None:
    """What the bedside reader tells of itself while all is well, but for what is given."""
    # The real processes, this test's among them.
    root.mkdir(exist_ok=True)
    if not (root / "proc").exists():
        (root / "proc").symlink_to("/proc")
    usual = {
        "at": now(),
        "pid": os.getpid(),
        "state": "normal",
        "cause": "",
        "reading": 812,
        "age_ms": 41,
        "read_ms": 22.5,
        "fps": 29.8,
        "fed": True,
        "healthy_s": 61.0,
        "source": f"{GRABBER} 1280x720 MJPEG 30/s",
        "runner": "litert",
        "display": "window",
        "panel": "",
        "badges": [],
    }
    lay(root, {"run/sonoglance/health.json": json.dumps(usual | told)})


def plugged(root: Path, plug: str, number: str, speed: int = 5000, name: str = "") -> Path:
    """A USB device as sysfs shows it: a folder far below, and a link among all devices."""
    vendor, product = number.split(":")
    folder = root / "sys/devices/pci0/usb1" / plug
    lay(folder, {"idVendor": vendor, "idProduct": product, "speed": f"{speed}\n", "product": name})
    devices = root / "sys/bus/usb/devices"
    devices.mkdir(parents=True, exist_ok=True)
    (devices / plug).symlink_to(os.path.relpath(folder, devices))
    return folder


def grabber(root: Path, speed: int = 5000, first: int = 0) -> None:
    """A grabber as UVC devices appear: the first node gives video, the second one metadata."""
    interface = plugged(root, "1-2", GRABBER, speed) / "1-2:1.0"
    classes = root / "sys/class/video4linux"
    classes.mkdir(parents=True)
    for index in (0, 1):
        node = interface / f"video4linux/video{first + index}"
        lay(node, {"index": str(index), "name": "USB Video"})
        (node / "device").symlink_to("../..")
        (classes / node.name).symlink_to(os.path.relpath(node, classes))
        lay(root, {f"dev/{node.name}": ""})
    links = root / "dev/v4l/by-id"
    links.mkdir(parents=True)
    (links / "usb-MACROSILICON_USB_Video-video-index0").symlink_to(f"../../video{first}")


def look(check: type[Check], root: Path) -> Result:
    return check().look(Box(root))


def named(found: Result, state: str, *words: str) -> None:
    assert found.state == state, found
    for word in words:
        assert word in found.finding, found
    assert bool(found.advice) or state in (OK, UNKNOWN), "whoever is warned is told what to do"


# --- the machine ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "state", "words"),
    [
        ("0", OK, ["never throttled"]),
        (
            "50005",
            FAIL,
            ["now: supply voltage too low, throttled", "since the start: supply voltage too low"],
        ),
        ("50000", WARN, ["since the start", "0x50000"]),
        ("80008", WARN, ["nearly too hot"]),
        ("0x10", OK, ["never throttled", "(0x10)"]),
        ("rubbish", UNKNOWN, []),
    ],
)
def test_power_is_told_in_words(root: Path, told: str, state: str, words: list[str]) -> None:
    lay(root, {"sys/devices/platform/soc/soc:firmware/get_throttled": f"{told}\n"})
    named(look(Power, root), state, *words)


def test_power_is_asked_of_the_firmwares_own_tool_where_sysfs_does_not_tell(root: Path) -> None:
    named(look(Power, root), UNKNOWN, "Raspberry Pi")
    lay(root, {"usr/bin/vcgencmd": '#!/bin/sh\n[ "$1" = get_throttled ] && echo throttled=0x50000\n'})
    (root / "usr/bin/vcgencmd").chmod(0o755)
    named(look(Power, root), WARN, "supply voltage too low")


@pytest.mark.parametrize(
    ("check", "file", "text"),
    [
        (Wear, "sys/block/mmcblk0/device/life_time", " - "),
        (Wear, "sys/block/mmcblk0/device/pre_eol_info", "sonoglance:x:1:2"),
        (Wear, "sys/block/mmcblk0/ro", "9" * 5000),
        (Temperature, "sys/class/thermal/thermal_zone0/temp", "٣"),
        (Lasting, "proc/self/mountinfo", "a - b"),
        (Permissions, "etc/passwd", "sonoglance:x:a:b:::"),
        (Permissions, "etc/group", "video:x:many:"),
    ],
)
def test_a_file_with_nonsense_in_it_is_passed_over(
    root: Path, check: type[Check], file: str, text: str
) -> None:
    lay(root, {"sys/block/mmcblk0/ro": "0", file: text})
    named(look(check, root), UNKNOWN)


@pytest.mark.parametrize(
    "told",
    [
        {"badges": True, "runner": "litert"},
        {"source": "x 1x1 Y .../s"},
        {"battery_mv": "x", "panel": "linked"},
        {"state": ["x"], "fps": "fast"},
    ],
)
def test_nonsense_from_the_bedside_reader_ends_no_check(root: Path, told: dict[str, Any]) -> None:
    configured(root, CAPTURED + '[panel]\nconnection = "auto"\n')
    running(root, **told)
    for check in (ReadingCheck, GrabberCheck, RunnerCheck, PanelCheck, Display):
        assert look(check, root).state in STATES


@pytest.mark.parametrize(
    ("degrees", "critical", "state"),
    [(51.2, None, OK), (80.0, None, WARN), (90.5, None, FAIL), (81.0, 95.0, WARN), (91.0, 95.0, FAIL)],
)
def test_heat(root: Path, degrees: float, critical: float | None, state: str) -> None:
    zone = "sys/class/thermal/thermal_zone0"
    lay(root, {f"{zone}/temp": f"{degrees * 1000:.0f}\n", f"{zone}/type": "cpu-thermal\n"})
    if critical:
        trip = f"{zone}/trip_point_0"
        lay(root, {f"{trip}_type": "critical\n", f"{trip}_temp": f"{critical * 1000:.0f}\n"})
    named(look(Temperature, root), state, f"{degrees:.0f} °C", "cpu-thermal")


def test_the_sensor_nearest_to_its_limit_counts_and_one_that_does_not_measure_never(root: Path) -> None:
    monitor = "sys/class/hwmon/hwmon0"
    lay(
        root,
        {"sys/class/thermal/thermal_zone0/temp": "-274000", "sys/class/thermal/thermal_zone1/temp": "70000"},
    )
    lay(
        root, {f"{monitor}/name": "nvme", f"{monitor}/temp1_input": "74000", f"{monitor}/temp1_crit": "84850"}
    )
    named(look(Temperature, root), WARN, "74 °C (nvme; 2 sensors)")


@pytest.mark.parametrize(
    ("life", "spare", "state", "words"),
    [
        ("0x01 0x02", "0x01", OK, "up to 20 %"),
        ("0x09 0x02", "0x01", WARN, "up to 90 %"),
        ("0x02 0x02", "0x02", WARN, "80 % of the spare blocks"),
        ("0x02 0x0b", "0x01", FAIL, "over 100 %"),
        ("0x02 0x02", "0x03", FAIL, "90 % of the spare blocks"),
        ("0x00 0x00", "0x00", UNKNOWN, "does not tell"),
    ],
)
def test_an_emmc_tells_its_wear(root: Path, life: str, spare: str, state: str, words: str) -> None:
    disk = "sys/block/mmcblk0"
    lay(root, {f"{disk}/device/life_time": f"{life}\n", f"{disk}/device/pre_eol_info": f"{spare}\n"})
    lay(root, {f"{disk}/ro": "0\n", "sys/block/mmcblk0boot0/ro": "1\n", "sys/block/loop0/ro": "1\n"})
    named(look(Wear, root), state, words)


def test_a_card_that_turned_itself_read_only_and_counted_errors_are_noticed(root: Path) -> None:
    lay(root, {"sys/block/mmcblk0/ro": "0\n", "sys/fs/ext4/mmcblk0p2/errors_count": "7\n"})
    named(look(Wear, root), WARN, "7 errors")
    lay(root, {"sys/block/mmcblk0/ro": "1\n"})
    named(look(Wear, root), FAIL, "can only be read")


OVERLAY = "overlay overlayroot rw,lowerdir=/media/root-ro,upperdir=/media/root-rw/up,workdir=/media/root-rw/w"


@pytest.mark.parametrize(
    ("mounts", "state", "words"),
    [
        (["/ - ext4 /dev/mmcblk0p2 rw"], OK, "ext4"),
        (["/ - ext4 /dev/mmcblk0p2 ro"], FAIL, "cannot be written"),
        ([f"/ - {OVERLAY}", "/media/root-rw - tmpfs tmpfs rw"], FAIL, "lost at the next power cut"),
        (["/media/root-rw - ext4 /dev/sda1 rw", f"/ - {OVERLAY}"], OK, "overlay"),
        ([f"/ - {OVERLAY}"], FAIL, "lost at the next power cut"),
        ([f"/ - {OVERLAY}", "{state} - ext4 /dev/mmcblk0p3 rw"], OK, "ext4"),
        (["/ - ext4 /dev/mmcblk0p2 rw", "{state} - tmpfs tmpfs rw"], FAIL, "in memory"),
    ],
)
def test_what_a_power_cut_would_take(root: Path, mounts: list[str], state: str, words: str) -> None:
    folder = root / "var/lib/sonoglance"
    folder.mkdir(parents=True)
    lines = (line.format(state=str(folder)) for line in mounts)
    told = "".join(
        f"2{i} 1 0:2{i} / {line.replace(' - ', ' ro,relatime - ')}\n" for i, line in enumerate(lines)
    )
    lay(root, {"proc/self/mountinfo": told})
    found = look(Lasting, root)
    named(found, state, words, str(folder))
    assert (f"at {folder}" in found.advice) == (state == FAIL), "it says what to mount"


def test_an_update_that_would_be_lost_is_warned_of(root: Path) -> None:
    installed(root)
    folder = root / "var/lib/sonoglance"
    folder.mkdir(parents=True)
    lines = (f"21 1 0:21 / / rw - {OVERLAY}", f"22 1 0:22 / {folder} rw - ext4 /dev/sda3 rw")
    lay(root, {"proc/self/mountinfo": "\n".join(lines)})
    named(look(Lasting, root), WARN, "an update would be lost", str(root / "opt/sonoglance"))


def test_real_file_systems_that_forget_or_are_full(tmp_path: Path) -> None:
    """In a mount name space of its own, so that nothing of this machine changes."""
    need(shutil.which("unshare"), "unshare", "util-linux")
    need_right("a mount namespace", "unshare", "-rm", "true")
    state = tmp_path / "state"
    state.mkdir()
    script = """
import json, subprocess, sys
from dataclasses import asdict
from pathlib import Path
from device.health.box import Box
from device.health.machine import Lasting, Space
state = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,nr_inodes=400", "none", state], check=True)
def look(*checks):
    for check in checks:
        print(json.dumps(asdict(check().look(Box()))))
look(Space, Lasting)
for number in range(390):
    (state / str(number)).touch()
look(Space)
(state / "0").write_bytes(bytes(3900 * 1024))
look(Space)
"""
    environment = os.environ | {"SONOGLANCE_STATE": str(state)}
    done = subprocess.run(
        ["unshare", "-rm", sys.executable, "-c", script, state],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    found = [Result(**json.loads(line)) for line in done.stdout.splitlines()]
    assert [(each.check, each.state) for each in found] == [
        ("space", OK),
        ("lasting", FAIL),
        ("space", WARN),
        ("space", FAIL),
    ], found
    assert "tmpfs" in found[1].finding


def test_a_clock_from_before_the_program_was_made_fails(root: Path) -> None:
    installed(root)
    assert look(Clock, root).state in (OK, WARN)
    tomorrow = datetime.now(timezone.utc) + timedelta(days=1)
    released = json.dumps({"released": f"{tomorrow:%Y-%m-%dT%H:%M:%SZ}"})
    lay(root, {"opt/sonoglance/current/program/appliance.json": released})
    named(look(Clock, root), FAIL, "before this program was made")


def test_a_battery_backed_clock_that_went_astray_is_warned_of(root: Path) -> None:
    lay(root, {"sys/class/rtc/rtc0/since_epoch": f"{time.time():.0f}\n"})
    named(look(Clock, root), OK, "RTC rtc0")
    lay(root, {"sys/class/rtc/rtc0/since_epoch": f"{time.time() - 86400:.0f}\n"})
    named(look(Clock, root), WARN, "rtc0 -864")


# --- the picture's way ---------------------------------------------------------------------------------


def test_the_grabber_its_mode_and_its_speed(root: Path) -> None:
    configured(root, CAPTURED)
    named(look(GrabberCheck, root), FAIL, GRABBER, "not there")
    grabber(root)
    named(look(GrabberCheck, root), OK, "the bedside reader does not run")
    running(root)
    named(
        look(GrabberCheck, root),
        OK,
        "/dev/video0",
        "USB 3, 5000 Mbit/s",
        "1280x720 MJPEG 30/s",
        "29.8 frames",
    )


def test_a_grabber_that_falls_short_is_warned_of(root: Path) -> None:
    configured(root, CAPTURED)
    grabber(root, speed=480)
    running(root, source=f"{GRABBER} 640x480 YUYV 30/s")
    found = look(GrabberCheck, root)
    named(found, WARN, "USB 2, 480 Mbit/s", "asked for 1280x720 30/s, got 640x480 YUYV 30/s")
    assert "USB 3" in found.advice
    running(root, fps=11.0)
    named(look(GrabberCheck, root), WARN, "11.0 frames a second arrive")
    running(root, fps=0.0)
    named(look(GrabberCheck, root), FAIL, "0.0 frames a second arrive")
    running(root, fps=0.0, state="starting")
    assert "so far: it is starting" in look(GrabberCheck, root).finding


def test_a_grabber_is_found_by_every_name_and_metadata_is_none(root: Path) -> None:
    grabber(root, first=9)
    by_id = "/dev/v4l/by-id/usb-MACROSILICON_USB_Video-video-index0"
    for name in (GRABBER.upper(), "/dev/video9", by_id):
        lay(root, {"etc/sonoglance/sonoglance.toml": f'source.device = "v4l2:{name}"\n'})
        running(root)
        named(look(GrabberCheck, root), OK, "is /dev/video9")


def test_whoever_may_see_no_devices_takes_the_bedside_readers_word(root: Path) -> None:
    configured(root, CAPTURED)
    running(root)
    named(look(GrabberCheck, root), OK, "got 1280x720 MJPEG 30/s")
    running(root, state="no-device", cause="ambiguous")
    named(look(GrabberCheck, root), FAIL, f"{GRABBER}: ambiguous")


def test_a_phantom_in_place_of_a_scanner_is_warned_of(root: Path) -> None:
    configured(root, '[source]\ndevice = "demo"\n')
    named(look(GrabberCheck, root), WARN, "no scanner")


def test_a_beam_profile_must_load_and_fit(root: Path) -> None:
    folder = root / "var/lib/sonoglance"
    by_id = "/dev/v4l/by-id/usb-MACROSILICON_USB_Video-video-index0"
    profile = ScannerProfile("ward3", by_id, "1280x720", phantom_beam(), None, "2026-03-01T10:00:00+00:00")
    path = save_profile(folder, profile)
    grabber(root)
    configured(root, f'{CAPTURED}scanner = "ward3"\n[state]\nfolder = "{folder}"\n')
    named(look(BeamProfile, root), OK, "ward3", "2026-03-01")
    running(root, source=f"{GRABBER} 640x480 YUYV 30/s")
    named(look(BeamProfile, root), WARN, "640x480")
    shutil.rmtree(root / "run")
    save_profile(folder, ScannerProfile(**{**vars(profile), "grabber": "1234:5678"}), replace=True)
    named(look(BeamProfile, root), WARN, "was made with 1234:5678")
    path.write_text("{")
    named(look(BeamProfile, root), FAIL, "ward3.json")
    configured(root, CAPTURED)
    named(look(BeamProfile, root), WARN, "no scanner profile")


@pytest.fixture
def bundle(root: Path) -> Path:
    """A bundle of its own, which the box is configured to read with."""
    path = root.parent / "bundle"
    shutil.copytree(DEFAULT_BUNDLE, path)
    configured(root, f'[reader]\nbundle = "{path}"\n')
    return path


def test_the_bundle_and_who_signed_it(root: Path, bundle: Path) -> None:
    named(look(BundleCheck, root), WARN, "unsigned")
    generate_key(root.parent / "key")
    (root / "etc/sonoglance/keys").mkdir(parents=True)
    shutil.copy(root.parent / "key.pub", root / "etc/sonoglance/keys/clinic.pub")
    named(look(BundleCheck, root), FAIL, "unsigned; this machine wants a signature by clinic.pub")
    sign_bundle(bundle, root.parent / "key")
    named(look(BundleCheck, root), WARN, "signed by clinic.pub", "quantization gate: TOO FEW TO SHOW")
    model = bundle / "model_int8.tflite"
    model.write_bytes(model.read_bytes()[:-1] + b"\1")
    named(look(BundleCheck, root), FAIL, "was changed or damaged")
    named(look(Golden, root), UNKNOWN)


def test_a_bundle_that_failed_its_gate(root: Path, bundle: Path) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["figures"]["int8"]["gate"]["outcome"] = "FAIL"
    rewrite(bundle, MANIFEST, json.dumps(manifest).encode())
    named(look(BundleCheck, root), FAIL, "failed the quantization gate")


def test_a_chosen_bundle_that_is_gone(root: Path) -> None:
    installed(root)
    (root / "opt/sonoglance/current/bundle").symlink_to("../../bundles/gone.zip")
    named(look(BundleCheck, root), FAIL, "leads to nothing: ../../bundles/gone.zip")


def test_golden_vectors_on_the_runners_that_are_there(root: Path, bundle: Path) -> None:
    named(look(Golden, root), OK, "on litert they differ by")
    with np.load(bundle / GOLDEN) as golden:
        vectors = dict(golden)
    for name in (name for name in vectors if name.startswith("maps_")):
        vectors[name] = vectors[name] + 20
    with tempfile.NamedTemporaryFile(suffix=".npz") as file:
        np.savez(file, **vectors)
        file.flush()
        rewrite(bundle, GOLDEN, Path(file.name).read_bytes())
    named(look(Golden, root), FAIL, "this machine does not compute what was tested")


def rewrite(bundle: Path, name: str, content: bytes) -> None:
    files = {k: v for k, v in load_bundle(bundle).files.items() if k != CHECKSUMS} | {name: content}
    shutil.rmtree(bundle)
    write_bundle(bundle, files)


def test_a_coral_that_was_asked_for_or_lies_idle(root: Path) -> None:
    named(look(RunnerCheck, root), OK, "no Coral")
    coral = plugged(root, "2-1", "1a6e:089a", name="Coral")
    named(look(RunnerCheck, root), WARN, "Coral idle: no libedgetpu.so.1")
    configured(root, '[reader]\nrunner = "edgetpu"\n')
    named(look(RunnerCheck, root), FAIL, "edgetpu was asked for: no libedgetpu.so.1")
    lay(root, {"usr/lib/aarch64-linux-gnu/libedgetpu.so.1": ""})
    path = root.parent / "bundle"
    files = {k: v for k, v in load_bundle(DEFAULT_BUNDLE).files.items() if k != CHECKSUMS}
    write_bundle(path, files | {"model_int8_edgetpu.tflite": files["model_int8.tflite"]})
    configured(root, f'[reader]\nrunner = "edgetpu"\nbundle = "{path}"\n')
    named(look(RunnerCheck, root), OK, "Coral: 2-1 1a6e:089a USB 3")
    lay(coral, {"idVendor": "18d1", "idProduct": "9302", "speed": "480"})
    named(look(RunnerCheck, root), WARN, "USB 2, 480 Mbit/s")
    shutil.rmtree(root / "sys")
    named(look(RunnerCheck, root), FAIL, "no Coral is plugged in")
    lay(root, {"dev/apex_0": ""})
    running(root, runner="litert", badges=["unsigned", "accelerator-lost 1 3"])
    named(look(RunnerCheck, root), WARN, "running on litert (accelerator-lost 1 3)")


def test_a_runner_is_well_once_it_runs(root: Path) -> None:
    running(root, runner="")
    named(look(RunnerCheck, root), UNKNOWN, "nothing yet")
    running(root)
    named(look(RunnerCheck, root), OK, "running on litert")


# --- the bedside reader --------------------------------------------------------------------------------


def test_what_the_heartbeat_writes_is_understood(root: Path) -> None:
    """The real writer of the health file, in a process that then ends."""
    (root / "run/sonoglance").mkdir(parents=True)
    (root / "proc").symlink_to("/proc")
    heartbeat = Heartbeat(root / "run/sonoglance")
    heartbeat.shown(Reading("no-signal", Frame(np.zeros((4, 4), np.uint8), 0.0, 0), None), None, True, dict)
    named(look(ReadingCheck, root), WARN, "no-signal", "heartbeat in time for")
    program = "import os; os._exit(0)"
    with subprocess.Popen([sys.executable, "-c", program]) as ended:
        pass
    running(root, pid=ended.pid, at=now() - 6)
    named(look(ReadingCheck, root), FAIL, f"its process {ended.pid} has ended")


@pytest.mark.parametrize(
    ("told", "state", "words"),
    [
        ({}, OK, "normal, 812 readings, heartbeat in time for 61.0 s"),
        ({"state": "no-contact"}, OK, "no-contact"),
        ({"state": "no-device", "cause": "unplugged"}, WARN, "(unplugged)"),
        ({"state": "no-reader"}, FAIL, "no-reader"),
        ({"fed": False}, FAIL, f"late by over {LATE:g} s"),
        ({"read_ms": 310.0}, WARN, "310 ms"),
        ({"read_ms": None, "age_ms": None}, OK, "normal"),
    ],
)
def test_how_it_reads(root: Path, told: dict[str, Any], state: str, words: str) -> None:
    running(root, **told)
    named(look(ReadingCheck, root), state, words)


def test_a_reader_that_hangs_or_was_never_started(root: Path) -> None:
    named(look(ReadingCheck, root), UNKNOWN, "not installed as a service")
    installed(root)
    named(look(ReadingCheck, root), FAIL, "does not run")
    running(root, at=now() - 30)
    named(look(ReadingCheck, root), FAIL, "told nothing for 30 s (at most 5): it hangs")
    lay(root, {"run/sonoglance/health.json": '{"at": '})
    named(look(ReadingCheck, root), FAIL, "tells nothing")


def test_the_panel(root: Path) -> None:
    named(look(PanelCheck, root), OK, "none is configured")
    configured(root, '[panel]\nconnection = "auto"\nbattery_low = 6400\n')
    named(look(PanelCheck, root), FAIL, "nothing is plugged in")
    lay(root, {"dev/serial/by-id/usb-1a86_USB_Serial-if00-port0": ""})
    named(look(PanelCheck, root), UNKNOWN, "usb-1a86_USB_Serial-if00-port0")
    running(root, panel="silent", panel_detail="no valid frame for 1.0 s")
    named(look(PanelCheck, root), FAIL, "silent: no valid frame for 1.0 s")
    running(root, panel="linked", panel_detail="firmware 3", battery_mv=7100)
    named(look(PanelCheck, root), OK, "linked", "7.10 V")
    running(root, panel="linked", panel_detail="firmware 3", battery_mv=6100)
    named(look(PanelCheck, root), WARN, "6.10 V")


def test_the_display() -> None:
    # A socket's path is short (unix(7)).
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, socket.socket(socket.AF_UNIX) as server:
        root = Path(folder)
        named(look(Display, root), UNKNOWN, "none answers")
        lay(root, {"sys/class/drm/card1-HDMI-A-1/status": "connected\n"})
        lay(root, {"sys/class/drm/card1-HDMI-A-2/status": "disconnected\n", "tmp/.X11-unix/note": ""})
        server.bind(str(root / "tmp/.X11-unix/X7"))
        named(look(Display, root), OK, "HDMI-A-1 of 2 sockets", "none answers")
        server.listen()
        running(root)
        named(look(Display, root), OK, "display server: :7", "drawn on: window")
        running(root, display="nowhere")
        named(look(Display, root), FAIL, "draws nowhere")
        installed(root)
        running(root)
        lay(root, {"sys/class/drm/card1-HDMI-A-1/status": "disconnected\n"})
        named(look(Display, root), WARN, "plugged in: none of 2 sockets; display server: :7")
        configured(root, '[screen]\ndisplay = "none"\n')
        named(look(Display, root), OK, "none is wanted")


# --- how it is installed -------------------------------------------------------------------------------


def accounts(root: Path, user: int, member: str = "sonoglance") -> None:
    group = os.getegid()
    lay(
        root,
        {"etc/passwd": f"root:x:0:0::/root:/bin/sh\nsonoglance:x:{user}:4711::/nonexistent:/bin/false\n"},
    )
    lay(root, {"etc/group": f"sonoglance:x:4711:\nvideo:x:44:{member}\ndialout:x:{group + 20}:{member}\n"})


def test_permissions(root: Path) -> None:
    configured(root, "language = 'fr'\n")
    named(look(Permissions, root), UNKNOWN, "not installed as a service")
    folder = root / "var/lib/sonoglance"
    accounts(root, folder.stat().st_uid or 1000)
    if folder.stat().st_uid == 0:
        os.chown(folder, 1000, 4711)
    named(look(Permissions, root), OK, f"{folder} can be written by sonoglance", "every group")
    accounts(root, 65000)
    found = look(Permissions, root)
    named(found, FAIL, f"places sonoglance cannot write: {folder}")
    assert f"chown -R sonoglance: {folder}" in found.advice
    folder.chmod(0o777)
    accounts(root, 65000, member="somebody")
    named(look(Permissions, root), WARN, "not in video, dialout")
    folder.parent.chmod(0o700)
    accounts(root, 65000)
    named(look(Permissions, root), FAIL, f"{folder.parent} cannot be entered")
    folder.parent.chmod(0o755)
    file = root / "etc/sonoglance/sonoglance.toml"
    file.chmod(0o600)
    named(look(Permissions, root), FAIL, f"{file} cannot be read")


def test_a_key_that_others_may_put_in_place_is_no_key(root: Path) -> None:
    keys = root / "etc/sonoglance/keys"
    keys.mkdir(parents=True)
    key = keys / "clinic.pub"
    key.write_text("")
    if os.geteuid() == 0:
        named(look(Permissions, root), UNKNOWN, "only root can change the keys")
        os.chown(key, 1000, 1000)
        named(look(Permissions, root), FAIL, f"others than root can change {key}")
        os.chown(key, 0, 0)
    key.chmod(0o666)
    named(look(Permissions, root), FAIL, f"others than root can change {key}")
    key.chmod(0o644)
    keys.chmod(0o777)
    named(look(Permissions, root), FAIL, f"others than root can change {keys}")
    keys.chmod(0o755)
    keys.parent.chmod(0o777)
    named(look(Permissions, root), FAIL, f"others than root can change {keys.parent}")


SHOWN = """NRestarts=0
Result=success
Id=sonoglance.service
LoadState=loaded
ActiveState=active
SubState=running
UnitFileState=enabled

NRestarts=0
Result=exec-condition
Id=sonoglance-web.service
LoadState=loaded
ActiveState=inactive
SubState=dead
UnitFileState=enabled
"""


@pytest.mark.parametrize(
    ("change", "state", "words"),
    [
        (("", ""), OK, "sonoglance-web.service is not wanted by the configuration"),
        (("NRestarts=0\nResult=success", "NRestarts=4\nResult=success"), WARN, "started anew 4 times"),
        (("ActiveState=active\nSubState=running", "ActiveState=failed\nSubState=failed"), FAIL, "failed"),
        (("ActiveState=active\nSubState=running", "ActiveState=inactive\nSubState=dead"), FAIL, "inactive"),
        (("Result=success", "Result=watchdog"), FAIL, "watchdog"),
        (("exec-condition", "success"), WARN, "sonoglance-web.service inactive (dead), though"),
    ],
)
def test_units(root: Path, change: tuple[str, str], state: str, words: str) -> None:
    """What systemd 252 shows of them."""
    named(look(Units, root), UNKNOWN, "systemd does not run here")
    (root / "run/systemd/system").mkdir(parents=True)
    lay(root, {f"etc/systemd/system/sonoglance{name}.service": "" for name in ("", "-web", "-stick@")})
    configured(root, "[web]\nenabled = true\n")
    named(look(Units, root), UNKNOWN, "systemctl does not answer")
    lay(root, {"shown": SHOWN.replace(*change), "usr/bin/systemctl": f'#!/bin/sh\ncat "{root}/shown"\n'})
    (root / "usr/bin/systemctl").chmod(0o755)
    named(look(Units, root), state, words)


@pytest.mark.parametrize("name", ["trial", "send", "fleet"])
def test_a_unit_that_nobody_wants_may_be_at_rest(root: Path, name: str) -> None:
    (root / "run/systemd/system").mkdir(parents=True)
    lay(root, {f"etc/systemd/system/sonoglance{each}.service": "" for each in ("", f"-{name}")})
    shown = SHOWN.replace("-web", f"-{name}").replace("exec-condition", "success")
    lay(root, {"shown": shown, "usr/bin/systemctl": f'#!/bin/sh\ncat "{root}/shown"\n'})
    (root / "usr/bin/systemctl").chmod(0o755)
    named(look(Units, root), OK, f"sonoglance-{name}.service inactive")


def test_updates(root: Path) -> None:
    named(look(Update, root), UNKNOWN, "not installed")
    installed(root)
    named(look(Update, root), OK, "release 0.2.0", "no update so far")
    line = {"at": "2026-11-20T08:00:00Z", "what": "confirmed", "from": "0.1.0", "to": "0.2.0"}
    refused = {**line, "what": "refused", "to": "", "file": "sonoglance-0.3.0.run", "reason": "not signed"}
    history = "opt/sonoglance/history.jsonl"
    lay(root, {history: json.dumps(line) + "\n"})
    named(look(Update, root), OK, "last: confirmed 0.2.0")
    lay(root, {history: f"{json.dumps(line)}\n{json.dumps(refused)}\n" + '{"at": "2026-'})
    named(look(Update, root), WARN, "refused sonoglance-0.3.0.run", "not signed")
    lay(root, {"opt/sonoglance/trial": "from=0.1.0\nto=0.2.0\nstarts=1\n"})
    named(look(Update, root), WARN, "0.2.0 is on trial after 0.1.0, start 1")
    (root / "opt/sonoglance/programs/0.2.0/complete").unlink()
    named(look(Update, root), FAIL, "0.2.0: not a whole release")


def test_the_configurations_mistakes_and_what_is_used_meanwhile(root: Path) -> None:
    named(look(Configuration, root), OK, "default")
    configured(root, "language = 'fr'\n")
    named(look(Configuration, root), OK, "good, 1 values set")
    configured(root, "language = 'xx'\n")
    named(look(Configuration, root), FAIL, "1 mistakes, the defaults are used", "language")
    lay(root, {"var/lib/sonoglance/last-good.toml": CAPTURED})
    named(look(Configuration, root), FAIL, "the last good one is used")
    named(look(GrabberCheck, root), FAIL, GRABBER)


# --- all of them ---------------------------------------------------------------------------------------


def test_a_device_that_hangs_holds_up_nobody(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe that nobody writes into hangs whoever opens it, as a driver does."""
    monkeypatch.setattr(Temperature, "deadline", 0.5)
    hanging = root / "sys/class/thermal/thermal_zone0/temp"
    hanging.parent.mkdir(parents=True)
    os.mkfifo(hanging)
    lay(root, {"sys/devices/platform/soc/soc:firmware/get_throttled": "0\n"})
    found = list(examine(Box(root), (Power, Temperature, Wear, Update)))
    assert [(each.check, each.state) for each in found] == [
        ("power", OK),
        ("temperature", UNKNOWN),
        ("wear", UNKNOWN),
        ("update", UNKNOWN),
    ]
    assert found[1].finding == "no answer within 0.5 s"
    until(lambda: not children("device.health.doctor"))


def test_a_library_that_takes_the_process_down_takes_one_check_with_it(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Temperature, "deadline", PATIENCE)
    hanging = root / "sys/class/thermal/thermal_zone0/temp"
    hanging.parent.mkdir(parents=True)
    os.mkfifo(hanging)

    def abort() -> None:
        until(lambda: bool(children("device.health.doctor")))
        time.sleep(1.5)
        os.kill(children("device.health.doctor")[0], signal.SIGABRT)

    aborting = threading.Thread(target=abort)
    aborting.start()
    found = {each.check: each for each in examine(Box(root), (Temperature, Update))}
    aborting.join()
    assert "killed by signal 6" in found["temperature"].finding
    assert found["update"].state == UNKNOWN


def children(module: str) -> list[int]:
    own = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    pids = [int(pid) for file in own for pid in said(file).split()]
    return [pid for pid in pids if module in said(Path(f"/proc/{pid}/cmdline"))]


def said(file: Path) -> str:
    """What is said of a task; nothing where that has just ended."""
    try:
        return file.read_text()
    except OSError:
        return ""


def until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_this_very_machine(tmp_path: Path) -> None:
    done = subprocess.run(
        [*DOCTOR, "--json"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"SONOGLANCE_STATE": str(tmp_path)},
        check=False,
    )
    told = json.loads(done.stdout)
    assert [each["check"] for each in told["checks"]] == [check.name for check in CHECKS]
    states = {each["check"]: each["state"] for each in told["checks"]}
    assert set(states.values()) <= set(STATES)
    assert (states["golden"], states["bundle"]) == (OK, WARN), "its gate: too few to show"
    assert done.returncode == int(FAIL in states.values())
    assert {"machine", "kernel", "python", "numpy"} <= told["versions"].keys()
    assert list(tmp_path.iterdir()) == [], "it changes nothing"


def test_the_table_and_the_exit_code(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lay(root, {"sys/devices/platform/soc/soc:firmware/get_throttled": "5\n"})
    assert command(["--root", str(root), "--only", "power,update"]) == 1
    power, advice, update = (shown := capsys.readouterr().out).splitlines()
    assert "\x1b" not in shown, "colours are for terminals"
    assert power.startswith("fail    power         now: supply voltage too low, throttled (0x5)")
    assert advice.strip().startswith("-> use the maker's supply")
    assert update.startswith("unknown update ")
    assert command(["--root", str(root), "--only", "update"]) == 0
    with pytest.raises(SystemExit) as ended:
        command(["--only", "power,pulse"])
    assert ended.value.code == 2
    assert "no check is called pulse" in capsys.readouterr().err


def test_a_terminal_gets_colours_beside_the_words() -> None:
    ours, theirs = pty.openpty()
    subprocess.run([*DOCTOR, "--only", "update"], stdout=theirs, stderr=theirs, cwd=ROOT, check=True)
    assert os.read(ours, 4096).startswith(b"\x1b[36munknown \x1b[0mupdate")
    os.close(ours)
    os.close(theirs)


def test_the_page_has_words_for_every_check_that_it_shows() -> None:
    keys = [f"check-{check.name}" for check in CHECKS if not check.slow] + [
        f"state-{name}" for name in STATES
    ]
    for code in page_languages():
        assert set(keys) <= page_words(code).keys(), code


def test_a_page_that_is_looked_at_often_looks_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "CHECKS", (Power, Golden))
    lay(root, {"sys/devices/platform/soc/soc:firmware/get_throttled": "0\n"})
    recent = doctor.Recent(Box(root))
    first = recent.results()
    assert [(each.check, each.state) for each in first] == [("power", OK)], "golden vectors cost too much"
    assert recent.results() is first


def test_the_docs_table_is_the_checks_own_words() -> None:
    docs = (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8")
    hint = f"{sys.executable} -c 'from device.health.doctor import reference; print(reference())'"
    assert reference() in docs, f"the table in docs/doctor.md is old; put in what this prints: {hint}"


# --- for support ---------------------------------------------------------------------------------------

JOURNAL = """2026-11-21T20:00:00+0000 systemd[1]: sonoglance.service: Failed with result 'watchdog'.
2026-11-21T20:00:01+0000 sonoglance[7]: exam of patient P-0017 goes on
2026-11-21T20:00:02+0000 sonoglance[7]: sent for Okello, Amina: refused
2026-11-21T20:00:03+0000 sonoglance[7]: pacs: 'OKELLO^AMINA exists twice' (0xA900)
2026-11-21T20:00:04+0000 sonoglance[7]: /home/moreau/okello_thorax.mp4: cannot be read
2026-11-21T20:00:05+0000 sonoglance[7]: note: breathless since Tuesday, by bus from the north, sent by Njoroge
2026-11-21T20:00:06+0000 sonoglance[7]: file Unknown_Stranger.png is damaged
2026-11-21T20:00:07+0000 sonoglance[7]: panel: linked: firmware 3 at /dev/ttyUSB0
2026-11-21T20:00:08+0000 sonoglance[7]: comment: Known To Nobody
2026-11-21T20:00:09+0000 sonoglance[7]: KeyError: 'Mzee Juma'
2026-11-21T20:00:10+0000 sonoglance[7]: /srv/clips/Baraka is no folder
2026-11-21T20:00:11+0000 sonoglance[7]: /media/usb/Mzee Hamisi/2026: no clips
2026-11-21T20:00:12+0000 sonoglance[7]: clips/Mama Zuri/a.mp4: cannot be opened
2026-11-21T20:00:13+0000 sonoglance[7]: exam of Qi kept, Njoroge seen
2026-11-21T20:00:14+0000 sonoglance[7]: linked as tembo
2026-11-21T20:00:15+0000 systemd[1]: sonoglance.service: /media/usb/Kibet Rono: No such file
"""
NEVER = (
    "0017",
    "okello",
    "amina",
    "moreau",
    "ward 3",
    "nandi",
    "breathless",
    "tuesday",
    "stranger",
    "nobody",
    "juma",
    "baraka",
    "hamisi",
    "zuri",
    " qi ",
    "njoroge",
    "tembo",
    "kibet",
    "rono",
)


@pytest.fixture
def exams(root: Path) -> Iterator[Store]:
    """A box with exams, a journal that names patients, and a configuration that names people."""
    installed(root)
    configured(
        root,
        '[exam]\nsite = "Ward 3"\noperator = "B. Moreau"\nprotocol = "blue-6"\nseconds = 8\n'
        f'[source]\ndevice = "v4l2:{GRABBER}"\n[fleet]\nname = "tembo"\n'
        '[web]\nhost = "moreau.example"\n[screen]\ntheme = "light"\n',
    )
    store = Store(root / "var/lib/sonoglance/exams")
    exam = sample_exam(store, Patient("P-0017", "Amina Qi Okello"), {"right-upper": 0.9})
    comment = "breathless since Tuesday, by bus from the north, sent by Njoroge"
    store.describe(exam.id, "Dr Nandi", comment=comment)
    # Left open, as by the bedside reader: what was typed is in the write-ahead log.
    lay(root, {"journal": JOURNAL, "usr/bin/journalctl": f'#!/bin/sh\ncat "{root}/journal"\n'})
    (root / "usr/bin/journalctl").chmod(0o755)
    lay(root, {"opt/sonoglance/history.jsonl": '{"at": "2026-11-20T08:00:00Z", "what": "installed"}\n'})
    plugged(root, "1-2", GRABBER, 480, "USB Video")
    yield store
    store.close()


def test_what_support_gets_names_nobody_and_holds_no_exam(root: Path, exams: Store) -> None:
    file = root.parent / "support.zip"
    assert command(["--root", str(root), "--only", "update,configuration", "--bundle", str(file)]) == 0
    with zipfile.ZipFile(file) as whole:
        parts = {name: whole.read(name).decode() for name in whole.namelist()}
    assert sorted(parts) == ["configuration.toml", "doctor.json", "history.jsonl", "journal.txt", "usb.txt"]
    for name, text in parts.items():
        for word in NEVER:
            assert word not in text.casefold(), (name, word)
    assert max(map(len, parts.values())) < 10_000, "no clips, no pictures"
    # And yet it serves.
    assert "Failed with result 'watchdog'" in parts["journal.txt"]
    assert "panel: linked: firmware 3 at /dev/ttyUSB0" in parts["journal.txt"]
    assert parts["journal.txt"].count("\n") == JOURNAL.count("\n")
    for line in (f'device = "v4l2:{GRABBER}"', 'protocol = "blue-6"', "seconds = 8", 'theme = "light"'):
        assert line in parts["configuration.toml"]
    assert 'host = "***"' in parts["configuration.toml"]
    assert f"1-2 {GRABBER} USB 2, 480 Mbit/s USB Video" in parts["usb.txt"]
    assert {"checks", "versions"} == json.loads(parts["doctor.json"]).keys()


def test_the_stores_files_are_as_before_and_no_log_is_handed_on_that_cannot_be_scrubbed(
    root: Path, exams: Store
) -> None:
    before = sorted(path.name for path in exams.folder.iterdir())
    collect(Box(root), [], root.parent / "first.zip")
    assert sorted(path.name for path in exams.folder.iterdir()) == before
    exams.close()
    (exams.folder / "exams.sqlite3").write_bytes(b"rubbish" * 1000)
    assert "no logs" in collect(Box(root), [], root.parent / "second.zip")
    with zipfile.ZipFile(root.parent / "second.zip") as whole:
        assert sorted(whole.namelist()) == ["configuration.toml", "doctor.json", "usb.txt"]
    # As where the exams' disk is not mounted: who is named in the log cannot be told.
    shutil.rmtree(exams.folder)
    assert "no logs" in collect(Box(root), [], root.parent / "third.zip")
    with pytest.raises(FileExistsError, match="nothing is overwritten"):
        collect(Box(root), [], root.parent / "second.zip")

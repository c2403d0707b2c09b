from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest

from device import child_process
from device.capture import devices
from device.capture import grabber as grabber_module
from device.capture.devices import find_device
from device.capture.driver import CaptureError, GrabberSpec, Mode
from device.capture.grabber import Grabber
from device.capture.grabber_child import SLOTS, Ring
from device.capture.live import Arrived, Capture
from device.capture.v4l2 import decode
from device.child_process import ChildProcess
from tests.device.test_capture import take_until_some_are_left_out

ROOT = Path(__file__).parent.parent.parent
SCRIPTED = "tests.device.scripted_driver:ScriptedDriver"
PATIENCE = 120.0
"""Seconds for what takes a fraction of one, on a machine however busy."""
HUNG_AFTER = grabber_module.HUNG_AFTER

COMES_AND_GOES = """
import os, sys
while True:
    os.symlink("/sys/devices", sys.argv[1])
    os.unlink(sys.argv[1])
"""


class Form(NamedTuple):
    """What linuxpy tells of a format."""

    width: int
    height: int
    bytes_per_line: int
    pixel_format: Name


class Name(NamedTuple):
    name: str


class Scripted:
    """A grabber over a scripted driver in a real process."""

    def __init__(self, folder: Path, width: int = 320, height: int = 200, rate: int = 200) -> None:
        self._folder = folder
        self.order("go")
        self.grabber = Grabber(GrabberSpec(str(folder), width, height, rate, SCRIPTED))

    def order(self, what: str) -> None:
        draft = self._folder / "draft"
        draft.write_text(what)
        draft.replace(self._folder / "order")

    def until(self, what: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE
        while not what():
            self.grabber.take(0.02)
            assert time.monotonic() < end, self.grabber.trouble

    def frame(self) -> Arrived:
        end = time.monotonic() + PATIENCE
        while (arrived := self.grabber.take(0.1)) is None:
            assert time.monotonic() < end, self.grabber.trouble
        return arrived

    def named(self, state: str, cause: str) -> None:
        self.until(lambda: self.trouble == (state, cause))

    @property
    def trouble(self) -> tuple[str, str] | None:
        trouble = self.grabber.trouble
        return None if trouble is None else (trouble.state, trouble.cause)

    @property
    def pid(self) -> int:
        return children()[-1]


def children(pid: int | None = None) -> list[int]:
    own = pid or os.getpid()
    return [int(child) for child in Path(f"/proc/{own}/task/{own}/children").read_text().split()]


def descriptors(pid: int | None = None) -> int:
    """How many a process holds all the time: a driver opens its order for a moment before each frame."""
    folder = f"/proc/{pid or os.getpid()}/fd"
    return min(len(os.listdir(folder)) for _ in range(50))  # noqa: PTH208  one call, on a folder that changes


def exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.fixture(autouse=True)
def _a_pause_is_no_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that pauses is taken for no driver that hangs: the tests of hangs say when one is."""
    for deadline in ("HUNG_AFTER", "KILL_AFTER", "START_DEADLINE"):
        monkeypatch.setattr(grabber_module, deadline, PATIENCE)
    monkeypatch.setattr(child_process, "EXIT_DEADLINE", 10.0)


@pytest.fixture
def scripted(tmp_path: Path) -> Iterator[Scripted]:
    device = Scripted(tmp_path)
    with closing(device.grabber):
        yield device
    assert not children(), "a process was left behind"


def test_frames_arrive_whole_while_they_are_overwritten(tmp_path: Path) -> None:
    device = Scripted(tmp_path, 1280, 720, rate=2000)
    with closing(device.grabber):
        taken = [device.frame() for _ in range(150)]
    assert all((arrived.frame.image == arrived.frame.image[0, 0, 0]).all() for arrived in taken), "torn"
    numbers = [arrived.frame.sequence for arrived in taken]
    assert numbers == sorted(set(numbers))
    assert [arrived.at for arrived in taken] == sorted(arrived.at for arrived in taken)


def test_a_slot_that_is_being_copied_is_never_written() -> None:
    ring = Ring((4, 4))
    program = (
        "import fcntl; from device.capture.grabber_child import Ring\n"
        f"with Ring((4, 4), {ring.descriptor})._locked(1, fcntl.LOCK_SH):\n"
        "    print('locked', flush=True); input()"
    )
    numbers = range(1, 3 * SLOTS)
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[ring.descriptor],
        cwd=ROOT,
    ) as copying:
        assert copying.stdout is not None
        assert copying.stdout.readline() == b"locked\n"
        assert {ring.put(np.zeros((4, 4), np.uint8), number) for number in numbers} == {0, 2, 3}
        copying.kill()
    # The lock went with the process that held it.
    assert {ring.put(np.zeros((4, 4), np.uint8), number) for number in numbers} == {0, 1, 2, 3}
    ring.close()


def test_a_frame_whose_slot_went_to_a_newer_one_is_not_handed_out() -> None:
    ring = Ring((4, 4))
    place = ring.put(np.full((4, 4), 7, np.uint8), 1)
    image = ring.copy(place, 1)
    assert image is not None
    assert (image == 7).all()
    assert ring.put(np.zeros((4, 4), np.uint8), 1 + SLOTS) == place
    assert ring.copy(place, 1) is None
    ring.close()


def test_the_newest_frame_wins_and_the_others_are_counted(scripted: Scripted) -> None:
    taken = 1 + take_until_some_are_left_out(scripted.grabber, 20)
    last = scripted.frame()
    assert scripted.grabber.dropped == last.frame.sequence + 1 - taken


def test_it_is_a_capture_with_a_name_and_no_end(scripted: Scripted) -> None:
    capture: Capture = scripted.grabber
    scripted.frame()
    scripted.until(lambda: scripted.grabber.mode is not None)
    assert capture.name.endswith(" 320x200 GREY 200/s")
    assert capture.badge == ""
    assert capture.trouble is None
    assert not capture.ended


def test_nothing_comes_of_a_closed_one(scripted: Scripted) -> None:
    scripted.frame()
    scripted.grabber.close()
    scripted.grabber.close()
    assert scripted.grabber.take(0.5) is None
    assert not children()


def test_a_mode_that_falls_short_is_on_the_badge(scripted: Scripted) -> None:
    scripted.order("size 160 100")
    scripted.until(lambda: scripted.grabber.badge == "other-mode 160x100 GREY 200/s")


@pytest.mark.parametrize(
    ("took", "short"),
    [
        (Mode(1280, 720, "MJPEG", 30), False),
        (Mode(1280, 720, "MJPEG", 29.97), False),
        (Mode(1280, 720, "MJPEG", 60), False),
        (Mode(1280, 720, "MJPEG", 0), False),
        (Mode(1280, 720, "YUYV", 10), True),
        (Mode(640, 480, "YUYV", 30), True),
    ],
)
def test_which_modes_fall_short(took: Mode, short: bool) -> None:
    assert took.falls_short(GrabberSpec("/dev/video0", 1280, 720, 30)) is short


def test_trouble_is_named_as_long_as_it_lasts(scripted: Scripted) -> None:
    scripted.frame()
    for state, cause in (("no-signal", "no-lock"), ("stale", "silent"), ("no-device", "busy")):
        scripted.order(f"trouble {state} {cause}")
        scripted.named(state, cause)
        assert scripted.grabber.take(0.3) is None
        assert scripted.trouble == (state, cause)
        scripted.order("go")
        scripted.frame()
        assert scripted.trouble is None


def test_a_crash_is_named_and_another_process_goes_on(scripted: Scripted) -> None:
    before, pid = scripted.frame().frame.sequence, scripted.pid
    scripted.order("crash")
    scripted.named("stale", "hung")
    assert scripted.grabber.trouble is not None
    assert "SIGABRT" in scripted.grabber.trouble.detail or "signal 6" in scripted.grabber.trouble.detail
    scripted.order("go")
    assert scripted.frame().frame.sequence > before
    assert scripted.pid != pid
    assert scripted.grabber.restarts == 1


@pytest.mark.parametrize("how", ["stopped", "spinning"])
def test_a_hung_driver_is_named_then_killed_then_replaced(
    how: str, scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grabber_module, "HUNG_AFTER", HUNG_AFTER)
    scripted.frame()
    pid = scripted.pid
    if how == "stopped":
        os.kill(pid, signal.SIGSTOP)
    else:
        scripted.order("spin")
    scripted.named("stale", "hung")
    assert exists(pid), "named only once it was killed"
    monkeypatch.setattr(grabber_module, "KILL_AFTER", 1.0)
    scripted.order("go")
    scripted.frame()
    assert not exists(pid)


def test_a_process_that_only_paused_is_not_replaced(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grabber_module, "HUNG_AFTER", HUNG_AFTER)
    scripted.frame()
    os.kill(scripted.pid, signal.SIGSTOP)
    scripted.named("stale", "hung")
    os.kill(scripted.pid, signal.SIGCONT)
    scripted.frame()
    assert scripted.grabber.restarts == 0


def test_a_process_that_cannot_be_killed_holds_nobody_up(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grabber_module, "UNDEAD_DEADLINE", 0.2)
    scripted.frame()
    stuck = scripted.pid
    os.kill(stuck, signal.SIGSTOP)
    # As if it hung in the kernel, where the signal does not reach it.
    with monkeypatch.context() as patch:
        patch.setattr(ChildProcess, "kill", lambda _: None)
        monkeypatch.setattr(grabber_module, "KILL_AFTER", 1.0)
        scripted.named("stale", "hung")
        monkeypatch.setattr(grabber_module, "KILL_AFTER", PATIENCE)
        scripted.until(lambda: scripted.trouble is None)
    assert exists(stuck)
    assert len(children()) == 2
    os.kill(stuck, signal.SIGKILL)
    scripted.until(lambda: not exists(stuck))


def test_a_change_of_size_brings_another_ring(scripted: Scripted) -> None:
    scripted.frame()
    held = descriptors()
    for width, height in ((640, 480), (100, 50), (1280, 720)):
        scripted.order(f"size {width} {height}")
        end = time.monotonic() + PATIENCE
        while (image := scripted.frame().frame.image).shape != (height, width, 3):
            assert time.monotonic() < end
        assert (image == image[0, 0, 0]).all()
    assert descriptors() == held


def test_50_replugs_leave_nothing_behind(scripted: Scripted) -> None:
    scripted.frame()
    held, pid = (descriptors(), children()), scripted.pid
    theirs = descriptors(pid)
    for count in range(50):
        scripted.order("trouble no-device unplugged")
        scripted.named("no-device", "unplugged")
        scripted.order("go")
        scripted.frame()
        scripted.until(lambda count=count: scripted.grabber.restarts == count + 1)
    assert (descriptors(), children()) == held
    assert descriptors(pid) == theirs


def test_replaced_processes_leave_nothing_behind(scripted: Scripted) -> None:
    scripted.frame()
    held = descriptors(), len(children())
    for _ in range(4):
        os.kill(scripted.pid, signal.SIGKILL)
        scripted.named("stale", "hung")
        scripted.frame()
    assert (descriptors(), len(children())) == held


def test_a_device_that_is_not_there_is_looked_for_forever(tmp_path: Path) -> None:
    device = tmp_path / "video99"
    with closing(Grabber(GrabberSpec(str(device)))) as grabber:
        end = time.monotonic() + PATIENCE
        causes: list[str] = []
        while causes[-1:] != ["not-capture"]:
            assert grabber.take(0.05) is None
            if grabber.trouble is not None and causes[-1:] != [grabber.trouble.cause]:
                assert grabber.trouble.state == "no-device"
                causes.append(grabber.trouble.cause)
                # Something of its name turns up, which is found by itself, though it is no grabber.
                device.touch()
            assert time.monotonic() < end, causes
    assert causes == ["unplugged", "not-capture"]


@pytest.mark.parametrize("name", ["/dev/video99", "/dev/v4l/by-id/usb-None-index0", "ffff:fffe", "FFFF:FFFE"])
def test_what_is_not_there_is_unplugged(name: str) -> None:
    with pytest.raises(CaptureError, match=name) as error:
        find_device(name)
    assert (error.value.state, error.value.cause) == ("no-device", "unplugged")


def test_a_device_may_go_while_it_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "VIDEO_CLASS", tmp_path)
    coming_and_going = subprocess.Popen([sys.executable, "-c", COMES_AND_GOES, str(tmp_path / "video5")])
    try:
        end = time.monotonic() + 2.0
        while time.monotonic() < end:
            devices.capture_nodes(tmp_path)
            with pytest.raises(CaptureError, match="no USB device"):
                find_device("ffff:fffe")
    finally:
        coming_and_going.kill()
        coming_and_going.wait()


def test_the_process_ends_with_its_parent(tmp_path: Path) -> None:
    (tmp_path / "order").write_text("go")
    program = (
        "from device.capture.grabber import *\n"
        f"grabber = Grabber(GrabberSpec({str(tmp_path)!r}, 320, 200, 30, {SCRIPTED!r}))\n"
        "while grabber.take(1.0) is None: pass\n"
        "print('frames', flush=True)\n"
        "while True: grabber.take(1.0)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=ROOT) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"frames\n"
        (child,) = children(parent.pid)
        (tmp_path / "order").write_text("spin")
        parent.kill()
    end = time.monotonic() + PATIENCE
    while exists(child):
        assert time.monotonic() < end, "it outlived its parent"
        time.sleep(0.02)


@pytest.mark.parametrize(("name", "depth"), [("YUYV", 2), ("UYVY", 2), ("BGR24", 3), ("GREY", 1)])
def test_padded_lines_are_decoded_and_short_buffers_refused(name: str, depth: int) -> None:
    form = Form(64, 48, 64 * depth + 32, Name(name))
    buffer = np.full((48, form.bytes_per_line), 128, np.uint8)
    buffer[:, 64 * depth :] = 255
    image = decode(buffer.tobytes(), form)
    assert image is not None
    assert image.shape == ((48, 64) if name == "GREY" else (48, 64, 3))
    assert np.ptp(image) == 0, "padding in the picture"
    assert decode(buffer.tobytes()[:-1], form) is None
    assert decode(b"", form) is None


def test_half_planes_and_jpeg_are_decoded() -> None:
    gray = np.full(64 * 48 * 3 // 2, 128, np.uint8)
    image = decode(gray.tobytes(), Form(64, 48, 64, Name("NV12")))
    assert image is not None
    assert image.shape == (48, 64, 3)
    jpeg = cv2.imencode(".jpg", np.full((48, 64, 3), 90, np.uint8))[1].tobytes()
    image = decode(jpeg, Form(64, 48, 0, Name("MJPEG")))
    assert image is not None
    assert image.shape == (48, 64, 3)
    assert decode(b"no picture", Form(64, 48, 0, Name("MJPEG"))) is None

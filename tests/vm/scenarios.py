"""What is played to a grabber and a panel inside the virtual machine: accidents made by the kernel's own
drivers.

Run as the machine's only program. Each scenario's result is a JSON line on the machine's second serial
port. Emulation is slow, so time limits are generous; the times that were measured are in the results.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path

from linuxpy.video.device import Device

from device.capture import grabber as grabber_module
from device.capture.devices import find_device
from device.capture.driver import CaptureError, GrabberSpec
from device.capture.grabber import Grabber
from device.capture.live import Arrived
from device.capture.v4l2 import V4l2Driver
from device.clock import now
from firmware_bridge.link import PanelLink, Pressed
from firmware_bridge.ports import AUTO, SerialPort
from firmware_bridge.wire import Button, Kind, Shown
from tests.vm.usb_grabber import UsbGrabber
from tests.vm.usb_panel import UsbPanel

LIMIT = 120.0
"""Seconds that anything may take here; on a real machine the bound is one second."""
STOPS = 5
"""So often a process is held up at most, until a frame is seen that waited meanwhile."""
REPLUGS = 20
PANEL_REPLUGS = 5
UNHEARD = 4.0
"""Seconds for which a port that says nothing is watched for what is written to it."""
USB_NAME = "534d:2109"
WEBCAM, HDMI, SVIDEO = "/dev/video0", "/dev/video1", "/dev/video2"
"""The devices that vivid makes, in the order of its parameters."""
TIMINGS_640, TIMINGS_720 = 0, 2
"""Places of 640x480 and 720x480 among vivid's timings."""
SELECTED_TIMINGS = 4
VIVID = "n_devs=3 node_types=1,1,1 num_inputs=1,1,1 input_types=0,3,2"

Results = Iterator[tuple[str, Mapping[str, object]]]
"""What a group of scenarios has shown so far, with what was measured on the way."""


class Watched:
    """A grabber that is looked at as the bedside loop does."""

    def __init__(self, grabber: Grabber) -> None:
        self.grabber = grabber

    def until(self, what: Callable[[], bool]) -> float:
        """Take frames until something is so; the seconds that it took."""
        began = now()
        while not what():
            self.grabber.take(0.05)
            assert now() < began + LIMIT, f"not within {LIMIT:g} s: {self}"
        return round(now() - began, 2)

    def frames(self, count: int = 10) -> list[Arrived]:
        """The next ``count`` frames."""
        began, taken = now(), list[Arrived]()
        while len(taken) < count:
            arrived = self.grabber.take(0.05)
            if arrived is not None:
                taken.append(arrived)
            assert now() < began + LIMIT, f"{len(taken)} of {count} frames within {LIMIT:g} s: {self}"
        assert self.grabber.trouble is None, self
        return taken

    def named(self, state: str, cause: str) -> float:
        """Wait for this trouble; while it lasts there is no frame."""
        took = self.until(lambda: self.trouble == (state, cause))
        assert self.grabber.take(0.3) is None, "a frame in spite of it"
        return took

    def back(self) -> float:
        """Wait for frames."""
        began = now()
        self.frames(3)
        return round(now() - began, 2)

    @property
    def trouble(self) -> tuple[str, str] | None:
        trouble = self.grabber.trouble
        return None if trouble is None else (trouble.state, trouble.cause)

    @property
    def child(self) -> int:
        """The process that holds the device."""
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        return int(children[-1])

    def __str__(self) -> str:
        g = self.grabber
        return f"{g.name}: {g.trouble}, lost {g.lost}, damaged {g.damaged}, restarts {g.restarts}"


@contextlib.contextmanager
def watched(device: str, width: int = 320, height: int = 180, rate: int = 30) -> Iterator[Watched]:
    with closing(Grabber(GrabberSpec(device, width, height, rate))) as grabber:
        yield Watched(grabber)


def control(device: str, name: str, value: int | None = None) -> None:
    """Set one of vivid's controls, or push it if it is a button."""
    with Device(device) as opened:
        if value is None:
            opened.controls[name].push()
        else:
            opened.controls[name].value = value


def driver_says(device: str) -> CaptureError:
    """What a driver says of a device that it cannot use."""
    try:
        V4l2Driver(GrabberSpec(device)).close()
    except CaptureError as error:
        return error
    raise AssertionError(f"{device} was opened")


def descriptors(pid: int | str) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def memory(pid: int | str) -> int:
    """Resident kilobytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4


def plain_driver(device: str, width: int = 320, height: int = 180, rate: int = 30) -> V4l2Driver:
    """The driver without a process around it, where only its words matter."""
    return V4l2Driver(GrabberSpec(device, width, height, rate))


def said_by(driver: V4l2Driver) -> tuple[str, str] | None:
    """What an open driver says of its signal; None while pictures come."""
    for _ in range(5):
        try:
            driver.take(0.2)
        except CaptureError as error:
            said: tuple[str, str] | None = (error.state, error.cause)
        else:
            said = None
    return said


def webcam() -> Results:
    """One vivid webcam, streaming throughout."""
    with watched(WEBCAM) as webcam:
        webcam.until(lambda: webcam.grabber.mode is not None)
        frames = webcam.frames(30)
        assert webcam.grabber.name == f"{WEBCAM} 320x180 YUYV 30/s", webcam
        assert webcam.grabber.badge == ""
        assert all(arrived.frame.image.shape == (180, 320, 3) for arrived in frames)
        yield "frames come in the mode asked for", {"name": webcam.grabber.name}

        # Frames that wait in the kernel while the process is held up are as old as they are. Whoever is late
        # in taking them sees the newest only.
        for _ in range(STOPS):
            os.kill(webcam.child, signal.SIGSTOP)
            stopped = now()
            time.sleep(0.4)
            continued = now()
            os.kill(webcam.child, signal.SIGCONT)
            stamps = [arrived.at for arrived in webcam.frames(5)]
            assert stamps == sorted(stamps)
            if waited := [stamp for stamp in stamps if stopped < stamp < continued]:
                break
        assert waited, (stopped, stamps, continued)
        yield "the kernel's own times are kept", {"oldest s": round(continued - waited[0], 2)}

        before = webcam.grabber.damaged
        for _ in range(5):
            control(WEBCAM, "inject_v4l2_buf_flag_error")
            webcam.frames(5)
        webcam.until(lambda: webcam.grabber.damaged == before + 5)
        yield (
            "frames flagged as errors are left out and counted",
            {"damaged": webcam.grabber.damaged - before},
        )

        before = webcam.grabber.lost
        control(WEBCAM, "percentage_of_dropped_buffers", 50)
        webcam.frames(30)
        lost = webcam.grabber.lost - before
        assert lost >= 10, webcam
        yield "dropped frames are counted", {"lost beside 30": lost}

        control(WEBCAM, "percentage_of_dropped_buffers", 100)
        silent = webcam.named("stale", "silent")
        restarts = webcam.grabber.restarts
        reopened = webcam.until(lambda: webcam.grabber.restarts > restarts)
        control(WEBCAM, "percentage_of_dropped_buffers", 0)
        back = {"named s": silent, "opened anew s": reopened, "frames again s": webcam.back()}
        yield "a device that opens and gives nothing", back

        restarts = webcam.grabber.restarts
        control(WEBCAM, "disconnect")
        gone = webcam.until(
            lambda: webcam.trouble == ("no-device", "unplugged") or webcam.grabber.restarts > restarts
        )
        back = {"named s": gone, "frames again s": webcam.back()}
        assert webcam.grabber.restarts > restarts
        yield "a disconnected device comes back", back

        control(WEBCAM, "inject_fatal_streaming_error")
        restarts = webcam.grabber.restarts
        webcam.until(lambda: webcam.grabber.restarts > restarts)
        yield "a fatal streaming error is survived", {"frames again s": webcam.back()}

        hung = webcam.child
        os.kill(hung, signal.SIGSTOP)
        back = {"named s": webcam.named("stale", "hung"), "frames again s": webcam.back()}
        assert webcam.child != hung
        yield "a hung driver is named, killed and replaced", back

        os.kill(webcam.child, signal.SIGKILL)
        dead = webcam.named("stale", "hung")
        with closing(plain_driver(WEBCAM)) as driver:
            assert said_by(driver) is None
            busy = webcam.named("no-device", "busy")
            assert webcam.grabber.take(0.5) is None
        yield "a killed process gives the device back", {"named s": dead}
        yield (
            "a device that another program holds",
            {"process started and named s": busy, "frames again s": webcam.back()},
        )


def hdmi() -> Results:
    """vivid's HDMI input: what the video timings tell."""
    for part in ("scaler", "cropping", "composing"):
        control(HDMI, f"enable_capture_{part}", 0)
    control(HDMI, "dv_timings", TIMINGS_640)
    control(HDMI, "dv_timings_signal_mode", SELECTED_TIMINGS)
    with watched(HDMI, 640, 480) as hdmi:
        assert hdmi.frames(3)[-1].frame.image.shape == (480, 640, 3)
        for value, cause, name in (
            (1, "", "no signal at a digital input"),
            (2, "no-lock", "no lock at a digital input"),
            (3, "unsupported", "timings out of range"),
        ):
            control(HDMI, "dv_timings_signal_mode", value)
            took = hdmi.named("no-signal", cause)
            control(HDMI, "dv_timings_signal_mode", SELECTED_TIMINGS)
            yield name, {"named s": took, "frames again s": hdmi.back()}

        before = hdmi.grabber.name
        control(HDMI, "dv_timings", TIMINGS_720)
        hdmi.until(lambda: hdmi.grabber.name != before)
        (arrived,) = hdmi.frames(1)
        assert arrived.frame.image.shape == (480, 720, 3)
        assert hdmi.grabber.badge.startswith("other-mode 720x480 YUYV 59.9"), hdmi
        assert hdmi.grabber.restarts == 0, hdmi
        yield "the picture changes its size midway", {"before": before, "after": hdmi.grabber.name}


def analog() -> Results:
    """vivid's S-Video input: what the input's status tells."""
    with closing(plain_driver(SVIDEO, 720, 480)) as driver:
        assert said_by(driver) is None
        control(SVIDEO, "standard_signal_mode", 1)
        assert said_by(driver) == ("no-signal", "")
        yield "no signal at an analog input", {}
        control(SVIDEO, "standard_signal_mode", 2)
        assert said_by(driver) == ("no-signal", "no-lock")
        yield "no lock at an analog input", {}
        control(SVIDEO, "standard_signal_mode", 0)
        assert said_by(driver) is None


def usb() -> Results:
    """A USB grabber by its VID:PID, pulled and put in again."""
    with closing(UsbGrabber(0, USB_NAME, "SN0")) as device, watched(USB_NAME, 640, 360) as usb:
        absent = usb.named("no-device", "unplugged")
        device.plug()
        back = {"process started and named s": absent, "plugged to frames s": usb.back()}
        assert usb.grabber.name == f"{USB_NAME} 640x360 MJPEG 30/s", usb
        yield "a grabber that is put in later is found by VID:PID", back

        node = find_device(USB_NAME)
        metadata = node.with_name(f"video{int(node.name[5:]) + 1}")
        assert (lambda e: (e.state, e.cause))(driver_says(str(metadata))) == ("no-device", "not-capture")
        yield "a node that gives no video", {"node": str(metadata)}

        before = usb.grabber.damaged
        device.torn = True
        torn = usb.named("no-signal", "damaged")
        device.torn = False
        back = {"named s": torn, "frames again s": usb.back(), "left out": usb.grabber.damaged - before}
        yield "pictures cut short are left out and named", back

        device.silent = True
        silent = usb.named("stale", "silent")
        device.silent = False
        yield "a USB grabber that gives nothing", {"named s": silent, "frames again s": usb.back()}

        named, again = [], []
        child = usb.child
        for count in range(REPLUGS):
            device.pull()
            named.append(usb.named("no-device", "unplugged"))
            device.plug()
            again.append(usb.back())
            if count == 1:
                first = descriptors("self"), descriptors(child), memory("self"), memory(child)
        last = descriptors("self"), descriptors(child), memory("self"), memory(child)
        assert usb.child == child, "the process was replaced"
        assert last[:2] == first[:2], f"open files {first[:2]} -> {last[:2]}"
        grown = max(b / a for a, b in zip(first[2:], last[2:], strict=True))
        assert grown < 1.05, f"memory, kB: {first[2:]} -> {last[2:]}"
        yield (
            f"pulled and put in {REPLUGS} times",
            {
                "slowest named s": max(named),
                "slowest frames again s": max(again),
                "memory grown by %": round(100 * (grown - 1), 2),
            },
        )

        with closing(UsbGrabber(1, USB_NAME, "SN1")) as second:
            second.plug()
            by_id = [Path(f"/dev/v4l/by-id/usb-Sonoglance_Grabber_SN{n}-video-index0") for n in range(2)]
            usb.until(lambda: by_id[1].exists())
            error = driver_says(USB_NAME)
            assert error.cause == "ambiguous"
            assert error.detail.count("/dev/v4l/by-path/") == 2, error
            yield "two grabbers of one number are told apart", {"says": error.detail}

            # The first one leaves and comes back under another node; its name by serial number holds.
            old = by_id[0].resolve()
            device.pull()
            usb.until(lambda: not by_id[0].exists())
            with Device(str(by_id[1])), closing(UsbGrabber(2, "1234:5678", "X")) as third:
                third.plug()
                usb.until(lambda: old.exists())
                device.plug()
                usb.until(by_id[0].exists)
                new = by_id[0].resolve()
                assert new != old
                with closing(plain_driver(str(by_id[0]))) as driver:
                    assert said_by(driver) is None
            yield "a stable name holds when the node's number changes", {"was": str(old), "is": str(new)}


def modes() -> Results:
    """Which mode is taken, and what is said of it."""
    with closing(UsbGrabber(3, "1234:0001", "M")) as device:
        device.plug()
        until_found("1234:0001")
        with closing(plain_driver("1234:0001", 1280, 720)) as driver:
            said_by(driver)
            assert str(driver.mode) == "1280x720 MJPEG 30/s"
            yield "compressed where raw frames come too slowly", {"mode": str(driver.mode)}
        spec = GrabberSpec("1234:0001", 800, 600, 60)
        with closing(V4l2Driver(spec)) as driver:
            said_by(driver)
            assert str(driver.mode) == "640x360 MJPEG 30/s"
            yield (
                "another mode than asked for is read back",
                {"asked": "800x600 60/s", "mode": str(driver.mode)},
            )

        os.seteuid(65534)
        try:
            error = driver_says(WEBCAM)
        finally:
            os.seteuid(0)
        assert error.cause == "refused", error
        yield "a device that may not be opened", {"says": error.detail}


class Host:
    """A box that looks for its panel and follows it."""

    def __init__(self) -> None:
        self.link = PanelLink(SerialPort(AUTO))
        self.pressed = list[Pressed]()
        self._reading = 0

    def until(self, what: Callable[[], bool]) -> float:
        """Go on reading until something is so; the seconds that it took."""
        began = now()
        while not what():
            self._reading += 1
            self.link.show(Shown.NORMAL, self._reading, now())
            self.pressed += self.link.events()
            time.sleep(0.02)
            assert now() < began + LIMIT, f"not within {LIMIT:g} s: {self.link.state}"
        return round(now() - began, 2)

    def close(self) -> None:
        """Look for it no longer."""
        self.link.close()

    def back(self) -> float:
        """Wait until the panel shows what it was asked to."""
        return self.until(self._agreed)

    def told(self, button: Button) -> list[Kind]:
        """What was told of a button."""
        return [pressed.kind for pressed in self.pressed if pressed.button == button]

    def for_seconds(self, seconds: float) -> None:
        """Go on reading for a while."""
        began = now()
        self.until(lambda: now() > began + seconds)

    def _agreed(self) -> bool:
        state = self.link.state
        return state.name == "linked" and state.status is not None and state.status.shown == Shown.NORMAL


def panel() -> Results:
    """The console panel on a USB serial port."""
    with closing(UsbPanel("SN7")) as device, closing(Host()) as host:
        device.silent = True
        device.plug()
        host.until(device.port.exists)
        host.for_seconds(UNHEARD)
        assert device.written == b""
        yield "nothing is written to a port on which no panel has spoken", {"watched s": UNHEARD}

        device.silent = False
        found = host.back()
        yield "a panel is found by its USB name", {"found s": found, "says": host.link.state.detail}

        gone, again = [], []
        held = Button.NEXT, Button.RECORD
        for _ in range(PANEL_REPLUGS):
            device.press("freeze")
            host.until(lambda: bool(host.pressed))
            device.pull()
            gone.append(host.until(lambda: host.link.state.name == "missing"))
            device.plug()
            again.append(host.back())
            device.press("next")
            device.press("record")
            host.until(lambda: all(Kind.LONG in host.told(button) for button in held))
            host.for_seconds(0.5)
            assert {pressed.button for pressed in host.pressed} == {Button.FREEZE, *held}, host.pressed
            assert all(host.told(button) == [Kind.PRESS, Kind.LONG] for button in held), host.pressed
            # Pulling it may have taken long.
            assert host.told(Button.FREEZE) in ([Kind.PRESS], [Kind.PRESS, Kind.LONG]), host.pressed
            host.pressed.clear()
        yield (
            f"a panel pulled and put in {PANEL_REPLUGS} times, every press told once",
            {"slowest missed s": max(gone), "slowest back s": max(again)},
        )


def until_found(name: str) -> None:
    """Wait for the kernel to know a device."""
    began = now()
    while now() < began + LIMIT:
        with contextlib.suppress(CaptureError):
            find_device(name)
            return
        time.sleep(0.1)
    raise AssertionError(f"{name} was not found")


def main() -> None:
    """Play all groups; one JSON line a result."""
    # Emulation is slow: starting a process takes many seconds, a heartbeat may be late.
    grabber_module.START_DEADLINE, grabber_module.KILL_AFTER = 120.0, 5.0
    os.environ["SYSTEMD_IGNORE_CHROOT"] = "1"
    for command in (f"modprobe vivid {VIVID}", "modprobe uvcvideo", "modprobe vhci-hcd"):
        subprocess.run(command.split(), check=True)
    subprocess.run(["/lib/systemd/systemd-udevd", "--daemon"], check=True)
    with Path(sys.argv[1]).open("w") as out:
        for group in (webcam, hdmi, analog, usb, modes, panel):
            began = now()
            try:
                for name, measured in group():
                    took, began = round(now() - began, 1), now()
                    out.write(json.dumps({"name": name, "took_s": took, "measured": measured}) + "\n")
                    out.flush()
            except Exception:  # noqa: BLE001  told outside
                out.write(json.dumps({"group": group.__name__, "failed": traceback.format_exc()}) + "\n")
                out.flush()
        out.write(json.dumps({"name": "end"}) + "\n")


if __name__ == "__main__":
    main()

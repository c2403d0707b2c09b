from __future__ import annotations

import fcntl
import logging
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing
from pathlib import Path
from types import SimpleNamespace

import pytest
import serial

from firmware_bridge import link as link_module
from firmware_bridge import ports
from firmware_bridge.errors import PanelMissingError, PanelSilentError
from firmware_bridge.gpio_panel import EXIT_BUSY, HELD_AFTER, GpioPins
from firmware_bridge.link import PanelLink, Pressed
from firmware_bridge.ports import GpioPort, SerialPort
from firmware_bridge.simulator import BUTTONS, SimulatedPanel
from firmware_bridge.wire import VERSION, Ask, Button, Event, Got, Hello, Kind, Show, Shown, encode
from tests.firmware_bridge.noise import press_in_noise
from tests.firmware_bridge.patience import PATIENCE, TRIES, bounded, in_step, keep_showing, shows, until
from tests.firmware_bridge.pty_panel import PtyPanel

SOON = 8.0
"""Seconds in which all is well again; on a machine with time to spare it takes less than 2."""
TOO_OLD = link_module.TOO_OLD
"""As it is; the tests here set it higher."""


def named(link: PanelLink, name: str) -> float:
    return until(lambda: link.state.name == name, lambda: link.state)


def heard(link: PanelLink, count: int) -> list[Pressed]:
    """As many events, or more: the panel has its answers before the link hands on what they answer."""
    until(lambda: len(link._events) >= count, lambda: link.state)
    return link.events()


def stop(pid: int) -> None:
    """Have a child of ours stand still; it does so a while after it was told."""
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED)


def link_to(panel: PtyPanel) -> PanelLink:
    return PanelLink(SerialPort(str(panel.port)))


@pytest.fixture
def panel(tmp_path: Path) -> Iterator[PtyPanel]:
    with PtyPanel(tmp_path / "panel") as plugged:
        yield plugged


@pytest.fixture
def link(panel: PtyPanel) -> Iterator[PanelLink]:
    with closing(link_to(panel)) as opened:
        named(opened, "linked")
        until(lambda: opened.state.status is not None)
        yield opened


def test_a_panel_is_linked_and_tells_how_it_is(panel: PtyPanel, link: PanelLink) -> None:
    assert link.state.hello is not None
    assert link.state.status is not None
    assert link.state.status.battery_mv == 7400
    assert "1.0" in link.state.detail
    assert panel.raw[0] == 0, "what was on the line before cannot damage the first frame"


def test_the_heartbeat_tells_the_age_of_the_reading(panel: PtyPanel, link: PanelLink) -> None:
    read_at = time.monotonic() - 0.5
    link.show(Shown.OPACITY, 70000, read_at)
    until(lambda: sum(show.asked == Shown.OPACITY for show, _ in panel.shows()) >= 8)
    shows = [(show, at) for show, at in panel.shows() if show.asked == Shown.OPACITY]
    for show, at in shows:
        assert show.reading == 70000
        assert 400 <= show.age_ms <= 1e3 * (at - read_at + link_module.ON_THE_WAY) + 1
    assert shows[-1][0].age_ms > shows[0][0].age_ms + 400, "it grows, though nobody calls"


def test_a_reading_that_is_long_past_never_looks_young(panel: PtyPanel, link: PanelLink) -> None:
    link.show(Shown.NORMAL, 1, time.monotonic() - 70.0)
    until(lambda: any(show.asked == Shown.NORMAL for show, _ in panel.shows()))
    link.show(Shown.CANNOT_TELL, 2, None)
    until(lambda: any(show.asked == Shown.CANNOT_TELL for show, _ in panel.shows()))
    assert {show.age_ms for show, _ in panel.shows() if show.asked != Shown.NO_READING} == {0xFFFF}


def test_a_change_does_not_wait_for_the_heartbeat(panel: PtyPanel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "HEARTBEAT", 2 * PATIENCE)
    with closing(link_to(panel)) as link:
        named(link, "linked")
        for count in range(30):
            asked = Shown.NORMAL if count % 2 else Shown.OPACITY
            link.show(asked, count, time.monotonic())
            until(lambda: [show.asked for show, _ in panel.shows()][-1:] == [asked])  # noqa: B023


def test_a_press_is_handed_on_once_and_answered_every_time(panel: PtyPanel, link: PanelLink) -> None:
    for _ in range(3):
        panel.press(Button.FREEZE)
        until(lambda: panel.waiting is None)
    answers = sum(isinstance(message, Got) for message, _ in panel.received)
    panel.waiting = Event(panel.boot, panel._number - 1, Button.FREEZE, Kind.PRESS, 60)
    until(lambda: panel.waiting is None)
    until(lambda: sum(isinstance(message, Got) for message, _ in panel.received) > answers)
    panel.press(Button.BACK)  # handed on after whatever came before it
    assert [pressed.button for pressed in heard(link, 4)] == [*[Button.FREEZE] * 3, Button.BACK]
    assert link.events() == []


def test_whoever_waits_for_a_press_is_woken_and_told_when_it_was(
    panel: PtyPanel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "HELD_UP", PATIENCE)  # it would make the press older
    woken = threading.Event()
    with closing(PanelLink(SerialPort(str(panel.port)), woken.set)) as link:
        named(link, "linked")
        pressed_at = time.monotonic()
        panel.press(Button.CONFIRM, age_ms=300)
        assert woken.wait(PATIENCE)
        (pressed,) = link.events()
        assert pressed == Pressed(Button.CONFIRM, Kind.PRESS, pressed.at)
        assert pressed_at - 0.31 < pressed.at < time.monotonic() - 0.29


def test_a_press_of_a_while_ago_is_answered_and_dropped(
    panel: PtyPanel, link: PanelLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "TOO_OLD", 20.0)
    panel.press(Button.RECORD, age_ms=20_100)
    until(lambda: panel.waiting is None)
    panel.press(Button.NEXT)
    assert [pressed.button for pressed in heard(link, 2)] == [Button.NEXT]


def test_a_press_that_nobody_takes_grows_old(
    panel: PtyPanel, link: PanelLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "TOO_OLD", 0.2)
    panel.press(Button.NEXT)
    until(lambda: len(link._events) == 1)
    time.sleep(0.3)
    assert link.events() == []


def test_a_reset_is_noticed_and_its_first_press_is_no_repetition(
    panel: PtyPanel, link: PanelLink, caplog: pytest.LogCaptureFixture
) -> None:
    panel.press(Button.NEXT)
    until(lambda: panel.waiting is None)
    panel.reset()
    panel.press(Button.NEXT)
    until(lambda: panel.waiting is None)
    until(lambda: link.state.hello is not None and link.state.hello.boot == panel.boot)
    assert "was reset" in caplog.text
    assert len(heard(link, 2)) == 2


def test_a_hello_that_was_lost_is_asked_for(panel: PtyPanel, link: PanelLink) -> None:
    panel.boot += 1  # as a reset whose hello noise destroyed
    until(lambda: link.state.hello is not None and link.state.hello.boot == panel.boot, lambda: link.state)


def test_unplugged_and_replugged_it_is_back_within_two_seconds(panel: PtyPanel, link: PanelLink) -> None:
    for _ in range(3):
        panel.unplug()
        assert named(link, "missing") < SOON
        assert link.state.status is None
        panel.plug()
        assert named(link, "linked") < SOON
    panel.press(Button.BACK)
    assert len(heard(link, 1)) == 1


def test_what_is_asked_while_it_is_away_is_shown_when_it_is_back(panel: PtyPanel, link: PanelLink) -> None:
    panel.unplug()
    named(link, "missing")
    link.show(Shown.NORMAL, 9, time.monotonic())
    panel.received.clear()
    panel.plug()
    until(lambda: bool(panel.shows()))
    assert panel.shows()[0][0].asked == Shown.NORMAL


def test_silence_is_told_and_ends_when_it_ends(panel: PtyPanel, link: PanelLink) -> None:
    panel.silent = True
    named(link, "silent")
    assert link.state.status is None
    panel.silent = False
    named(link, "linked")


def test_a_port_that_stays_silent_is_opened_anew(
    panel: PtyPanel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(link_module, "REOPEN_AFTER", 1.3)
    port = CountingPort(str(panel.port))
    with closing(PanelLink(port)) as link:
        named(link, "linked")
        panel.silent = True
        until(lambda: port.opened == 2)
        time.sleep(0.3)
        assert link.state.name == "silent", "that it was opened anew is no news"
        panel.silent = False
        named(link, "linked")
    assert caplog.text.count("nothing is heard") == 1


class Quiet:
    """A connection on which nobody speaks unless told to."""

    name, hung_after = "quiet", 1.0

    def __init__(self) -> None:
        self.said = b""

    def fileno(self) -> int:
        return -1

    def read(self) -> bytes:
        said, self.said = self.said, b""
        return said

    def write(self, frame: bytes) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The link's: ``at`` is its time."""
    made = SimpleNamespace(at=100.0)
    monkeypatch.setattr(link_module, "time", SimpleNamespace(monotonic=lambda: made.at))
    return made


def test_that_the_box_stood_still_is_no_silence_of_the_panel(clock: SimpleNamespace) -> None:
    connection = Quiet()
    talk = link_module._Conversation(connection)
    connection.said = encode(Hello(VERSION, 63, 1, 1, 1, 0), 0)
    talk.listen()
    for stood_still in (0.1, 20.0, 0.1):
        clock.at += stood_still
        talk.speak(link_module._Wanted(), quiet=False)
        assert talk.state().name == "linked"
    for _ in range(2):
        clock.at += 0.3
        talk.speak(link_module._Wanted(), quiet=False)
    clock.at += 0.3
    with pytest.raises(PanelSilentError):  # it was heard out
        talk.speak(link_module._Wanted(), quiet=False)


def test_a_press_made_while_the_box_stood_still_between_two_looks_is_an_old_one(
    clock: SimpleNamespace,
) -> None:
    connection = Quiet()
    talk = link_module._Conversation(connection)
    talk.speak(link_module._Wanted(), quiet=False)
    clock.at += 5.0
    talk.speak(link_module._Wanted(), quiet=False)
    connection.said = encode(Event(1, 0, Button.FREEZE, Kind.PRESS, 0), 0)
    (event,) = talk.listen()
    assert event.age_ms == 5000


class CountingPort(SerialPort):
    opened = 0

    def open(self) -> ports.Connection:
        self.opened += 1
        return super().open()


def test_a_port_that_has_said_nothing_is_not_written_to_while_a_boot_loader_may_listen(
    tmp_path: Path,
) -> None:
    begun = time.monotonic()
    with PtyPanel(tmp_path / "panel", silent=True) as panel, closing(link_to(panel)) as link:
        assert link.state.name == "searching"
        until(lambda: panel.received)  # asked, after all: an older one may speak only when spoken to
        assert panel.received[0][1] - begun >= link_module.BOOT_LOADER
        assert panel.raw.startswith(b"\0" + encode(Ask(), 0)), "it is the first that was written"
        assert not panel.shows()
        named(link, "silent")


def test_a_panel_that_takes_no_bytes_blocks_nobody_and_hears_nothing_old(panel: PtyPanel) -> None:
    panel.deaf = True
    with closing(SerialPort(str(panel.port)).open()) as connection:
        begun = time.monotonic()
        for count in range(20_000):
            connection.write(b"\0" + encode(Show(Shown.NORMAL, count, 0), 0))
        assert time.monotonic() - begun < PATIENCE
        panel.deaf = False
        until(lambda: bool(panel.shows()))
        connection.write(b"\0" + encode(Show(Shown.OPACITY, 1, 0), 0))
        until(lambda: panel.shows()[-1][0].asked == Shown.OPACITY)
    assert len(panel.shows()) < 4000, "no more than the kernel holds"


def test_garbage_is_no_panel_and_hurts_none(panel: PtyPanel, link: PanelLink) -> None:
    for size in (1, 40, 500, 4000):
        panel.babble(os.urandom(size))
    panel.press(Button.NEXT)
    until(lambda: panel.waiting is None)
    named(link, "linked")


def test_another_version_is_told_and_its_presses_mean_nothing(tmp_path: Path) -> None:
    with PtyPanel(tmp_path / "panel", version=2) as panel, closing(link_to(panel)) as link:
        named(link, "old-firmware")
        assert "flash" in link.state.detail
        panel.press(Button.NEXT)
        time.sleep(0.3)
        assert link.events() == []


def test_a_panel_that_shows_something_else_is_told(panel: PtyPanel, link: PanelLink) -> None:
    link.show(Shown.NORMAL, 1, time.monotonic())
    panel.shown = Shown.NO_LINK
    until(lambda: "shows no link, asked for normal" in link.state.detail)
    panel.shown = None
    until(lambda: "asked for" not in link.state.detail)


def test_a_port_in_use_is_busy_until_it_is_free(panel: PtyPanel) -> None:
    with serial.Serial(str(panel.port), exclusive=True), closing(link_to(panel)) as link:
        named(link, "busy")
        assert "another program" in link.state.detail
        assert panel.raw == b""
        held = link
    with closing(link_to(panel)) as link:
        named(link, "linked")
    assert held.state.name == "busy"


def test_another_program_that_asks_for_the_port_is_refused(panel: PtyPanel, link: PanelLink) -> None:
    with pytest.raises(serial.SerialException):
        serial.Serial(str(panel.port), exclusive=True)


def test_what_is_no_serial_port_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    (tmp_path / "file").write_text("not a port")
    with closing(PanelLink(SerialPort(str(tmp_path / "file")))) as link:
        named(link, "refused")
        time.sleep(0.7)
        assert "not a serial port" in link.state.detail
    assert caplog.text.count("not a serial port") == 1


def test_without_permission_the_group_is_named(panel: PtyPanel) -> None:
    if os.getuid() != 0:
        pytest.skip("it opens a port as a user who may not, whom only root can become: run the tests as root")
    Path(panel.port).resolve().chmod(0o600)
    for folder in (panel.port.parent, *panel.port.parent.parents[:3]):
        folder.chmod(folder.stat().st_mode | 0o755)
    code = (
        "import os, sys; from firmware_bridge.ports import SerialPort\n"
        "from firmware_bridge.errors import PanelRefusedError\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try: SerialPort(sys.argv[1]).open()\n"
        "except PanelRefusedError as error: print(error)"
    )
    told = subprocess.run(
        [sys.executable, "-c", code, str(panel.port)], capture_output=True, text=True, timeout=60
    )
    assert "dialout" in told.stdout, told.stderr


def test_a_program_that_was_killed_leaves_the_port_to_the_next(panel: PtyPanel) -> None:
    code = (
        "import sys, time; from firmware_bridge.link import PanelLink\n"
        "from firmware_bridge.ports import SerialPort\n"
        "link = PanelLink(SerialPort(sys.argv[1]))\n"
        "while link.state.name != 'linked': time.sleep(0.01)\n"
        "print('linked', flush=True); time.sleep(600)"
    )
    for _ in range(2):
        with program(code, panel) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "linked\n"
            process.kill()
    with closing(link_to(panel)) as link:
        named(link, "linked")


def program(code: str, panel: PtyPanel) -> AbstractContextManager[subprocess.Popen[str]]:
    """One of its own, told the panel's port."""
    call = [sys.executable, "-c", code, str(panel.port)]
    return bounded(subprocess.Popen(call, stdout=subprocess.PIPE, text=True))


def test_a_press_made_while_the_box_stood_still_is_not_taken_for_a_new_one(panel: PtyPanel) -> None:
    code = (
        "import sys, time; from firmware_bridge.link import PanelLink\n"
        "from firmware_bridge.ports import SerialPort\n"
        "link = PanelLink(SerialPort(sys.argv[1]))\n"
        "while link.state.name != 'linked': time.sleep(0.01)\n"
        "print('linked', flush=True)\n"
        "while True:\n"
        "    for pressed in link.events(): print(pressed.button.name, flush=True)\n"
        "    time.sleep(0.01)"
    )
    with program(code, panel) as process:
        output = process.stdout
        assert output is not None
        assert output.readline() == "linked\n"
        stop(process.pid)
        panel.press(Button.FREEZE)
        time.sleep(TOO_OLD + 0.5)
        process.send_signal(signal.SIGCONT)
        until(lambda: not panel.waiting)

        def told() -> bool:
            panel.press(Button.NEXT)
            return bool(select.select([output], [], [], TOO_OLD)[0])

        until(told)  # this machine, too, may stand still meanwhile
        assert output.readline() == "NEXT\n"
        process.kill()


def test_a_mistake_of_our_own_is_told_and_the_link_begun_anew(
    panel: PtyPanel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(link_module, "RETRY_PERMANENT_AFTER", 0.5)
    mistakes = [ValueError("twice\nover"), MemoryError()]

    class Mistaken(SerialPort):
        def open(self) -> ports.Connection:
            if mistakes:
                raise mistakes.pop()
            return super().open()

    def wake() -> None:
        if not woken.is_set():
            woken.set()
            raise RuntimeError("nobody is in")

    woken = threading.Event()
    with closing(PanelLink(Mistaken(str(panel.port)), wake)) as link:
        named(link, "refused")
        until(lambda: "ValueError: twice over" in link.state.detail)
        named(link, "linked")
        panel.press(Button.NEXT)
        assert woken.wait(PATIENCE)
        named(link, "refused")
        named(link, "linked")
        panel.press(Button.BACK)
        assert heard(link, 2)[-1].button == Button.BACK
    assert caplog.text.count("Traceback") == 3


def test_what_an_adapter_does_not_take_is_not_kept_for_it(panel: PtyPanel) -> None:
    # A pty never tells of what is unsent, as an adapter does; the kernel's socket tells it by the same call.
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    connection = SerialPort(str(panel.port)).open()
    line, connection._serial = connection._serial, ours  # type: ignore[attr-defined]
    with line, ours, theirs:
        for number in range(12):
            connection.write(encode(Show(Shown.NORMAL, number, 0), 0))
            time.sleep(link_module.HEARTBEAT)
        assert theirs.recv(4096).count(b"\0") <= 3
        connection.write(encode(Show(Shown.NORMAL, 12, 0), 0))
        assert theirs.recv(4096).count(b"\0") == 1, "it moves again"


OTHERS = 40
"""Devices that are plugged in one after the other."""


class TestAuto:
    @pytest.fixture
    def by_id(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        folder = tmp_path / "by-id"
        folder.mkdir()
        monkeypatch.setattr(ports, "BY_ID", folder)
        return folder

    @pytest.fixture
    def ttys(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        folder = tmp_path / "class-tty"
        folder.mkdir()
        monkeypatch.setattr(ports, "TTYS", folder)
        return folder

    @pytest.fixture
    def opened(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Every port that is opened, again and again."""
        names: list[str] = []

        class Counting(ports._SerialConnection):
            def __init__(self, name: str) -> None:
                names.append(name)
                super().__init__(name)

        monkeypatch.setattr(ports, "_SerialConnection", Counting)
        return names

    def test_nothing_plugged_in_is_missing(self, by_id: Path) -> None:
        with closing(PanelLink(SerialPort("auto"))) as link:
            named(link, "missing")

    def test_the_panel_is_found_among_others_which_are_not_written_to(self, by_id: Path, ttys: Path) -> None:
        with (
            PtyPanel(by_id / "usb-Aaa_scale", silent=True, ttys=ttys) as scale,
            PtyPanel(by_id / "usb-Mmm_gps", silent=True, ttys=ttys) as gps,
            PtyPanel(by_id / "usb-Zzz_panel", ttys=ttys) as panel,
            closing(PanelLink(SerialPort("auto"))) as link,
        ):
            gps.babble(b"$GPGGA,123519,4807.038,N*47\r\n" * 3)
            named(link, "linked")
            panel.unplug()
            named(link, "missing")
            panel.plug()
            assert named(link, "linked") < SOON
            assert panel.received
            assert scale.raw == gps.raw == b""

    def test_a_panel_plugged_in_while_others_are_listened_to_is_found_at_once(
        self, by_id: Path, ttys: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ports, "LISTEN", 2 * SOON)
        monkeypatch.setattr(link_module, "CLOSE_DEADLINE", 0.1)
        scale = PtyPanel(by_id / "usb-Aaa_scale", silent=True, ttys=ttys)
        with scale, closing(PanelLink(SerialPort("auto"))) as link:
            time.sleep(0.3)
            with PtyPanel(by_id / "usb-Zzz_panel", ttys=ttys):
                assert named(link, "linked") < SOON

    def test_other_makers_devices_are_never_opened(self, by_id: Path, ttys: Path, opened: list[str]) -> None:
        with (
            PtyPanel(by_id / "usb-u-blox_gps", ttys=ttys, vendor="1546"),
            PtyPanel(by_id / "usb-of-no-bus"),
            closing(PanelLink(SerialPort("auto"))) as link,
        ):
            named(link, "missing")
            time.sleep(1.0)
            assert "no Arduino" in link.state.detail
        assert opened == []

    def test_a_port_that_is_not_ours_is_given_up_until_it_is_plugged_in_anew(
        self, by_id: Path, ttys: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        scale = PtyPanel(by_id / "usb-scale", silent=True, ttys=ttys)
        with scale, monkeypatch.context() as hasty:
            hasty.setattr(ports, "LISTEN", 0.1)
            hasty.setattr(ports, "FIRST_REST", 0.05)
            with closing(PanelLink(SerialPort("auto"))) as link:
                until(lambda: len(opened) == ports.TRIES)
                time.sleep(1.0)
                assert len(opened) == ports.TRIES
                assert "anew" in link.state.detail
                scale.unplug()
                hasty.undo()
                until(lambda: "no Arduino" in link.state.detail)
                scale.silent = False
                scale.plug()
                named(link, "linked")

    def test_a_port_that_was_a_panels_is_never_given_up(
        self, by_id: Path, ttys: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        panel = PtyPanel(by_id / "usb-panel", ttys=ttys)
        with panel, closing(PanelLink(SerialPort("auto"))) as link:
            named(link, "linked")
            for name, seconds in (("LISTEN", 0.1), ("FIRST_REST", 0.05), ("LONGEST_REST", 0.05)):
                monkeypatch.setattr(ports, name, seconds)
            monkeypatch.setattr(link_module, "REOPEN_AFTER", 0.5)
            panel.silent = True
            until(lambda: len(opened) > ports.TRIES + 2)
            panel.silent = False
            named(link, "linked")

    def test_a_port_that_is_let_go_has_its_settings_back(
        self, by_id: Path, ttys: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ports, "LISTEN", 0.2)
        with PtyPanel(by_id / "usb-scale", silent=True, ttys=ttys) as scale:
            other = os.open(scale.port, os.O_RDWR | os.O_NOCTTY)
            settings = termios.tcgetattr(other)
            settings[2] |= termios.HUPCL
            settings[4] = settings[5] = termios.B9600
            termios.tcsetattr(other, termios.TCSANOW, settings)
            settings = termios.tcgetattr(other)
            with pytest.raises(PanelMissingError):
                SerialPort("auto").open()
            assert opened
            assert termios.tcgetattr(other) == settings
            os.close(other)

    @pytest.mark.parametrize("others", [[], ["busy"], ["silent"]])
    def test_a_port_being_busy_is_told(
        self, by_id: Path, ttys: Path, others: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ports, "LISTEN", 0.2)
        with ExitStack() as stack:
            for number, how in enumerate(["busy", *others]):
                device = PtyPanel(by_id / f"usb-{number}", silent=how == "silent", ttys=ttys)
                stack.enter_context(device)
                if how == "busy":
                    stack.enter_context(serial.Serial(str(device.port), exclusive=True))
            link = stack.enter_context(closing(PanelLink(SerialPort("auto"))))
            named(link, "busy")
            assert "another program" in link.state.detail

    def test_a_search_ends_though_there_are_always_others_to_listen_to(
        self, by_id: Path, ttys: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ports, "LISTEN", 0.5)
        with ExitStack() as stack:
            ended = threading.Event()

            def plug() -> None:
                for number in range(OTHERS):
                    if not ended.wait(0.2):
                        device = PtyPanel(by_id / f"usb-{number}", silent=True, ttys=ttys)
                        stack.enter_context(device)

            plugging = threading.Thread(target=plug)
            plugging.start()
            until(lambda: bool(list(by_id.iterdir())))
            with pytest.raises(PanelMissingError):
                SerialPort("auto").open()
            plugged = len(list(by_id.iterdir()))
            ended.set()
            plugging.join()
        assert plugged < OTHERS, "it has waited for the last"

    def test_the_folder_of_names_may_vanish_at_any_moment(self, by_id: Path) -> None:
        # As udev removes it with the last adapter.
        code = "import os, sys\nwhile True:\n    os.rmdir(sys.argv[1])\n    os.mkdir(sys.argv[1])"
        with subprocess.Popen([sys.executable, "-c", code, by_id]) as process:
            try:
                enough = time.monotonic() + 1.5
                while time.monotonic() < enough:
                    assert ports._adapters() == []
            finally:
                process.kill()

    def test_it_may_be_one_descriptor_of_very_many(
        self, by_id: Path, ttys: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ports, "LISTEN", 1.0)
        with ExitStack() as stack:
            stack.enter_context(PtyPanel(by_id / "usb-scale", silent=True, ttys=ttys))
            for _ in range(1100):
                stack.callback(os.close, os.open("/dev/null", os.O_RDONLY))
            link = stack.enter_context(closing(PanelLink(SerialPort("auto"))))
            named(link, "missing")


def test_the_port_keeps_its_line_up_when_it_is_closed(panel: PtyPanel) -> None:
    # On a real adapter HUPCL drops DTR at the close, which resets an Arduino at the next opening.
    connection = SerialPort(str(panel.port)).open()
    assert not termios.tcgetattr(connection.fileno())[2] & termios.HUPCL
    connection.close()


def test_closing_is_quick_whatever_the_state(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name in ("nowhere", "file"):
        link = PanelLink(SerialPort(str(tmp_path / name)))
        until(lambda: link.state.name != "searching")  # noqa: B023
        begun = time.monotonic()
        link.close()
        assert time.monotonic() - begun < SOON
        link.show(Shown.NORMAL, 1, None)


def test_closing_waits_for_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "CLOSE_DEADLINE", 0.2)
    held, let_go = threading.Event(), threading.Event()

    class Held(SerialPort):
        def open(self) -> ports.Connection:
            held.set()
            let_go.wait()
            return super().open()

    link = PanelLink(Held("nowhere"))
    held.wait()
    begun = time.monotonic()
    link.close()
    assert time.monotonic() - begun < SOON
    let_go.set()


class TestTheRealFirmware:
    @pytest.fixture
    def link(self, simulated: SimulatedPanel) -> Iterator[PanelLink]:
        with closing(PanelLink(SerialPort(str(simulated.port)))) as opened:
            named(opened, "linked")
            yield opened

    def test_lamps_follow_and_presses_come(self, simulated: SimulatedPanel, link: PanelLink) -> None:
        def presses_come() -> None:
            link.events()
            for button in BUTTONS:
                simulated.press(button)
                time.sleep(0.05)
                simulated.release(button)
                time.sleep(0.05)
            assert [(event.button, event.kind) for event in heard(link, 2 * len(BUTTONS))] == [
                (button, kind) for button in Button for kind in (Kind.PRESS, Kind.CLICK)
            ]

        for asked, lamp in ((Shown.NORMAL, "D7"), (Shown.OPACITY, "D8")):
            keep_showing(link, asked, lambda: simulated.level(lamp))  # noqa: B023
        in_step(simulated, presses_come)

    def test_it_is_back_within_two_seconds_of_whatever_happens(
        self, simulated: SimulatedPanel, link: PanelLink
    ) -> None:
        for accident in (simulated.reset, simulated.hang, self._replug(simulated)):
            before = link.state.hello
            accident()
            took = until(
                lambda: link.state.name == "linked" and link.state.hello != before,  # noqa: B023
                lambda: link.state,
            )
            assert took < SOON
            time.sleep(0.1)  # a button that is down at the start does nothing
            simulated.press("next")
            until(lambda: bool(link.events()), lambda: link.state)
            simulated.release("next")
            until(lambda: bool(link.events()), lambda: link.state)

    @staticmethod
    def _replug(simulated: SimulatedPanel) -> Callable[[], None]:
        def replug() -> None:
            simulated.unplug()
            time.sleep(0.3)
            simulated.plug()

        return replug

    def test_only_the_first_opening_resets_it(self, simulated: SimulatedPanel) -> None:
        boots = []
        for _ in range(3):
            with closing(PanelLink(SerialPort(str(simulated.port)))) as link:
                named(link, "linked")
                until(lambda: link.state.status is not None)
                assert link.state.status is not None
                boots.append(link.state.status.boot)
        assert boots[0] == boots[1] == boots[2]

    def test_no_press_is_lost_or_doubled_in_noise(self, firmware: Path) -> None:
        # Ten times the noise for a hundredth of the presses; tests.firmware_bridge.noise is the long run.
        for _ in range(TRIES):
            outcome = press_in_noise(firmware, events=50, share=0.01, seed=3)
            if outcome.longest_hold < HELD_AFTER / 2:
                break  # else this machine stood still, and made one of them a long press
        assert outcome.counts is not None
        assert outcome.counts.flipped > 5
        assert outcome.counts.lost > 5
        assert not outcome.amiss


@pytest.mark.usefixtures("pins")
class TestGpio:
    def test_its_process_speaks_as_a_panel_does(self) -> None:
        with closing(PanelLink(GpioPort(GpioPins()))) as link:
            named(link, "linked")
            keep_showing(link, Shown.NORMAL, lambda: shows(link, Shown.NORMAL))
            (process,) = processes()
        assert processes() == []
        assert process

    def test_killed_it_is_back_within_two_seconds(self) -> None:
        with closing(PanelLink(GpioPort(GpioPins()))) as link:
            named(link, "linked")
            (first,) = processes()
            os.kill(first, signal.SIGKILL)
            until(lambda: link.state.name != "linked")
            assert named(link, "linked") < SOON
            assert processes() != [first]

    def test_a_process_that_hangs_is_killed_without_waiting_and_started_anew(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(link_module, "REOPEN_AFTER", PATIENCE)
        monkeypatch.setattr(ports, "EXIT_DEADLINE", PATIENCE)
        monkeypatch.setattr(ports._GpioConnection, "hung_after", ports.GPIO_HUNG_AFTER)
        with closing(PanelLink(GpioPort(GpioPins()))) as link:
            named(link, "linked")
            (first,) = processes()
            stop(first)
            assert until(lambda: first not in processes(), lambda: link.state) < SOON
            named(link, "linked")

    def test_what_a_process_does_not_take_is_not_kept_for_it(self) -> None:
        with closing(GpioPort(GpioPins()).open()) as connection:
            until(lambda: bool(connection.read()))
            (process,) = processes()
            stop(process)
            connection.write(encode(Show(Shown.NORMAL, 0, 0), 0))
            one = unsent(connection)
            for number in range(12):
                time.sleep(link_module.HEARTBEAT)
                connection.write(encode(Show(Shown.NORMAL, number, 0), 0))
            assert unsent(connection) <= 3 * one

    def test_a_process_that_the_kernel_keeps_holds_nobody_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # As seen from here: it is there, does nothing, and no kill ends it.
        monkeypatch.setattr(ports, "EXIT_DEADLINE", 0.2)
        monkeypatch.setattr(subprocess.Popen, "kill", lambda _: None)
        link = PanelLink(GpioPort(GpioPins()))
        named(link, "linked")
        (process,) = processes()
        stop(process)
        begun = time.monotonic()
        link.close()
        took = time.monotonic() - begun
        os.kill(process, signal.SIGKILL)
        assert not link._thread.is_alive()
        assert took < SOON

    def test_a_process_that_finds_its_pins_taken_is_started_less_and_less_often(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        process, starts = tmp_path / "process", tmp_path / "starts"
        process.write_text(f"#!/bin/sh\necho started >> {starts}\necho it is taken >&2\nexit {EXIT_BUSY}\n")
        process.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(process))
        with closing(PanelLink(GpioPort(GpioPins()))) as link:
            named(link, "busy")
            time.sleep(2.0)
            assert link.state.detail == "gpio: it is taken"
        assert 2 <= len(starts.read_text().splitlines()) <= 5

    def test_a_box_without_pins_says_so_once_in_one_line(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        monkeypatch.setattr(link_module, "PERMANENT_AFTER", 0.0)
        monkeypatch.setattr(link_module, "RETRY_PERMANENT_AFTER", PATIENCE)
        monkeypatch.setenv("GPIOZERO_PIN_FACTORY", "lgpio")
        if Path("/dev/gpiochip0").exists():
            pytest.skip("it tests what a box without GPIO is told, and this one has some")
        with closing(PanelLink(GpioPort(GpioPins()))) as link:
            named(link, "refused")
            assert link.state.detail.startswith("gpio: ")
            assert "\n" not in link.state.detail
            time.sleep(1.5)
            assert processes() == [], "it is not started again and again"
        assert len(caplog.messages) == 1


def processes() -> list[int]:
    """Ours that have the pins."""
    listed = subprocess.run(
        ["pgrep", "-P", str(os.getpid()), "-f", "firmware_bridge.gpio_panel"], capture_output=True, text=True
    )
    return [int(pid) for pid in listed.stdout.split()]


def unsent(connection: ports.Connection) -> int:
    """Bytes of the kernel's that hold what the other end has not read."""
    (count,) = struct.unpack("i", fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4)))
    return int(count)

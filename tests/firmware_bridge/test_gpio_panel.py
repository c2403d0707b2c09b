"""The GPIO panel: on gpiozero's mock pins with the time given in, and as the process that it is."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import gpiozero
import pytest
from gpiozero.pins.mock import MockFactory, MockPWMPin

from firmware_bridge.gpio_panel import LOOK_EVERY, TUNES, GpioPanel, GpioPins, Sound, lamps_stay_lit
from firmware_bridge.lamps import SHOWN
from firmware_bridge.link import PanelLink
from firmware_bridge.ports import GpioPort
from firmware_bridge.wire import (
    VERSION,
    Ask,
    Button,
    Capability,
    Condition,
    Event,
    FrameReader,
    Got,
    Hello,
    Kind,
    Message,
    Show,
    Shown,
    Status,
    encode,
)
from tests.conftest import ROOT, need
from tests.firmware_bridge.patience import PATIENCE, keep_showing, shows, until
from tests.hil.rig import MockPinsRig
from tests.hil.watch import LAMPS

BOOT = 513
PINS = GpioPins()
NORMAL, OPACITY, NO_READING = LAMPS.values()


class Bench:
    """A panel on mock pins, and a box that beats every 100 ms, in a time of their own."""

    def __init__(self, factory: MockFactory, pins: GpioPins) -> None:
        self.at = 100.0
        self.factory, self.pins = factory, pins
        self.heard: list[tuple[float, Message]] = []
        self.sounded: list[tuple[float, int]] = []
        self.asked: Shown | None = Shown.NORMAL
        self.quiet = 0
        self.answering = True
        self.panel = GpioPanel(pins, BOOT, self.at)
        self._reader = FrameReader()
        self._reading = 0
        self._take(self.panel.hello())

    def run(self, seconds: float) -> list[Message]:
        """What the panel says meanwhile, by itself and to a box that takes every event."""
        begun = len(self.heard)
        for _ in range(round(seconds / LOOK_EVERY)):
            self.at += LOOK_EVERY
            spoken = b""
            if self.asked is not None and round(self.at / LOOK_EVERY) % 20 == 0:
                self._reading += 1
                spoken = encode(Show(self.asked, self._reading, 0, self.quiet), 0)
            self.say(spoken)
        return [message for _, message in self.heard[begun:]]

    def say(self, spoken: bytes) -> None:
        events = self._take(self.panel.step(spoken, self.at))
        while events and self.answering:
            got = b"".join(encode(Got(event.boot, event.number), 0) for event in events)
            events = self._take(self.panel.step(got, self.at))
        if self.pins.buzzer is not None:
            buzzer = self.factory.pin(self.pins.buzzer)
            tone = buzzer.frequency if buzzer.frequency and buzzer.state else 0
            if tone != (self.sounded[-1][1] if self.sounded else 0):
                self.sounded.append((self.at, tone))

    def press(self, button: Button, seconds: float) -> list[Message]:
        contact = self.contact(button)
        contact.drive_low()
        said = self.run(seconds)
        contact.drive_high()
        return said + self.run(0.1)

    def contact(self, button: Button) -> MockPWMPin:
        return self.factory.pin(getattr(self.pins, button.name.lower()))

    def lit(self) -> tuple[bool, ...]:
        lamps = self.pins.normal, self.pins.opacity, self.pins.no_reading
        return tuple(bool(self.factory.pin(pin).state) for pin in lamps)

    def status(self) -> Status:
        return next(message for _, message in reversed(self.heard) if isinstance(message, Status))

    def _take(self, spoken: bytes) -> list[Event]:
        messages = [message for message, _ in self._reader.feed(spoken)]
        assert self._reader.refused == 0
        self.heard += [(self.at, message) for message in messages]
        return [message for message in messages if isinstance(message, Event)]


@pytest.fixture
def factory(monkeypatch: pytest.MonkeyPatch) -> Iterator[MockFactory]:
    with closing(MockFactory(pin_class=MockPWMPin)) as made:
        monkeypatch.setattr(gpiozero.Device, "pin_factory", made)
        yield made


@pytest.fixture
def bench(factory: MockFactory) -> Iterator[Bench]:
    made = Bench(factory, PINS)
    with closing(made.panel):
        yield made


def done(said: list[Message]) -> list[tuple[Button, Kind]]:
    return [(Button(event.button), Kind(event.kind)) for event in said if isinstance(event, Event)]


@pytest.mark.parametrize("button", Button)
def test_a_short_press_is_press_and_click(bench: Bench, button: Button) -> None:
    bench.run(0.5)
    assert done(bench.press(button, 0.2)) == [(button, Kind.PRESS), (button, Kind.CLICK)]


def test_a_long_press_is_told_while_it_lasts(bench: Bench) -> None:
    bench.run(0.5)
    begun = bench.at
    assert done(bench.press(Button.CONFIRM, 2.0)) == [
        (Button.CONFIRM, Kind.PRESS),
        (Button.CONFIRM, Kind.LONG),
    ]
    pressed, held = (at - begun for at, message in bench.heard if isinstance(message, Event))
    assert pressed == pytest.approx(0.015, abs=0.001)
    assert held == pytest.approx(pressed + 0.8, abs=LOOK_EVERY + 0.001)


def test_contacts_that_bounce_make_one_press(bench: Bench) -> None:
    bench.run(0.5)
    contact = bench.contact(Button.NEXT)
    said: list[Message] = []
    for _ in range(2):
        for _ in range(6):
            contact.drive_low()
            said += bench.run(LOOK_EVERY)
            contact.drive_high()
            said += bench.run(LOOK_EVERY)
        assert done(said) == []
    contact.drive_low()
    said += bench.run(0.1)
    for _ in range(6):
        contact.drive_high()
        said += bench.run(LOOK_EVERY)
        contact.drive_low()
        said += bench.run(LOOK_EVERY)
    contact.drive_high()
    said += bench.run(0.1)
    assert done(said) == [(Button.NEXT, Kind.PRESS), (Button.NEXT, Kind.CLICK)]


def test_a_button_that_is_down_at_the_start_does_nothing_until_it_was_let_go(factory: MockFactory) -> None:
    class Stuck(MockPWMPin):  # type: ignore[misc]
        def _set_pull(self, value: str) -> None:
            super()._set_pull(value)
            self.drive_low()

    stuck = factory.pin(PINS.record, pin_class=Stuck)
    bench = Bench(factory, PINS)
    with closing(bench.panel):
        assert done(bench.run(2.0)) == []
        assert bench.status().down == 1 << (Button.RECORD - 1)
        stuck.drive_high()
        assert done(bench.run(0.5)) == []
        assert bench.status().down == 0
        assert done(bench.press(Button.RECORD, 0.1)) == [
            (Button.RECORD, Kind.PRESS),
            (Button.RECORD, Kind.CLICK),
        ]


def test_two_buttons_at_once_are_both_told(bench: Bench) -> None:
    bench.run(0.5)
    bench.contact(Button.FREEZE).drive_low()
    bench.contact(Button.BACK).drive_low()
    assert sorted(done(bench.run(0.2))) == [(Button.FREEZE, Kind.PRESS), (Button.BACK, Kind.PRESS)]
    assert bench.status().down == 1 << (Button.FREEZE - 1) | 1 << (Button.BACK - 1)


def test_it_begins_with_a_hello_and_answers_every_ask(bench: Bench) -> None:
    hello = bench.heard[0][1]
    assert isinstance(hello, Hello)
    assert hello.boot == BOOT
    assert hello.capabilities == Capability.BUTTONS | Capability.LAMPS | Capability.BUZZER
    bench.say(encode(Ask(), 0))
    assert [message for _, message in bench.heard[1:]].count(hello) == 1


def test_status_comes_four_times_a_second_and_at_once_with_a_change(bench: Bench) -> None:
    bench.run(1.0)
    said = bench.run(2.0)
    assert sum(isinstance(message, Status) for message in said) == 8
    bench.asked = Shown.OPACITY
    bench.run(0.1)
    assert bench.status().shown == Shown.OPACITY
    assert bench.status().boot == BOOT
    assert bench.status().uptime_s == 3
    assert (bench.status().battery_mv, bench.status().flags) == (0, 0)


def test_an_event_is_repeated_until_it_is_got_and_the_next_waits(bench: Bench) -> None:
    bench.run(0.5)
    bench.answering = False
    said = [event for event in bench.press(Button.FREEZE, 0.1) if isinstance(event, Event)]
    assert {(event.number, event.kind) for event in said} == {(0, Kind.PRESS)}
    assert said[0].age_ms == 0
    assert all(50 <= after.age_ms - before.age_ms <= 55 for before, after in pairwise(said))
    bench.say(encode(Got(BOOT, 1), 0) + encode(Got(BOOT + 1, 0), 0))
    assert {event.number for event in bench.run(0.1) if isinstance(event, Event)} == {0}
    bench.say(encode(Got(BOOT, 0), 0))
    said = [event for event in bench.run(0.1) if isinstance(event, Event)]
    assert {(event.number, event.kind) for event in said} == {(1, Kind.CLICK)}


def test_an_event_that_nobody_wants_any_more_is_dropped_with_a_long_low_tone(bench: Bench) -> None:
    bench.run(0.5)
    bench.answering = False
    bench.press(Button.FREEZE, 0.1)
    said = bench.run(3.0)
    ages = [event.age_ms for event in said if isinstance(event, Event)]
    assert max(ages) <= 2000
    assert done(bench.run(1.0)) == []
    assert tones(bench) == [440]


def test_eight_events_wait_and_the_loss_of_more_is_told(bench: Bench) -> None:
    bench.run(0.5)
    bench.answering = False
    for _ in range(4):
        bench.press(Button.NEXT, 0.05)
    bench.run(0.3)
    assert not bench.status().flags & Condition.EVENTS_LOST
    bench.press(Button.NEXT, 0.05)
    bench.run(0.3)
    assert bench.status().flags & Condition.EVENTS_LOST
    bench.answering = True
    assert len(set(bench.run(0.6))) >= 8
    assert bench.status().flags & Condition.EVENTS_LOST
    bench.run(10.0)
    assert not bench.status().flags & Condition.EVENTS_LOST


@pytest.mark.parametrize(
    "asked", [Shown.NO_READING, Shown.NORMAL, Shown.OPACITY, Shown.CANNOT_TELL, Shown.TEST]
)
def test_lamps_follow_the_table(bench: Bench, asked: Shown) -> None:
    bench.asked = asked
    bench.run(LOOK_EVERY)
    while bench.status().shown != asked:
        bench.run(LOOK_EVERY)
    begun = bench.at
    for _ in range(400):
        step = int((bench.at - begun + 1e-6) * 16) % 16
        assert bench.lit() == tuple(bool(pattern & 0x8000 >> step) for pattern in SHOWN[asked])
        bench.run(LOOK_EVERY)


def test_a_show_of_another_version_is_as_none(bench: Bench) -> None:
    bench.run(0.5)
    bench.asked = None
    for beat in range(15):
        bench.say(encode(Show(Shown.OPACITY, 100 + beat, 0, 0, VERSION + 1), 0))
        bench.run(0.1)
    assert bench.status().shown == Shown.NO_LINK
    assert bench.status().reading < 100
    assert not any(bench.lit()[:2])


def test_lamps_say_no_link_when_the_box_hangs(bench: Bench) -> None:
    bench.run(1.0)
    assert bench.lit() == (True, False, False)
    bench.asked = None
    bench.run(1.2)
    assert bench.status().shown == Shown.NO_LINK
    assert bench.lit()[0] is False


def test_a_reader_that_hangs_alone_leaves_no_lamp_lit(bench: Bench) -> None:
    bench.run(1.0)
    bench.asked = None
    for beat in range(30):
        bench.say(encode(Show(Shown.NORMAL, 5, min(beat * 100, 0xFFFF)), 0))
        bench.run(0.1)
    assert bench.status().shown == Shown.NO_READING
    assert bench.lit()[:2] == (False, False)


def test_garbage_is_counted_and_does_no_harm(bench: Bench) -> None:
    bench.run(0.5)
    bench.say(bytes(range(1, 256)) + b"\0" + b"\x05\x01\x01\x01\x01\0")
    bench.run(0.5)
    assert bench.status().refused == 2
    assert bench.status().shown == Shown.NORMAL


def tones(bench: Bench) -> list[int]:
    return [tone for _, tone in bench.sounded if tone]


def test_a_tick_says_that_a_press_has_arrived_and_another_that_it_was_long(bench: Bench) -> None:
    bench.run(0.5)
    bench.press(Button.FREEZE, 0.2)
    assert tones(bench) == [2500]
    begun, ended = bench.sounded[0][0], bench.sounded[1][0]
    assert ended - begun < 0.05
    bench.press(Button.CONFIRM, 1.0)
    assert tones(bench) == [2500] * 3


def test_opacity_beeps_once_in_five_seconds(bench: Bench) -> None:
    bench.run(0.5)
    for _ in range(8):
        bench.asked = Shown.OPACITY
        bench.run(0.5)
        bench.asked = Shown.NORMAL
        bench.run(0.5)
    assert tones(bench) == [2500, 2500]
    first, _, second, _ = (at for at, _ in bench.sounded)
    assert second - first >= 5


@pytest.mark.parametrize("verdict", [Shown.NORMAL, Shown.OPACITY, Shown.CANNOT_TELL])
@pytest.mark.parametrize("asked", [Shown.NO_READING, None])
def test_two_beeps_when_a_verdict_ends_in_nothing(bench: Bench, verdict: Shown, asked: Shown | None) -> None:
    bench.asked = verdict
    bench.run(1.0)
    bench.sounded.clear()
    bench.asked = asked
    bench.run(4.0)
    assert tones(bench) == [1250, 1250]


def test_no_beep_where_there_was_no_verdict(bench: Bench) -> None:
    bench.asked = Shown.NO_READING
    bench.run(2.0)
    bench.asked = None
    bench.run(2.0)
    assert bench.status().shown == Shown.NO_LINK
    assert tones(bench) == []


def test_a_tick_does_not_cut_a_warning_short(bench: Bench) -> None:
    bench.run(1.0)
    bench.asked = Shown.NO_READING
    bench.run(0.1)
    bench.press(Button.FREEZE, 0.1)
    bench.run(1.0)
    assert tones(bench) == [1250, 1250]


def test_it_sounds_as_the_firmware_does() -> None:
    sounds = (ROOT / "firmware_bridge" / "firmware" / "buzzer.c").read_text()
    rows = re.findall(r"\[SOUND_(\w+)\] = {(\d+), (\d+), (\d+), (\d+)}", sounds)
    assert {name for name, *_ in rows} == {sound.name for sound in Sound} - {"NONE"}
    for name, *numbers in rows:
        hertz, on, every, beeps = map(int, numbers)
        tune = [(hertz, on / 1000), (0, (every - on) / 1000)] * beeps
        played = [(tone, seconds) for tone, seconds in tune[:-1] if seconds]
        assert list(TUNES[Sound[name]]) == played


def test_mute_and_quiet_silence_all_but_the_test(bench: Bench) -> None:
    for quieten in (lambda: bench.factory.pin(PINS.mute).drive_low(), lambda: setattr(bench, "quiet", 1)):
        quieten()
        bench.asked = Shown.OPACITY
        bench.run(0.5)
        bench.press(Button.FREEZE, 0.1)
        bench.asked = Shown.NO_READING
        bench.run(0.5)
        assert tones(bench) == []
        bench.asked = Shown.TEST
        bench.run(1.0)
        assert tones(bench) == [2500]
        assert bool(bench.status().flags & Condition.MUTED) is (bench.quiet == 0)
        bench.factory.pin(PINS.mute).drive_high()
        bench.sounded.clear()


def test_it_works_without_buzzer_and_mute(factory: MockFactory) -> None:
    bench = Bench(factory, GpioPins(buzzer=None, mute=None))
    with closing(bench.panel):
        bench.asked = Shown.OPACITY
        assert done(bench.press(Button.FREEZE, 0.2)) == [
            (Button.FREEZE, Kind.PRESS),
            (Button.FREEZE, Kind.CLICK),
        ]
        assert bench.status().shown == Shown.OPACITY
        hello = bench.heard[0][1]
        assert isinstance(hello, Hello)
        assert not hello.capabilities & Capability.BUZZER


def test_closing_puts_the_lamps_out_and_gives_the_pins_back(bench: Bench) -> None:
    bench.run(0.5)
    assert any(bench.lit())
    bench.panel.close()
    assert not any(bench.lit())
    with closing(GpioPanel(PINS, BOOT + 1, bench.at)):
        pass


def test_a_pin_given_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="GPIO pin 17 is given to both next and normal"):
        GpioPins(next=17)


@pytest.mark.parametrize("pin", [-1, 28, True, "5", 5.0, None])
def test_what_is_no_pin_is_refused(pin: object) -> None:
    with pytest.raises(ValueError, match=r"GPIO pin of freeze: .* is not a BCM number from 0 to 27"):
        GpioPins(freeze=pin)  # type: ignore[arg-type]


def lit(pins: MockPinsRig) -> set[str]:
    """The lamps that have been lit."""
    return {change.pin for change in pins.changes() if change.level}


def test_a_whole_link_over_the_process(pins: MockPinsRig) -> None:
    with closing(PanelLink(GpioPort(PINS))) as link:
        until(lambda: link.state.name == "linked", lambda: link.state)
        keep_showing(link, Shown.OPACITY, lambda: shows(link, Shown.OPACITY))
        assert OPACITY in lit(pins)
        pins.press("freeze")
        keep_showing(link, Shown.OPACITY, lambda: link._events)
        pins.release("freeze")
        keep_showing(link, Shown.OPACITY, lambda: len(link._events) == 2)
        pressed, released = link.events()
        assert (pressed.button, pressed.kind) == (Button.FREEZE, Kind.PRESS)
        # A press during which this machine stood still was a long one.
        assert (released.button, released.kind) in ((Button.FREEZE, Kind.CLICK), (Button.FREEZE, Kind.LONG))
    pins.wait_for(OPACITY, 0, PATIENCE)


def start(
    pins: GpioPins, cwd: Path = ROOT, **environment: str
) -> tuple[subprocess.Popen[str], socket.socket]:
    ours, theirs = socket.socketpair()
    job = json.dumps({"socket": theirs.fileno(), "pins": vars(pins)})
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "firmware_bridge.gpio_panel", job],
            pass_fds=[theirs.fileno()],
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(ROOT)]), **environment},
        )
    return process, ours


def light(pins: MockPinsRig, box: socket.socket) -> None:
    """The normal lamp, which is lit without a pause."""
    box.settimeout(PATIENCE)
    assert box.recv(4096)
    box.sendall(encode(Show(Shown.NORMAL, 1, 0), 0))
    until(lambda: NORMAL in lit(pins))


@pytest.mark.parametrize("how", ["box closes", "SIGTERM"])
def test_lamps_go_out_and_the_process_ends(pins: MockPinsRig, how: str) -> None:
    process, box = start(PINS)
    light(pins, box)
    if how == "SIGTERM":
        process.send_signal(signal.SIGTERM)
    else:
        box.close()
    pins.wait_for(NORMAL, 0, PATIENCE)
    assert process.wait(PATIENCE) == 0
    box.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""


def test_lamps_go_out_when_the_box_is_killed(pins: MockPinsRig) -> None:
    program = (
        "import time; from firmware_bridge.link import *; from firmware_bridge.ports import *\n"
        "from firmware_bridge.gpio_panel import *; link = PanelLink(GpioPort(GpioPins()))\n"
        "for n in range(10**6): link.show(Shown.NORMAL, n, time.monotonic()); time.sleep(0.02)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, env=environment) as box:
        pins.wait_for(NORMAL, 1, PATIENCE)
        box.kill()
        pins.wait_for(NORMAL, 0, PATIENCE)


def test_lamps_say_no_link_while_the_box_is_stopped(pins: MockPinsRig) -> None:
    process, box = start(PINS)
    light(pins, box)
    pins.wait_for(NORMAL, 0, PATIENCE)
    pins.wait_for(NO_READING, 1, PATIENCE)
    box.close()
    assert process.wait(PATIENCE) == 0


def test_a_panel_that_is_killed_is_replaced(pins: MockPinsRig) -> None:
    others = set(children())
    with closing(PanelLink(GpioPort(PINS))) as link:
        until(lambda: link.state.name == "linked", lambda: link.state)
        (child,) = set(children()) - others
        os.kill(child, signal.SIGKILL)
        until(lambda: link.state.name != "linked", lambda: link.state)
        keep_showing(link, Shown.NORMAL, lambda: NORMAL in lit(pins))


def test_a_panel_whose_library_hangs_ends_itself(pins: MockPinsRig, tmp_path: Path) -> None:
    hang = tmp_path / "hang"
    (tmp_path / "sitecustomize.py").write_text(
        "import pathlib, signal, threading\n"
        "from gpiozero.pins.mock import MockPin\n"
        "read = MockPin._get_state\n"
        "def reads(pin):\n"
        f"    while pathlib.Path({str(hang)!r}).exists():\n"
        "        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which these pins ignore\n"
        "        threading.Lock().acquire(timeout=1)\n"
        "    return read(pin)\n"
        "MockPin._get_state = reads\n"
    )
    process, box = start(PINS, PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path, str(ROOT)]))
    light(pins, box)
    hang.touch()
    assert process.wait(PATIENCE) == -signal.SIGALRM
    box.close()


@pytest.mark.parametrize(("setting", "stays"), [("Y", True), ("N", False), (None, False)])
def test_a_kernel_that_leaves_lamps_lit_is_known(tmp_path: Path, setting: str | None, stays: bool) -> None:
    if setting is not None:
        parameters = tmp_path / "pinctrl_rp1" / "parameters"
        parameters.mkdir(parents=True)
        (parameters / "persist_gpio_outputs").write_text(f"{setting}\n")
    assert lamps_stay_lit(tmp_path) is stays


def children() -> list[int]:
    task = Path(f"/proc/{os.getpid()}/task")
    return [int(pid) for thread in task.iterdir() for pid in (thread / "children").read_text().split()]


@pytest.mark.parametrize(
    "job", ["", "{}", '{"socket": 0, "pins": {"freeze": 17}}', '{"socket": 99, "pins": {}}']
)
def test_a_wrong_call_is_told_in_one_line(job: str) -> None:
    call = [sys.executable, "-m", "firmware_bridge.gpio_panel", job]
    ended = subprocess.run(call, capture_output=True, text=True, cwd=ROOT, timeout=PATIENCE, check=False)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1


def refusal(cwd: Path = ROOT, **environment: str) -> tuple[int, str]:
    process, box = start(PINS, cwd, **environment)
    with box:
        _, said = process.communicate(timeout=PATIENCE)
    assert said.count("\n") == 1, said
    return process.returncode, said


@pytest.mark.skipif(
    bool(list(Path("/dev").glob("gpiochip*"))),
    reason="it tests what a machine without GPIO is told, and this one has some",
)
def test_a_machine_without_gpio_is_named_in_one_line_and_nothing_is_left(tmp_path: Path) -> None:
    """lgpio leaves a pipe wherever it is imported, or looks for it where it is not when LG_WD is set."""
    need(find_spec("lgpio"), "lgpio", "python3-lgpio")
    work, temporary = tmp_path / "work", tmp_path / "temporary"
    work.mkdir()
    temporary.mkdir()
    code, said = refusal(work, GPIOZERO_PIN_FACTORY="lgpio", TMPDIR=str(temporary), LG_WD="/nowhere")
    assert code == 69
    assert "no GPIO of a Raspberry Pi" in said
    assert list(work.iterdir()) == list(temporary.iterdir()) == []


@pytest.mark.parametrize("missing", ["lgpio", "gpiozero"])
def test_a_missing_library_is_named_in_one_line(tmp_path: Path, missing: str) -> None:
    (tmp_path / f"{missing}.py").write_text(f'raise ModuleNotFoundError("No module named {missing!r}")')
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    code, said = refusal(PYTHONPATH=path, GPIOZERO_PIN_FACTORY="lgpio")
    assert code == 69
    assert f"No module named '{missing}'; apt-get install" in said


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        ("GPIO busy", 75, "another program has one of the pins"),
        ("GPIO not allocated", 69, "GPIO not allocated"),
    ],
)
def test_what_lgpio_says_becomes_one_line(tmp_path: Path, raised: str, code: int, line: str) -> None:
    """The errors of a library whose hardware is not here."""
    (tmp_path / "lgpio.py").write_text("class error(Exception): pass")
    (tmp_path / "sitecustomize.py").write_text(
        f"import gpiozero, lgpio\ndef refuse(pin): raise lgpio.error({raised!r})\ngpiozero.LED = refuse\n"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path, str(ROOT)])
    ended, said = refusal(PYTHONPATH=path, GPIOZERO_PIN_FACTORY="lgpio")
    assert ended == code
    assert line in said

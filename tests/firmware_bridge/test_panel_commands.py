from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import AbstractContextManager, closing
from pathlib import Path

import pytest

from firmware_bridge import ports
from firmware_bridge.commands import panel as command
from firmware_bridge.errors import PanelError
from firmware_bridge.link import PanelLink
from firmware_bridge.ports import SerialPort
from firmware_bridge.selftest import SelfTest
from firmware_bridge.simulator import BUTTONS, SimulatedPanel
from firmware_bridge.wire import Shown
from tests.conftest import ROOT
from tests.firmware_bridge.patience import PATIENCE, bounded, in_step, until
from tests.firmware_bridge.pty_panel import PtyPanel


def start(*arguments: object) -> AbstractContextManager[subprocess.Popen[str]]:
    """``sonoglance panel`` as a process of its own."""
    return bounded(
        subprocess.Popen(
            [sys.executable, "-m", "sonoglance", "panel", *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
    )


def test_the_monitor_tells_link_buttons_and_what_is_shown(simulated: SimulatedPanel) -> None:
    simulated.analog(1, 462)
    with start("monitor", "--port", simulated.port, "--json") as process:
        assert process.stdout is not None
        lines = []

        def heard(**wanted: object) -> dict[str, object]:
            for text in process.stdout or ():
                lines.append(json.loads(text))
                if wanted.items() <= lines[-1].items():
                    return lines[-1]
            raise AssertionError(lines)

        heard(link="linked")
        simulated.press("record")
        heard(button="record", kind="press")
        simulated.release("record")
        heard(button="record", kind="click")
        while not any("status" in line and 7200 < line["status"]["battery_mv"] < 7600 for line in lines):
            lines.append(json.loads(process.stdout.readline()))
        simulated.unplug()
        assert "plug" in str(heard(link="missing", detail=f"{simulated.port}: not there; plug the panel in"))
        process.kill()


def test_the_monitor_speaks_in_words_and_ends_when_it_was_told(simulated: SimulatedPanel) -> None:
    def tells() -> None:
        with start("monitor", "--port", simulated.port, "--seconds", 2) as process:
            told, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, errors
        assert "linked: " in told
        assert "shows no reading, no battery" in told
        assert "muted" in told

    simulated.set_pin("D12", 0)
    in_step(simulated, tells)


def test_the_selftest_passes_a_whole_panel_in_the_hands_of_a_person(simulated: SimulatedPanel) -> None:
    with start("selftest", "--port", simulated.port) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        table = []
        for line in process.stdout:
            table.append(line)
            for button in BUTTONS:
                if line.startswith(f"Press {button.upper()} "):
                    simulated.press(button)
                    time.sleep(0.1)
                    simulated.release(button)
            if "shows no reading" in line:
                process.stdin.write("y\n" * 6)
                process.stdin.flush()
            if line.startswith("Turn the dial"):
                for millivolts in range(0, 5001, 250):
                    simulated.analog(0, millivolts)
                    time.sleep(0.05)
        process.wait(PATIENCE)
    told = "".join(table)
    assert process.returncode == 0, told
    assert "FAILED" not in told
    for button in BUTTONS:
        assert f"{button} press, {button} click" in told
    assert "0 damaged frames" in told


def test_the_selftest_names_what_failed(simulated: SimulatedPanel) -> None:
    simulated.press("back")
    with start("selftest", "--hands-off", "--port", simulated.port) as process:
        told, errors = process.communicate(timeout=3 * PATIENCE)
    assert process.returncode == 1
    failed = [line for line in told.splitlines() if line.startswith("FAILED")]
    assert failed == ["FAILED  buttons at rest     down: back"], told + errors
    assert "shows opacity" in told


def test_the_selftest_says_that_the_watchdog_bit(simulated: SimulatedPanel) -> None:
    # Whoever opens the port first resets an Arduino; the next finds it as it is.
    with closing(PanelLink(SerialPort(str(simulated.port)))) as link:
        until(lambda: link.state.name == "linked", lambda: link.state)
    simulated.hang()
    time.sleep(1.0)
    with start("selftest", "--hands-off", "--port", simulated.port) as process:
        told, errors = process.communicate(timeout=3 * PATIENCE)
    assert process.returncode == 1
    failed = [line for line in told.splitlines() if line.startswith("FAILED")]
    assert failed == ["FAILED  last start          by watchdog: its program had hung"], told + errors


def test_a_lamp_that_nobody_sees_fails_the_selftest(simulated: SimulatedPanel) -> None:
    with start("selftest", "--port", simulated.port) as process:
        assert process.stdin is not None
        process.stdin.write("y\nn\n")
        process.stdin.close()  # whoever is gone sees nothing
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("Press"):
                break
        process.kill()
    told = "".join(lines)
    assert "ok      lamps: normal" in told
    assert "FAILED  lamps: opacity" in told
    assert "FAILED  buzzer" in told


def test_a_reset_while_it_is_tested_fails_the_selftest(simulated: SimulatedPanel) -> None:
    with start("selftest", "--hands-off", "--port", simulated.port) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "shows opacity" in line:
                simulated.reset()
    assert process.returncode == 1
    assert lines[-1].startswith("FAILED  line"), lines
    assert "was reset" in lines[-1]


def test_the_lamps_are_left_as_without_a_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firmware_bridge.selftest.PERSON_DEADLINE", 0.2)

    def look(_: str) -> bool:
        time.sleep(0.2)
        return True

    monkeypatch.setattr("firmware_bridge.selftest._yes", look)
    with PtyPanel(tmp_path / "panel") as panel, closing(PanelLink(SerialPort(str(panel.port)))) as link:
        SelfTest(link, hands_off=False).run()
        asked = [show.asked for show, _ in panel.shows()]
    assert Shown.TEST in asked
    assert asked[-1] == Shown.NO_READING


def test_without_a_panel_the_selftest_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firmware_bridge.selftest.LINK_DEADLINE", 0.5)
    assert command(["selftest", "--port", str(tmp_path / "nowhere")]) == 1


def test_no_port_is_flashed_where_no_panel_was_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_id, ttys = tmp_path / "by-id", tmp_path / "class-tty"
    by_id.mkdir()
    ttys.mkdir()
    monkeypatch.setattr(ports, "BY_ID", by_id)
    monkeypatch.setattr(ports, "TTYS", ttys)
    monkeypatch.setattr(ports, "LISTEN", 1.0)
    monkeypatch.setattr("firmware_bridge.commands.LINK_DEADLINE", 0.5)
    image = tmp_path / "panel.hex"
    image.write_text(":00000001FF\n")
    with PtyPanel(by_id / "usb-scale", silent=True, ttys=ttys) as scale:
        with pytest.raises(PanelError, match="--port"):
            command(["flash", str(image)])
        assert scale.raw == b""


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["flash", "--port", "gpio"], "no firmware"),
        (["flash", "--port", "/dev/null", "nowhere.hex"], "nowhere.hex: not there"),
    ],
)
def test_what_cannot_be_flashed_is_refused(arguments: list[str], told: str) -> None:
    with pytest.raises(PanelError, match=told):
        command(arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["polish"],
        ["monitor", "--port", "gpio", "--pin", "freeze"],
        ["monitor", "--port", "gpio", "--pin", "knob=3"],
        ["monitor", "--port", "gpio", "--pin", "freeze=99"],
        ["monitor", "--port", "gpio", "--pin", "freeze=6"],
        ["monitor", "--pin", "freeze=6"],
    ],
)
def test_a_wrong_call_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command(arguments)
    assert ended.value.code == 2
    assert "sonoglance panel" in capsys.readouterr().err

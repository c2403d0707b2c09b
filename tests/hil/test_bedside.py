"""The whole bedside path: a frame of opacity goes in, the right lamp lights; a button freezes the picture."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from firmware_bridge.wire import Shown
from tests.hil.bedside import MEANT, BedsideProcess, Line, agreed
from tests.hil.conftest import Attached
from tests.hil.watch import STALE_AFTER, await_shown, oldest_verdict, verdict_lit

pytestmark = pytest.mark.usefixtures("noted")
ROUND = 60.0
"""Seconds in which each act has begun and its lamps have been seen, on a machine however busy."""
IN_TIME = 2.0
"""Seconds, within which anything must be back."""
ACTED = 15.0
"""Seconds after which a press is heeded, or was dropped."""
SLACK = 0.15
"""Seconds by which a busy machine may be late."""
HUNG = 4.5
"""Seconds in which the reader comes to hang, its last reading grows old, and its lamp's pattern is seen."""


def spoke(line: Line) -> bool:
    return line.spoke


def none_was_stale(attached: Attached, bedside: BedsideProcess, since: float, slack: float) -> None:
    """No lamp has said anything of a lung while the last reading was too old."""
    readings = [(line.made_at - slack, line.frame_at) for line in bedside.lines if line.spoke]
    assert oldest_verdict(attached.rig.changes(), readings, since, time.monotonic()) < STALE_AFTER + slack


def until_lit(attached: Attached, since: float) -> float:
    """Seconds from a moment at which a lamp ought to be lit to when one was."""
    while not (lit := verdict_lit(attached.rig.changes(), since, time.monotonic())):
        assert time.monotonic() < since + ROUND
        time.sleep(0.01)
    return lit[0][0] - since


@pytest.mark.parametrize("state", list(MEANT))
def test_what_goes_in_lights_its_lamp(attached: Attached, bedside: BedsideProcess, state: str) -> None:
    give_up = time.monotonic() + 2 * ROUND
    while agreed(attached.rig, bedside) != state:
        assert time.monotonic() < give_up, bedside.lines[-1]
        time.sleep(0.05)


def press_until(attached: Attached, bedside: BedsideProcess, what: Callable[[Line], bool]) -> None:
    """Press freeze, and again where this machine stood still meanwhile: nobody wants an old press."""
    for left in reversed(range(3)):
        attached.press("freeze")
        try:
            bedside.wait_for(what, ACTED)
        except TimeoutError:
            if not left:
                raise
        else:
            break


def test_a_button_freezes_the_picture_and_lets_it_go(attached: Attached, bedside: BedsideProcess) -> None:
    bedside.wait_for(spoke, ROUND)
    press_until(attached, bedside, lambda line: line.state == "held")
    await_shown(attached.rig.changes, Shown.NO_READING, ROUND)
    assert bedside.lines[-1].state == "held"
    press_until(attached, bedside, lambda line: line.state != "held")


@pytest.mark.parametrize("attached", ["microcontroller"], indirect=True)
def test_a_hung_reader_leaves_no_lamp_lit(attached: Attached, bedside: BedsideProcess) -> None:
    attached.rig.lag()
    began = time.monotonic()
    until_lit(attached, began)
    bedside.hang()
    time.sleep(HUNG)
    await_shown(attached.rig.changes, Shown.NO_READING, ROUND)
    bedside.go_on()
    line = bedside.wait_for(lambda line: line.spoke and line.made_at > bedside.let_go_at, ROUND)
    lit_after = until_lit(attached, line.made_at)
    lag = attached.rig.lag()
    assert lit_after < IN_TIME + lag
    none_was_stale(attached, bedside, began, SLACK + lag)


@pytest.mark.parametrize("attached", ["microcontroller"], indirect=True)
def test_a_killed_box_leaves_no_lamp_lit(attached: Attached, bedside: BedsideProcess) -> None:
    attached.rig.lag()
    began = time.monotonic()
    until_lit(attached, began)
    killed = bedside.kill()
    while not attached.rig.changes(killed + IN_TIME + 0.5):  # a simulator that is behind has not got there
        assert time.monotonic() < killed + ROUND
        time.sleep(0.05)
    assert not verdict_lit(attached.rig.changes(), killed + IN_TIME, time.monotonic())
    bedside.start()
    line = bedside.wait_for(spoke, ROUND)
    lit_after = until_lit(attached, line.made_at)
    lag = attached.rig.lag()
    assert lit_after < IN_TIME + lag
    none_was_stale(attached, bedside, began, SLACK + lag)

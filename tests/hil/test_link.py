"""What a panel does that can be told from its port alone, without its pins."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from firmware_bridge.link import LinkState, PanelLink
from firmware_bridge.ports import SerialPort
from firmware_bridge.simulator import SimulatedPanel
from firmware_bridge.wire import Capability, Shown

pytestmark = pytest.mark.usefixtures("noted")
START, IN_TIME, OLD = 20.0, 2.0, 2.0
SLACK = 0.5


@pytest.fixture(scope="module")
def bare_port(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A panel's port; its pins are out of reach."""
    port = request.config.getoption("hil_port")
    if port is not None:
        yield port
        return
    firmware: Path = request.getfixturevalue("firmware")
    with SimulatedPanel(firmware, tmp_path_factory.mktemp("panel") / "port") as panel:
        yield str(panel.port)


@pytest.fixture(scope="module")
def link(bare_port: str) -> Iterator[PanelLink]:
    with closing(PanelLink(SerialPort(bare_port), quiet=True)) as opened:
        yield opened


def until(link: PanelLink, what: Callable[[LinkState], bool], seconds: float) -> None:
    give_up = time.monotonic() + seconds
    while not what(link.state):
        assert time.monotonic() < give_up, link.state
        time.sleep(0.01)


def shows(shown: Shown) -> Callable[[LinkState], bool]:
    return lambda state: state.status is not None and state.status.shown == shown


def test_the_panel_says_what_it_has(link: PanelLink) -> None:
    until(link, lambda state: state.name == "linked" and state.hello is not None, START)
    assert link.state.hello is not None
    assert link.state.hello.capabilities & (Capability.BUTTONS | Capability.LAMPS | Capability.WATCHDOG)


@pytest.mark.parametrize("asked", [Shown.NORMAL, Shown.OPACITY, Shown.CANNOT_TELL, Shown.NO_READING])
def test_the_panel_shows_what_it_is_asked_to(link: PanelLink, asked: Shown) -> None:
    link.show(asked, asked + 100, time.monotonic())
    until(link, shows(asked), START)


def test_an_old_reading_is_no_reading_though_the_link_lives(link: PanelLink) -> None:
    read_at = time.monotonic()
    link.show(Shown.OPACITY, 200, read_at)
    until(link, shows(Shown.OPACITY), IN_TIME)
    until(link, shows(Shown.NO_READING), OLD + SLACK)
    assert time.monotonic() - read_at > OLD - SLACK, "it was given up too early"
    assert link.state.name == "linked"


def test_a_reading_whose_number_stands_still_is_none_whatever_age_is_claimed(link: PanelLink) -> None:
    began = time.monotonic()
    link.show(Shown.NORMAL, 300, began)
    until(link, shows(Shown.NORMAL), IN_TIME)
    while not shows(Shown.NO_READING)(link.state):
        link.show(Shown.NORMAL, 300, time.monotonic())
        assert time.monotonic() < began + OLD + SLACK, link.state
        time.sleep(0.01)
    assert link.state.name == "linked"
    link.show(Shown.NORMAL, 301, time.monotonic())
    until(link, shows(Shown.NORMAL), IN_TIME)

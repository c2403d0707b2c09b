"""What a panel does that can be told from its port alone, without its pins."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from firmware_bridge.link import PanelLink
from firmware_bridge.ports import SerialPort
from firmware_bridge.simulator import SimulatedPanel
from firmware_bridge.wire import Capability, Shown
from tests.firmware_bridge.patience import keep_showing, shows, until

pytestmark = pytest.mark.usefixtures("noted")
OLD = 2.0
"""Seconds after which a reading is old."""
SLACK = 0.5
"""Seconds by which the panel may be early, or a busy machine late, beside the simulator's own lateness."""


@pytest.fixture(scope="module")
def simulated(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SimulatedPanel | None]:
    """The panel where none is named."""
    if request.config.getoption("hil_port") is not None:
        yield None
        return
    firmware: Path = request.getfixturevalue("firmware")
    with SimulatedPanel(firmware, tmp_path_factory.mktemp("panel") / "port") as panel:
        yield panel


@pytest.fixture(scope="module")
def bare_port(request: pytest.FixtureRequest, simulated: SimulatedPanel | None) -> str:
    """A panel's port; its pins are out of reach."""
    return str(request.config.getoption("hil_port") if simulated is None else simulated.port)


@pytest.fixture
def lag(simulated: SimulatedPanel | None) -> Callable[[], float]:
    """Seconds by which a simulator was late at the most during the test."""
    if simulated is None:
        return lambda: 0.0
    simulated.lag()
    return simulated.lag


@pytest.fixture(scope="module")
def link(bare_port: str) -> Iterator[PanelLink]:
    with closing(PanelLink(SerialPort(bare_port), quiet=True)) as opened:
        yield opened


def lit(link: PanelLink, asked: Shown) -> tuple[int, float]:
    """Have it shown: number and time of the reading that is."""
    return keep_showing(link, asked, lambda: shows(link, asked))


def test_the_panel_says_what_it_has(link: PanelLink) -> None:
    until(lambda: link.state.name == "linked", lambda: link.state)
    assert link.state.hello is not None
    assert link.state.hello.capabilities & (Capability.BUTTONS | Capability.LAMPS | Capability.WATCHDOG)


@pytest.mark.parametrize("asked", [Shown.NORMAL, Shown.OPACITY, Shown.CANNOT_TELL, Shown.NO_READING])
def test_the_panel_shows_what_it_is_asked_to(link: PanelLink, asked: Shown) -> None:
    lit(link, asked)


def test_an_old_reading_is_no_reading_though_the_link_lives(
    link: PanelLink, lag: Callable[[], float]
) -> None:
    _, read_at = lit(link, Shown.OPACITY)
    until(lambda: shows(link, Shown.NO_READING), lambda: link.state)
    took = time.monotonic() - read_at
    assert took > OLD - SLACK, "it was given up too early"
    assert took < OLD + SLACK + lag()
    assert link.state.name == "linked"


def test_a_reading_whose_number_stands_still_is_none_whatever_age_is_claimed(
    link: PanelLink, lag: Callable[[], float]
) -> None:
    number, began = lit(link, Shown.NORMAL)

    def given_up() -> bool:
        link.show(Shown.NORMAL, number, time.monotonic())
        return shows(link, Shown.NO_READING)

    until(given_up, lambda: link.state)
    assert time.monotonic() - began < OLD + SLACK + lag()
    assert link.state.name == "linked"
    lit(link, Shown.NORMAL)

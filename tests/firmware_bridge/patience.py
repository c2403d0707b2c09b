"""How tests wait for a panel on a machine however busy, or one that stands still for a while."""

from __future__ import annotations

import itertools
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from firmware_bridge.errors import PanelError
from firmware_bridge.link import PanelLink
from firmware_bridge.wire import Shown

PATIENCE = 60.0
"""Seconds for what takes a fraction of one, on a machine however busy."""
BEHIND = 0.2
"""Seconds by which a simulator may be late before what is done to it comes out differently."""
TRIES = 4


def until(what: Callable[[], object], state: Callable[[], object] = lambda: None) -> float:
    """Seconds until something holds."""
    begun = time.monotonic()
    while not what():
        assert time.monotonic() - begun < PATIENCE, state()
        time.sleep(0.002)
    return time.monotonic() - begun


def keep_showing(link: PanelLink, asked: Shown, what: Callable[[], object]) -> tuple[int, float]:
    """Readings, as the loop has them, until something holds: a single one may grow old on its way. The last
    one's number, and when it was read."""
    give_up = time.monotonic() + PATIENCE
    for number in itertools.count(1):
        read_at = time.monotonic()
        assert read_at < give_up, link.state
        link.show(asked, number, read_at)
        time.sleep(0.02)
        if what():
            break
    return number, read_at


def shows(link: PanelLink, shown: Shown) -> bool:
    """Whether the panel says that this is what its lamps show."""
    status = link.state.status
    return status is not None and status.shown == shown


class Late(Protocol):
    """What runs beside the clock."""

    def lag(self) -> float:
        """Seconds by which it was late at the most since this was last asked."""


def in_step(simulator: Late, act: Callable[[], None]) -> None:
    """Do something that a simulator must keep step with. Where it failed while this machine stood still, that
    shows nothing: the simulator then goes on without hearing from anybody, and it is done again."""
    for left in reversed(range(TRIES)):
        simulator.lag()
        try:
            act()
        except (AssertionError, PanelError):
            if not left or simulator.lag() < BEHIND:
                raise
        else:
            break


@contextmanager
def bounded(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """A process that is ended in time, so that nobody reads what it says, or awaits its end, for ever."""
    deadline = threading.Timer(3 * PATIENCE, process.kill)
    deadline.start()
    try:
        with process:
            yield process
    finally:
        deadline.cancel()

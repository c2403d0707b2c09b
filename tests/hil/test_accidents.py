"""Some accidents, each once, and some delays; all, and many: ``python -m tests.hil.accidents`` and
``python -m tests.hil.delays``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest

from tests.hil.accidents import BACK_WITHIN, KINDS, Table, suffer
from tests.hil.conftest import Microcontroller
from tests.hil.delays import START, button_delays, lamp_delays
from tests.hil.host import HostProcess
from tests.hil.watch import STALE_AFTER

pytestmark = pytest.mark.usefixtures("noted")
SLACK = 0.3
"""Seconds by which a busy machine may be late, beside the simulator's own lateness."""
GENEROUS = 500.0
"""Milliseconds."""
NEED_POWER = ("unplug and replug", "firmware reset")
"""Accidents to the panel; those to the box are made to the real one, in test_bedside.py, but for this:"""
LOOP_HUNG = "loop alone hung"


@pytest.fixture(scope="module")
def host(microcontroller: Microcontroller) -> Iterator[HostProcess]:
    with closing(HostProcess(microcontroller.connection)) as process:
        process.reading_after(time.monotonic(), START)
        yield process


@pytest.mark.parametrize("kind", [*NEED_POWER, LOOP_HUNG])
def test_the_panel_is_back_in_time_and_shows_nothing_stale(
    microcontroller: Microcontroller, host: HostProcess, kind: str
) -> None:
    if not microcontroller.has_power and kind in NEED_POWER:
        pytest.skip("the rig cannot reset or unplug the panel: its wiring file has no RESET and POWER")
    microcontroller.rig.lag()
    table = Table(microcontroller.rig, host, np.random.default_rng(len(kind)))
    back, oldest = suffer(table, KINDS[kind])
    slack = SLACK + microcontroller.rig.lag()
    assert back < BACK_WITHIN + slack
    assert oldest < STALE_AFTER + slack


def test_lamps_and_buttons_are_prompt(microcontroller: Microcontroller, host: HostProcess) -> None:
    random = np.random.default_rng(7)
    assert np.median(lamp_delays(microcontroller.rig, host, 6, random)) < GENEROUS
    assert np.median(button_delays(microcontroller.rig, host, 6, random)) < GENEROUS

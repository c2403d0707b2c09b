"""How late lamps and buttons are, on the simulated microcontroller with the real firmware and the real loop:

    python -m tests.hil.delays --changes 300

From the moment at which a reading of another state is made to the change of the lamp's pin, and from a
button's pin to the key in the bedside loop. Pins are stamped by the simulated microcontroller's own clock; by
how much that was behind is told beside them. The loop draws its window, on a virtual X server.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np

from device.screen.virtual import virtual_screen
from firmware_bridge.simulator import SimulatedPanel
from tests.conftest import ROOT
from tests.hil.host import HostProcess
from tests.hil.rig import Rig
from tests.hil.watch import LAMPS

FIRMWARE = ROOT / "firmware_bridge" / "firmware" / "build" / "panel.elf"
START = 30.0
LAMP_P99, BUTTON_P99 = 50.0, 30.0
DEBOUNCE = 10.0
"""Milliseconds."""
PATIENCE = 60.0


def lamp_delays(panel: Rig, host: HostProcess, count: int, random: np.random.Generator) -> list[float]:
    """Milliseconds from each change of the reading's state to its lamp."""
    found = []
    for number in range(count):
        state = ("opacity", "normal")[number % 2]
        time.sleep(float(random.uniform(0.3, 0.5)))
        began = time.monotonic()
        host.say(state)
        made = _await_state(host, state, began)
        # Where the simulation is behind, the lamp's stamp lies before the moment that it answers to.
        lit = panel.wait_for(LAMPS[state], 1, PATIENCE).at
        found.append(1e3 * (lit - made))
    return found


def _await_state(host: HostProcess, state: str, since: float) -> float:
    while time.monotonic() < since + PATIENCE:
        for made, said in host.made[-50:]:
            if made > since and said == state:
                return made
        time.sleep(0.001)
    raise TimeoutError(f"never read as {state}")


def button_delays(panel: Rig, host: HostProcess, count: int, random: np.random.Generator) -> list[float]:
    """Milliseconds from each press of a pin to the key in the loop."""
    found = []
    for _ in range(count):
        time.sleep(float(random.uniform(0.1, 0.3)))
        before = len(host.keys)
        pressed = time.monotonic()
        panel.press("next")
        while len(host.keys) == before:
            time.sleep(0.001)
            assert time.monotonic() < pressed + PATIENCE, "a press was lost"
        found.append(1e3 * (host.keys[before][1] - pressed))
        panel.release("next")
    return found


def percentiles(found: Sequence[float]) -> tuple[float, float, float]:
    """Median, 99th percentile and greatest."""
    return float(np.median(found)), float(np.percentile(found, 99)), max(found)


def main() -> None:
    parser = argparse.ArgumentParser(description="How late lamps and buttons are.")
    parser.add_argument("--changes", type=int, default=300, help="of each kind")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--display", choices=("none", "window"), default="window", help="window: under Xvfb")
    options = parser.parse_args()
    random = np.random.default_rng(options.seed)
    with ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory()))
        port = folder / "port"
        panel = held.enter_context(SimulatedPanel(FIRMWARE, port))
        if options.display == "window":
            os.environ["DISPLAY"] = held.enter_context(virtual_screen(folder)).name
        host = held.enter_context(closing(HostProcess(str(port), options.display)))
        host.reading_after(time.monotonic(), START)
        panel.wait_for(LAMPS["normal"], 1, START)
        panel.lag()
        for what, measured, asked in (
            ("reading's change of state to lamp pin", lamp_delays, LAMP_P99),
            ("button pin to key in the loop", button_delays, BUTTON_P99 + DEBOUNCE),
        ):
            median, p99, worst = percentiles(measured(panel, host, options.changes, random))
            print(
                f"{what}: p50 {median:.1f} ms, p99 {p99:.1f} ms (asked {asked:g}), worst {worst:.1f} ms, "
                f"{options.changes} times; simulator behind by up to {1e3 * panel.lag():.1f} ms"
            )


if __name__ == "__main__":
    main()

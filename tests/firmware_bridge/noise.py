"""Presses on the pins of the real firmware while the line flips and loses bytes: is every one heard once?

python -m tests.firmware_bridge.noise --events 10000
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path

from firmware_bridge.link import PanelLink, Pressed
from firmware_bridge.ports import SerialPort
from firmware_bridge.simulator import LineCounts, SimulatedPanel
from firmware_bridge.wire import Button, Kind

FIRMWARE = Path(__file__).parent.parent.parent / "firmware_bridge" / "firmware" / "build" / "panel.elf"
HOLD, REST = 0.035, 0.035
"""Seconds down and up: more than the debounce, less than a long press."""
MOST_WAITING = 4
"""Events under way before the next press: half of the panel's queue, as this asks for loss on the line."""
DEADLINE = 30.0


@dataclass
class Outcome:
    """``pressed``: what was done, in order; ``heard``: what the link handed on. ``longest_hold``: seconds; a
    busy machine may make a press long."""

    pressed: list[tuple[Button, Kind]] = field(default_factory=list)
    heard: list[Pressed] = field(default_factory=list)
    counts: LineCounts | None = None
    longest_hold: float = 0.0

    @property
    def amiss(self) -> list[str]:
        """What was not heard as it was pressed, once and in order."""
        heard = [(event.button, event.kind) for event in self.heard]
        matcher = SequenceMatcher(None, self.pressed, heard, autojunk=False)
        return [
            f"event {at}: pressed {_named(self.pressed[at:until])}, heard {_named(heard[start:end])}"
            for how, at, until, start, end in matcher.get_opcodes()
            if how != "equal"
        ]


def _named(events: list[tuple[Button, Kind]]) -> str:
    return " ".join(f"{button.name}-{kind.name}" for button, kind in events) or "nothing"


def press_in_noise(firmware: Path, events: int, share: float, seed: int) -> Outcome:
    """``events`` presses and clicks while ``share`` of the bytes is flipped and as much lost, both ways.

    Raises TimeoutError where an event stays away.
    """
    outcome, chance = Outcome(), random.Random(seed)
    with tempfile.TemporaryDirectory() as folder, SimulatedPanel(firmware, Path(folder) / "port") as panel:
        with closing(PanelLink(SerialPort(str(panel.port)))) as link:
            _wait(lambda: link.state.name == "linked" and link.state.status is not None)
            panel.noise(share, share, seed)
            for _ in range(events // 2):
                button = chance.choice(list(Button))
                pressed_at = time.monotonic()
                panel.press(button.name.lower())
                time.sleep(HOLD)
                panel.release(button.name.lower())
                outcome.longest_hold = max(outcome.longest_hold, time.monotonic() - pressed_at)
                outcome.pressed += [(button, Kind.PRESS), (button, Kind.CLICK)]
                time.sleep(REST)
                _hear(link, outcome, MOST_WAITING)
            _hear(link, outcome, 0)
            time.sleep(1.0)
            outcome.heard += link.events()
        outcome.counts = panel.counts()
    return outcome


def _wait(what: Callable[[], bool]) -> None:
    until = time.monotonic() + DEADLINE
    while not what():
        if time.monotonic() > until:
            raise TimeoutError("no link")
        time.sleep(0.002)


def _hear(link: PanelLink, outcome: Outcome, waiting: int) -> None:
    until = time.monotonic() + DEADLINE
    while True:
        outcome.heard += link.events()
        if len(outcome.pressed) - len(outcome.heard) <= waiting:
            return
        if time.monotonic() > until:
            raise TimeoutError(f"{len(outcome.heard)} of {len(outcome.pressed)} heard; {link.state}")
        time.sleep(0.002)


def main() -> int:
    """Print what was heard of what was pressed: 0 where that is the same, else 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=10_000, help="half presses, half clicks")
    parser.add_argument("--share", type=float, default=1e-3, help="of the bytes, flipped; and as many lost")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    begun = time.monotonic()
    outcome = press_in_noise(FIRMWARE, asked.events, asked.share, asked.seed)
    print(f"{len(outcome.pressed):,} events, {len(outcome.heard):,} heard, {len(outcome.amiss)} amiss")
    print(*outcome.amiss, sep="\n")
    print(f"longest hold {outcome.longest_hold:.3f} s, {outcome.counts}; {time.monotonic() - begun:.0f} s")
    return 1 if outcome.amiss else 0


if __name__ == "__main__":
    sys.exit(main())

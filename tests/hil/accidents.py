"""Accidents at random instants, on the simulated microcontroller with the real firmware and the real loop: is
the panel always back in time, and is a lamp never lit for a verdict that is too old?

    python -m tests.hil.accidents --times 200 --seed 7

``back``: from the plugging in, the reset, or the first reading of a box started again or a reader let go,
until a lamp says something of a lung. ``oldest verdict``: the greatest age that the loop's last reading had
while such a lamp was lit. An accident during which this machine was too busy for the simulator to keep time
shows nothing: it is made again.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from firmware_bridge.simulator import SimulatedPanel
from tests.hil.delays import FIRMWARE, START
from tests.hil.host import HANG, STALL, HostProcess
from tests.hil.rig import Powered
from tests.hil.watch import STALE_AFTER, oldest_verdict, verdict_lit

BACK_WITHIN = 2.0
BEHIND = 0.05
"""Seconds that the simulator may be behind."""
PATIENCE = 10.0
LABELS = ("normal", "opacity")

Back = tuple[float, int]
"""From when on a lamp may be expected, and how many changes of pins were made before the accident took away
what was shown; 0 where it need not have done so."""


@dataclass
class Table:
    """Where accidents are made, at instants and for lengths drawn by seed."""

    panel: Powered
    host: HostProcess
    random: np.random.Generator

    def wait(self, shortest: float, longest: float) -> None:
        """Let a while pass."""
        time.sleep(float(self.random.uniform(shortest, longest)))

    def unplugged(self) -> Back:
        """Pull the panel's cable and put it back."""
        self.panel.unplug()
        before = len(self.panel.changes())
        self.wait(0.05, 1.5)
        at = time.monotonic()
        self.panel.plug()
        return at, before

    def reset(self) -> Back:
        """Reset the microcontroller."""
        at = time.monotonic()
        self.panel.reset()
        return at, len(self.panel.changes())

    def killed(self) -> Back:
        """Kill the box and start it again."""
        self.host.kill()
        self.wait(0.0, 1.0)
        at = time.monotonic()
        self.host.start()
        return self.host.reading_after(at, START), 0

    def hung(self) -> Back:
        """Hang the network, and nothing else."""
        return self._held_up(HANG)

    def stalled(self) -> Back:
        """Hang the loop that tells the panel, while reader and link go on."""
        return self._held_up(STALL)

    def _held_up(self, how: str) -> Back:
        self.host.say(how)
        self.wait(0.1, 4.0)
        at = time.monotonic()
        self.host.say(str(self.random.choice(LABELS)))
        return self.host.reading_after(at, PATIENCE), 0


KINDS: Mapping[str, Callable[[Table], Back]] = {
    "unplug and replug": Table.unplugged,
    "host killed": Table.killed,
    "reader alone hung": Table.hung,
    "loop alone hung": Table.stalled,
    "firmware reset": Table.reset,
}


@dataclass
class Outcome:
    """What came of one kind of accident: seconds, one a time."""

    back: list[float] = field(default_factory=list)
    oldest: list[float] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether everything was in time."""
        return max(self.back) <= BACK_WITHIN and max(self.oldest) <= STALE_AFTER


def suffer(table: Table, accident: Callable[[Table], Back]) -> tuple[float, float]:
    """One accident, and the recovery from it: how long that took, and the oldest verdict, seconds."""
    began = time.monotonic()
    table.wait(0.3, 1.3)
    expected, before = accident(table)
    while not (lit := verdict_lit(table.panel.changes()[before:], expected, time.monotonic())):
        if time.monotonic() > expected + PATIENCE:
            raise TimeoutError(f"not back in {PATIENCE:g} s")
        time.sleep(0.01)
    # A lamp's stamp may lie before what it answers to by as much as the simulator may be behind.
    taken = [(at - BEHIND, arrived) for at, arrived in table.host.taken]
    return lit[0][0] - expected, oldest_verdict(table.panel.changes(), taken, began, time.monotonic())


def main() -> int:
    parser = argparse.ArgumentParser(description="Accidents at random instants.")
    parser.add_argument("--times", type=int, default=200, help="of each kind")
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    outcomes = {kind: Outcome() for kind in KINDS}
    with ExitStack() as held:
        port = Path(held.enter_context(tempfile.TemporaryDirectory())) / "port"
        panel = held.enter_context(SimulatedPanel(FIRMWARE, port))
        host = held.enter_context(closing(HostProcess(str(port))))
        host.reading_after(time.monotonic(), START)
        table, again = Table(panel, host, np.random.default_rng(options.seed)), 0
        order = table.random.permutation(list(KINDS) * options.times)
        for kind in tqdm(order.tolist(), unit="accident"):
            while True:
                panel.lag()
                back, oldest = suffer(table, KINDS[kind])
                if panel.lag() <= BEHIND:
                    break
                again += 1
            outcomes[kind].back.append(back)
            outcomes[kind].oldest.append(oldest)
    print(f"{'':<20}{'times':>6}{'back, median s':>16}{'worst s':>9}{'oldest verdict s':>18}")
    for kind, outcome in outcomes.items():
        print(
            f"{kind:<20}{len(outcome.back):>6}{np.median(outcome.back):>16.2f}{max(outcome.back):>9.2f}"
            f"{max(outcome.oldest):>18.3f}  {'PASS' if outcome.passed else 'FAIL'}"
        )
    print(f"seed {options.seed}; made again since the simulator was behind: {again}")
    return 0 if all(outcome.passed for outcome in outcomes.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())

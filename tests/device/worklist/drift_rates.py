"""How often the drift monitor alarms where nothing changed, and where something did; simulated, seeded.

    python -m tests.device.worklist.drift_rates [LOOKS]

The clips of an exam are alike: an exam's own chance of an abstention is drawn from a beta distribution around
the site's, with a correlation of 0.2 between its clips.
"""

from __future__ import annotations

import statistics
import sys

import numpy as np

from device.worklist.trends import (
    BEFORE,
    FALSE_ALARM,
    MEASURES,
    RECENT,
    Counted,
    Tally,
    drifts,
    shuffled_p,
    wilson,
)

CLIPS, ALIKE = 6, 0.2
SHUFFLES = 1999
Z_NAIVE = statistics.NormalDist().inv_cdf(1 - FALSE_ALARM / len(MEASURES) / 2)


def simulate(share: float, exams: int, generator: np.random.Generator) -> np.ndarray:
    """How many of how many clips, by exam: int64 [exams, 2]."""
    spread = 1 / ALIKE - 1
    own = generator.beta(share * spread, (1 - share) * spread, exams)
    of = generator.integers(1, CLIPS + 1, exams)
    return np.stack([generator.binomial(of, own), of], 1)


def alarms(before: float, after: float, looks: int, seed: int) -> int:
    """In how many looks one share alarms."""
    generator = np.random.default_rng(seed)
    found = 0
    for _ in range(looks):
        values = np.concatenate([simulate(before, BEFORE, generator), simulate(after, RECENT, generator)])
        found += shuffled_p(values, RECENT, SHUFFLES) <= FALSE_ALARM / len(MEASURES)
    return found


def naive(looks: int, seed: int) -> int:
    """The same without a change, had clips been taken for independent: a two-proportion z-test."""
    generator = np.random.default_rng(seed)
    found = 0
    for _ in range(looks):
        old, new = simulate(0.15, BEFORE, generator).sum(0), simulate(0.15, RECENT, generator).sum(0)
        share = (old[0] + new[0]) / (old[1] + new[1])
        error = np.sqrt(share * (1 - share) * (1 / old[1] + 1 / new[1]))
        found += abs(old[0] / old[1] - new[0] / new[1]) / error >= Z_NAIVE
    return found


def whole_looks(looks: int, seed: int) -> int:
    """In how many looks at a site where nothing changed any of the three shares alarms."""
    generator = np.random.default_rng(seed)
    found = 0
    for _ in range(looks):
        exams = BEFORE + RECENT
        abstained, edited = (simulate(share, exams, generator) for share in (0.15, 0.05))
        findings = generator.binomial(abstained[:, 1] - abstained[:, 0], 0.3)
        counted = [
            Counted(
                i, "", True, "", frozenset(), Tally(1, 1, int(n), 0, int(f), int(a), 0, int(h), 0, int(e))
            )
            for i, ((a, n), f, (e, h)) in enumerate(zip(abstained, findings, edited, strict=True))
        ]
        found += any(drift.alarm for drift in drifts("", counted, SHUFFLES))
    return found


def main() -> None:
    looks = int(sys.argv[1]) if len(sys.argv) > 1 else 4000
    fewer = looks // 10
    print(
        f"{looks} looks, {RECENT} exams against {BEFORE}, 1 to {CLIPS} clips each; allowed {FALSE_ALARM:.1%}"
    )
    _tell("false alarms, all three shares", whole_looks(looks, 1), looks)
    _tell("false alarms, one share of 15 %", alarms(0.15, 0.15, looks, 2), looks)
    _tell("the same by a naive z-test", naive(looks, 2), looks)
    for before, after in ((0.15, 0.20), (0.15, 0.25), (0.15, 0.30), (0.05, 0.15)):
        _tell(f"noticed: {before:.0%} become {after:.0%}", alarms(before, after, fewer, 3), fewer)


def _tell(what: str, found: int, looks: int) -> None:
    low, high = wilson(found, looks)
    print(f"{what:<32} {found / looks:6.2%}  ({low:.2%} to {high:.2%})", flush=True)


if __name__ == "__main__":
    main()

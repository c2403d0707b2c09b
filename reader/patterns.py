"""Patterns that a reading may name beside its label: further channels of the class map, each on its own.

A pattern is shown only where its figures support it; docs/patterns.md has the rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reader.verdict import pool

Float = NDArray[np.float32]

LEAST_AUC = 0.75
"""What the lower end of the AUC's interval must reach."""
FEWEST_PATIENTS = 20
"""Patients with, and patients without the pattern, that a figure must stand on."""


@dataclass(frozen=True)
class Pattern:
    """One pattern and how well it is told. ``auc``, ``low``, ``high``: of clips that the network was not
    fitted on, with a 95 % interval over patients. ``with_it``, ``without_it``: patients who have such a
    clip. ``threshold``: the probability from which it is named. ``temperature``: what the map channel of
    its name is divided by; None where the network has no such channel."""

    name: str
    auc: float
    low: float
    high: float
    with_it: int
    without_it: int
    threshold: float
    temperature: float | None = None

    def __post_init__(self) -> None:
        if not self.name or not 0 <= self.low <= self.auc <= self.high <= 1 or not 0 <= self.threshold <= 1:
            raise ValueError(f"pattern {self.name!r}: figures lie between 0 and 1 and rise")
        if self.temperature is not None and not 0.001 <= self.temperature <= 1000:
            raise ValueError(f"pattern {self.name!r}: temperature is out of range")

    @property
    def supported(self) -> bool:
        """Whether its figures allow it to be shown."""
        enough = min(self.with_it, self.without_it) >= FEWEST_PATIENTS
        return enough and self.low >= LEAST_AUC


def pattern_probabilities(
    class_map: Float, weights: Float, channels: Sequence[str], patterns: Sequence[Pattern]
) -> dict[str, float]:
    """Probability of each supported pattern in one frame: empty where there is none.

    ``class_map``: logits [rows, columns, map channels]; ``channels``: their names. ``weights``: the
    beam's cell weights [rows, columns], adding up to 1.
    """
    found = {}
    for pattern in patterns:
        if pattern.supported and pattern.temperature is not None:
            logit = float(pool(class_map[:, :, channels.index(pattern.name)], weights))
            found[pattern.name] = round(float(1 / (1 + np.exp(-logit / pattern.temperature))), 4)
    return found


def clip_patterns(frames: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """A clip's probabilities by pattern, as in its figures: the mean over its frames that have some."""
    read = [of for of in frames if of]
    return {name: float(np.mean([of[name] for of in read])) for name in (read[0] if read else ())}


def named_patterns(frames: Iterable[Mapping[str, float]], patterns: Sequence[Pattern]) -> dict[str, float]:
    """What may be named of a clip: the patterns that reach their threshold, with their probability."""
    means = clip_patterns(frames)
    return {of.name: round(means[of.name], 4) for of in patterns if means.get(of.name, -1.0) >= of.threshold}

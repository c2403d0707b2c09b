"""From a class map to what is said: pooling, temperature, and the verdict over time.

Everything is in seconds, and every frame counts for the time it stands for, so that a clip reads
the same at 5 and at 60 frames a second.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]

UNCERTAIN = "uncertain"
AVERAGE, CONTIGUOUS = "average", "contiguous"
LONGEST_FRAME = 0.5
"""Seconds that one frame may stand for: after a longer gap it says nothing about the gap."""
TIME_TOLERANCE = 0.2
"""Seconds by which a window may fall short and still count as full: a frame's time at 5 a second."""


@dataclass(frozen=True)
class VerdictRule:
    """How windowed probabilities become a state; its numbers come from validation patients.

    ``window``: seconds looked back. ``over``: what is taken of them, the ``average``, or what was
    ``contiguous`` in them, the mildest reading. ``normal_below`` and ``abnormal_from``: the probability
    of any label but the negative one at which the state is the negative label, or the likeliest other
    label; between them lies the abstain band. ``threshold``: the forced decision inside the band.
    ``hysteresis``: how far the probability must fall back before a state is left for a milder one.
    ``hold``: seconds for which a milder state must last before it shows. A graver state shows at
    once.
    """

    window: float
    normal_below: float
    abnormal_from: float
    threshold: float
    hysteresis: float
    hold: float
    over: str = AVERAGE

    def __post_init__(self) -> None:
        if self.over not in (AVERAGE, CONTIGUOUS):
            raise ValueError(f"unknown verdict rule over {self.over!r}: average or contiguous")
        if not 0 < self.window <= 60 or not 0 <= self.hold <= 60:
            raise ValueError("a verdict's window and hold lie within 60 seconds")
        if not 0 <= self.normal_below <= self.threshold <= self.abnormal_from <= 1:
            raise ValueError("a verdict's thresholds must rise: normal, forced, abnormal")
        if not 0 <= self.hysteresis <= 1:
            raise ValueError("a verdict's hysteresis lies between 0 and 1")


@dataclass(frozen=True)
class Verdict:
    """``state``: a label or ``uncertain``. ``p``: windowed probability a label, summing to 1.
    ``full``: whether the window is filled, so that the state may be believed."""

    state: str
    p: Float
    full: bool


def pool(class_map: Float, weights: Float) -> Float:
    """Average a class map [h, w, labels] over the beam's cell weights [h, w]: logits [labels]."""
    return np.asarray(np.tensordot(weights, class_map, axes=2), np.float32)


def probabilities(logits: Float, temperature: float) -> Float:
    """Softmax of logits [..., labels] over a temperature (Guo 2017, arXiv 1706.04599)."""
    scaled = logits / temperature
    powers = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True), np.float32)


class VerdictTracker:
    """Follows one probe position: averages over the window, holds, and says when it cannot tell."""

    def __init__(
        self, rule: VerdictRule, labels: Sequence[str], negative: str, span: float | None = None
    ) -> None:
        """``span``: seconds that the whole source lasts, where that is known and finite; a source
        shorter than the window is one window."""
        self._rule, self._labels = rule, tuple(labels)
        self._negative = self._labels.index(negative)
        self._window = rule.window if span is None else min(rule.window, span)
        self.clear()

    def clear(self) -> None:
        """Forget everything: another probe position, or no picture for a while."""
        self._readings: deque[tuple[float, float, Float]] = deque()
        self._began: float | None = None
        self._state = UNCERTAIN
        self._fresh = True
        self._milder_since: float | None = None

    def add(self, p: Float, at: float, still: bool = False) -> Verdict:
        """Take the probabilities [labels] of the frame captured ``at`` seconds and conclude.

        A still stands for all time, so it fills the window by itself.
        """
        if self._readings and at < self._readings[-1][0]:
            self.clear()
        if self._began is None:
            self._began = at
        lasted = min(at - self._readings[-1][0], LONGEST_FRAME) if self._readings else 0.0
        self._readings.append((at, lasted, p))
        # The oldest reading's own time lies before the window: it is kept only as its start.
        while len(self._readings) > 1 and self._readings[1][0] <= at - self._window:
            self._readings.popleft()
        full = still or at - self._began >= self._window - TIME_TOLERANCE
        score = self._mildest() if self._rule.over == CONTIGUOUS else self._mean()
        if full:
            self._move(score, at)
        return Verdict(self._state, score, full)

    def _mildest(self) -> Float:
        return max((p for _, _, p in self._readings), key=lambda p: float(p[self._negative]))

    def _mean(self) -> Float:
        if len(self._readings) == 1:
            return self._readings[0][2]
        # Between two frames the probability is taken to run straight (the trapezoidal rule), so
        # that few frames say the same as many.
        times = np.array([lasted for _, lasted, _ in self._readings], np.float32)[1:]
        values = np.stack([p for _, _, p in self._readings])
        if times.sum() <= 0:
            return np.asarray(values.mean(axis=0), np.float32)
        return np.asarray(times @ (values[1:] + values[:-1]) / (2 * times.sum()), np.float32)

    def _move(self, score: Float, at: float) -> None:
        new = self._judge(score)
        gravity = self._gravity(new) - self._gravity(self._state)
        if gravity > 0 or (gravity == 0 and new != self._state):
            self._state, self._milder_since = new, None
        elif gravity == 0:
            self._milder_since = None
        else:
            self._milder_since = at if self._milder_since is None else self._milder_since
            if at - self._milder_since >= self._rule.hold or self._fresh:
                self._state, self._milder_since = new, None
        self._fresh = False

    def _judge(self, score: Float) -> str:
        abnormal = 1.0 - float(score[self._negative])
        back = self._rule.hysteresis
        held = -1 if self._fresh else self._gravity(self._state)
        if abnormal >= self._rule.abnormal_from - (back if held == 2 else 0.0):
            others = score.copy()
            others[self._negative] = -1.0
            return self._labels[int(np.argmax(others))]
        if abnormal < self._rule.normal_below - (back if held >= 1 else 0.0):
            return self._labels[self._negative]
        return UNCERTAIN

    def _gravity(self, state: str) -> int:
        if state == UNCERTAIN:
            return 1
        return 0 if state == self._labels[self._negative] else 2


def worst_moment(verdicts: Sequence[Verdict], labels: Sequence[str], negative: str) -> Verdict:
    """A clip's own verdict: the one with the largest windowed score, among the full windows.

    Raises ValueError where there is none.
    """
    index = list(labels).index(negative)
    full = [verdict for verdict in verdicts if verdict.full] or list(verdicts)
    if not full:
        raise ValueError("no verdict: no frame of the clip was read")
    return min(full, key=lambda verdict: float(verdict.p[index]))


def as_mapping(p: Float, labels: Sequence[str]) -> Mapping[str, float]:
    """Probabilities by label, rounded to what four digits can carry."""
    return {label: round(float(value), 4) for label, value in zip(labels, p, strict=True)}

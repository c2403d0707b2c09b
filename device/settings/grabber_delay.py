"""How late a grabber's pictures are, measured by light: a pattern flashes on this box's own video output,
which is looped into the grabber, and is looked for in the frames that come.

The flashes stay under three a second, the rate from which they can bring on a fit (WCAG 2.2, 2.3.1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from device.capture.live import Capture
from device.clock import now

HOLDS = (0.35, 0.80)
"""Seconds, shortest and longest, for which the pattern stays black or white."""
SECONDS = 14.0
LONGEST = 1.5
"""Seconds: no delay longer than this is looked for."""
STEP = 0.004
"""Seconds between the delays that are tried."""
SMALLEST_CONTRAST = 10.0
"""Gray levels between the dark and the bright frames."""
SMALLEST_CORRELATION = 0.8
"""Between what was shown and what came; below it there is no loop."""
FEWEST = 8
"""Flashes that must have been seen."""

Flash = tuple[float, bool]
"""When the screen changed, monotonic seconds, and whether to white."""


@dataclass(frozen=True)
class Delay:
    """Milliseconds from the light on the screen to the frame's arrival: the median of all flashes, the
    width of their middle half, and how many there were."""

    median_ms: float
    spread_ms: float
    flashes: int


def pattern(seed: int = 5, seconds: float = SECONDS) -> list[tuple[float, bool]]:
    """When to change, seconds from the start, and whether to white; always to the other of the two."""
    holds = np.random.default_rng(seed).uniform(*HOLDS, int(seconds / HOLDS[0]) + 1)
    times = holds.cumsum()
    return [(float(at), i % 2 == 0) for i, at in enumerate(times[times < seconds])]


def measure_delay(capture: Capture, show: Callable[[bool], None], seconds: float = SECONDS) -> Delay | None:
    """Flash the pattern and watch the frames. None where they do not follow it: there is no loop.

    ``show(white)`` fills the screen and returns when it is done.
    """
    frames: list[tuple[float, float]] = []
    flashes: list[Flash] = []
    white, began = False, now()
    todo = pattern(seconds=seconds)
    while todo or now() < flashes[-1][0] + LONGEST:
        if todo and now() - began >= todo[0][0]:
            white = todo.pop(0)[1]
            show(white)
            flashes.append((now(), white))
        else:
            show(white)
        arrived = capture.take(0.005)
        if arrived is not None:
            frames.append((arrived.at, float(arrived.frame.image[::8, ::8].mean())))
    return delay_of(flashes, frames)


def delay_of(flashes: Sequence[Flash], frames: Sequence[tuple[float, float]]) -> Delay | None:
    """The delay of frames, (arrival in monotonic seconds, brightness), behind flashes.

    The delay at which the two agree best is found first. Then each flash gives bounds of its own: the
    last frame without it came too early to show it, the first with it did show it. None where no delay
    brings them together.
    """
    if len(flashes) < FEWEST or len(frames) < 2 * FEWEST:
        return None
    shown_at, shown = np.array([at for at, _ in flashes]), np.array([white for _, white in flashes])
    came_at, brightness = np.array(frames).T
    dark, bright = np.percentile(brightness, (10, 90))
    if bright - dark < SMALLEST_CONTRAST:
        return None
    roughly, agreement = 0.0, 0.0
    for delay in np.arange(0.0, LONGEST, STEP):
        which = np.searchsorted(shown_at, came_at - delay, "right") - 1
        known = which >= 0
        expected = shown[which[known]]
        if expected.size > FEWEST and 0 < expected.mean() < 1:
            correlation = float(np.corrcoef(expected, brightness[known])[0, 1])
            if correlation > agreement:
                roughly, agreement = float(delay), correlation
    if agreement < SMALLEST_CORRELATION:
        return None
    lit = brightness > (dark + bright) / 2
    changes = np.flatnonzero(lit[1:] != lit[:-1]) + 1
    usual = float(np.median(np.diff(came_at)))
    delays = []
    for at, white in flashes:
        to_this = changes[lit[changes] == white]
        first = to_this[np.argmin(np.abs(came_at[to_this] - at - roughly))] if to_this.size else 0
        near = first and abs(came_at[first] - at - roughly) < HOLDS[0] / 2
        # A gap in the frames says little about when the flash came.
        if near and came_at[first] - came_at[first - 1] < 2 * usual:
            delays.append((came_at[first - 1] + came_at[first]) / 2 - at)
    if len(delays) < FEWEST:
        return None
    early, middle, late = 1e3 * np.percentile(delays, (25, 50, 75))
    return Delay(max(float(middle), 0.0), float(late - early), len(delays))

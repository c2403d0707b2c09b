"""Variations that another scanner, operator or patient could have made of the same picture.

Gain, time-gain compensation, depth, tilt, aspect, speckle, sharpness and mirror image; never upside
down, since the probe is always at the top.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]

TILT = 10.0
"""Largest rotation either way, in degrees."""
SHIFT = 0.08
"""Largest shift as a share of the side."""
DEPTH = (0.85, 1.3)
"""Range of zoom, as a change of the scanner's depth would make."""
ASPECT = 0.1
"""Largest stretch of width against height, either way."""
GAMMA = 0.45
"""Spread of the logarithm of the exponent of the gray curve (dynamic range)."""
GAIN = 0.35
"""Spread of the logarithm of the overall gain."""
TIME_GAIN = 0.45
"""Spread of the logarithm of the gain at the bottom against that at the top."""
SPECKLE = 0.12
"""Largest standard deviation of multiplicative noise."""
LARGEST_BLUR = 1.3
"""Largest Gaussian blur, in pixels."""


def vary(pixels: Image, mask: Image, random: np.random.Generator) -> tuple[Image, Image]:
    """A random variation of an input uint8 [s, s, c] and its beam mask uint8 [s, s].

    All channels vary alike, since they show the same place at several moments.
    """
    size = mask.shape[0]
    move = _random_move(size, random)
    pixels = cv2.warpAffine(pixels, move, (size, size), flags=cv2.INTER_LINEAR)  # type: ignore[assignment]
    mask = cv2.warpAffine(mask, move, (size, size), flags=cv2.INTER_NEAREST)  # type: ignore[assignment]
    if random.random() < 0.2:
        pixels = np.repeat(pixels[:, :, :1], pixels.shape[2], axis=2)
    if random.random() < 0.4:
        pixels = cv2.GaussianBlur(pixels, (0, 0), random.uniform(0.3, LARGEST_BLUR))  # type: ignore[assignment]
    pixels = cv2.LUT(pixels, _gray_curve(random))  # type: ignore[assignment]
    varied = pixels.astype(np.float32) * _gain_field(size, random)[:, :, None]
    return np.clip(varied, 0, 255).astype(np.uint8) * (mask[:, :, None] > 0), mask


def _random_move(size: int, random: np.random.Generator) -> NDArray[np.float64]:
    angle = np.radians(random.uniform(-TILT, TILT))
    zoom = random.uniform(*DEPTH)
    stretch = random.uniform(1 - ASPECT, 1 + ASPECT)
    mirror = -1.0 if random.random() < 0.5 else 1.0
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = turn @ np.diag([mirror * zoom * stretch, zoom / stretch])
    # Zoom from the top centre: the probe's face stays in view.
    top = np.array([size / 2, size * 0.35])
    shift = random.uniform(-SHIFT, SHIFT, 2) * size
    return np.column_stack([linear, top + shift - linear @ top])


def _gray_curve(random: np.random.Generator) -> Image:
    gamma = np.exp(random.normal(0, GAMMA / 2))
    gain = np.exp(random.normal(0, GAIN / 2))
    curve = 255 * gain * (np.arange(256) / 255) ** gamma
    return np.clip(curve, 0, 255).astype(np.uint8)


def _gain_field(size: int, random: np.random.Generator) -> NDArray[np.float32]:
    slope = random.normal(0, TIME_GAIN / 2)
    ramp = np.exp(slope * np.linspace(-0.5, 0.5, size, dtype=np.float32))[:, None]
    grain = random.integers(1, 4)
    side = -(-size // int(grain))
    noise = random.standard_normal((side, side), dtype=np.float32) * random.uniform(0, SPECKLE)
    spread = cv2.resize(noise, (size, size), interpolation=cv2.INTER_LINEAR)
    return np.asarray(ramp * (1 + spread), np.float32)

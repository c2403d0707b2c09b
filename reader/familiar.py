"""Whether the picture inside a beam is an ultrasound picture of the chest wall and lung at all.

A network answers whatever it is shown; an X-ray held in front of the grabber, a probe in the air or a
beam drawn upside down must get no answer. Two questions are asked, both of physics, and both learnt
from real lung frames alone (``training.familiarity``):

- Is it made of ultrasound? Echoes are sharp along the beam lines and smeared across them, ever more
  with depth, and rough in proportion to their brightness: the structure tensor in the beam's own axes,
  at three scales, and the shading that runs down the beam lines, against the usual (Mahalanobis).
- Does it lie in the beam as a lung does? Every block of the picture is asked how deep it looks: layered
  muscle looks shallow, what lies under the pleural line looks deep. Where blocks do not lie where they
  look as if they lay, the picture is shuffled, turned, or not of a chest.
"""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Float = NDArray[np.float32]

BLOCKS = 14
"""Blocks along a side of the tensor."""
SCALES = 3
"""Scales at which grain is measured, each half as fine as the one before."""
BANDS = 6
"""Depth bands from the probe down."""
GRAIN = 5 * SCALES
"""Measures a block."""
DEPTHS, LINES = 24, 16
"""Samples of the shading along and across the beam."""
LEAST_BLOCK = 0.3
"""Share of a block that must lie in the beam."""
NARROWEST_FAN = 0.15
"""How much a beam's two sides part with every step down, under which it is a rectangle."""
FARTHEST = 6.0
"""Standard deviations beyond which a single measure counts no more."""
ECHO_FLOOR = 3.0
"""Gray levels added before a logarithm: below it a scanner's black varies."""
GRAIN_FLOOR = 0.15
"""The same for gradient energy, in gray levels a pixel squared."""
LOOK_EVERY = 0.18
"""Seconds between looks; the answer holds in between."""
SMOOTHING = 1.0
"""Seconds over which the distance is averaged, so that one odd frame does not drop a reading."""


@dataclass(frozen=True)
class Look:
    """What a picture looks like.

    ``grain``: float32 [n, GRAIN], the measures of each block in the beam. ``band``: int [n], the depth
    band that it lies in. ``weight``: float32 [n], how much of it lies in the beam, summing to 1.
    ``picture``: float32 [k], the measures of the whole.
    """

    grain: Float
    band: NDArray[np.intp]
    weight: Float
    picture: Float


class Onlooker:
    """Describes pictures in one beam; made once a beam, from its mask uint8 [s, s]."""

    def __init__(self, mask: Image) -> None:
        side = mask.shape[0]
        self._valid: Image = cv2.erode(  # type: ignore[assignment]
            mask, np.ones((5, 5), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0
        )
        depth, angle, lines = _beam_lines(mask)
        share = _blocks(self._valid.astype(np.float32) / 255)
        self._inside = share > LEAST_BLOCK
        weight = share[self._inside]
        self._weight = np.asarray(weight / max(float(weight.sum()), 1e-6), np.float32)
        inner = (self._valid > 0).astype(np.float32)
        mean_depth = (_blocks(depth * inner) / np.maximum(share, 1e-6))[self._inside]
        turned = (_blocks(angle * inner) / np.maximum(share, 1e-6))[self._inside]
        self._band = np.clip((mean_depth * BANDS).astype(np.intp), 0, BANDS - 1)
        sine, cosine = np.sin(turned), np.cos(turned)
        # From x and y to along and across the beam: the structure tensor's three entries.
        self._turn = np.asarray(
            [
                [sine**2, 2 * sine * cosine, cosine**2],
                [cosine**2, -2 * sine * cosine, sine**2],
                [sine * cosine, cosine**2 - sine**2, -sine * cosine],
            ],
            np.float32,
        )
        self._masks, valid = [], self._valid
        for scale in range(SCALES):
            if scale:
                valid = _halve(valid) // 255 * 255
            part = _blocks((valid > 0).astype(np.float32))[self._inside]
            self._masks.append(((valid > 0).astype(np.float32), 1 / np.maximum(part, 1e-3)))
        self._share = 1 / np.maximum(share[self._inside], 1e-3)
        self._x, self._y = ((at * 56 / side - 0.5).astype(np.float32) for at in lines)
        polar = cv2.remap(_shrink(self._valid), self._x, self._y, cv2.INTER_LINEAR).astype(np.float32) / 255
        self._spread = 1 / np.maximum(polar, 0.1)
        self._polar = np.where(polar > 0.5, polar, 0).astype(np.float32)

    def describe(self, tensor: Image) -> Look:
        """Look at a tensor, uint8 [s, s], whose pixels outside the beam are 0."""
        grain = self._grain(tensor)
        mean = self._weight @ grain
        spread = np.sqrt(self._weight @ (grain - mean) ** 2)
        # The last measure is brightness against the picture's own mean, which is 0.
        picture = np.concatenate([mean[:-1], np.log(spread + 0.02), self._shading(tensor)])
        return Look(grain, self._band, self._weight, picture.astype(np.float32))

    def _grain(self, tensor: Image) -> Float:
        inner = cv2.bitwise_and(tensor, self._valid)
        bright = np.log(_blocks(inner.astype(np.float32))[self._inside] * self._share + ECHO_FLOOR)
        measures, finer = [], None
        plane: Any = tensor
        for scale, (mask, part) in enumerate(self._masks):
            if scale:
                plane = _halve(plane)
            across = cv2.Sobel(plane, cv2.CV_32F, 1, 0, ksize=3, scale=0.125)
            down = cv2.Sobel(plane, cv2.CV_32F, 0, 1, ksize=3, scale=0.125)
            across, down = cv2.multiply(across, mask), cv2.multiply(down, mask)
            parts = [
                _blocks(x)[self._inside] * part
                for x in (
                    cv2.multiply(across, across),
                    cv2.multiply(across, down),
                    cv2.multiply(down, down),
                    cv2.magnitude(across, down),
                )
            ]
            axial, lateral, oblique = np.einsum("ijn,jn->in", self._turn, np.stack(parts[:3]))
            energy = np.maximum(axial + lateral, 0) + GRAIN_FLOOR
            strength = 0.5 * np.log(energy)
            measures += [
                0.5 * np.log((np.maximum(axial, 0) + GRAIN_FLOOR) / (np.maximum(lateral, 0) + GRAIN_FLOOR)),
                strength - bright,
                np.log(parts[3] + 0.2) - strength,
                np.abs(oblique) / energy,
            ]
            if finer is not None:
                measures.append(strength - finer)
            finer = strength
        measures.append(bright - self._weight @ bright)
        return np.stack(measures, axis=-1)

    def _shading(self, tensor: Image) -> Float:
        """How brightness runs along and across the beam lines, and how it is spread."""
        small = cv2.remap(_shrink(cv2.bitwise_and(tensor, self._valid)), self._x, self._y, cv2.INTER_LINEAR)
        echo, share = small.astype(np.float32) * self._spread, self._polar
        level = np.log(echo + 2 * ECHO_FLOOR).reshape(4, DEPTHS // 4, LINES)
        share_of = share.reshape(level.shape)
        whole = np.maximum(share_of.sum((1, 2)), 1e-3)
        mean = (level * share_of).sum((1, 2)) / whole
        level = level - mean[:, None, None]
        over, along = share_of.sum(1), share_of.sum(2)
        lines = (level * share_of).sum(1) / np.maximum(over, 1e-3)
        rows = (level * share_of).sum(2) / np.maximum(along, 1e-3)
        rest = (level - lines[:, None] - rows[:, :, None]) ** 2
        variances = np.stack(
            [
                (over * lines**2).sum(1) / whole,
                (along * rows**2).sum(1) / whole,
                (rest * share_of).sum((1, 2)) / whole,
            ]
        )
        # Shadows and B-lines run on down the beam: so do the lateral profiles of neighbouring bands.
        near, far = lines[[0, 1, 2, 1]], lines[[1, 2, 3, 3]]
        power = ((near**2).sum(1) + 0.1) * ((far**2).sum(1) + 0.1)
        goes_on = np.arctanh(np.clip((near * far).sum(1) / np.sqrt(power), -0.98, 0.98))
        ordered = np.sort(echo[share > 0])
        ranks = ordered[(np.array([0.95, 0.75, 0.25, 0.05]) * len(ordered)).astype(int)]
        usual = (echo * share).sum() / share.sum()
        histogram = np.log((ranks + ECHO_FLOOR) / (usual + ECHO_FLOOR))
        return np.concatenate([0.5 * np.log(variances + 0.003).ravel(), goes_on, histogram])


@dataclass(frozen=True)
class Familiarity:
    """What lung pictures look like, and how far from that a picture may be.

    ``centre``, ``scale`` [k] and ``whitening`` [k, k]: of a look's ``picture``; the Euclidean norm of a
    whitened picture is its Mahalanobis distance. ``grain_centre``, ``grain_scale`` [2 GRAIN] and
    ``layers``, two of (weights, biases): the small network that tells a block's depth band from its
    grain. ``usual``, ``excess``: of both measures, texture and depth, the median and how far from it
    the 95th percentile lies, among patients and scanners that were not fitted on. ``limit``: the
    distance above which a picture is not lung ultrasound.
    """

    centre: Float
    scale: Float
    whitening: Float
    grain_centre: Float
    grain_scale: Float
    layers: tuple[tuple[Float, Float], tuple[Float, Float]]
    usual: tuple[float, float]
    excess: tuple[float, float]
    limit: float

    def distance(self, look: Look) -> float:
        """How unlike lung ultrasound a picture is: 0 is usual, 1 is rare in one of the two measures."""
        strange = (np.array(self.strangeness(look)) - self.usual) / self.excess
        return float(np.hypot(*np.maximum(strange, 0)))

    def strangeness(self, look: Look) -> tuple[float, float]:
        """Of texture: the Mahalanobis distance over the root of k. Of depth: the mean surprise, in nats,
        at where the blocks lie."""
        z = np.clip((look.picture - self.centre) / self.scale, -FARTHEST, FARTHEST)
        texture = float(np.sqrt(np.mean((z @ self.whitening) ** 2)))
        return texture, self._surprise(look)

    def _surprise(self, look: Look) -> float:
        z = np.clip((beside_the_mean(look) - self.grain_centre) / self.grain_scale, -4, 4)
        (first, first_bias), (second, second_bias) = self.layers
        logits = np.maximum(z @ first + first_bias, 0) @ second + second_bias
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        right = powers[np.arange(len(powers)), look.band] / powers.sum(axis=1)
        return float(-(look.weight @ np.log(right + 0.02)))

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers, for the manifest."""

        def plain(value: Any) -> Any:
            if isinstance(value, np.ndarray):
                return np.vectorize(lambda x: float(f"{x:.4g}"), otypes=[object])(value).tolist()
            return [plain(part) for part in value] if isinstance(value, tuple) else value

        return {name: plain(value) for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Familiarity:
        """From ``to_json``. Raises KeyError, TypeError or ValueError where it is not whole."""
        arrays = {
            name: np.asarray(value[name], np.float32)
            for name in ("centre", "scale", "whitening", "grain_centre", "grain_scale")
        }
        (a, b), (c, d) = ([np.asarray(x, np.float32) for x in layer] for layer in value["layers"])
        k, grain = len(arrays["centre"]), len(arrays["grain_centre"])
        shapes = [arrays["scale"].shape, arrays["whitening"].shape, arrays["grain_scale"].shape]
        shapes += [a.shape, c.shape, d.shape]
        hidden = len(b)
        if shapes != [(k,), (k, k), (grain,), (grain, hidden), (hidden, BANDS), (BANDS,)]:
            raise ValueError("familiarity: its arrays do not fit each other")
        usual, excess = ((float(value[name][0]), float(value[name][1])) for name in ("usual", "excess"))
        return cls(**arrays, layers=((a, b), (c, d)), usual=usual, excess=excess, limit=float(value["limit"]))


class FamiliarityWatch:
    """Averages the distance of one beam's pictures over the last second."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self.clear()

    def clear(self) -> None:
        """Forget every picture: the beam or the source changed."""
        self._past: deque[tuple[float, float]] = deque()

    def due(self, at: float) -> bool:
        """Whether the picture captured ``at`` seconds is to be looked at, or the answer still holds."""
        return not self._past or not 0 <= at - self._past[-1][0] < LOOK_EVERY

    def add(self, distance: float, at: float) -> None:
        """Take the distance of the picture captured ``at`` seconds."""
        if self._past and at < self._past[-1][0]:
            self.clear()
        self._past.append((at, distance))
        while self._past[0][0] <= at - SMOOTHING:
            self._past.popleft()

    @property
    def strange(self) -> bool:
        """Whether the pictures so far are not of lung."""
        return bool(np.mean([distance for _, distance in self._past]) > self._limit)


def beside_the_mean(look: Look) -> Float:
    """Each block's measures and what sets it apart from the whole picture: float32 [n, 2 GRAIN]."""
    return np.concatenate([look.grain, look.grain - look.weight @ look.grain], axis=1)


def _blocks(plane: NDArray[Any]) -> Float:
    return cv2.resize(plane, (BLOCKS, BLOCKS), interpolation=cv2.INTER_AREA)  # type: ignore[return-value]


def _shrink(plane: NDArray[Any]) -> Image:
    return cv2.resize(plane, (56, 56), interpolation=cv2.INTER_AREA)  # type: ignore[return-value]


def _halve(plane: NDArray[Any]) -> Image:
    return cv2.resize(plane, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)  # type: ignore[return-value]


def _beam_lines(mask: Image) -> tuple[Float, Float, tuple[Float, Float]]:
    """Of a mask: depth (0 at the probe, 1 at the end) and the beam lines' angle from straight down, in
    radians, both float32 [s, s]; and x, y of DEPTHS x LINES samples along them."""
    y, x = np.mgrid[: mask.shape[0], : mask.shape[1]].astype(np.float32) + 0.5
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, bottom, first, last = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    inside = mask[top:bottom] > 0
    left, left_slope = _side(inside.argmax(axis=1).astype(float))
    right, right_slope = _side(-(mask.shape[1] - inside[:, ::-1].argmax(axis=1)).astype(float))
    right, right_slope = -right, -right_slope
    along = ((np.arange(DEPTHS) + 0.5) / DEPTHS)[:, None]
    over = ((np.arange(LINES) + 0.5) / LINES)[None]
    if right_slope - left_slope < NARROWEST_FAN:
        lines = first + over * (last - first) + 0 * along, top + along * (bottom - top) + 0 * over
        return (y - top) / (bottom - top), np.zeros_like(x), lines
    rise = (left - right) / (right_slope - left_slope)
    apex_x, apex_y = left + left_slope * rise, top + rise
    radius, angle = np.hypot(x - apex_x, y - apex_y), np.arctan2(x - apex_x, y - apex_y)
    near, far = np.percentile(radius[mask > 0], 0.1), radius[mask > 0].max()
    turned = np.arctan(left_slope) + over * (np.arctan(right_slope) - np.arctan(left_slope))
    reach = near + along * (far - near)
    lines = apex_x + reach * np.sin(turned), apex_y + reach * np.cos(turned)
    return (radius - near) / (far - near), angle, lines


def _side(edge: NDArray[np.floating]) -> tuple[float, float]:
    """Where a beam's left side begins and its slope, from its edge in every row, down to where it
    reaches its extreme or the picture's own."""
    stop = int(np.argmax(edge <= edge.min() + 1.0))
    if stop < 6:
        return float(edge[0]), 0.0
    upper, lower = int(0.1 * stop), int(0.9 * stop)
    slope = float(edge[lower] - edge[upper]) / (lower - upper)
    return float(edge[upper]) - slope * upper, slope

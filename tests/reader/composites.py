"""Whole scanner screens around real clips, seeded: what a grabber would hand over.

Each screen is drawn around one clip whose beam was outlined by hand, so the outline on the screen is
known: titles with a patient's name, menus, rulers, gray bars, a logo, thumbnails, a running clock,
text in the corners beside the fan; dark, gray and light consoles; two resolutions; MJPEG; studio levels.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from reader.beam import Beam

Image = NDArray[np.uint8]

TUNED_LAYOUTS = ("cart", "portable", "close", "light", "plain")
KEPT_OUT_LAYOUTS = ("tablet", "crowded", "paper", "worn")
FONTS = (
    cv2.FONT_HERSHEY_SIMPLEX,
    cv2.FONT_HERSHEY_DUPLEX,
    cv2.FONT_HERSHEY_PLAIN,
    cv2.FONT_HERSHEY_TRIPLEX,
)
WORDS = ("GAIN 52", "DEPTH 12 cm", "FREQ 3.5 MHz", "DR 58", "MAP B", "THI ON", "FR 24 Hz", "PRST LUNG", "2D")
NAMES = ("MWANGI, GRACE", "SILVA JOAO 1961", "DUPONT MARIE", "ID 482-113-07")
CORNERS = ("L3", "R2 POST", "MI 0.9", "TIS 0.2", "LUNG", "12 cm", "G 58", "Zone 4", "C5-2")


@dataclass(frozen=True)
class Composite:
    """``frames``: BGR uint8 [h, w, 3] each. ``truth``: the beam as drawn by hand, on this screen.
    ``text``: where the console drew anything, outside the beam: bool [h, w]."""

    frames: list[Image]
    truth: Beam
    text: NDArray[np.bool_]
    layout: str


def compose(entry: dict[str, Any], clip: list[Image], layout: str, seed: int = 0) -> Composite:
    """The clip of a ``beam_truth.json`` entry, its frames given, on a screen of that layout."""
    random = np.random.default_rng([zlib.crc32(f"{entry['path']} {layout}".encode()), seed])
    height, width = ((720, 1280), (1080, 1920))[random.integers(2)]
    side = round(height * random.uniform(0.34, 1.0))
    if layout in ("light", "paper") or random.random() < 0.5:
        side = min(side, round(height * 0.86))
    left = round(random.uniform(0.02, 0.98) * (width - side))
    top = round(random.uniform(0.0, 1.0) * (height - side))
    screen = _Screen(entry, random, (width, height), (left, top, side))
    getattr(screen, f"draw_{layout}")()
    frames = [screen.with_clip(image, i) for i, image in enumerate(clip)]
    return Composite(frames, screen.truth, screen.text & ~(screen.truth.mask() > 0), layout)


class _Screen:
    def __init__(
        self,
        entry: dict[str, Any],
        random: np.random.Generator,
        size: tuple[int, int],
        window: tuple[int, int, int],
    ) -> None:
        self.random, (self.width, self.height) = random, size
        self.left, self.top, self.side = window
        # Some clips are not quite square: the longer side fills the window.
        scale = self.side / max(entry["size"])
        self.clip_size = tuple(round(n * scale) for n in entry["size"])
        polygon = tuple((self.left + x * scale, self.top + y * scale) for x, y in entry["polygon"])
        self.truth = Beam(polygon, size, "convex")
        self.beam = self.truth.mask()
        self.canvas = np.zeros((self.height, self.width, 3), np.uint8)
        self.text = np.zeros((self.height, self.width), bool)
        self.taken = self.text.copy()
        self.unit = self.height / 720
        self.font = int(random.choice(FONTS))
        self.masked = self.clock = self.studio = False
        self.quality = int(random.choice((0, 70, 80, 90)))
        self.noise = 0.0
        self.ink = (210, 210, 210)
        self.in_front: list[tuple[slice, slice]] = []

    # What consoles look like. A layout draws around the beam; nothing is drawn on it.

    def draw_cart(self) -> None:
        """Dark console: title bar with a name, a column of settings, gray bar, ruler."""
        self.fill(int(self.random.choice((0, 3, 8, 14))))
        self.bar((0, 0, self.width, round(34 * self.unit)), (46, 38, 32))
        self.write(str(self.random.choice(NAMES)), (14, 24), 0.7, 2)
        self.write("MI 0.7  TIs 0.1", (960, 24), 0.55)
        self.column(14 if self.left > 200 * self.unit else 1120, 120)
        self.gray_bar()
        self.ruler()
        self.clock = bool(self.random.random() < 0.3)

    def draw_portable(self) -> None:
        """Black; words in the corners that the fan leaves free, depths beside the beam."""
        self.corner_words(int(self.random.integers(3, 7)))
        self.depths()
        self.masked = bool(self.random.random() < 0.3)
        self.studio = bool(self.random.random() < 0.3)
        self.write(str(self.random.choice(NAMES)), (30, 700), 0.6)

    def draw_close(self) -> None:
        """As portable, but the words all but touch the beam."""
        self.fill(int(self.random.choice((0, 5, 12))))
        self.corner_words(8, gap=2)
        self.ruler()
        self.depths()
        self.noise = float(self.random.choice((0.0, 0.0, 1.0)))

    def draw_light(self) -> None:
        """Light console around a black window."""
        level = int(self.random.integers(70, 215))
        self.fill(level)
        self.ink = (20, 20, 20) if level > 120 else (235, 235, 235)
        pad = [round(self.random.uniform(2, 50) * self.unit) for _ in range(4)]
        x, y, side = self.left, self.top, self.side
        self.bar((x - pad[0], y - pad[1], x + side + pad[2], y + side + pad[3]), (0, 0, 0))
        self.write(str(self.random.choice(NAMES)), (14, 24), 0.7, 2)
        self.column(14 if self.left > 200 * self.unit else 1120, 120)
        self.ink = (210, 210, 210)
        self.corner_words(2)
        self.studio = bool(self.random.random() < 0.3)

    def draw_plain(self) -> None:
        """Dark gray all over, the beam alone set into it."""
        self.fill(int(self.random.integers(0, 48)))
        self.masked = True
        self.write(str(self.random.choice(NAMES)), (14, 24), 0.7, 2)
        self.corner_words(2)
        self.gray_bar()

    def draw_tablet(self) -> None:
        """Mid gray app with buttons and thumbnails, the beam alone set into it."""
        self.fill(int(self.random.integers(35, 130)))
        self.masked = True
        for i in range(5):
            self.button((1130, 90 + 96 * i, 1260, 90 + 96 * i + 60), str(self.random.choice(WORDS)))
        for i in range(3):
            self.thumbnail(30 + 150 * i, 590)
        self.write(str(self.random.choice(NAMES)), (420, 22), 0.6)
        self.clock = True

    def draw_crowded(self) -> None:
        """Everything at once, close to the beam."""
        self.fill(int(self.random.choice((0, 6, 20))))
        self.write(str(self.random.choice(NAMES)), (14, 24), 0.8, 2)
        self.column(20, 90, 10)
        self.column(1100, 90, 10)
        self.gray_bar()
        self.ruler()
        self.depths()
        self.corner_words(9, gap=3)
        self.logo()
        self.trace()
        self.clock = True

    def draw_paper(self) -> None:
        """White report page, the clip as a picture in it."""
        self.fill(int(self.random.integers(200, 256)))
        self.ink = (40, 40, 40)
        self.write("LUNG EXAM  " + str(self.random.choice(NAMES)), (40, 40), 0.8, 2)
        self.column(30 if self.left > 220 * self.unit else 1080, 140, 7)
        self.logo()

    def draw_worn(self) -> None:
        """Analogue feed: levels squeezed, a little noise, a frame around the picture, words in corners."""
        self.fill(int(self.random.integers(0, 30)))
        x, y, side = self.left, self.top, self.side
        self.bar((x - 3, y - 3, x + side + 3, y + side + 3), (90, 90, 90))
        self.bar((x - 1, y - 1, x + side + 1, y + side + 1), (0, 0, 0))
        self.corner_words(5)
        self.depths()
        self.write(str(self.random.choice(NAMES)), (40, 690), 0.7, 2)
        self.studio, self.noise, self.quality = True, 1.2, 75

    # Their parts. Places are on a screen 720 lines high; those that would touch the beam are left out.

    def fill(self, level: int) -> None:
        tint = self.random.integers(-4, 5, 3) if level else np.zeros(3)
        self.canvas[:] = np.clip(level + tint, 0, 255)

    def bar(self, box: tuple[int, int, int, int], colour: tuple[int, int, int]) -> None:
        cv2.rectangle(self.canvas, box[:2], (box[2] - 1, box[3] - 1), colour, -1)

    def free(self, box: tuple[float, ...], gap: float) -> bool:
        x0, y0, x1, y1 = (round(n) for n in (box[0] - gap, box[1] - gap, box[2] + gap, box[3] + gap))
        if box[0] < 0 or box[1] < 0 or box[2] > self.width or box[3] > self.height:
            return False
        if self.taken[max(y0, 0) : y1, max(x0, 0) : x1].any():
            return False
        return not self.beam[max(y0, 0) : y1, max(x0, 0) : x1].any()

    def draw_on(self, box: tuple[float, ...], inked: NDArray[np.bool_] | None = None) -> None:
        x0, y0, x1, y1 = (round(n) for n in box)
        place = slice(max(y0, 0), y1), slice(max(x0, 0), x1)
        self.taken[place] = True
        self.text[place] |= True if inked is None else inked[place]
        self.in_front.append(place)

    def write(
        self,
        word: str,
        at: tuple[float, float],
        scale: float,
        weight: int = 1,
        gap: float = 6,
        own: bool = False,
    ) -> bool:
        """``own``: the place is in pixels of this screen."""
        unit = 1.0 if own else self.unit
        x, y = round(at[0] * unit), round(at[1] * unit)
        (w, h), base = cv2.getTextSize(word, self.font, scale * self.unit, weight)
        box = (x, y - h - 2, x + w, y + base)
        if not self.free(box, gap * self.unit):
            return False
        pen = (self.font, scale * self.unit)
        cv2.putText(self.canvas, word, (x, y), *pen, self.ink, weight, cv2.LINE_AA)
        inked = np.zeros((self.height, self.width), np.uint8)
        cv2.putText(inked, word, (x, y), *pen, 255, weight, cv2.LINE_AA)
        self.draw_on(box, inked > 64)
        return True

    def column(self, x: float, y: float, count: int = 6) -> None:
        for i, word in enumerate(self.random.permutation(WORDS)[:count]):
            self.write(str(word), (x, y + 44 * i), 0.55)

    def corner_words(self, count: int, gap: float = 6) -> None:
        """Words beside the fan but within its bounding box, or close to that box."""
        x, y, side = self.left, self.top, self.side
        for word in self.random.permutation(CORNERS)[:count]:
            for _ in range(40):
                at = (
                    x + self.random.uniform(-0.15, 1.05) * side,
                    y + self.random.uniform(-0.05, 1.05) * side,
                )
                if self.write(str(word), at, float(self.random.uniform(0.45, 0.9)), 1, gap, own=True):
                    break

    def gray_bar(self) -> None:
        x = round((self.left + self.side) + self.random.uniform(12, 60) * self.unit)
        y, wide, high = round(110 * self.unit), round(16 * self.unit), round(256 * self.unit)
        if self.free((x, y, x + wide, y + high), 4):
            ramp = np.linspace(255, 0, high).astype(np.uint8)
            self.canvas[y : y + high, x : x + wide] = ramp[:, None, None]
            self.draw_on((x, y, x + wide, y + high))

    def ruler(self) -> None:
        x = round(self.left + self.side + self.random.uniform(4, 10) * self.unit)
        steps = int(self.random.integers(8, 17))
        for i in range(steps + 1):
            y = round(self.top + self.side * i / steps)
            box = (x, y - 1, x + (12 if i % 5 else 20) * self.unit, y + 1)
            if self.free(box, 3):
                cv2.line(self.canvas, (x, y), (round(box[2]), y), self.ink, 1)
                self.draw_on(box)

    def depths(self) -> None:
        for i in range(1, 6):
            at = (self.left + self.side + 4 * self.unit, self.top + self.side * i / 5.5)
            self.write(str(2 * i), at, 0.45, own=True, gap=3)

    def button(self, box: tuple[float, float, float, float], word: str) -> None:
        whole = tuple(n * self.unit for n in box)
        if self.free(whole, 4):
            x0, y0, x1, y1 = (round(n) for n in whole)
            cv2.rectangle(self.canvas, (x0, y0), (x1, y1), (150, 120, 90), -1)
            cv2.putText(
                self.canvas,
                word,
                (x0 + 8, y1 - 20),
                self.font,
                0.45 * self.unit,
                (240, 240, 240),
                1,
                cv2.LINE_AA,
            )
            self.draw_on(whole)

    def thumbnail(self, x: float, y: float) -> None:
        x0, y0, side = round(x * self.unit), round(y * self.unit), round(110 * self.unit)
        if self.free((x0, y0, x0 + side, y0 + side), 4):
            noise = self.random.integers(0, 150, (side // 6, side // 6)).astype(np.uint8)
            self.canvas[y0 : y0 + side, x0 : x0 + side] = cv2.resize(noise, (side, side))[..., None]
            self.draw_on((x0, y0, x0 + side, y0 + side))

    def logo(self) -> None:
        for _ in range(20):
            x, y = self.random.uniform(0.02, 0.93) * self.width, self.random.uniform(0.02, 0.9) * self.height
            r = 22 * self.unit
            if self.free((x - r, y - r, x + r, y + r), 5):
                cv2.circle(self.canvas, (round(x), round(y)), round(r), (200, 120, 30), -1, cv2.LINE_AA)
                cv2.circle(self.canvas, (round(x), round(y)), round(r / 2), (250, 250, 250), -1, cv2.LINE_AA)
                self.draw_on((x - r, y - r, x + r, y + r))
                return

    def trace(self) -> None:
        """A trace as of an electrocardiogram, along the foot."""
        y = round(690 * self.unit)
        box = (0, y - 26 * self.unit, self.width * 0.6, y + 8 * self.unit)
        if self.free(box, 4):
            x = np.arange(round(box[2]))
            beat = np.where(x % round(90 * self.unit) < 6, -22 * self.unit, 0) + y
            points = np.stack([x, beat], axis=1).round().astype(np.int32)
            cv2.polylines(self.canvas, [points], False, (80, 220, 80), 1, cv2.LINE_AA)
            self.draw_on(box)

    def with_clip(self, image: Image, index: int) -> Image:
        """The screen with this frame of the clip in it."""
        shot = self.canvas.copy()
        if image.ndim == 2:
            image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)  # type: ignore[assignment]
        shrink = self.clip_size[0] < image.shape[1]
        method = cv2.INTER_AREA if shrink else cv2.INTER_CUBIC
        picture = cv2.resize(image, self.clip_size, interpolation=method)
        x, y, (w, h) = self.left, self.top, self.clip_size
        if self.masked:
            inside = self.beam[y : y + h, x : x + w] > 0
            shot[y : y + h, x : x + w][inside] = picture[: self.height - y, : self.width - x][inside]
        else:
            shot[y : y + h, x : x + w] = picture
            for place in self.in_front:
                # What the console wrote stands in front of the clip's own black.
                shot[place] = np.maximum(self.canvas[place], 0)
        if self.clock:
            self._tell_time(shot, index)
        return self._as_grabbed(shot, index)

    def _tell_time(self, shot: Image, index: int) -> None:
        x, y = round(1130 * self.unit), round(64 * self.unit)
        box = (x, y - 16 * self.unit, x + 130 * self.unit, y + 4 * self.unit)
        if index == 0:
            self.clock = not self.beam[round(box[1]) : round(box[3]), round(box[0]) : round(box[2])].any()
            self.text[round(box[1]) : round(box[3]), round(box[0]) : round(box[2])] |= self.clock
        if self.clock:
            word = f"10:42:{17 + index // 3}"
            cv2.putText(shot, word, (x, y), self.font, 0.5 * self.unit, self.ink, 1, cv2.LINE_AA)

    def _as_grabbed(self, shot: Image, index: int) -> Image:
        if self.studio:
            shot = (16 + shot.astype(np.float32) * (219 / 255)).round().astype(np.uint8)
        if self.noise:
            noise = np.random.default_rng(index).normal(0, self.noise, shot.shape[:2])
            shot = np.clip(shot + noise[..., None], 0, 255).astype(np.uint8)
        if self.quality:
            jpeg = cv2.imencode(".jpg", shot, [cv2.IMWRITE_JPEG_QUALITY, self.quality])[1]
            shot = cv2.imdecode(jpeg, cv2.IMREAD_COLOR)  # type: ignore[assignment]
        return shot

"""Why a picture cannot be read, told from its pixels and times alone.

Cheap grabbers say nothing about their input: no signal arrives as a black, blue or barred picture, or
as the grabber's own, that looks like any other. What is recognised, how and how well: docs/signal.md.

Most of it is seen on the network's input, which is small and shows the beam alone: what happens
outside the beam (a clock, a cursor) neither hides a frozen picture nor spoils a live one.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from reader.beam import gray

Image = NDArray[np.uint8]
Float = NDArray[np.float32]

NO_SIGNAL = "no-signal"
FROZEN = "frozen"
NO_BEAM = "no-beam"
NO_CONTACT = "no-contact"
NOT_LUNG = "not-lung"
GEOMETRY_CHANGED = "geometry-changed"

PLACEHOLDER, DAMAGED = "placeholder", "damaged"
LEVELS, DUPLICATES, DAMAGED_FRAMES = "levels", "duplicates", "damaged-frames"

THUMBNAIL = (54, 30)
"""Columns and rows of the thumbnail that a whole picture is judged on."""
EVEN_SPREAD = 3.0
"""Gray levels (standard deviation) under which a whole picture is one colour."""
BLACK_LEVEL = 40
"""Gray level under which one colour is black: BT.601's black is 16, and noise lifts it."""
BAR_SATURATION = 80
"""Channel spread from which a pixel is a test colour: ultrasound is gray, or faintly tinted."""
BAR_SHARE = 0.5
"""Share of such pixels from which the picture is a test pattern or the grabber's own."""
BAR_COLOURS = 4
"""So many saturated hues are colour bars; fewer are a grabber's own picture."""
UPRIGHT_SHARE = 0.6
"""Share of the picture that goes with its column in bars: SMPTE's lowest third does not."""
SNOW_ROUGHNESS = 0.8
"""Mean step between neighbouring pixels over the standard deviation, from which a picture is snow:
1.13 in white noise, under 0.2 in the clips whose beams were drawn."""

CELL = 8
"""Side in pixels of the cells in which texture and change are measured."""
LIT_SHARE = 0.15
"""A cell is lit from this share of the way from the darkest to the brightest cells."""
SPECKLE = (0.008, 0.3)
"""Fine texture over brightness in a cell that shows speckle: less is flat, more is writing."""
SPECKLED_SHARE = 0.11
"""Share of the beam in which speckle lies cell by cell, under which no ultrasound is shown: at least
0.16 in frames of the development clips."""
SOMEWHERE_SHARE = 0.012
"""The same for a whole picture, in which a beam may be small."""
OF_BRIGHT_SHARE = 0.08
"""Share of what is bright in a whole picture that speckle makes up at least: writing on a wash of colour
makes up to 0.06, the development clips at least 0.4."""
SCREEN_WRITTEN = 4.0
"""Gray levels (standard deviation) around the beam from which a scanner's own screen is known again."""
SCREEN_CHANGE = 0.4
"""Mean change there, as a share of that deviation, under which it is the same screen."""

WINDOW = 0.8
"""Seconds without change after which a picture counts as frozen."""
STILL_CHANGE = 0.12
"""Change in gray levels between the means of the window's halves, cell by cell, under which nothing
moves. The stillest of 350 real clips has 0.18, the next 0.44."""
NOISE_FACTOR = 1.2
"""How much more than noise alone leaves in those means still counts as noise."""
NOISE_FRAMES = 6
"""Frames in half a window from which noise is told from movement."""
THAW = 1.5
"""So much more change than freezes a picture thaws it."""

FRESH = 1.5
"""How much larger the change to a fresh frame is than to one that was handed out again."""

TEAR = 1.6
"""How much larger than any usual step near it the step between two rows is at a tear, where what changed
since the last good frame changes there too. In 99.8 % of the live frames tried it is less."""
TEAR_REACH = 8
"""Rows above and below a tear over which that change is compared."""
TEAR_CHANGE = (0.25, 1.3)
"""How much a change that is so many times (natural logarithm) larger on one side adds, and its bound."""
TEARS_PASSED = 3
"""Damaged frames over which the last good frame is kept for that."""
TEXTURELESS = 0.12
"""Mean step between rows, in gray levels, up to which they are copies of each other."""
USUAL_END = 0.4
"""Mean step between rows from which there used to be something in a part that is now black."""
BRIGHT_END = 45
"""Gray level from which a part without any step is not black."""
USUAL = (0.5, 2.0)
"""Bounds of the steps between rows, over the usual ones, in a picture of the same scene."""
SAME_ROW = 2
"""Rows within which damage in two frames in a row is at the same place."""
MISSING_SHARE = 0.08
"""Share of the beam's rows from which a missing lower part is noticed."""
DAMAGE_NOTED = 3
"""Damaged frames in a second that are worth a note."""

ECHO_LEVEL = (8.0, 36.0)
"""Bounds of the gray level from which a pixel holds an echo; between them it goes with the picture."""
ECHO_SHARE = 0.35
"""That level as a share of the brightest cell's."""
NEAR_FIELD = 0.25
"""Share of the beam's depth, from the probe, that rings even in air."""
RINGING_SHARE = 0.1
"""Share of the near field's pixels that ring when the probe is in air."""
CONTACT_SHARE = 0.007
"""Share of pixels past the near field with an echo, under which the probe touches nothing."""

NAMED_AFTER = 0.25
"""Seconds that a fault lasts before it is named; frames before that are left out."""
FAULTY_WITHIN, FAULTY_SHARE = 0.5, 0.4
"""Seconds, and the share of faulty frames in them, from which a fault is named though it comes and goes."""
GOOD_FOR = 0.4
"""Seconds that a picture has been good for before a named fault is taken back."""
LONG_GAP = 1.0
"""Seconds without a frame after which nothing is known of what was before."""


@dataclass(frozen=True)
class Fault:
    """Why there is no reading: a state, and a finer cause where that can be told."""

    state: str
    cause: str = ""


class Thumbnail:
    """A whole picture in 54 x 30 averaged colours: enough to see black, bars and one colour.

    ``fault``: no signal by the looks of the whole picture, None where nothing speaks for it.
    """

    def __init__(self, image: Image) -> None:
        """``image``: uint8 [h, w] or BGR [h, w, 3]."""
        lines = np.ascontiguousarray(image[:: max(image.shape[0] // THUMBNAIL[1], 1)])
        # Two quick steps: an area mean at a fractional factor would take longer than all the rest.
        between: Any = cv2.resize(lines, (4 * THUMBNAIL[0], THUMBNAIL[1]), interpolation=cv2.INTER_LINEAR)
        self.colours = _shrunk(between, THUMBNAIL)
        self.gray = gray(self.colours)
        self.fault = self._fault(image)

    def _fault(self, image: Image) -> Fault | None:
        if _is_snow(image if image.ndim == 2 else image[:, :, 1]):
            return Fault(NO_SIGNAL, "snow")
        mean, spread = cv2.meanStdDev(self.colours)
        if float(spread.max()) < EVEN_SPREAD:
            return Fault(NO_SIGNAL, "black" if float(mean.max()) < BLACK_LEVEL else "one-colour")
        hues = self._hues()
        if hues.sum() < BAR_SHARE:
            return None
        bars = self._upright() and (hues >= 0.04).sum() >= BAR_COLOURS
        return Fault(NO_SIGNAL, "bars" if bars else PLACEHOLDER)

    def _upright(self) -> bool:
        """Whether most of each column is of one brightness, as in bars, though writing lies across them."""
        column = np.median(self.gray, axis=0).astype(np.uint8)
        same = cv2.absdiff(self.gray, np.ascontiguousarray(np.broadcast_to(column, self.gray.shape))) < 12
        return float(same.mean()) >= UPRIGHT_SHARE

    def _hues(self) -> NDArray[np.float64]:
        """Share of the picture in each of the six saturated hues (by which channels are strong)."""
        if self.colours.ndim == 2:
            return np.zeros(8)
        blue, green, red = cv2.split(self.colours)
        most, least = cv2.max(cv2.max(blue, green), red), cv2.min(cv2.min(blue, green), red)
        saturated = cv2.subtract(most, least) > BAR_SATURATION
        if not saturated.any():
            return np.zeros(8)
        middle = cv2.addWeighted(most, 0.5, least, 0.5, 0)
        code = (blue > middle) + 2 * (green > middle) + 4 * (red > middle)
        return np.bincount(code[saturated], minlength=8) / code.size

    @property
    def squeezed(self) -> bool:
        """Whether the darkest even ground of the picture is far from black: a squeezed level range."""
        darkest = int(self.gray.min())
        return darkest >= 12 and float((self.gray <= darkest + 2).mean()) >= 0.05

    def like_screen_of(self, before: Thumbnail | None, beam: Image | None) -> bool:
        """Whether around the beam, its mask uint8 [h, w], the same is written as in an earlier one."""
        if before is None or beam is None:
            return False
        around = _shrunk(beam, THUMBNAIL) == 0
        if around.mean() < 0.1:
            return False
        then, now = before.gray[around].astype(np.int16), self.gray[around].astype(np.int16)
        change, written = float(np.abs(then - now).mean()), float(then.std())
        return written > SCREEN_WRITTEN and change < SCREEN_CHANGE * written


def like_menu(plane: Image) -> bool:
    """Whether gray uint8 [h, w] could be a scanner's screen: a dark ground, a little written all around."""
    small = _shrunk(plane, THUMBNAIL)
    content = cv2.absdiff(small, cv2.medianBlur(small, 5)) > 12
    edges = (content[:2].any(), content[-2:].any(), content[:, :2].any(), content[:, -2:].any())
    return float(np.median(small)) < 70 and float(content.mean()) < 0.3 and sum(map(bool, edges)) >= 3


def _is_snow(plane: Image) -> bool:
    """Whether neighbours have nothing to do with each other, as in an untuned receiver's picture."""
    lines = plane[::40]
    left, right = np.ascontiguousarray(lines[:, :-1:2]), np.ascontiguousarray(lines[:, 1::2])
    if left.size < 256:
        return False
    apart = float(cv2.mean(cv2.absdiff(left, right))[0])
    spread = float(cv2.meanStdDev(left)[1][0, 0])
    # What is hardly more than black is not snow, however noisy.
    return spread > 4 * EVEN_SPREAD and apart > SNOW_ROUGHNESS * spread


def _shrunk(plane: Any, size: tuple[int, int]) -> Any:
    """Area means at the size (columns, rows)."""
    return cv2.resize(plane, size, interpolation=cv2.INTER_AREA)


def _by_cell(plane: Any) -> Float:
    """Means of cells, float32 [h / 8, w / 8], of a plane uint8 [h, w]."""
    rows, columns = max(plane.shape[0] // CELL, 1), max(plane.shape[1] // CELL, 1)
    whole = plane[: rows * CELL, : columns * CELL]
    return _shrunk(whole.astype(np.float32), (columns, rows))


def speckled_share(plane: Any, smooth: Any, brightness: Float, inside: NDArray[np.bool_]) -> float:
    """Share of the cells inside that show speckle, as do those around them in squares of two.

    ``plane``: uint8 [h, w]; ``smooth``: its means over 5 x 5 pixels; ``brightness``: those by cell.
    Speckle is fine and goes with the brightness; drawn pictures are flat but for their edges, and
    writing is all edges.
    """
    speckle = inside & _speckle(_by_cell(cv2.absdiff(plane, smooth)), brightness, brightness[inside])
    return float(_in_squares(speckle, 2).sum()) / float(inside.sum())


def _speckle(fine: Float, brightness: Float, among: Float) -> NDArray[np.bool_]:
    """Cells lit among those given, whose fine texture is speckle's."""
    ends = len(among) // 20, len(among) * 19 // 20
    low, high = np.partition(among, ends)[list(ends)]
    if high - low < EVEN_SPREAD:
        return np.zeros(fine.shape, bool)
    lit = brightness > low + LIT_SHARE * (high - low)
    return np.asarray(lit & (fine > SPECKLE[0] * brightness) & (fine < SPECKLE[1] * brightness))


def _in_squares(cells: NDArray[np.bool_], side: int) -> Any:
    """Which cells have only their like around them, in squares of ``side``."""
    square = np.ones((side, side), np.uint8)
    return cv2.erode(cells.astype(np.uint8), square, borderType=cv2.BORDER_CONSTANT, borderValue=0)


def shows_ultrasound(plane: Image) -> bool:
    """Whether a whole picture, gray uint8 [h, w], shows speckle anywhere.

    Large writing on a bright ground passes for speckle here and there; then most of what is bright is
    flat, which the ground around a beam may be too, but not by so much.
    """
    scale = 448 / max(plane.shape)
    size = max(round(plane.shape[1] * scale), CELL), max(round(plane.shape[0] * scale), CELL)
    small = _shrunk(plane, size)
    brightness, fine = _by_cell(small), _by_cell(cv2.absdiff(small, cv2.blur(small, (5, 5))))
    speckled = float(_in_squares(_speckle(fine, brightness, brightness.ravel()), 3).mean())
    flat = (fine <= SPECKLE[0] * brightness) & (brightness > BLACK_LEVEL)
    bright = speckled + float(_in_squares(flat, 3).mean())
    return speckled >= max(SOMEWHERE_SHARE, OF_BRIGHT_SHARE * bright)


@dataclass(frozen=True)
class Sight:
    """The beam in one frame. ``tensor``: uint8 [s, s]; ``smooth``: its means over 5 x 5 pixels, in which
    noise does not pass for an echo. ``brightness``: its mean cell by cell, float32
    [s / 8, s / 8]. ``speckled``: whether it looks like ultrasound at all. ``echo_level``: the gray level
    from which a pixel holds an echo."""

    tensor: Image
    smooth: Image
    brightness: Float
    speckled: bool
    echo_level: float


class BeamWatch:
    """Follows the beam of one setting from frame to frame."""

    def __init__(self, mask: Image) -> None:
        """``mask``: uint8 [s, s], 255 inside the beam."""
        inner = cv2.erode(mask, np.ones((9, 9)), borderType=cv2.BORDER_CONSTANT, borderValue=0)
        self._cells = _by_cell(inner) >= 254
        if not self._cells.any():
            self._cells[:] = True
        self._freeze, self._damage = FreezeWatch(), DamageWatch(mask)
        rows = np.flatnonzero(mask.any(axis=1))
        self._far = int(rows[0] + NEAR_FIELD * (rows[-1] + 1 - rows[0])) if rows.size else 0
        self._deep = mask[self._far :: 4, ::4] > 0
        self._near = mask[: self._far : 2, ::4] > 0

    def see(self, tensor: Image) -> Sight:
        """Measure a frame's tensor, uint8 [s, s]."""
        brightness = _by_cell(tensor)
        smooth: Any = cv2.blur(tensor, (5, 5))
        speckled = speckled_share(tensor, smooth, brightness, self._cells) >= SPECKLED_SHARE
        level = ECHO_SHARE * float(brightness.max())
        return Sight(tensor, smooth, brightness, speckled, min(max(level, ECHO_LEVEL[0]), ECHO_LEVEL[1]))

    def in_contact(self, sight: Sight) -> bool:
        """Whether echoes come from beyond the near field."""
        echoes = sight.smooth[self._far :: 4, ::4][self._deep] > sight.echo_level
        return bool(echoes.size and echoes.mean() >= CONTACT_SHARE)

    def in_air(self, sight: Sight) -> bool:
        """Whether only the near field rings: a beam is there, but it touches nothing."""
        ringing = sight.smooth[: self._far : 2, ::4][self._near] > sight.echo_level
        return bool(ringing.size and ringing.mean() >= RINGING_SHARE and not self.in_contact(sight))

    def damaged(self, at: float, sight: Sight) -> bool:
        """Whether this frame is torn or half missing."""
        return self._damage.add(at, sight.tensor, sight.speckled and self.in_contact(sight))

    def frozen(self, at: float, sight: Sight) -> bool:
        """Whether the beam has stood still for too long at this frame."""
        self._freeze.add(at, sight.brightness[self._cells])
        return self._freeze.frozen

    @property
    def repeats(self) -> bool:
        """Whether the source hands out each picture twice or more."""
        return self._freeze.repeats

    @property
    def often_damaged(self) -> bool:
        """Whether more than a few frames of the last second were damaged."""
        return self._damage.noted


class FreezeWatch:
    """Notices when the beam stands still although frames keep coming, and frames that come twice.

    The cells' means over the two halves of a window are compared, and those over its middle and its
    ends, since what moves to and fro may look the same in both halves. Noise of the way to the box
    averages out in them, so that a frozen picture under moving noise is told from a live one, whose
    changes last.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget the past: the source changed."""
        self._past: deque[tuple[float, Float]] = deque()
        self._steps: deque[float] = deque()
        self.frozen = False

    def add(self, at: float, brightness: Float) -> None:
        """Take in a frame's brightness cell by cell, float32 [cells]; sets ``frozen``."""
        past, steps = self._past, self._steps
        if past and not 0 <= at - past[-1][0] <= LONG_GAP:
            self.clear()
            past, steps = self._past, self._steps
        if past:
            steps.append(float(cv2.norm(brightness, past[-1][1], cv2.NORM_L1)) / brightness.size)
        past.append((at, brightness))
        while len(past) > 2 and past[1][0] <= at - WINDOW + 1e-6:
            past.popleft()
            steps.popleft()
        if len(past) < 2 or at - past[0][0] < WINDOW - 1e-6:
            self.frozen = False
            return
        quarters = [len(past) * i // 4 for i in range(5)]
        cells = np.stack([cells for _, cells in past])
        first, second, third, last = (
            cells[begin : max(end, begin + 1)].mean(axis=0) for begin, end in itertools.pairwise(quarters)
        )
        to, fro = first + second - third - last, first - second - third + last
        change = 0.5 * max(float(np.abs(to).mean()), float(np.abs(fro).mean()))
        half = len(past) // 2
        limit = STILL_CHANGE
        if half >= NOISE_FRAMES:
            noise = sum(steps) / len(steps)
            limit = math.hypot(limit, NOISE_FACTOR * noise / math.sqrt(half))
        self.frozen = change < (THAW * limit if self.frozen else limit)

    @property
    def repeats(self) -> bool:
        """Whether the source hands out each picture twice or thrice: every second or third step between
        frames is a large one, the others are small."""
        steps = np.asarray(self._steps)
        for period in (2, 3) if len(steps) >= 8 else ():
            by_phase = np.sort(steps[len(steps) % period :].reshape(-1, period), axis=0)
            low, high = by_phase[len(by_phase) // 5], by_phase[len(by_phase) * 4 // 5]
            fresh = int(low.argmax())
            if low[fresh] > STILL_CHANGE and low[fresh] > FRESH * np.delete(high, fresh).max():
                return True
        return False


def _highest_near(profile: Float, rows: int) -> Float:
    """The highest value within so many rows, for each row."""
    highest: Any = cv2.dilate(profile[:, None], np.ones((rows, 1), np.uint8))
    return np.asarray(highest[:, 0])


class DamageWatch:
    """Notices torn and half frames by the steps between neighbouring rows of the beam."""

    def __init__(self, mask: Image) -> None:
        """``mask``: uint8 [s, s], 255 inside the beam."""
        self._pair = cv2.bitwise_and(mask[1:], mask[:-1])
        width = (self._pair > 0).sum(axis=1).astype(np.float32)
        wide = np.flatnonzero(width >= 0.15 * mask.shape[1])
        self._rows = slice(int(wide[0]), int(wide[-1]) + 1) if wide.size else slice(0, 0)
        self._width = width[self._rows]
        self._usual: Float | None = None
        self._before: Image | None = None
        self._held = 0
        self._seen = 0
        self._row: int | None = None
        self._recent: deque[tuple[float, bool]] = deque()

    def add(self, at: float, tensor: Image, like_beam: bool) -> bool:
        """Whether this frame's tensor, uint8 [s, s], is damaged. What is not ``like_beam`` teaches
        nothing about the usual steps, and is never torn."""
        profile = self._by_row(tensor[1:], tensor[:-1])
        row = None
        if len(profile) >= 32:
            row = self._ends_at(profile, tensor)
            row = self._torn_at(profile, tensor) if row is None and like_beam else row
        # What stays at one row is a line or a shorter beam, not damage.
        damaged = row is not None and (self._row is None or abs(row - self._row) > SAME_ROW)
        self._row = row
        # After a torn frame a good one changes at the tear: it is set against the last good one.
        self._held = self._held + 1 if damaged and self._held < TEARS_PASSED else 0
        if self._held == 0:
            self._before = tensor
        if like_beam:
            self._learn(profile, damaged)
        recent = self._recent
        while recent and not 0 <= at - recent[0][0] <= 1.0:
            recent.popleft()
        recent.append((at, damaged))
        return damaged

    def _by_row(self, first: Image, second: Image) -> Float:
        """Mean absolute difference within the beam, row by row."""
        apart = cv2.bitwise_and(cv2.absdiff(first, second), self._pair)
        sums: Any = cv2.reduce(apart[self._rows], 1, cv2.REDUCE_SUM, dtype=cv2.CV_32F)
        return np.asarray(sums[:, 0] / self._width)

    def _torn_at(self, profile: Float, tensor: Image) -> int | None:
        """The row at which a picture is torn: a step between rows as there usually is none near it."""
        if self._usual is None or self._before is None or self._seen < 3:
            return None
        usual = self._usual
        if not USUAL[0] < float(np.median(profile / (usual + 0.1))) < USUAL[1]:
            return None
        near = np.maximum(_highest_near(usual, 9), np.roll(_highest_near(profile, 3), 3))
        near = np.maximum(near, np.roll(_highest_near(profile, 3), -3))
        share, most = TEAR_CHANGE
        jump = profile / (near + 0.5) * np.exp(share * np.minimum(self._change_at(tensor), most))
        peak = int(jump[6:-6].argmax()) + 6
        return peak if jump[peak] > TEAR else None

    def _change_at(self, tensor: Image) -> Float:
        """How many times larger (logarithm) the change since the last good frame is on one side of a row."""
        change = np.log(self._by_row(tensor[:-1], self._before[:-1]) + 0.5)  # type: ignore[index]
        total = np.concatenate([[0], np.cumsum(change)])
        above_and_below = (total[TEAR_REACH:] - total[:-TEAR_REACH]) / TEAR_REACH
        at = np.zeros(len(change), np.float32)
        between = np.abs(above_and_below[TEAR_REACH:] - above_and_below[:-TEAR_REACH])
        at[TEAR_REACH - 1 : TEAR_REACH - 1 + len(between)] = between
        return _highest_near(at, 5)

    def _ends_at(self, profile: Float, tensor: Image) -> int | None:
        """The row from which on nothing changes from row to row, under rows that are textured as usual.

        Where that part is black, there must have been something; a bright one is never an echo.
        """
        textured = np.flatnonzero(profile > TEXTURELESS)
        end = int(textured[-1]) + 1 if textured.size else 0
        fewest = max(MISSING_SHARE * len(profile), 4)
        if len(profile) - end < fewest or end < fewest:
            return None
        level = tensor[self._rows][end + 2]
        bright = float(level[self._pair[self._rows][end + 2] > 0].mean()) > BRIGHT_END
        if self._usual is None or self._seen < 3:
            return end if bright else None
        above, below = self._usual[:end], self._usual[end:]
        if float((profile[:end] > USUAL[0] * above).mean()) < 0.8:
            return None
        return end if bright or float(below.mean()) > USUAL_END else None

    def _learn(self, profile: Float, damaged: bool) -> None:
        if self._usual is None:
            self._usual = profile.copy()
        elif not damaged:
            # More readily up than down: half frames that went unnoticed must not become the usual.
            change = profile - self._usual
            self._usual += np.where(change > 0, 0.3, 0.1) * change
        self._seen += 1

    @property
    def noted(self) -> bool:
        """Whether more than a few frames of the last second were damaged."""
        return sum(damaged for _, damaged in self._recent) >= DAMAGE_NOTED


class FaultKeeper:
    """Steadies faults: a single odd frame is left out, a named fault stays until all is well again."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._shown: Fault | None = None
        self._recent: deque[tuple[float, bool]] = deque()
        self._named_at = self._good_since = self._other_since = 0.0
        self._other: Fault | None = None
        self._was_good = False

    def settle(self, at: float, fault: Fault | None, still: bool) -> Fault | None:
        """Take in what one frame looks like and return what to show; a still stands for itself."""
        if still:
            return fault
        recent = self._recent
        if recent and not 0 <= at - recent[-1][0] <= LONG_GAP:
            self._clear()
            recent = self._recent
        recent.append((at, fault is not None))
        while at - recent[0][0] > FAULTY_WITHIN:
            recent.popleft()
        if self._shown is None:
            self._consider(at, fault)
        elif fault is not None:
            self._follow(at, fault)
        elif self._good_again(at):
            self._shown, self._was_good = None, True
        return self._shown

    def _consider(self, at: float, fault: Fault | None) -> None:
        """Name a fault from the start, a frozen picture, and what most of the last frames suffer from."""
        if fault is None:
            self._was_good = True
            return
        odd = [time for time, faulty in self._recent if faulty]
        lasting = at - odd[0] >= NAMED_AFTER and len(odd) >= FAULTY_SHARE * len(self._recent)
        if not self._was_good or fault.state == FROZEN or lasting:
            self._shown, self._other = fault, None
            # What was odd only at the very start, a few dark frames, is over with the first good one.
            self._named_at, self._good_since = at, math.nan

    def _follow(self, at: float, fault: Fault) -> None:
        """A fault turns into another one when that has lasted."""
        self._good_since = math.nan
        if fault == self._shown or fault != self._other:
            self._other, self._other_since = None if fault == self._shown else fault, at
        elif at - self._other_since >= NAMED_AFTER:
            self._shown, self._other = fault, None

    def _good_again(self, at: float) -> bool:
        if math.isnan(self._good_since):
            self._good_since = at
        brief = not self._was_good and self._good_since - self._named_at < NAMED_AFTER
        return brief or at - self._good_since >= GOOD_FOR

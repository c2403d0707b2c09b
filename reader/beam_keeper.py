"""The beam over time: first guess from one frame, settled over seconds, noticed when it moves."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future

import numpy as np
from numpy.typing import NDArray

from reader.beam import Beam, BeamFinder
from reader.bundle import Specification
from reader.clips import Frame
from reader.preprocess import Preprocessor
from reader.signal import GEOMETRY_CHANGED

Image = NDArray[np.uint8]

SETTLE_AT = (0.5, 1.0, 2.0, 4.0)
"""Seconds after the first frame at which the beam is looked for again; then it is settled."""
GATHER_EVERY = 0.2
"""Seconds between the frames in which the beam is settled and text is looked for."""
LOOK_AGAIN = 0.4
"""Seconds between searches while there is no beam, or while its edge has faded."""
SEARCH_EVERY = 0.1
"""Seconds between the frames of one such search."""
DOUBTED_FOR = 1.9
"""Seconds after the signal came back for which the beam is looked for again, at least ..."""
DOUBT_SEARCHES = 3
"""... and the searches that must have come to an end since then, however long they take."""
WEAK_SHARE = 0.25
"""Share of a search's frames with a weak edge from which the beam may be another: in a wrong one the edge
comes and goes with the echoes."""
UNCHECKED_AFTER = 4.0
"""Seconds for which a search, or those after a doubt, may take before the screen says so."""
TEXT_EVERY = 4.0
"""Seconds of frames in which text is looked for, over and over."""
TEXT_FRAMES = 10
"""Least number of frames for that: two seconds' worth."""
SAME_BEAM = 0.7
"""Intersection over union from which two outlines are the same scanner setting."""
SURE_OVERLAP = 0.9
"""Intersection over union from which two searches found the same new outline."""
SAME_DOWN_TO = 0.85
"""Intersection over union with the upper part of the beam from which an outline is that upper part."""
GEOMETRY_SHOWN = 1.0
"""Seconds for which a changed geometry is shown before reading goes on in the new beam."""

MOVED, RESIZED = "beam", "size"
TEXT_IN_BEAM, PROFILE_MISFIT, DUAL_VIEW = "text-in-beam", "profile-misfit", "dual-view"
UNCHECKED = "beam-unchecked"


BeamSearch = Callable[[], "Beam | None"]
Searcher = Callable[[BeamSearch], "Future[Beam | None]"]
"""Has a search done, here or elsewhere, such as ``concurrent.futures.Executor.submit``."""


def search_at_once(search: BeamSearch) -> Future[Beam | None]:
    """Search before going on, so that a source reads the same however quick the machine is."""
    done: Future[Beam | None] = Future()
    done.set_result(search())
    return done


class BeamKeeper:
    """Holds the beam: first guess from one frame, settled over seconds, noticed when it moves.

    ``beam`` and ``preprocessor``: as known so far, None without one. ``changed``: whether this frame
    brought another beam. ``cause``: why the geometry changed last, ``beam`` or ``size``. ``notes``:
    any of ``text-in-beam``, ``profile-misfit``, ``dual-view``, ``beam-unchecked``.
    """

    def __init__(
        self, specification: Specification, beam: Beam | None, searcher: Searcher = search_at_once
    ) -> None:
        """``beam``: from a scanner profile or a survey; it stays unless the picture is against it.
        ``searcher``: has later searches done; frames go on meanwhile in the beam as known."""
        self._size, self._whole = specification.size, specification.beam == "whole"
        self.beam: Beam | None = None
        self.preprocessor: Preprocessor | None = None
        self.changed = False
        self.cause = ""
        self._noted: set[str] = set()
        self._finder, self._searcher = BeamFinder(), searcher
        self._search: Future[Beam | None] | None = None
        self._begun_at = 0.0
        self._edge: _Edge | None = None
        self._suspect: Beam | None = None
        self._due: list[float] = []
        self._gathered_at = self._searched_at = self._changed_at = -1e9
        self._watched_from: float | None = None
        self._searching = self._text_seen = self._unsettled = False
        self._seen = self._seen_weak = 0
        self._back_at: float | None = -1e9
        self._searches_wanted = 0
        self._unproven = beam is not None and not self._whole
        if beam is not None:
            self._take(beam)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the picture suffers from although the beam is known, in the order of the alphabet."""
        return tuple(sorted(self._noted))

    def doubt(self) -> None:
        """There is no picture now: what comes back may be another scanner or setting."""
        self._back_at, self._searches_wanted = None, DOUBT_SEARCHES
        self._unsettled |= bool(self._due)
        self._due = []
        self._forget_gathered()

    def update(self, frame: Frame) -> str | None:
        """Look at a frame; returns ``geometry-changed`` for a while after the beam has moved."""
        self.changed = False
        at, image = frame.captured_at, frame.image
        if self.beam is not None and self.beam.size != (image.shape[1], image.shape[0]):
            self._lose(at)
        faded = self._edge is not None and not frame.still and self._edge.faded(image)
        if self._edge is not None:
            self._seen, self._seen_weak = self._seen + 1, self._seen_weak + self._edge.weak
        if self._search is not None:
            # The finder is at work: nothing may be gathered in it.
            self._finish_search(frame)
        elif self.beam is None:
            self._first_guess(frame)
        elif self._due:
            self._settle(frame)
        elif self._edge is not None and not frame.still:
            doubted = self._doubted(at)
            if faded or self._unproven or doubted:
                self._search_again(frame)
            elif self._unsettled:
                self._settle_later(frame)
            else:
                self._watch_for_text(frame)
        self._note(UNCHECKED, self._unchecked(at))
        shown = self.beam is not None and 0 <= at - self._changed_at < GEOMETRY_SHOWN
        return GEOMETRY_CHANGED if shown and not frame.still else None

    def _lose(self, at: float) -> None:
        """The picture has another size: nothing that was known holds."""
        self.beam = self.preprocessor = self._edge = None
        self._noted = {PROFILE_MISFIT} if self._unproven else set()
        self._unproven = False
        self._due = []
        # What is found in this picture needs no doubt.
        self._unsettled, self._searches_wanted, self._back_at = False, 0, -1e9
        self._changed_at, self.changed, self.cause, self._searched_at = at, True, RESIZED, -1e9
        self._forget_gathered()

    def _forget_gathered(self) -> None:
        """Nothing seen so far may be mixed with what comes, nor counted for it."""
        if self._search is None:
            self._finder.reset()
        else:
            # It may be at work in the old finder still, or never come to an end.
            self._search.cancel()
            self._finder, self._search = BeamFinder(), None
        self._searching, self._suspect, self._watched_from = False, None, None

    def _doubted(self, at: float) -> bool:
        if self._back_at is None:
            self._back_at = at
        return self._searches_wanted > 0 or 0 <= at - self._back_at < DOUBTED_FOR

    def _unchecked(self, at: float) -> bool:
        """Whether the beam is read in without having been looked for as it should have been."""
        back_at = at if self._back_at is None else self._back_at
        late = self._search is not None and at - self._begun_at >= UNCHECKED_AFTER
        return late or (self._searches_wanted > 0 and at - back_at >= UNCHECKED_AFTER)

    def _first_guess(self, frame: Frame) -> None:
        at, (height, width) = frame.captured_at, frame.image.shape[:2]
        if self._whole:
            corners = ((0.0, 0.0), (float(width), 0.0), (float(width), float(height)), (0.0, float(height)))
            self._take(Beam(corners, (width, height), "linear"))
        elif not 0 <= at - self._searched_at < LOOK_AGAIN:
            self._searched_at = at
            self._finder.reset()
            self._finder.add(frame.image)
            found = self._finder.beam()
            if found is not None:
                self._take(found)
                self._settle_later(frame)

    def _settle_later(self, frame: Frame) -> None:
        self._unsettled = False
        self._due = [] if frame.still else [frame.captured_at + later for later in SETTLE_AT]
        self._gathered_at = frame.captured_at

    def _settle(self, frame: Frame) -> None:
        at = frame.captured_at
        self._gather(frame, GATHER_EVERY)
        if at >= self._due[0]:
            self._search_now(frame)

    def _search_now(self, frame: Frame) -> None:
        self._search, self._begun_at = self._searcher(self._finder.beam), frame.captured_at
        self._finish_search(frame)

    def _finish_search(self, frame: Frame) -> None:
        """Take over what a search found, once it has. Raises what the search raised."""
        if self._search is None or not self._search.done():
            return
        found, self._search = self._search.result(), None
        if self._due:
            self._settle_on(found)
        else:
            self._judge(found, frame)

    def _settle_on(self, found: Beam | None) -> None:
        self._due.pop(0)
        if found is not None and self.beam is not None and overlap(found, self.beam) < 0.98:
            self._take(found)
        self._note(DUAL_VIEW, self._finder.dual)
        if not self._due:
            self._look_for_text()

    def _gather(self, frame: Frame, every: float) -> None:
        if not 0 <= frame.captured_at - self._gathered_at < every:
            self._finder.add(frame.image)
            self._gathered_at = frame.captured_at

    def _search_again(self, frame: Frame) -> None:
        """Gather frames for a moment, then look: a live beam shows itself by moving."""
        at = frame.captured_at
        if not self._searching:
            self._finder.reset()
            self._searching, self._searched_at, self._watched_from = True, at, None
            self._seen = self._seen_weak = 0
        self._gather(frame, SEARCH_EVERY)
        if not 0 <= at - self._searched_at < LOOK_AGAIN:
            self._search_now(frame)

    def _judge(self, found: Beam | None, frame: Frame) -> None:
        """Whether the beam that was looked for again is another."""
        self._searching = False
        suspect, self._suspect = self._suspect, None
        doubted = self._doubted(self._searched_at)
        self._searches_wanted = max(self._searches_wanted - 1, 0)
        if found is None or self.beam is None:
            return
        if overlap(found, self.beam) >= SAME_BEAM or _upper_part(found, self.beam):
            self._unproven = False
            return
        # A beam that is merely doubted is still the same where its edge stands as it did.
        if not self._unproven and self._edge_stands:
            return
        # One poor frame can mislead a search; two searches that agree are believed.
        if suspect is None or overlap(found, suspect) < SURE_OVERLAP:
            self._suspect = found
            self._searches_wanted = max(self._searches_wanted, int(doubted))
        else:
            self._noted = {PROFILE_MISFIT} if self._unproven else set()
            self._take(found)
            self._changed_at, self.cause = frame.captured_at, MOVED
            self._unproven, self._searches_wanted = False, 0
            self._settle_later(frame)

    @property
    def _edge_stands(self) -> bool:
        """Whether the beam's edge stood as it did in nearly all frames since this search was begun."""
        if self._edge is None or not self._edge.seen:
            return False
        return self._seen_weak < WEAK_SHARE * self._seen

    def _watch_for_text(self, frame: Frame) -> None:
        at = frame.captured_at
        self._searching, self._suspect = False, None
        if self._watched_from is None or at < self._watched_from:
            self._finder.reset()
            self._watched_from = at
        self._gather(frame, GATHER_EVERY)
        if at - self._watched_from >= TEXT_EVERY:
            self._look_for_text()

    def _look_for_text(self) -> None:
        self._watched_from = None
        if self.beam is not None and self._finder.frames >= TEXT_FRAMES:
            # Two looks in a row: writing stays, echoes look like it by chance.
            before, self._text_seen = self._text_seen, self._finder.text_within(self.beam)
            self._note(TEXT_IN_BEAM, before and self._text_seen)

    def _note(self, name: str, holds: bool) -> None:
        self._noted = self._noted | {name} if holds else self._noted - {name}

    def _take(self, beam: Beam) -> None:
        self.beam, self.changed = beam, True
        self.preprocessor = Preprocessor(beam, self._size)
        self._edge = None if self._whole else _Edge(beam)


def _upper_part(found: Beam, beam: Beam) -> bool:
    """Whether an outline is the beam again, but not down to its foot: what is left of a beam in air,
    where only the near field rings."""
    inside, whole = found.mask() > 0, beam.mask() > 0
    foot = found.bounds[3]
    whole[foot:] = False
    return float((inside & whole).sum()) >= SAME_DOWN_TO * float((inside | whole).sum())


class _Edge:
    """Watches the step from dark to light along a beam's outline, on a few dozen pixel pairs. ``weak``:
    whether the step was weak in the picture that was asked about last, be it faded or not."""

    PAIRS = 48
    REACH = 0.02
    FADED, WEAK = 0.5, 0.7

    def __init__(self, beam: Beam) -> None:
        corners = np.asarray(beam.polygon)
        width, height = beam.size
        centre = corners.mean(axis=0)
        follow = np.roll(corners, -1, axis=0)
        lengths = np.hypot(*(follow - corners).T)
        along = np.linspace(0, lengths.sum(), self.PAIRS, endpoint=False)
        starts = np.concatenate([[0], lengths.cumsum()])
        side = np.clip(np.searchsorted(starts, along, "right") - 1, 0, len(corners) - 1)
        share = (along - starts[side]) / np.maximum(lengths[side], 1e-6)
        points = corners[side] + (follow - corners)[side] * share[:, None]
        outward = points - centre
        outward /= np.maximum(np.hypot(*outward.T), 1e-6)[:, None]
        reach = self.REACH * max(width, height)
        self._inside = _whole_pixels(points - outward * reach)
        self._outside = _whole_pixels(points + outward * reach)
        x, y = self._outside
        kept = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        x, y = self._inside
        kept &= (x >= 0) & (x < width) & (y >= 0) & (y < height)
        self._inside = self._inside[0][kept], self._inside[1][kept]
        self._outside = self._outside[0][kept], self._outside[1][kept]
        self._usual: float | None = None
        self.weak = False

    @property
    def seen(self) -> bool:
        """Whether enough of the outline lies within the picture to tell."""
        return self._inside[0].size >= self.PAIRS // 6

    def faded(self, image: Image) -> bool:
        """Whether the step is much smaller than it was when first seen."""
        if not self.seen:
            return False
        plane = image if image.ndim == 2 else image[:, :, 1]
        step = float(
            np.sqrt(plane[self._inside[1], self._inside[0]]).mean()
            - np.sqrt(plane[self._outside[1], self._outside[0]]).mean()
        )
        if self._usual is None:
            self._usual = step
        self.weak = step < self.WEAK * self._usual
        return step < self.FADED * self._usual


def _whole_pixels(points: NDArray[np.floating]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    whole = np.floor(points).astype(np.intp)
    return whole[:, 0], whole[:, 1]


def overlap(a: Beam, b: Beam) -> float:
    """Intersection over union of two beams in pictures of the same size."""
    first, second = a.mask() > 0, b.mask() > 0
    return float((first & second).sum()) / max(float((first | second).sum()), 1.0)

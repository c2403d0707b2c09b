"""The one way from a frame to a verdict.

Training, conversion, evaluation and the bedside all go through ``Reader``, so a figure in a report
is a figure at the bedside. It is fed with frames and their times and keeps no clock of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from reader.beam import Beam, gray
from reader.beam_keeper import BeamKeeper, Searcher, search_at_once
from reader.bundle import Specification
from reader.clips import Frame
from reader.familiar import FamiliarityWatch, Onlooker
from reader.patterns import pattern_probabilities
from reader.preprocess import Moments
from reader.runner import Runner
from reader.signal import (
    DAMAGED,
    DAMAGED_FRAMES,
    DUPLICATES,
    FROZEN,
    LEVELS,
    NO_BEAM,
    NO_CONTACT,
    NO_SIGNAL,
    NOT_LUNG,
    PLACEHOLDER,
    BeamWatch,
    Fault,
    FaultKeeper,
    Sight,
    Thumbnail,
    like_menu,
    shows_ultrasound,
)
from reader.verdict import Verdict, VerdictTracker, as_mapping, pool, probabilities, worst_moment

Image = NDArray[np.uint8]
Float = NDArray[np.float32]

WITHDRAW_AFTER = 0.3
"""Seconds without a reading after which the window starts anew."""


@dataclass(frozen=True)
class View:
    """What one frame offers the network: its input, or the reason why there is none.

    ``pixels``: uint8 [size, size, channels]. ``reason``: a no-reading state; ``cause``: what brought
    it about, where that can be told. Neither pixels nor a reason: a single odd frame that is left out;
    what was read before it still holds. ``notes``: what the picture suffers from although it can be
    read.
    """

    frame: Frame
    beam: Beam | None
    pixels: Image | None = None
    reason: str | None = None
    cause: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reading:
    """What is said of one frame.

    ``state``: a label, ``uncertain``, or the reason why there is no reading. ``p``: windowed
    probability by label, None without a reading. ``class_map``: the probability of any label but
    the negative one, by cell, float32 [rows, columns]; None without a reading. ``full``: whether
    the window is filled. ``cause`` and ``notes``: as in ``View``. ``patterns``: probability in this
    frame by pattern, of those that the figures support; empty without a reading.
    """

    state: str
    frame: Frame
    beam: Beam | None
    p: Mapping[str, float] | None = None
    class_map: Float | None = None
    full: bool = False
    verdict: Verdict | None = None
    cause: str = ""
    notes: tuple[str, ...] = ()
    patterns: Mapping[str, float] = field(default_factory=dict)


class Reader:
    """Reads one source: finds its beam, watches its signal, and follows the verdict."""

    def __init__(
        self,
        specification: Specification,
        runner: Runner | None = None,
        beam: Beam | None = None,
        span: float | None = None,
        searcher: Searcher = search_at_once,
    ) -> None:
        """``runner`` may be None where only ``look`` and ``conclude`` are used. ``beam``: from a
        scanner profile or a survey of the clip, else it is found on the way. ``span``: seconds that
        the source lasts, where known. ``searcher``: has later searches for the beam done."""
        self._reads, self._runner = specification, runner
        self._tracker = VerdictTracker(
            specification.verdict, specification.labels, specification.negative, span
        )
        self._channels = [specification.map_channels.index(x) for x in specification.labels]
        self._moments = Moments(specification.channels)
        self._faults = FaultKeeper()
        self._watch: BeamWatch | None = None
        self._before: Thumbnail | None = None
        known = specification.familiarity
        self._familiar = FamiliarityWatch(known.limit) if known is not None else None
        self._onlooker: Onlooker | None = None
        self._beams = BeamKeeper(specification, beam, searcher)
        self._last: Reading | None = None
        self._last_reading_at: float | None = None

    @property
    def beam(self) -> Beam | None:
        """The beam as known so far."""
        return self._beams.beam

    def read(self, frame: Frame) -> Reading:
        """Read one frame. Raises RuntimeError without a runner."""
        if self._runner is None:
            raise RuntimeError("this reader was made without a runner")
        view = self.look(frame)
        class_map = None if view.pixels is None else self._runner.class_map(view.pixels)
        return self.conclude(view, class_map)

    def interrupted(self) -> None:
        """The source went away for a while: what comes back may be another scanner or setting."""
        self._beams.doubt()

    def look(self, frame: Frame) -> View:
        """The part before the network: signal, beam and input."""
        thumbnail = Thumbnail(frame.image)
        sight = self._sight(frame)
        fault = self._fault_of_picture(frame, thumbnail, sight)
        if fault is None and self._stands_still(frame, sight):
            fault = Fault(FROZEN)
        changed = None
        if fault is None:
            # Not of a frozen picture, in which a beam may look smaller than it is.
            changed = self._beams.update(frame)
            if self._beams.changed:
                self._begin_anew()
                sight = self._sight(frame)
                self._stands_still(frame, sight)
            fault = self._fault_of_beam(frame, sight)
        shown = self._faults.settle(frame.captured_at, fault, frame.still)
        # Not in the frames after it that are good again but not yet believed.
        if shown is not None and shown == fault and shown.state == NO_SIGNAL and shown.cause != DAMAGED:
            self._beams.doubt()
        pixels = None
        if fault is None and sight is not None:
            pixels = self._moments.add(sight.tensor, frame.captured_at)
        elif shown is not None:
            self._moments.clear()
        if changed is not None and (shown is None or shown.state != NO_BEAM):
            return View(frame, self.beam, reason=changed, cause=self._beams.cause)
        if shown is not None:
            return View(frame, self.beam, reason=shown.state, cause=shown.cause)
        if pixels is None or sight is None:
            return View(frame, self.beam, notes=self._notes(thumbnail))
        self._before = thumbnail
        if self._reads.beam != "whole" and self._strange(sight.tensor, frame):
            return View(frame, self.beam, reason=NOT_LUNG)
        return View(frame, self.beam, pixels=pixels, notes=self._notes(thumbnail))

    def _sight(self, frame: Frame) -> Sight | None:
        """The beam as known in this frame; None where it is not known at this picture size."""
        preprocessor = self._beams.preprocessor
        if preprocessor is None or preprocessor.beam.size != frame.image.shape[1::-1]:
            return None
        if self._watch is None:
            self._watch = BeamWatch(preprocessor.mask)
        return self._watch.see(preprocessor.tensor(frame.image))

    def _begin_anew(self) -> None:
        """The beam is another: nothing of what was seen in the old one holds."""
        self._moments.clear()
        self._watch = self._onlooker = None

    def _fault_of_picture(self, frame: Frame, thumbnail: Thumbnail, sight: Sight | None) -> Fault | None:
        """What can be said before the beam is looked for, so that no beam is found in a placeholder."""
        fault = thumbnail.fault
        if frame.still or self._reads.beam == "whole":
            return fault
        if sight is not None and self._watch is not None and (fault is None or fault.cause == PLACEHOLDER):
            if self._watch.damaged(frame.captured_at, sight):
                return Fault(NO_SIGNAL, DAMAGED)
            if self._watch.in_air(sight):
                return Fault(NO_CONTACT)
            if fault is None and sight.speckled:
                return None
        if fault is not None:
            return fault
        plane = gray(frame.image)
        if shows_ultrasound(plane):
            return None
        mask = self.beam.mask() if self.beam is not None and self._before is not None else None
        if like_menu(plane) or thumbnail.like_screen_of(self._before, mask):
            return Fault(NO_BEAM)
        return Fault(NO_SIGNAL, PLACEHOLDER)

    def _stands_still(self, frame: Frame, sight: Sight | None) -> bool:
        """Whether ultrasound is frozen; what shows none is something else that stands still."""
        if frame.still or sight is None or self._watch is None:
            return False
        frozen = self._watch.frozen(frame.captured_at, sight)
        shown = self._reads.beam == "whole" or (sight.speckled and self._watch.in_contact(sight))
        return frozen and shown

    def _fault_of_beam(self, frame: Frame, sight: Sight | None) -> Fault | None:
        if sight is None or self._watch is None:
            return Fault(NO_BEAM)
        if self._reads.beam == "whole":
            return None
        if not self._watch.in_contact(sight):
            return Fault(NO_CONTACT)
        return None if sight.speckled or frame.still else Fault(NO_BEAM)

    def _notes(self, thumbnail: Thumbnail) -> tuple[str, ...]:
        watch, beam = self._watch, self.beam
        found = {
            LEVELS: (beam is not None and beam.levels != (0, 255)) or thumbnail.squeezed,
            DUPLICATES: watch is not None and watch.repeats,
            DAMAGED_FRAMES: watch is not None and watch.often_damaged,
        }
        return tuple(dict.fromkeys([*self._beams.notes, *(note for note, holds in found.items() if holds)]))

    def _strange(self, tensor: Image, frame: Frame) -> bool:
        """Whether what is in the beam is not lung."""
        watch, known = self._familiar, self._reads.familiarity
        if watch is None or known is None or self._beams.preprocessor is None:
            return False
        if self._onlooker is None or frame.still:
            watch.clear()
            self._onlooker = Onlooker(self._beams.preprocessor.mask)
        if watch.due(frame.captured_at):
            watch.add(known.distance(self._onlooker.describe(tensor)), frame.captured_at)
        return watch.strange

    def conclude(self, view: View, class_map: Float | None) -> Reading:
        """The part after the network: float32 logits [rows, columns, map channels] to a reading."""
        at = view.frame.captured_at
        if view.reason is not None or class_map is None:
            if self._last_reading_at is not None and at - self._last_reading_at > WITHDRAW_AFTER:
                self._tracker.clear()
            if view.reason is None and self._last is not None:
                return replace(self._last, frame=view.frame, verdict=None, notes=view.notes)
            self._last = Reading(
                view.reason or NO_SIGNAL, view.frame, view.beam, cause=view.cause, notes=view.notes
            )
            return self._last
        assert self._beams.preprocessor is not None
        logits = class_map[:, :, self._channels]
        weights = self._beams.preprocessor.cell_weights(*logits.shape[:2])
        p = probabilities(pool(logits, weights), self._reads.temperature)
        verdict = self._tracker.add(p, at, view.frame.still)
        self._last_reading_at = at
        negative = self._reads.labels.index(self._reads.negative)
        where = 1.0 - probabilities(logits, self._reads.temperature)[:, :, negative]
        self._last = Reading(
            verdict.state,
            view.frame,
            view.beam,
            as_mapping(verdict.p, self._reads.labels),
            np.where(weights > 0, where, 0.0).astype(np.float32),
            verdict.full,
            verdict,
            notes=view.notes,
            patterns=pattern_probabilities(
                class_map, weights, self._reads.map_channels, self._reads.patterns
            ),
        )
        return self._last


def worst_reading(read: Sequence[Reading], specification: Specification) -> int | None:
    """The place of a clip's own reading among its readings, the one with the largest windowed score;
    None where nothing was read."""
    verdicts = [reading.verdict for reading in read if reading.verdict is not None]
    if not verdicts:
        return None
    worst = worst_moment(verdicts, specification.labels, specification.negative)
    return next(i for i, reading in enumerate(read) if reading.verdict is worst)

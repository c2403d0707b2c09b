"""The one way from a frame to a verdict.

Training, conversion, evaluation and the bedside all go through ``Reader``, so a figure in a report
is a figure at the bedside. It is fed with frames and their times and keeps no clock of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reader.beam import Beam
from reader.beam_keeper import BeamKeeper
from reader.bundle import Specification
from reader.clips import Frame
from reader.familiar import FamiliarityWatch, Onlooker
from reader.preprocess import Moments
from reader.runner import Runner
from reader.signal import (
    FROZEN,
    NO_BEAM,
    NO_CONTACT,
    NO_SIGNAL,
    NOT_LUNG,
    FreezeWatch,
    has_signal,
    in_contact,
)
from reader.verdict import Verdict, VerdictTracker, as_mapping, pool, probabilities

Image = NDArray[np.uint8]
Float = NDArray[np.float32]

WITHDRAW_AFTER = 0.3
"""Seconds without a reading after which the window starts anew."""


@dataclass(frozen=True)
class View:
    """What one frame offers the network: its input, or the reason why there is none.

    ``pixels``: uint8 [size, size, channels]. ``reason``: a no-reading state; ``cause``: what brought
    it about, where that can be told. ``notes``: what the picture suffers from although it can be read.
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
    the window is filled. ``cause`` and ``notes``: as in ``View``.
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


class Reader:
    """Reads one source: finds its beam, watches its signal, and follows the verdict."""

    def __init__(
        self,
        specification: Specification,
        runner: Runner | None = None,
        beam: Beam | None = None,
        span: float | None = None,
    ) -> None:
        """``runner`` may be None where only ``look`` and ``conclude`` are used. ``beam``: from a
        scanner profile or a survey of the clip, else it is found on the way. ``span``: seconds that
        the source lasts, where known."""
        self._reads, self._runner = specification, runner
        self._tracker = VerdictTracker(
            specification.verdict, specification.labels, specification.negative, span
        )
        self._channels = [specification.map_channels.index(x) for x in specification.labels]
        self._moments = Moments(specification.channels)
        self._freeze = FreezeWatch()
        known = specification.familiarity
        self._familiar = FamiliarityWatch(known.limit) if known is not None else None
        self._onlooker: Onlooker | None = None
        self._beams = BeamKeeper(specification, beam)
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
        image = frame.image
        if not has_signal(image):
            self._beams.doubt()
            return View(frame, self.beam, reason=NO_SIGNAL)
        reason = self._beams.update(frame)
        preprocessor = self._beams.preprocessor
        if preprocessor is None:
            return View(frame, None, reason=NO_BEAM)
        if self._beams.changed:
            self._moments.clear()
            self._freeze.clear()
            self._onlooker = None
        tensor = preprocessor.tensor(image)
        pixels = self._moments.add(tensor, frame.captured_at)
        if reason is None and self._freeze.frozen(tensor, frame):
            reason = FROZEN
        if reason is None and self._reads.beam != "whole":
            reason = self._not_of_lung(tensor, preprocessor.mask, frame)
        if reason is not None:
            return View(frame, self.beam, reason=reason)
        return View(frame, self.beam, pixels=pixels)

    def _not_of_lung(self, tensor: Image, mask: Image, frame: Frame) -> str | None:
        if not in_contact(tensor, mask):
            return NO_CONTACT
        watch, known = self._familiar, self._reads.familiarity
        if watch is None or known is None:
            return None
        if self._onlooker is None or frame.still:
            watch.clear()
            self._onlooker = Onlooker(mask)
        if watch.due(frame.captured_at):
            watch.add(known.distance(self._onlooker.describe(tensor)), frame.captured_at)
        return NOT_LUNG if watch.strange else None

    def conclude(self, view: View, class_map: Float | None) -> Reading:
        """The part after the network: float32 logits [rows, columns, map channels] to a reading."""
        at = view.frame.captured_at
        if view.reason is not None or class_map is None:
            if self._last_reading_at is not None and at - self._last_reading_at > WITHDRAW_AFTER:
                self._tracker.clear()
            return Reading(
                view.reason or NO_SIGNAL, view.frame, view.beam, cause=view.cause, notes=view.notes
            )
        assert self._beams.preprocessor is not None
        logits = class_map[:, :, self._channels]
        weights = self._beams.preprocessor.cell_weights(*logits.shape[:2])
        p = probabilities(pool(logits, weights), self._reads.temperature)
        verdict = self._tracker.add(p, at, view.frame.still)
        self._last_reading_at = at
        negative = self._reads.labels.index(self._reads.negative)
        where = 1.0 - probabilities(logits, self._reads.temperature)[:, :, negative]
        return Reading(
            verdict.state,
            view.frame,
            view.beam,
            as_mapping(verdict.p, self._reads.labels),
            np.where(weights > 0, where, 0.0).astype(np.float32),
            verdict.full,
            verdict,
            notes=view.notes,
        )

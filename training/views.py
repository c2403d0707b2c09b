"""What the reader sees of each clip of a data set, gathered once and read by any network."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from reader.beam import Beam
from reader.bundle import Specification
from reader.clips import is_still, read_frames, survey_clip
from reader.preprocess import Preprocessor
from reader.reader import Reader, Reading, View
from training.datasets import Sample

Image = NDArray[np.uint8]
Float = NDArray[np.float32]
ClassMaps = Callable[[Image], Float]
"""uint8 [n, size, size, channels] to float32 logits [n, rows, columns, map channels]."""

NO_IMAGE: Image = np.zeros((0, 0), np.uint8)
INPUTS_AT_ONCE = 256


@dataclass(frozen=True)
class ClipViews:
    """One sample as the reader sees it: a view a frame, the source pictures let go.

    ``span``: seconds that the clip lasts where that is less than the survey, else None.
    """

    sample: Sample
    beam: Beam | None
    span: float | None
    views: tuple[View, ...]

    @property
    def pixels(self) -> list[Image]:
        """The network's inputs, uint8 [size, size, channels] each, of the frames that have one."""
        return [view.pixels for view in self.views if view.pixels is not None]

    def mask(self, size: int) -> Image:
        """The beam in the tensor: uint8 [size, size]."""
        assert self.beam is not None
        return Preprocessor(self.beam, size).mask


def gather_views(
    samples: Iterable[Sample], specification: Specification, rate: float | None
) -> list[ClipViews]:
    """Look at every sample through the reader; ``rate``: frames a second kept, None for all.

    Raises ClipError where a file cannot be read.
    """
    return [
        look_through(sample, specification, rate)
        for sample in tqdm(list(samples), desc="looking", unit="clip", dynamic_ncols=True, disable=None)
    ]


def look_through(sample: Sample, specification: Specification, rate: float | None) -> ClipViews:
    """One sample as the reader sees it, from its frames at ``rate`` a second (None for all)."""
    beam, span = None, None
    ultrasound = specification.beam == "ultrasound"
    if ultrasound or not is_still(sample.path):
        survey = survey_clip(sample.path)
        beam, span = survey.beam if ultrasound else None, survey.span
    reader = Reader(specification, beam=beam, span=span)
    views, due = [], 0.0
    for frame in read_frames(sample.path):
        if rate is None or frame.captured_at >= due - 1e-3:
            due = max(due + 1 / rate, frame.captured_at) if rate else 0.0
            view = reader.look(frame)
            views.append(dataclasses.replace(view, frame=dataclasses.replace(frame, image=NO_IMAGE)))
    return ClipViews(sample, reader.beam, span, tuple(views))


def read_maps(clips: Sequence[ClipViews], class_maps: ClassMaps) -> list[Float]:
    """The class maps of each clip's inputs, float32 [n, rows, columns, map channels].

    Inputs of many clips are read together, since stills one by one would each fill a batch alone.
    """
    found: list[Float] = []
    waiting: list[ClipViews] = []
    inputs = 0
    for clip in clips:
        waiting.append(clip)
        inputs += len(clip.pixels)
        if inputs >= INPUTS_AT_ONCE:
            found += _read_together(waiting, class_maps)
            waiting, inputs = [], 0
    return found + _read_together(waiting, class_maps)


def _read_together(clips: Sequence[ClipViews], class_maps: ClassMaps) -> list[Float]:
    counts = [len(clip.pixels) for clip in clips]
    if not sum(counts):
        return [np.zeros((0, 1, 1, 1), np.float32)] * len(clips)
    maps = class_maps(np.stack([pixels for clip in clips for pixels in clip.pixels]))
    return np.split(maps, np.cumsum(counts)[:-1])


def readings(clip: ClipViews, specification: Specification, maps: Float) -> list[Reading]:
    """Conclude from a clip's views and the maps of those that have an input, in order."""
    reader = Reader(specification, beam=clip.beam, span=clip.span)
    rest = iter(maps)
    return [reader.conclude(view, None if view.pixels is None else next(rest)) for view in clip.views]

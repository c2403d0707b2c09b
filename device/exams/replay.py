"""A recorded clip, played over and over while it is reviewed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from device.exams.clips import read_clip_frames
from device.exams.exam import Clip
from reader.clips import Frame
from reader.reader import Reading

MOST_FRAMES = 60
"""Frames kept for it, evenly spread: at most some 25 MB, ten a second of a usual clip."""
REST = 2.0
"""Seconds for which the key frame is shown, with its map, before it plays."""


@dataclass(frozen=True)
class Replay:
    """A clip's frames, fewer than there are, and its key frame; none while they are being decoded."""

    clip: Clip
    frames: tuple[Frame, ...]
    key_frame: Frame | None

    def at(self, seconds: float) -> Reading | None:
        """What is shown so many seconds after it was begun: the key frame with its map, then the clip."""
        if self.key_frame is None:
            return None
        of, moment = self.clip.reading, seconds % (REST + self.clip.seconds)
        if moment < REST:
            cells = np.array(of.class_map, np.float32) if of.class_map else None
            return Reading(
                of.state, self.key_frame, self.clip.beam, of.p, cells, full=True, patterns=of.patterns
            )
        shown = [frame for frame in self.frames if frame.captured_at <= moment - REST]
        return Reading(of.state, shown[-1], self.clip.beam, of.p, full=True, patterns=of.patterns)


def load_replay(clip: Clip, path: Path) -> Replay:
    """Decode a clip for it. Raises ClipError as ``read_clip_frames``."""
    every = -(-clip.frames // MOST_FRAMES)
    frames, key_frame = [], None
    for frame in read_clip_frames(path, clip.times):
        if frame.sequence == clip.reading.key_frame:
            key_frame = frame
        if frame.sequence % every == 0:
            frames.append(frame)
    return Replay(clip, tuple(frames), key_frame or frames[0])

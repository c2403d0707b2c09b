"""Takes clips from the live picture: when told, or by itself when the view is good."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from device.exams.clips import ClipWriter
from device.screen.exam_drawing import CHECKS
from reader.beam import Beam
from reader.beam_keeper import SURE_OVERLAP, overlap
from reader.preprocess import Preprocessor
from reader.reader import Reading
from reader.signal import NO_CONTACT, NOT_LUNG
from reader.view_quality import Quality, ViewQuality

LONGEST = 30.0
"""Seconds of a clip at most: several breaths, and what a box can keep and read again in a minute."""
SHORTEST, SHORTEST_BY_HAND = 2.0, 0.5
"""Seconds that a clip lasts at least to be kept. By itself: half a breath and twice the default network's
window. By hand: less is a slip of the finger."""
GOOD_FOR = 1.0
"""Seconds for which the view is good before a clip starts by itself: the probe has come to rest."""
LOST_FOR = 1.0
"""Seconds without a good view that end such a clip, and without any frame that end every clip."""
REST_FOR = 0.5
"""Seconds without a good view after which the next clip may start by itself: until then the probe lies where
the last one was taken."""
LOOK_EVERY = 0.08
"""Seconds between two looks at the view's quality: enough for what is steadied over half a second."""


class ClipTaker:
    """Follows the live readings, and records while a clip is under way.

    ``writer``: of the clip under way, None without one. ``checks``: what speaks for the view now.
    Only frames that were really read are recorded: what a single odd picture or a menu shows is not kept.
    """

    def __init__(self, folder: Path, size: int, seconds: float, rested: bool = True) -> None:
        """``folder``: where clips are written. ``size``: side of the reader's tensor. ``seconds``: how long
        a clip is that starts by itself. ``rested``: whether one may start before the probe was lifted."""
        self.writer: ClipWriter | None = None
        self.automatic = False
        self.checks: Mapping[str, bool] = dict.fromkeys(CHECKS, False)
        self._folder, self._size, self._wanted = folder, size, min(seconds, LONGEST)
        self._reading: Reading | None = None
        self._beam: Beam | None = None
        self._preprocessor: Preprocessor | None = None
        self._view: ViewQuality | None = None
        self._quality = Quality()
        self._looked_at = -1e9
        self._good_since: float | None = None
        self._poor_since: float | None = None
        self._rested = rested
        self._began_at = self._last_at = 0.0

    @property
    def seconds_wanted(self) -> float:
        """How long the clip under way, or the next one, is to last."""
        return LONGEST if self.writer is not None and not self.automatic else self._wanted

    def saw(self, reading: Reading, by_itself: bool) -> ClipWriter | None:
        """Take in a live reading; hands over the clip that ended with it, if one did.

        ``by_itself``: whether a clip may now start by itself.
        """
        self._reading, at = reading, reading.frame.captured_at
        self._judge(reading, at)
        ended = None
        if self.writer is not None:
            if self._ends(self.writer, reading, at):
                ended = self.end()
            elif reading.verdict is not None:
                self.writer.add(reading.frame.image, at)
        elif by_itself and reading.verdict is not None and self._rested_and_good(at):
            self.begin(automatic=True)
        self._last_at = at
        return ended

    def begin(self, automatic: bool = False) -> bool:
        """Start a clip with the last frame; False where there is no picture that can be read."""
        reading = self._reading
        if self.writer is not None or reading is None or reading.p is None or reading.beam is None:
            return False
        self.writer = ClipWriter(self._folder, reading.beam, automatic)
        self.automatic, self._rested = automatic, False
        self._began_at = reading.frame.captured_at
        if reading.verdict is not None:
            self.writer.add(reading.frame.image, self._began_at)
        return True

    def end(self) -> ClipWriter | None:
        """End the clip under way and hand it over."""
        writer, self.writer = self.writer, None
        if writer is not None:
            self._rested = False
        return writer

    def _ends(self, writer: ClipWriter, reading: Reading, at: float) -> bool:
        """Whether the clip under way ends before this reading's frame."""
        if writer.failed or not 0 <= at - self._last_at <= LOST_FOR or not _same(writer.beam, reading.beam):
            return True
        over = at - self._began_at > LONGEST
        if not self.automatic:
            return over
        lost = self._poor_since is not None and at - self._poor_since >= LOST_FOR
        # What was recorded counts: with a frame missing at its end a clip would be too short to be kept.
        return over or lost or writer.seconds >= self._wanted

    def _rested_and_good(self, at: float) -> bool:
        return self._rested and self._good_since is not None and at - self._good_since >= GOOD_FOR

    def _judge(self, reading: Reading, at: float) -> None:
        """Look at the view, and since when it is good or poor."""
        readable = reading.p is not None or reading.state == NOT_LUNG
        if reading.beam is None or not readable or reading.frame.image.shape[1::-1] != reading.beam.size:
            self._view, self._quality = None, Quality()
        else:
            self._look(reading, reading.beam, at)
        quality = self._quality
        known = quality.contact, quality.pleura, quality.steady
        beam = readable or reading.state == NO_CONTACT
        self.checks = dict(zip(CHECKS, (beam, *known), strict=True))
        if quality.good and reading.p is not None:
            self._poor_since = None
            self._good_since = at if self._good_since is None else self._good_since
        else:
            self._good_since = None
            self._poor_since = at if self._poor_since is None else self._poor_since
            self._rested |= at - self._poor_since >= REST_FOR
        if at < self._last_at:
            self._good_since = self._poor_since = None

    def _look(self, reading: Reading, beam: Beam, at: float) -> None:
        if self._view is None or beam != self._beam:
            self._beam, self._preprocessor = beam, Preprocessor(beam, self._size)
            self._view, self._looked_at = ViewQuality(self._preprocessor.mask), -1e9
        assert self._preprocessor is not None
        if not 0 <= at - self._looked_at < LOOK_EVERY:
            self._quality = self._view.add(self._preprocessor.tensor(reading.frame.image), at)
            self._looked_at = at


def _same(beam: Beam, other: Beam | None) -> bool:
    """Whether the beam is where it was when the clip began; while it settles it may shift a little."""
    if other is None or other.size != beam.size:
        return False
    return other == beam or overlap(beam, other) >= SURE_OVERLAP

"""What an exam under way hands to its store, in the background, and what the store has acknowledged of it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from device.clock import now
from device.errors import StoreError
from device.exams.background import Background
from device.exams.clips import ClipWriter, Recording, bundle_line, read_again, remove
from device.exams.exam import Clip, ClipReading, Exam
from device.exams.replay import Replay, load_replay
from device.exams.store import Store
from device.screen.exam_drawing import HumanShown
from reader.bundle import Bundle, Specification
from reader.errors import SonoglanceError
from reader.reader import Reading
from reader.runner import Runner

ROOM_FOR_A_CLIP = 100 * 2**20
"""Bytes that must be free for one: 30 s of 640x600 at 25 a second take 65 MB in gray."""
CLOSE_DEADLINE, POLL = 60.0, 0.02
"""Seconds to wait for clips that are still being read when the exam is left, and between two looks."""
TRY_AGAIN_AFTER = 5.0
"""Seconds after which a clip that the store refused is handed to it again: the disk may have room by then."""

CLIP_LOST, READING_LOST = "not-saved-clip", "not-saved-reading"
DISCARD_FAILED, SIGNATURE_LOST = "not-saved-discard", "not-saved-signature"


class ExamKeeper:
    """Keeps one exam, without ever making the caller wait.

    ``exam``: as the store has it. ``unsaved``: changes that it has not acknowledged yet. ``reading``: clips
    by zone that are being finished and read. ``given``: clinicians' readings by zone that wait for the store.
    ``lost``: what could not be kept, as messages with their zones; each stays until dealt with.
    ``has_room``: whether the disk has room for a clip, as far as is known.
    """

    def __init__(self, store: Store, exam: Exam, bundle: Bundle, reads: Specification) -> None:
        """``reads``: how stored clips are read, the bundle's own specification but for the phantom."""
        self.exam = exam
        self.unsaved = 0
        self.reading: Counter[str] = Counter()
        self.given: dict[str, HumanShown] = {}
        self.lost: dict[str, str] = {}
        self.has_room = True
        self._store, self._bundle, self._reads = store, bundle, reads
        self._line = bundle_line(bundle)
        self._runner: Runner | None = None
        self._replay: Replay | None = None
        self._replay_began = 0.0
        self._refused: list[tuple[str, Recording, ClipReading, Callable[[], None]]] = []
        self._try_again_at = 0.0
        self._background = Background("exam")
        self.look_for_room()

    def catch_up(self) -> None:
        """Take in what was done meanwhile, and try again now and then what the store refused."""
        self._background.catch_up()
        if self._refused and now() >= self._try_again_at:
            self._try_again()

    def _try_again(self) -> None:
        refused, self._refused = self._refused, []
        for clip in refused:
            self._store_clip(*clip)

    def close(self) -> bool:
        """Wait for what is under way; whether everything was kept."""
        until = now() + CLOSE_DEADLINE
        self._try_again()
        while self.unsaved and now() < until:
            time.sleep(POLL)
            self.catch_up()
        ended = self._background.close(max(until - now(), 0.0))
        return ended and not self.pending and not self.lost

    @property
    def pending(self) -> bool:
        """Whether anything waits to be kept."""
        return self.unsaved > 0 or bool(self._refused)

    @property
    def unsettled(self) -> bool:
        """Whether something was lost that nobody has dealt with; a signature can be given again."""
        return any(not told.startswith(SIGNATURE_LOST) for told in self.lost)

    # --- changes -------------------------------------------------------------------------------------

    def keep_clip(self, zone: str, writer: ClipWriter, kept: Callable[[], None]) -> None:
        """Have a clip finished, read again from its file, and stored; then call ``kept``."""

        def read(found: tuple[Recording, ClipReading]) -> None:
            self.reading[zone] -= 1
            self.unsaved -= 1
            self._store_clip(zone, *found, kept)

        def failed(_: SonoglanceError) -> None:
            self.reading[zone] -= 1
            self.unsaved -= 1
            self.lost[f"{CLIP_LOST} {zone}"] = zone

        self.reading[zone] += 1
        self.unsaved += 1
        self._background.submit(lambda: self._finish(writer), read, failed)

    def _finish(self, writer: ClipWriter) -> tuple[Recording, ClipReading]:
        recording = writer.finish()
        try:
            if self._runner is None:
                # One of its own: the live reading's must not wait for this one.
                self._runner = self._bundle.runner(threads=1)
            return recording, read_again(
                recording.part, recording.times, recording.beam, self._reads, self._runner, self._line
            )
        except SonoglanceError:
            remove(recording.part)
            raise

    def _store_clip(
        self, zone: str, recording: Recording, reading: ClipReading, kept: Callable[[], None]
    ) -> None:
        def done() -> None:
            self.reading[zone] -= 1
            kept()
            self.look_for_room()

        def refused() -> None:
            self.reading[zone] -= 1
            self._try_again_at = now() + TRY_AGAIN_AFTER
            self._refused.append((zone, recording, reading, kept))

        self.reading[zone] += 1
        self._change(
            lambda: self._store.add_clip(self.exam.id, zone, recording, reading),
            zone, CLIP_LOST, done, refused,
        )  # fmt: skip

    def give_up(self) -> None:
        """Deal with the message that is shown first: what could not be kept is let go of."""
        told = next(iter(self.lost))
        zone = self.lost.pop(told)
        if not told.startswith(CLIP_LOST):
            return
        for of, recording, *_ in self._refused:
            if of == zone:
                remove(recording.part)
        self._refused = [each for each in self._refused if each[0] != zone]

    def let_go(self, writer: ClipWriter) -> None:
        """Discard a clip that was not kept yet."""
        self._background.submit(writer.discard, lambda _: None, lambda _: None)

    def discard_clips(self, zone: str) -> None:
        """Discard the kept clips of a zone."""
        clips = [clip.id for clip in self.exam.zone(zone).clips]

        def discard() -> None:
            for clip in clips:
                self._store.discard_clip(self.exam.id, clip, self.exam.operator)

        self._change(discard, zone, DISCARD_FAILED)

    def give(self, zone: str, human: HumanShown) -> None:
        """Keep a clinician's reading of a zone."""
        self.given[zone] = human
        exam = self.exam

        def add() -> None:
            self._store.add_reading(
                exam.id, zone, human.state, human.grade, "", exam.operator, human.accepted
            )

        def settled() -> None:
            if self.given.get(zone) is human:
                del self.given[zone]

        self._change(add, zone, READING_LOST, settled, settled)

    def sign(self, destination: str) -> None:
        """Sign the exam off, in its operator's name, and queue it for its archive, if there is one."""
        exam = self.exam

        def sign_what_was_shown() -> None:
            if self._store.exam(exam.id) != exam:
                raise StoreError(f"exam {exam.id}: was changed meanwhile; look at it again")
            self._store.sign(exam.id, exam.operator, destination)

        self._change(sign_what_was_shown, "", SIGNATURE_LOST, failed=self.refresh)

    def _change(
        self,
        change: Callable[[], object],
        zone: str,
        message: str,
        kept: Callable[[], None] = lambda: None,
        failed: Callable[[], None] = lambda: None,
    ) -> None:
        """Change something in the store; where that fails, ``message`` stays until it is dealt with, or
        until the same can be kept."""
        told = f"{message} {zone}".rstrip()

        def changed() -> Exam:
            change()
            return self._store.exam(self.exam.id)

        def acknowledged(exam: Exam) -> None:
            self.unsaved -= 1
            self.lost.pop(told, None)
            self.exam = exam
            kept()

        def refused(_: SonoglanceError) -> None:
            self.unsaved -= 1
            self.lost[told] = zone
            failed()

        self.unsaved += 1
        self._background.submit(changed, acknowledged, refused)

    # --- looks ---------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Look at the exam again: elsewhere a comment may have been typed, or a reading given."""

        def found(exam: Exam) -> None:
            self.exam = exam

        self._background.submit(lambda: self._store.exam(self.exam.id), found, lambda _: None)

    def look_for_room(self) -> None:
        """Find out whether there is room for a clip."""

        def found(room: int) -> None:
            self.has_room = room >= ROOM_FOR_A_CLIP

        self._background.submit(self._store.room, found, lambda _: None)

    def replay(self, clip: Clip) -> Reading | None:
        """What a replay of the clip shows now; None while it is being loaded."""
        if self._replay is None or self._replay.clip.id != clip.id:
            self._replay = Replay(clip, (), None)
            path = self._store.clip_path(clip)
            self._background.submit(lambda: load_replay(clip, path), self._begin_replay, lambda _: None)
        return self._replay.at(now() - self._replay_began)

    def _begin_replay(self, replay: Replay) -> None:
        if self._replay is not None and self._replay.clip.id == replay.clip.id:
            self._replay, self._replay_began = replay, now()

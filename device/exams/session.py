"""An exam under way: which zone is scanned, what goes on in it, and what the keys do.

All of it goes on in one thread, the one that draws the screen, and none of it waits: encoding, reading a clip
again and writing to the store happen in the background. What the store has not acknowledged is never shown
as saved.
"""

from __future__ import annotations

from dataclasses import replace

from device.clock import now
from device.errors import StoreError
from device.exams.clip_taker import SHORTEST, SHORTEST_BY_HAND, ClipTaker
from device.exams.clips import ClipWriter
from device.exams.exam import NOT_SCANNED, Exam, Zone
from device.exams.keeping import (
    CLIP_LOST,
    DISCARD_FAILED,
    READING_LOST,
    SIGNATURE_LOST,
    ExamKeeper,
)
from device.exams.protocols import Protocol
from device.exams.store import CLIPS, Store
from device.reading import Taken
from device.screen.exam_drawing import (
    AIM,
    CLOSING_PHASES,
    EXAM_KEYS,
    READING,
    RECORDING,
    REVIEW,
    SIGNED,
    SUMMARY,
    ExamPanel,
    HumanShown,
)
from device.screen.torso import zone_marks
from reader.bundle import Bundle
from reader.verdict import UNCERTAIN

CLIP_SECONDS = 6.0
"""How long a clip is that starts by itself: one to two breaths at rest."""
ANSWERS = "acx0123"
"""The keys that say something of what is on the screen."""
END = "e"
"""The key that shows what the zones add up to, and then signs."""
CLOSING_KEYS = "nbe"
"""The keys that do something for good, or lead back, where the summary is shown."""
LOOK_FIRST = 1.0
"""Seconds for which the key that ended the exam does not sign it: one held too long, or touched twice."""

NO_VIEW, NO_ROOM, TOO_SHORT = "no-view", "no-room", "clip-too-short"
FRAMES_DROPPED, WAIT, NO_OPERATOR = "frames-dropped", "wait-for-clips", "no-operator"
MESSAGES = (
    NO_VIEW, NO_ROOM, TOO_SHORT, FRAMES_DROPPED, WAIT, NO_OPERATOR,
    CLIP_LOST, READING_LOST, DISCARD_FAILED, SIGNATURE_LOST,
)  # fmt: skip
"""Every message of a panel: FRAMES_DROPPED with how many, the lost ones with their zone."""


class ExamSession:
    """Drives one exam from live readings and keys; goes on with one that has clips already.

    ``begun_for``: whom the exam was of when it was opened here.
    """

    def __init__(
        self,
        store: Store,
        exam: Exam,
        protocol: Protocol,
        bundle: Bundle,
        clip_seconds: float = CLIP_SECONDS,
        autocapture: bool = True,
        advance: bool = False,
        drawn: bool = False,
        destination: str = "",
        rested: bool = True,
    ) -> None:
        """``exam``: of this ``store`` and this ``protocol``. ``autocapture``: clips start by themselves when
        the view is good; ``advance``: the next zone then follows by itself. ``drawn``: the source is the
        phantom, which the not-lung test would rightly refuse. ``destination``: the archive that the exam is
        queued for once signed. ``rested``: False where the probe still lies on the patient before.

        Raises StoreError where the exam was begun with a network of other labels.
        """
        reads = bundle.manifest.reads
        if (exam.labels, exam.negative) != (reads.labels, reads.negative):
            raise StoreError(
                f"exam {exam.id}: was begun with a network that tells {', '.join(exam.labels)}, "
                f"{bundle.path} tells {', '.join(reads.labels)}: take that one, or begin another exam"
            )
        self._keeper = ExamKeeper(store, exam, bundle, replace(reads, familiarity=None) if drawn else reads)
        self._taker = ClipTaker(store.folder / CLIPS, reads.size, clip_seconds, rested)
        self._destination = destination
        self.begun_for = exam.patient
        self._protocol, self._autocapture, self._advance = protocol, autocapture, advance
        self._names = [zone.name for zone in exam.zones]
        self._current = next((zone.name for zone in exam.zones if not zone.clips), self._names[0])
        self._again = self._closing = False
        self._told = ""
        self._end_pressed_at = -1e9

    @property
    def exam(self) -> Exam:
        """The exam as the store has it."""
        return self._keeper.exam

    @property
    def at_work(self) -> bool:
        """Whether a clip is being recorded, or anything being kept."""
        return self._taker.writer is not None or self._keeper.pending

    def saw(self, taken: Taken) -> None:
        """Take in a live reading."""
        self._keeper.catch_up()
        by_itself = self._autocapture and self._phase == AIM and self._keeper.has_room
        before = self._taker.writer
        ended = self._taker.saw(taken.reading, by_itself)
        if ended is not None:
            self._keep(ended, self._taker.automatic)
        elif self._taker.writer is not before:
            self._told = ""

    def press(self, key: str, seen: ExamPanel | None = None) -> bool:
        """Do what a key asks for; whether it is one of an exam's. ``seen``: what was on the screen, where
        that is known: an answer that was meant for another zone or phase does nothing."""
        if not key or key not in EXAM_KEYS:
            return False
        self._keeper.catch_up()
        if seen is not None and seen.place != (self.exam.id, self._current, self._phase):
            closed = seen.closing != (self._phase in CLOSING_PHASES)
            if key in ANSWERS or closed:
                return True
        self._told = ""
        if key in "0123":
            self._give_grade(int(key))
        else:
            {
                "r": self._start_or_stop,
                "n": self._next,
                "b": self._back,
                "a": self._accept,
                "c": self._change,
                "x": self._discard,
                END: self._end,
                "t": self._toggle_autocapture,
            }[key]()
        return True

    def panel(self) -> ExamPanel:
        """What the screen shows now."""
        keeper = self._keeper
        keeper.catch_up()
        exam, zone, phase = keeper.exam, self._zone, self._phase
        worst, human = zone.worst(exam.negative), zone.human
        shown = None if human is None else HumanShown(human.state, human.grade, human.accepted)
        writer = self._taker.writer
        return ExamPanel(
            protocol=self._protocol,
            zones=zone_marks(exam),
            current=self._current,
            phase=phase,
            seconds=writer.seconds if writer is not None else 0.0,
            seconds_wanted=self._taker.seconds_wanted,
            quality=self._taker.checks,
            autocapture=self._autocapture,
            clip=worst.reading if worst is not None else None,
            human=keeper.given.get(self._current, shown),
            replay=keeper.replay(worst) if worst is not None and phase == REVIEW else None,
            message=next(iter(keeper.lost), self._told),
            acknowledged=not keeper.unsaved,
            summary=exam.summary if phase in (SUMMARY, SIGNED) else None,
            exam_id=exam.id,
        )

    def close(self) -> bool:
        """Leave the exam. What was recorded is kept, and waited for; whether all of it was."""
        self._stop()
        return self._keeper.close()

    @property
    def _zone(self) -> Zone:
        return self.exam.zone(self._current)

    @property
    def _phase(self) -> str:
        if self.exam.signed is not None:
            return SIGNED
        if self._closing:
            return SUMMARY
        if self._taker.writer is not None:
            return RECORDING
        if self._keeper.reading[self._current]:
            return READING
        return REVIEW if self._zone.clips and not self._again else AIM

    # --- clips ---------------------------------------------------------------------------------------

    def _start_or_stop(self) -> None:
        phase = self._phase
        if phase == RECORDING:
            self._stop()
        elif phase == REVIEW:
            self._again = True
        elif phase in (AIM, READING):
            if not self._keeper.has_room:
                self._told = NO_ROOM
                self._keeper.look_for_room()
            elif not self._taker.begin():
                self._told = NO_VIEW

    def _stop(self) -> None:
        writer = self._taker.end()
        if writer is not None:
            self._keep(writer, by_itself=False)

    def _keep(self, writer: ClipWriter, by_itself: bool) -> None:
        """Have a clip kept that ended, or let go of one that is too short."""
        zone, self._again = self._current, False
        if writer.seconds < (SHORTEST if by_itself else SHORTEST_BY_HAND) and not writer.failed:
            self._told = TOO_SHORT
            self._keeper.let_go(writer)
            return

        def kept() -> None:
            if writer.dropped:
                self._told = f"{FRAMES_DROPPED} {writer.dropped}"

        self._keeper.keep_clip(zone, writer, kept)
        if by_itself and self._advance:
            # At once: the probe moves on while this clip is being read.
            self._go_to_next_not_scanned()

    def _discard(self) -> None:
        """Let go of the clip under way, else of the zone's clips; what was lost there is dealt with."""
        phase = self._phase
        if self._keeper.lost:
            self._keeper.give_up()
        elif phase == RECORDING:
            writer = self._taker.end()
            assert writer is not None, "that is the phase"
            self._keeper.let_go(writer)
        elif phase == REVIEW:
            self._keeper.discard_clips(self._current)

    # --- zones ---------------------------------------------------------------------------------------

    def _next(self) -> None:
        self._step(1)

    def _back(self) -> None:
        if self._phase == SUMMARY:
            self._closing = False
        else:
            self._step(-1)

    def _step(self, by: int) -> None:
        if self._phase not in (SUMMARY, SIGNED):
            self._stop()
            self._go_to(self._names[(self._names.index(self._current) + by) % len(self._names)])

    def _go_to(self, zone: str) -> None:
        self._current, self._again = zone, False
        self._keeper.refresh()

    def _go_to_next_not_scanned(self) -> None:
        here = self._names.index(self._current)
        for name in self._names[here + 1 :] + self._names[:here]:
            if not self.exam.zone(name).clips and not self._keeper.reading[name]:
                self._go_to(name)
                return

    def _toggle_autocapture(self) -> None:
        self._autocapture = not self._autocapture

    # --- the clinician's reading ---------------------------------------------------------------------

    def _accept(self) -> None:
        state = self._zone.network_state(self.exam.negative)
        if state != NOT_SCANNED:
            self._give(HumanShown(state, accepted=True))

    def _change(self) -> None:
        """Go on to the next label, or "cannot tell", from what stands."""
        choices = (*self.exam.labels, UNCERTAIN)
        if self._standing in choices:
            self._give(HumanShown(choices[(choices.index(self._standing) + 1) % len(choices)]))

    def _give_grade(self, grade: int) -> None:
        """Grade 0 is the negative label; from 1 on it is a finding, the one that stands or the first."""
        negative, state = self.exam.negative, self._standing
        if grade == 0:
            state = negative
        elif state in (negative, UNCERTAIN):
            state = next(label for label in self.exam.labels if label != negative)
        self._give(HumanShown(state, grade))

    @property
    def _standing(self) -> str:
        given = self._keeper.given.get(self._current)
        return given.state if given is not None else self._zone.state(self.exam.negative)

    def _give(self, human: HumanShown) -> None:
        if self._phase == REVIEW:
            self._keeper.give(self._current, human)

    # --- the end -------------------------------------------------------------------------------------

    def _end(self) -> None:
        """Show what the zones add up to; once that was looked at, sign."""
        phase, before, self._end_pressed_at = self._phase, self._end_pressed_at, now()
        if phase == SIGNED or (phase == SUMMARY and self._end_pressed_at - before < LOOK_FIRST):
            return
        if phase != SUMMARY:
            self._stop()
            self._closing = True
            self._keeper.refresh()
        elif self._keeper.pending or self._keeper.unsettled:
            self._told = WAIT
        elif not self.exam.operator.strip():
            self._told = NO_OPERATOR
        else:
            self._keeper.sign(self._destination)

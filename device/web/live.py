"""The live picture, handed from the bedside loop to the web process through shared memory.

The loop never waits for the web: it writes into the next of three slots, and only when somebody has asked
lately. The web looks after copying whether its slot was written to meanwhile. In the other direction goes the
code that a new viewer must type, which only the local screen shows.
"""

from __future__ import annotations

import json
import mmap
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device.clock import now
from device.screen.canvas import NO_READING
from device.screen.drawing import HEIGHT, WIDTH, Screen, abnormal_probability, shown_state

Image = NDArray[np.uint8]

PAIRING_CODE = "pairing-code"
WANTED_FOR = 2.0
"""Seconds for which one request keeps pictures coming."""
MOST_A_SECOND = 15
SLOTS = 3
"""One to write, one to read, and one between them: a reader has two pictures' time to copy."""
SHAPE = (HEIGHT, WIDTH, 3)
LONGEST_STATE = 4096
HEADER = mmap.PAGESIZE
_SLOT_BYTES = HEIGHT * WIDTH * 3 + LONGEST_STATE
_LATEST, _CODE, _NUMBERS, _LENGTHS = 0, 1, 2, 2 + SLOTS
"""Places in the header's whole numbers; from the last two on, one a slot."""
_ASKED_AT, _CODE_UNTIL, _PUT_AT = 0, 1, 2
"""Places in the header's seconds."""


@dataclass(frozen=True)
class Shot:
    """A picture as the local screen has it. ``number``: 1 and up. ``image``: BGR uint8 [720, 1280, 3].
    ``at``: the monotonic second at which the loop handed it over. ``state``: see ``told``."""

    number: int
    image: Image
    state: dict[str, Any]
    at: float


class LivePicture:
    """Shared memory for pictures in one direction and a pairing code in the other.

    The writer's side: ``put``, ``wanted`` and ``badge``. The reader's: ``ask``, ``take``, ``bell``,
    ``show_code``. The memory has no name and goes with the last process that maps it.
    """

    def __init__(self, memory: int, bell: int) -> None:
        """``memory``, ``bell``: descriptors of a memfd and an eventfd; use ``create`` or ``attach``."""
        self.descriptors = memory, bell
        whole = np.frombuffer(mmap.mmap(memory, HEADER + SLOTS * _SLOT_BYTES), np.uint8)
        self._whole_numbers = whole[: HEADER // 2].view(np.int64)
        self._seconds = whole[HEADER // 2 : HEADER].view(np.float64)
        slots = whole[HEADER:].reshape(SLOTS, _SLOT_BYTES)
        self._pictures = [slot[:-LONGEST_STATE].reshape(SHAPE) for slot in slots]
        self._states = [slot[-LONGEST_STATE:] for slot in slots]
        self._due = 0.0

    @classmethod
    def create(cls) -> LivePicture:
        """New shared memory: the loop's side."""
        memory = os.memfd_create("live-picture")
        os.ftruncate(memory, HEADER + SLOTS * _SLOT_BYTES)
        return cls(memory, os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))

    @classmethod
    def attach(cls, memory: int, bell: int) -> LivePicture:
        """The web's side, by the ``descriptors`` that the loop's process passed on."""
        return cls(memory, bell)

    def close(self) -> None:
        """Let go of the descriptors; the mapping goes with the object."""
        for descriptor in self.descriptors:
            os.close(descriptor)

    # --- the loop's side -----------------------------------------------------------------------------

    @property
    def wanted(self) -> bool:
        """Whether a picture put now would be taken: somebody asked lately, and the last was not just now."""
        at = now()
        return at >= self._due and at - float(self._seconds[_ASKED_AT]) < WANTED_FOR

    def put(self, image: Image, state: dict[str, Any]) -> None:
        """Hand over what the local screen shows; does nothing unless ``wanted``. Takes under a millisecond.

        ``image``: BGR uint8 [720, 1280, 3]. ``state``: plain JSON values, at most 4096 bytes; see ``told``.
        Raises ValueError for another shape or a longer state.
        """
        if not self.wanted:
            return
        raw = json.dumps(state).encode()
        if image.shape != SHAPE or len(raw) > LONGEST_STATE:
            raise ValueError(f"a live picture of {image.shape} with {len(raw)} bytes of state")
        at = now()
        self._due = max(self._due, at - 1 / MOST_A_SECOND) + 1 / MOST_A_SECOND
        number = int(self._whole_numbers[_LATEST]) + 1
        slot = number % SLOTS
        self._whole_numbers[_NUMBERS + slot] = 0
        self._pictures[slot][:] = image
        self._states[slot][: len(raw)] = np.frombuffer(raw, np.uint8)
        self._whole_numbers[_LENGTHS + slot] = len(raw)
        self._seconds[_PUT_AT + slot] = at
        self._whole_numbers[_NUMBERS + slot] = number
        self._whole_numbers[_LATEST] = number
        # The system call also orders the writes above before whatever the woken reader sees.
        os.eventfd_write(self.descriptors[1], 1)

    @property
    def badge(self) -> str:
        """What the local screen must show: ``pairing-code CODE``, or nothing."""
        if now() >= float(self._seconds[_CODE_UNTIL]):
            return ""
        digits = f"{int(self._whole_numbers[_CODE]):08d}"
        return f"{PAIRING_CODE} {digits[:4]} {digits[4:]}"

    # --- the web's side ------------------------------------------------------------------------------

    def ask(self) -> None:
        """Have pictures come for the next two seconds."""
        self._seconds[_ASKED_AT] = now()

    @property
    def bell(self) -> int:
        """A descriptor that becomes readable with each picture; ``os.eventfd_read`` silences it."""
        return self.descriptors[1]

    def take(self, after: int) -> Shot | None:
        """A copy of the newest picture, if it is newer than number ``after``."""
        number = int(self._whole_numbers[_LATEST])
        slot = number % SLOTS
        if number <= after:
            return None
        image, at = self._pictures[slot].copy(), float(self._seconds[_PUT_AT + slot])
        length = int(self._whole_numbers[_LENGTHS + slot])
        raw = self._states[slot][:length].tobytes()
        if int(self._whole_numbers[_NUMBERS + slot]) != number:
            return None  # overtaken while copying: the bell has rung again
        return Shot(number, image, json.loads(raw), at)

    def show_code(self, code: str, seconds: float) -> None:
        """Have the local screen show a code of eight digits for some seconds; 0 takes it away."""
        self._seconds[_CODE_UNTIL] = 0.0
        if seconds > 0:
            self._whole_numbers[_CODE] = int(code)
            self._seconds[_CODE_UNTIL] = now() + seconds


def told(screen: Screen, exam: str = "", zone: str = "") -> dict[str, Any]:
    """What goes with the picture of a screen: state, probability, age and rate, and the exam under way. A
    clip or a summary in place of the live picture has no live state: it is ``held``."""
    live = screen.exam is None or screen.exam.live
    state = shown_state(screen) if live else "held"
    p = None if state in NO_READING else abnormal_probability(screen.reading, screen.negative)
    return {
        "state": state,
        "cause": screen.reading.cause,
        "p": p,
        "age_ms": round(screen.age_ms, 1),
        "fps": round(screen.fps, 1),
        "source": screen.source,
        "alarm": screen.alarm,
        "exam": exam,
        "zone": zone,
    }

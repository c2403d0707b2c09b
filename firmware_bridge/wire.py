"""The wire between box and panel: frames of a few bytes that noise can destroy but not change.

PROTOCOL.md says the same in words, with examples that both sides are tested on. Framing: Cheshire and
Baker, "Consistent Overhead Byte Stuffing", IEEE/ACM Transactions on Networking 7(2), 1999. Checksum:
CRC-16 with polynomial 0x1021 from 0xFFFF, called CRC-16/IBM-3740 or CCITT-FALSE.
"""

from __future__ import annotations

import binascii
import struct
from dataclasses import astuple, dataclass
from enum import IntEnum, IntFlag
from typing import ClassVar

VERSION = 1
"""Of the protocol; a panel obeys no other."""
BAUD = 57600
"""0.8 % off at the panel's 16 MHz, where 115200 would be 2.1 % off."""
NO_AGE = 0xFFFF
"""As a reading's age: there is none, or it is older than can be said."""
LONGEST = 32
"""Bytes of an encoded frame without its closing zero."""


class Shown(IntEnum):
    """What the lamps show, or are asked to; ``NO_LINK`` is never asked for."""

    NO_READING = 0
    NORMAL = 1
    OPACITY = 2
    CANNOT_TELL = 3
    TEST = 4
    NO_LINK = 5


class Button(IntEnum):
    """The five buttons."""

    FREEZE = 1
    NEXT = 2
    BACK = 3
    RECORD = 4
    CONFIRM = 5


class Kind(IntEnum):
    """What was done to a button: it went down, was held for long, or was let go before that."""

    PRESS = 1
    LONG = 2
    CLICK = 3


class Capability(IntFlag):
    """What a panel has."""

    BUTTONS = 1
    LAMPS = 2
    BUZZER = 4
    BATTERY = 8
    DIAL = 16
    WATCHDOG = 32


class Condition(IntFlag):
    """What a panel says of itself, in ``Status.flags``."""

    MUTED = 1
    EVENTS_LOST = 2


@dataclass(frozen=True)
class Ask:
    """Box to panel: who are you? Answered by ``Hello``."""

    version: int = VERSION
    CODE: ClassVar[int] = 0x01
    LAYOUT: ClassVar[str] = "<B"


@dataclass(frozen=True)
class Show:
    """Box to panel, the heartbeat: what to show. ``reading``: number of the last reading; ``age_ms``: how
    old it is, 0xFFFF for none or older. ``quiet``: 1 keeps the buzzer silent."""

    asked: int
    reading: int
    age_ms: int
    quiet: int = 0
    version: int = VERSION
    CODE: ClassVar[int] = 0x02
    LAYOUT: ClassVar[str] = "<BIHBB"


@dataclass(frozen=True)
class Got:
    """Box to panel: this event has arrived and need not be repeated."""

    boot: int
    number: int
    CODE: ClassVar[int] = 0x03
    LAYOUT: ClassVar[str] = "<HB"


@dataclass(frozen=True)
class Hello:
    """Panel to box, after a start and when asked. ``boot``: another at every start. ``reset_cause``: the
    ATmega's MCUSR, 0 where a boot loader cleared it."""

    version: int
    capabilities: int
    boot: int
    reset_cause: int
    major: int
    minor: int
    CODE: ClassVar[int] = 0x81
    LAYOUT: ClassVar[str] = "<BBHBBB"


@dataclass(frozen=True)
class Event:
    """Panel to box, repeated until ``Got``. ``number``: counts a boot's events, modulo 256. ``age_ms``: time
    since it happened."""

    boot: int
    number: int
    button: int
    kind: int
    age_ms: int
    CODE: ClassVar[int] = 0x82
    LAYOUT: ClassVar[str] = "<HBBBH"


@dataclass(frozen=True)
class Status:
    """Panel to box, four times a second and at once when what is shown changes. ``reading``: as last
    told. ``battery_mv``: 0 without a battery. ``dial``: 0 to 255. ``down``: bit n-1 for button n.
    ``refused``: frames that came damaged since the start."""

    boot: int
    uptime_s: int
    battery_mv: int
    dial: int
    shown: int
    reading: int
    down: int
    flags: int
    refused: int
    CODE: ClassVar[int] = 0x83
    LAYOUT: ClassVar[str] = "<HHHBBIBBH"


Message = Ask | Show | Got | Hello | Event | Status
_KINDS: dict[int, type[Message]] = {kind.CODE: kind for kind in (Ask, Show, Got, Hello, Event, Status)}


def _plausible(message: Message) -> bool:
    """Whether every value is one that its sender can mean."""
    if isinstance(message, Show):
        return message.asked <= Shown.TEST and message.quiet <= 1
    if isinstance(message, Event):
        return message.button in tuple(Button) and message.kind in tuple(Kind)
    if isinstance(message, Status):
        return message.shown <= Shown.NO_LINK and message.down < 1 << len(Button)
    return True


def encode(message: Message, sequence: int) -> bytes:
    """A message as its bytes on the wire, the closing zero among them. ``sequence``: the sender's count of
    frames, 0 to 255. Raises struct.error for a value that does not fit."""
    body = struct.pack("<BB", message.CODE, sequence) + struct.pack(message.LAYOUT, *astuple(message))
    return _stuff(body + struct.pack("<H", checksum(body))) + b"\0"


def decode(encoded: bytes) -> tuple[Message, int] | None:
    """The message and sequence of one frame, given without its zero; None for anything damaged."""
    body = _unstuff(encoded) if 0 < len(encoded) <= LONGEST else None
    if body is None or len(body) < 4 or checksum(body[:-2]) != struct.unpack("<H", body[-2:])[0]:
        return None
    kind = _KINDS.get(body[0])
    if kind is None or struct.calcsize(kind.LAYOUT) != len(body) - 4:
        return None
    message = kind(*struct.unpack(kind.LAYOUT, body[2:-2]))
    return (message, body[1]) if _plausible(message) else None


def checksum(body: bytes) -> int:
    """CRC-16/IBM-3740 of some bytes: 0x29B1 for ``123456789``."""
    return binascii.crc_hqx(body, 0xFFFF)


def _stuff(body: bytes) -> bytes:
    # A frame is shorter than 254 bytes: the longest run that one code byte can stand for.
    return b"".join(bytes([len(run) + 1]) + run for run in body.split(b"\0"))


def _unstuff(encoded: bytes) -> bytes | None:
    runs, at = [], 0
    while at < len(encoded):
        end = at + encoded[at]
        if encoded[at] == 0 or end > len(encoded):
            return None
        runs.append(encoded[at + 1 : end])
        at = end
    return b"\0".join(runs)


class FrameReader:
    """Cuts a stream of bytes into messages. ``refused``: pieces that were none."""

    def __init__(self) -> None:
        self.refused = 0
        self._begun = b""

    def feed(self, received: bytes) -> list[tuple[Message, int]]:
        """The messages, with their sequences, that these bytes complete."""
        found = []
        *ended, begun = received.split(b"\0")
        for piece in ended:
            whole, self._begun = self._begun + piece, b""
            message = decode(whole) if whole else None
            if message is not None:
                found.append(message)
            elif whole:
                self.refused += 1
        # One byte too many is enough to know that it is none.
        self._begun = (self._begun + begun)[: LONGEST + 1]
        return found

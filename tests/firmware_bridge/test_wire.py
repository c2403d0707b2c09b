from __future__ import annotations

import random
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import astuple
from itertools import zip_longest
from pathlib import Path

import pytest

from firmware_bridge.wire import (
    LONGEST,
    Ask,
    Button,
    Event,
    FrameReader,
    Got,
    Hello,
    Kind,
    Message,
    Show,
    Shown,
    Status,
    checksum,
    decode,
    encode,
)
from tests.conftest import ROOT, need

Frame = tuple[Message, int]
PROTOCOL = ROOT / "firmware_bridge" / "PROTOCOL.md"
ROUNDS = 8_000
KINDS: tuple[type[Message], ...] = (Ask, Show, Got, Hello, Event, Status)


def a_message(chance: random.Random) -> Message:
    """Any message that its sender can mean, with values at their ends more often than by chance."""

    def number(bits: int) -> int:
        return chance.choice((0, 1, (1 << bits) - 1, chance.getrandbits(bits)))

    drawn: dict[type[Message], Message] = {
        Ask: Ask(number(8)),
        Show: Show(chance.randrange(5), number(32), number(16), chance.randrange(2), number(8)),
        Got: Got(number(16), number(8)),
        Hello: Hello(number(8), number(8), number(16), number(8), number(8), number(8)),
        Event: Event(
            number(16), number(8), chance.choice(list(Button)), chance.choice(list(Kind)), number(16)
        ),
        Status: Status(
            number(16),
            number(16),
            number(16),
            number(8),
            chance.randrange(6),
            number(32),
            chance.randrange(32),
            number(8),
            number(16),
        ),
    }
    return drawn[chance.choice(KINDS)]


def mutated(frame: bytes, chance: random.Random) -> bytes:
    """A frame after a few bytes were flipped, lost, doubled or put in."""
    bytes_ = bytearray(frame)
    for _ in range(chance.randrange(1, 4)):
        at = chance.randrange(len(bytes_))
        how = chance.randrange(4)
        if how == 0:
            bytes_[at] ^= 1 << chance.randrange(8)
        elif how == 1 and len(bytes_) > 1:
            del bytes_[at]
        elif how == 2:
            bytes_.insert(at, bytes_[at])
        else:
            bytes_.insert(at, chance.randrange(256))
    return bytes(bytes_)


def damaged_and_good(rounds: int, seed: int) -> Iterator[tuple[bytes, Frame, Frame]]:
    """Noise that ends in a zero, with the frame that it may have been, and a good frame to follow it."""
    chance = random.Random(seed)
    for _ in range(rounds):
        before, after = ((a_message(chance), chance.randrange(256)) for _ in range(2))
        mutant = chance.randrange(4) > 0
        noise = mutated(encode(*before), chance) if mutant else chance.randbytes(chance.randrange(80))
        yield noise + b"\0", before, after


def fuzz(rounds: int, seed: int) -> int:
    """How many wrong frames are accepted of ``rounds`` damaged or random streams.

    Raises AssertionError where the good frame after one is not read as what it was.
    """
    reader, accepted = FrameReader(), 0
    for noise, before, after in damaged_and_good(rounds, seed):
        cut = len(noise) // 3
        accepted += sum(frame != before for frame in reader.feed(noise[:cut]) + reader.feed(noise[cut:]))
        assert reader.feed(encode(*after)) == [after]
    return accepted


def differences(wiretool: Path, rounds: int, seed: int) -> tuple[int, int]:
    """Frames and refusals that the firmware's decoder and ours find in the same bytes; how many differ."""
    reader, stream, ours = FrameReader(), bytearray(), []
    for noise, _, after in damaged_and_good(rounds, seed):
        piece = noise + encode(*after)
        stream += piece
        ours += [encode_plain(*frame) for frame in reader.feed(piece)]
    ours.append(f"refused {reader.refused}")
    run = subprocess.run([wiretool], input=bytes(stream), capture_output=True, check=True)
    theirs = run.stdout.decode().splitlines()
    return len(ours), sum(mine != its for mine, its in zip_longest(ours, theirs))


def encode_plain(message: Message, sequence: int) -> str:
    """As wiretool prints it: code, sequence and payload in hexadecimal."""
    return struct.pack("<BB" + message.LAYOUT[1:], message.CODE, sequence, *astuple(message)).hex()


@pytest.fixture(scope="session")
def wiretool() -> Path:
    """The firmware's decoder on this machine."""
    need(shutil.which("gcc"), "gcc", "build-essential")
    folder = ROOT / "firmware_bridge" / "firmware"
    subprocess.run(["make", "-s", "-C", folder, "build/wiretool"], check=True)
    return folder / "build" / "wiretool"


@pytest.mark.parametrize("kind", KINDS)
def test_every_message_comes_back_as_it_was_sent(kind: type[Message]) -> None:
    chance = random.Random(kind.CODE)
    seen = 0
    while seen < 200:
        message = a_message(chance)
        if isinstance(message, kind):
            wire = encode(message, seen & 0xFF)
            assert wire.count(b"\0") == 1
            assert wire[-1] == 0
            assert len(wire) - 1 <= LONGEST
            assert FrameReader().feed(wire) == [(message, seen & 0xFF)]
            seen += 1


def test_the_examples_of_the_protocol_hold() -> None:
    rows = re.findall(r"^\| `((?:[0-9a-f]{2} ?)+)` \| (\d+) \| `(\w+\(.*\))`", PROTOCOL.read_text(), re.M)
    names = {kind.__name__: kind for kind in KINDS} | {"Shown": Shown, "Button": Button, "Kind": Kind}
    assert {row[2].partition("(")[0] for row in rows} == {kind.__name__ for kind in KINDS}
    for wire, sequence, written in rows:
        message = eval(written, {"__builtins__": {}}, names)
        assert encode(message, int(sequence)) == bytes.fromhex(wire), written
        assert FrameReader().feed(bytes.fromhex(wire)) == [(message, int(sequence))], written


def test_the_checksum_is_the_one_of_the_catalogue() -> None:
    assert checksum(b"123456789") == 0x29B1


def test_no_single_flipped_bit_and_no_lost_byte_passes() -> None:
    chance = random.Random(5)
    for _ in range(30):
        frame = encode(a_message(chance), chance.randrange(256))[:-1]
        for at in range(len(frame)):
            assert decode(frame[:at] + frame[at + 1 :]) is None
            for bit in range(8):
                flipped = bytearray(frame)
                flipped[at] ^= 1 << bit
                assert decode(bytes(flipped)) is None


@pytest.mark.parametrize(
    "message",
    [
        Show(5, 1, 0),
        Show(1, 1, 0, quiet=2),
        Event(1, 1, 0, 1, 0),
        Event(1, 1, 6, 1, 0),
        Event(1, 1, 1, 4, 0),
        Status(1, 1, 1, 1, 6, 1, 0, 0, 0),
        Status(1, 1, 1, 1, 0, 1, 32, 0, 0),
    ],
)
def test_values_that_their_sender_cannot_mean_are_refused(message: Message) -> None:
    reader = FrameReader()
    assert reader.feed(encode(message, 0)) == []
    assert reader.refused == 1


def test_too_long_a_piece_is_one_refusal_and_costs_no_memory() -> None:
    reader = FrameReader()
    for _ in range(1000):
        assert reader.feed(b"\x01" * 1000) == []
    assert sys.getsizeof(reader._begun) < 100
    good = encode(Ask(), 7)
    assert reader.feed(b"\0" + good) == [(Ask(), 7)]
    assert reader.refused == 1


def test_empty_pieces_are_nothing() -> None:
    reader = FrameReader()
    assert reader.feed(b"\0\0\0" + encode(Got(258, 0), 3) + b"\0\0") == [(Got(258, 0), 3)]
    assert reader.refused == 0


@pytest.mark.parametrize(
    "piece", re.findall(r"^\| `((?:[0-9a-f]{2} ?)+)` \| [a-z]", PROTOCOL.read_text(), re.M)
)
def test_what_the_protocol_refuses_is_refused_once(piece: str) -> None:
    reader = FrameReader()
    assert reader.feed(bytes.fromhex(piece)) == []
    assert reader.refused == 1


def test_after_damage_the_next_good_frame_is_read() -> None:
    # The checksum's odds are 1 in 65,536.
    assert fuzz(ROUNDS, seed=1) <= 2


def test_both_sides_make_the_same_of_the_same_bytes(wiretool: Path) -> None:
    compared, differ = differences(wiretool, ROUNDS, seed=2)
    assert compared > ROUNDS
    assert differ == 0


if __name__ == "__main__":
    total = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    wrong = fuzz(total, seed=3)
    print(f"{total:,} damaged or random streams: {wrong} wrong frames accepted, resynchronised every time")
    tool = ROOT / "firmware_bridge" / "firmware" / "build" / "wiretool"
    # In parts: the firmware's count of refusals stands still at 65,535.
    parts = [differences(tool, ROUNDS, seed) for seed in range(total // ROUNDS)]
    found, differ = map(sum, zip(*parts, strict=True))
    print(f"{found:,} frames and refusals compared with the firmware's, {differ} differ")

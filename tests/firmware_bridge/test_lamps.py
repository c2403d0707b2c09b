"""The lamps' table, its reading in Python against the wording of PROTOCOL.md, and against the firmware's."""

from __future__ import annotations

import ctypes
import random
import shutil
import subprocess
from itertools import combinations
from pathlib import Path

import pytest

from firmware_bridge.lamps import LIMITS, RULES, SHOWN, STEPS, Lamps
from firmware_bridge.wire import Show, Shown
from tests.conftest import ROOT, need
from tests.firmware_bridge.pictures import PICTURES

FIRMWARE = ROOT / "firmware_bridge" / "firmware"
VERDICTS = (Shown.NORMAL, Shown.OPACITY, Shown.CANNOT_TELL)


def test_the_table_is_whole() -> None:
    assert set(SHOWN) == set(Shown)
    numbers = {
        name.split(",")[1].strip(): int(name.split("(")[1].split(",")[0])
        for name in (FIRMWARE / "lamps.def").read_text().splitlines()
        if name.startswith("SHOWN(")
    }
    assert numbers == {shown.name: shown.value for shown in Shown}
    assert [condition for condition, _ in RULES][-1] == "OTHERWISE"
    assert LIMITS == {"LINK_SILENT_MS": 1000, "READING_OLD_MS": 2000}


def test_every_state_begins_lit() -> None:
    for shown, patterns in SHOWN.items():
        assert any(pattern >> (STEPS - 1) for pattern in patterns), shown


def test_no_two_states_look_the_same_without_colours() -> None:
    """Whichever lamp is looked at, and whenever one begins to look."""

    def looks(shown: Shown) -> set[str]:
        lit = [f"{pattern:016b}" for pattern in SHOWN[shown] if pattern]
        return {min(look[turn:] + look[:turn] for turn in range(STEPS)) for look in lit}

    for one, other in combinations(Shown, 2):
        assert not looks(one) & looks(other), (one, other)


def show(asked: Shown, reading: int = 1, age_ms: int = 0) -> Show:
    return Show(asked, reading, age_ms, 0)


@pytest.mark.parametrize("asked", [*VERDICTS, Shown.NO_READING, Shown.TEST])
def test_what_is_asked_is_shown(asked: Shown) -> None:
    lamps = Lamps()
    lamps.heard(show(asked), 10.0)
    assert lamps.shown(10.0) == asked


def test_no_link_until_the_first_show_and_after_a_second_of_silence() -> None:
    lamps = Lamps()
    assert lamps.shown(5.0) == Shown.NO_LINK
    lamps.heard(show(Shown.NORMAL), 10.0)
    assert lamps.shown(10.999) == Shown.NORMAL
    assert lamps.shown(11.0) == Shown.NO_LINK
    lamps.heard(show(Shown.NORMAL, 2), 12.0)
    assert lamps.shown(12.0) == Shown.NORMAL


@pytest.mark.parametrize("verdict", VERDICTS)
def test_an_old_reading_is_none_on_a_live_link(verdict: Shown) -> None:
    """The reader hangs, its box does not: the age goes on, the number stands."""
    lamps = Lamps()
    for beat in range(40):
        at = 10 + beat / 10
        lamps.heard(show(verdict, 7, beat * 100), at)
        assert lamps.shown(at) == (verdict if beat < 20 else Shown.NO_READING)


@pytest.mark.parametrize("verdict", VERDICTS)
def test_a_stuck_number_is_no_reading_whatever_age_is_claimed(verdict: Shown) -> None:
    lamps = Lamps()
    for beat in range(40):
        at = 10 + beat / 10
        lamps.heard(show(verdict, 7, 0), at)
        assert lamps.shown(at) == (verdict if beat < 20 else Shown.NO_READING)


def test_the_panel_goes_on_counting_the_age() -> None:
    lamps = Lamps()
    lamps.heard(show(Shown.NORMAL, 1, 1500), 10.0)
    assert lamps.shown(10.499) == Shown.NORMAL
    assert lamps.shown(10.5) == Shown.NO_READING
    lamps.heard(show(Shown.NORMAL, 2, 0xFFFF), 10.6)
    assert lamps.shown(10.6) == Shown.NO_READING


def test_a_test_needs_a_link_but_no_reading() -> None:
    lamps = Lamps()
    lamps.heard(show(Shown.TEST, 0, 0xFFFF), 10.0)
    assert lamps.shown(10.9) == Shown.TEST
    assert lamps.shown(11.0) == Shown.NO_LINK


def test_a_state_begins_its_pattern_anew() -> None:
    lamps = Lamps()
    for begun in (10.0, 10.73, 11.011):
        lamps.heard(show(Shown.OPACITY, int(begun * 1000)), begun)
        seen = [lamps.lit(begun + (step + 0.5) / 16)[1] for step in range(8)]
        assert seen == [True, True, False, False] * 2
        lamps.heard(show(Shown.NORMAL, int(begun * 1000)), begun + 0.6)
        assert lamps.lit(begun + 0.6) == (True, False, False)


@pytest.mark.parametrize("name", PICTURES)
def test_the_drawings_in_the_docs_match_the_code(name: str) -> None:
    kept = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert kept == PICTURES[name](), "python -m tests.firmware_bridge.pictures docs"


class FirmwareLamps:
    """firmware/lamps.c, compiled for this machine."""

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("gcc")
        need(compiler, "C compiler", "gcc libc6-dev")
        library = folder / "lamps.so"
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, FIRMWARE / "lamps.c"], check=True)
        self._library = ctypes.CDLL(str(library))
        self._state = ctypes.create_string_buffer(256)
        self._library.lamps_start(self._state)

    def tick(self) -> None:
        self._library.lamps_tick(self._state)

    def heard(self, message: Show) -> None:
        number, age = ctypes.c_uint32(message.reading), ctypes.c_uint16(message.age_ms)
        self._library.lamps_heard(self._state, ctypes.c_uint8(message.asked), number, age)

    def lit(self) -> tuple[bool, bool, bool]:
        bits = self._library.lamps_lit(self._state)
        return bool(bits & 1), bool(bits & 2), bool(bits & 4)


def test_python_and_firmware_light_the_same_lamps_in_every_millisecond(tmp_path: Path) -> None:
    """120 s of a box that beats, hangs, falls silent, repeats itself and changes its mind."""
    dice = random.Random(7)
    lamps, firmware = Lamps(), FirmwareLamps(tmp_path)
    lamps.lit(0.0)
    beat_every, reading, asked, read_at, next_beat = 100, 0, Shown.NORMAL, 0, 0
    told = set()
    for millisecond in range(1, 120_000):
        at = millisecond / 1000
        firmware.tick()
        assert lamps.lit(at) == firmware.lit(), f"at {millisecond} ms"
        told.add(lamps.shown(at))
        if dice.random() < 1 / 1500:
            asked = Shown(dice.randrange(5))
            beat_every = dice.choice([20, 100, 100, 100, 999, 1000, 1001, 3000])
        if dice.random() < 1 / 400:
            reading, read_at = reading + dice.randrange(2), millisecond
        if millisecond >= next_beat:
            next_beat = millisecond + beat_every
            age = dice.choice([min(millisecond - read_at, 0xFFFF)] * 20 + [0, 1999, 2000, 0xFFFF])
            lamps.heard(show(asked, reading, age), at)
            firmware.heard(show(asked, reading, age))
    assert told == set(Shown)

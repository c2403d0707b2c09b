from __future__ import annotations

import multiprocessing
import time

import numpy as np
import pytest

from device.web import live as live_module
from device.web.live import SHAPE, SLOTS, LivePicture
from tests.device.web.viewer import DEADLINE


def picture(level: int) -> np.ndarray:
    return np.full(SHAPE, level, np.uint8)


@pytest.fixture
def live():
    made = LivePicture.create()
    yield made
    made.close()


def in_turn(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that is set by hand."""
    clock = [100.0]
    monkeypatch.setattr(live_module, "now", lambda: clock[0])
    return clock


def test_nothing_is_copied_while_nobody_looks(live, monkeypatch):
    clock = in_turn(monkeypatch)
    live.put(picture(1), {})
    assert live.take(0) is None
    live.ask()
    clock[0] += 1.9
    live.put(picture(2), {"state": "normal"})
    shot = live.take(0)
    assert shot is not None
    assert shot.image.max() == shot.image.min() == 2
    assert shot.state == {"state": "normal"}
    clock[0] += 0.2
    live.put(picture(3), {})
    assert live.take(shot.number) is None


def test_at_most_fifteen_pictures_a_second_are_taken_of_a_faster_loop(live, monkeypatch):
    clock = in_turn(monkeypatch)
    taken = 0
    for _ in range(300):  # ten seconds of thirty a second
        live.ask()
        live.put(picture(0), {})
        shot = live.take(taken)
        taken = shot.number if shot else taken
        clock[0] += 1 / 30
    assert 140 <= taken <= 151


def test_the_newest_picture_wins(live, monkeypatch):
    clock = in_turn(monkeypatch)
    live.ask()
    for level in range(1, 6):
        live.put(picture(level), {"level": level})
        clock[0] += 0.1
    shot = live.take(0)
    assert shot is not None
    assert (shot.state["level"], shot.image[0, 0, 0]) == (5, 5)
    assert live.take(shot.number) is None


def test_a_picture_that_was_overtaken_while_copied_is_not_handed_out(live, monkeypatch):
    clock = in_turn(monkeypatch)
    live.ask()
    live.put(picture(1), {})

    class Overtaken(np.ndarray):
        def copy(self, *arguments, **named):
            for level in range(SLOTS):
                clock[0] += 0.1
                live.put(picture(10 + level), {})
            return super().copy(*arguments, **named)

    live._pictures = [slot.view(Overtaken) for slot in live._pictures]
    assert live.take(0) is None


def _look_forever(memory: int, bell: int, seen, torn) -> None:
    other, number = LivePicture.attach(memory, bell), 0
    while True:
        other.ask()
        shot = other.take(number)
        if shot is not None:
            number = shot.number
            level = shot.state["level"]
            if not (shot.image == level).all():
                torn.value += 1
            seen.value += 1


def test_another_process_sees_whole_pictures_and_may_die_at_any_moment(live, monkeypatch):
    monkeypatch.setattr(live_module, "MOST_A_SECOND", 10_000)
    context = multiprocessing.get_context("fork")
    seen, torn = context.RawValue("i", 0), context.RawValue("i", 0)
    reader = context.Process(target=_look_forever, args=(*live.descriptors, seen, torn), daemon=True)
    reader.start()
    began = time.monotonic()
    while time.monotonic() - began < 1.5 or seen.value <= 50:
        assert reader.is_alive()
        assert time.monotonic() - began < DEADLINE, "the other process sees too few"
        level = int(1e3 * (time.monotonic() - began)) % 251
        live.put(picture(level), {"level": level})
    reader.kill()
    reader.join()
    assert torn.value == 0
    assert live.take(0) is not None
    live.put(picture(7), {"level": 7})  # nobody is left, and the loop goes on


def test_a_pairing_code_is_shown_until_it_expires_or_is_taken_away(live, monkeypatch):
    clock = in_turn(monkeypatch)
    assert live.badge == ""
    live.show_code("00420017", 120)
    assert live.badge == "pairing-code 0042 0017"
    clock[0] += 120
    assert live.badge == ""
    live.show_code("12345678", 120)
    live.show_code("", 0)
    assert live.badge == ""


def test_a_state_too_long_or_a_picture_of_another_size_is_refused(live):
    live.ask()
    with pytest.raises(ValueError, match="live picture"):
        live.put(np.zeros((10, 10, 3), np.uint8), {})
    with pytest.raises(ValueError, match="live picture"):
        live.put(picture(0), {"source": "x" * 5000})

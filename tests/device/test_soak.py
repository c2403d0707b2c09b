from __future__ import annotations

import json
import shutil

import numpy as np

from device.capture.simulated import EXPECTED, OF_THE_BOX, schedule
from device.screen.drawing import Screen, draw
from device.screen_delay import BITS, CODE_AT, SQUARE, shown_code, squares_on_screen, with_code
from reader.beam import find_beam
from reader.clips import Frame
from reader.phantom import Act, Phantom
from reader.reader import Reading
from tests.conftest import Command, need


def test_every_number_is_read_back_from_the_drawn_screen() -> None:
    phantom, squares = Phantom((Act("normal", 60.0),)), squares_on_screen()
    beam = find_beam(phantom.frame(1.0))
    for code in range(0, 2**BITS, 7):
        frame = Frame(with_code(phantom.frame(1.0), code), 0.0, 0)
        screen = draw(Screen(Reading("normal", frame, beam), "normal", "", 0.0, 0.0))
        assert shown_code(screen, squares) == code
    plain = draw(Screen(Reading("stale", Frame(phantom.frame(1.0), 0.0, 0), beam), "normal", "", 0.0, 0.0))
    assert shown_code(plain, squares) is None


def test_the_code_lies_inside_the_beam() -> None:
    screen = Phantom((Act("normal", 60.0),)).frame(1.0)
    beam = find_beam(screen)
    assert beam is not None
    left, top = CODE_AT
    inside = beam.mask()[top : top + SQUARE, left : left + (BITS + 2) * SQUARE]
    assert (inside == 255).all()


def test_a_schedule_is_the_same_for_a_seed_and_its_accidents_do_not_overlap() -> None:
    accidents = schedule(3, 600.0, 100)
    assert accidents == schedule(3, 600.0, 100) != schedule(4, 600.0, 100)
    assert sum(accident.kind in OF_THE_BOX for accident in accidents) == 50
    assert {accident.kind for accident in schedule(3, 3000.0, 500)} == set(EXPECTED)
    ends = np.array([accident.ended for accident in accidents])
    begins = np.array([accident.began for accident in accidents])
    assert (begins[1:] > ends[:-1] + 1).all()


def test_the_bedside_reader_comes_through_a_few_accidents(sonoglance: Command) -> None:
    done = sonoglance("soak", "--hours", "0.06", "--accidents", "2", "--display", "none", "--json")
    figures = json.loads(done.stdout)
    assert done.returncode == (0 if figures["passed"] else 1)
    assert sum(figures["accidents"].values()) == 2
    assert not [what for what in figures["missed"] if what.startswith("no reading")]
    assert figures["kept"]["handles"]
    assert figures["kept"]["processes"]


def test_the_delay_of_the_screen_is_measured(sonoglance: Command) -> None:
    need(shutil.which("Xvfb"), "Xvfb", "xvfb x11-xkb-utils")
    done = sonoglance("bench", "--screen", "640x360", "--seconds", "4", "--json")
    assert done.returncode == 0, done.stderr
    (figures,) = json.loads(done.stdout)
    assert 0 < figures["frames_shown"] <= figures["frames_read"] <= figures["frames_delivered"]
    assert 0 < figures["delay_ms"]["median"] < figures["age_when_replaced_ms"]["median"]

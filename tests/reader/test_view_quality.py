from __future__ import annotations

import cv2
import numpy as np
import pytest

from reader.beam import find_beam
from reader.phantom import RATE, Act, Phantom
from reader.preprocess import Preprocessor
from reader.view_quality import Quality, ViewQuality

SIDE = 224


def look(act: str, seconds: float = 1.2, sweep: float = 0.0, upside_down: bool = False) -> Quality:
    """What is said after so long of an act; ``sweep``: tensors' widths a second that the picture moves."""
    phantom = Phantom((Act("normal", 0.2), Act(act, 60.0)))
    beam = find_beam(phantom.frame(0.0))
    assert beam is not None
    preprocessor = Preprocessor(beam, SIDE)
    view, quality = ViewQuality(preprocessor.mask), Quality()
    for i in range(round(seconds * RATE)):
        tensor = preprocessor.tensor(phantom.frame(0.2 + i / RATE))
        tensor = np.ascontiguousarray(tensor[::-1]) if upside_down else tensor
        tensor = np.roll(tensor, round(sweep * SIDE * i / RATE), axis=1)
        quality = view.add(cv2.bitwise_and(tensor, preprocessor.mask), i / RATE)
    return quality


@pytest.mark.parametrize("lung", ["normal", "consolidation", "b-lines"])
def test_a_lung_under_a_still_probe_is_a_good_view(lung: str) -> None:
    assert look(lung).good


def test_a_probe_in_air_touches_nothing() -> None:
    assert not look("no-contact").contact


def test_a_probe_that_is_swept_is_not_steady() -> None:
    quality = look("normal", sweep=0.6)
    assert not quality.steady
    assert quality.contact


def test_a_lung_upside_down_has_no_pleural_line() -> None:
    assert not look("normal", upside_down=True).pleura


def test_grain_alone_has_no_pleural_line() -> None:
    random = np.random.default_rng(3)
    view, quality = ViewQuality(np.full((SIDE, SIDE), 255, np.uint8)), Quality()
    for i in range(20):
        plane = cv2.GaussianBlur(random.rayleigh(1.0, (SIDE, SIDE)).astype(np.float32), (0, 0), 1.5)
        quality = view.add(np.clip(45 * plane, 0, 255).astype(np.uint8), i / RATE)
    assert not quality.pleura


def test_nothing_is_known_of_a_view_after_a_gap() -> None:
    phantom = Phantom((Act("normal", 60.0),))
    beam = find_beam(phantom.frame(0.0))
    assert beam is not None
    preprocessor = Preprocessor(beam, SIDE)
    view = ViewQuality(preprocessor.mask)
    for i in range(25):
        quality = view.add(preprocessor.tensor(phantom.frame(i / RATE)), i / RATE)
    assert quality.good
    assert not view.add(preprocessor.tensor(phantom.frame(9.0)), 9.0).steady


def test_a_black_or_tiny_beam_is_no_view() -> None:
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[100:104, 100:104] = 255
    assert not ViewQuality(mask).add(mask, 0.0).pleura
    black = ViewQuality(np.full((SIDE, SIDE), 255, np.uint8))
    assert not black.add(np.zeros((SIDE, SIDE), np.uint8), 0.0).good

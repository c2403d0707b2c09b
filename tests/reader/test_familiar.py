from __future__ import annotations

import dataclasses
import json
import math

import cv2
import numpy as np
import pytest

from reader.familiar import BANDS, GRAIN, Familiarity, FamiliarityWatch, Onlooker

SIDE = 224
WHOLE = np.full((SIDE, SIDE), 255, np.uint8)


def fan(half_angle: float = 35.0, near: float = 60.0) -> np.ndarray:
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    radius, angle = np.hypot(x - SIDE / 2, y + 30), np.arctan2(x - SIDE / 2, y + 30)
    inside = (np.abs(angle) < math.radians(half_angle)) & (radius > near) & (radius < 220)
    return (inside * 255).astype(np.uint8)


def speckle(across: float, down: float, seed: int = 1) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal((SIDE, SIDE)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), across, sigmaY=down)
    return np.clip(90 + 30 * smooth / smooth.std(), 1, 255).astype(np.uint8)


def made_familiar(k: int) -> Familiarity:
    random = np.random.default_rng(2)

    def some(*shape: int) -> np.ndarray:
        return random.normal(size=shape).astype(np.float32)

    return Familiarity(
        some(k),
        np.abs(some(k)) + 1,
        some(k, k),
        some(2 * GRAIN),
        np.abs(some(2 * GRAIN)) + 1,
        ((some(2 * GRAIN, 5), some(5)), (some(5, BANDS), some(BANDS))),
        (0.5, 1.0),
        (0.2, 0.3),
        1.7,
    )


def test_grain_smeared_across_the_beam_is_told_from_grain_smeared_along_it() -> None:
    onlooker = Onlooker(WHOLE)
    echoes, turned = onlooker.describe(speckle(4, 1)), onlooker.describe(speckle(1, 4))
    assert (echoes.grain[:, 0] > 0.3).all()
    assert (turned.grain[:, 0] < -0.3).all()


def test_along_means_along_the_beam_lines_of_a_fan() -> None:
    mask = fan()
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    arcs = 120 + 80 * np.sin(np.hypot(x - SIDE / 2, y + 30) * 2 * math.pi / 9)
    spokes = 120 + 80 * np.sin(np.arctan2(x - SIDE / 2, y + 30) * 60)
    onlooker = Onlooker(mask)
    for picture, sign in ((arcs, 1), (spokes, -1)):
        look = onlooker.describe(cv2.bitwise_and(picture.astype(np.uint8), mask))
        assert (sign * look.grain[:, 0] > 0.8).mean() > 0.95


def test_blocks_lie_in_bands_from_the_probe_down() -> None:
    mask = fan()
    look = Onlooker(mask).describe(mask)
    assert set(look.band) == set(range(BANDS))
    assert (np.diff(look.band) >= -1).all()
    assert look.weight.sum() == pytest.approx(1, abs=1e-4)


def test_gain_hardly_changes_what_a_picture_looks_like() -> None:
    onlooker, picture = Onlooker(WHOLE), speckle(3, 1)
    usual, quiet, other = (
        onlooker.describe(x).picture for x in (picture, (picture * 0.6).astype(np.uint8), speckle(1, 3))
    )
    assert np.abs(usual - quiet).mean() < 0.15 * np.abs(usual - other).mean()


def test_an_even_or_black_picture_is_described_in_finite_numbers() -> None:
    for mask in (WHOLE, fan()):
        for level in (0, 128, 255):
            look = Onlooker(mask).describe(cv2.bitwise_and(np.full_like(mask, level), mask))
            assert np.isfinite(look.picture).all()
            assert np.isfinite(look.grain).all()


def test_it_is_the_same_after_a_manifest() -> None:
    look = Onlooker(fan()).describe(cv2.bitwise_and(speckle(3, 1), fan()))
    before = made_familiar(len(look.picture))
    after = Familiarity.from_json(json.loads(json.dumps(before.to_json())))
    assert after.limit == before.limit
    assert after.distance(look) == pytest.approx(before.distance(look), rel=1e-2)


def test_a_damaged_manifest_is_refused() -> None:
    whole = made_familiar(8).to_json()
    with pytest.raises(KeyError):
        Familiarity.from_json({key: value for key, value in whole.items() if key != "limit"})
    with pytest.raises(ValueError, match="do not fit"):
        Familiarity.from_json({**whole, "scale": whole["scale"][:-1]})


def test_the_distance_grows_with_either_measure() -> None:
    look = Onlooker(WHOLE).describe(speckle(3, 1))
    familiarity = made_familiar(len(look.picture))
    texture, depth = familiarity.strangeness(look)
    usual = dataclasses.replace(familiarity, usual=(texture + 1, depth + 1))
    assert usual.distance(look) == 0
    assert dataclasses.replace(usual, usual=(texture - 0.2, depth + 1)).distance(look) == pytest.approx(1)
    assert dataclasses.replace(usual, usual=(texture + 1, depth - 0.3)).distance(look) == pytest.approx(1)


def test_one_odd_frame_does_not_drop_a_reading_but_a_second_of_them_does() -> None:
    watch = FamiliarityWatch(limit=1.7)
    for i in range(20):
        watch.add(0.5, i / 10)
        assert not watch.strange
    watch.add(6.0, 2.0)
    assert not watch.strange
    for i in range(10):
        watch.add(6.0, 2.1 + i / 10)
    assert watch.strange
    watch.clear()
    watch.add(0.5, 3.2)
    assert not watch.strange


def test_a_source_that_starts_again_starts_anew() -> None:
    watch = FamiliarityWatch(limit=1.7)
    watch.add(9.0, 5.0)
    assert watch.strange
    assert watch.due(0.0)
    watch.add(0.5, 0.0)
    assert not watch.strange


def test_looks_are_spared_between_frames() -> None:
    watch = FamiliarityWatch(limit=1.7)
    looked = 0
    for i in range(120):
        if watch.due(i / 60):
            watch.add(0.5, i / 60)
            looked += 1
    assert 8 <= looked <= 12

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from reader.bundle import Bundle, Specification
from reader.clips import Frame
from reader.phantom import RATE, Act, Phantom
from reader.reader import Reader, View
from tests.reader.faults import (
    FAMILIES,
    Judged,
    coded,
    false_alarms,
    judge,
    live_clips,
    noisy,
    pixel_states_only,
    sequence,
)

SAMPLE = 24


@pytest.fixture(scope="module")
def reads(default_bundle: Bundle) -> Specification:
    return pixel_states_only(default_bundle.manifest.reads)


@pytest.fixture(scope="module")
def lung() -> list[np.ndarray]:
    """A second of the phantom's lung, as the bare square around its fan, smaller than life."""
    phantom = Phantom((Act("normal", 60.0),))
    return [cv2.resize(phantom.frame(i / RATE)[40:680, 300:940], (352, 352)) for i in range(25)]


def look(reads: Specification, pictures: list[np.ndarray]) -> list[View]:
    reader = Reader(reads)
    return [reader.look(Frame(picture, i / RATE, i)) for i, picture in enumerate(pictures)]


@pytest.fixture(scope="module")
def judged(data: Path, reads: Specification) -> list[Judged]:
    """One seeded sequence of each of some families over real clips."""
    clips = live_clips(data)
    random = np.random.default_rng(17)
    chosen = random.permutation(len(FAMILIES))[:SAMPLE]
    found = []
    for i in chosen:
        found += judge(sequence(FAMILIES[i], clips[random.integers(len(clips))], 900 + int(i)), reads)
    return found


@pytest.mark.data
def test_the_right_state_stands_within_a_second_of_a_change(judged: list[Judged]) -> None:
    wrong = [f"{one.family.name} {one.clip} {one.wrong}" for one in judged if not one.right]
    assert len(wrong) <= 0.02 * len(judged), wrong


@pytest.mark.data
def test_a_fault_bears_its_cause_and_a_poor_picture_its_note(judged: list[Judged]) -> None:
    entering = [one for one in judged if one.entering]
    bare = [f"{one.family.name} {one.clip}" for one in entering if not (one.noted and one.caused)]
    assert len(bare) <= 0.1 * len(entering), bare


@pytest.mark.data
def test_real_clips_are_not_refused(data: Path, reads: Specification) -> None:
    refused, frames = false_alarms(live_clips(data)[::20], reads, with_profile=True)
    assert sum(refused.values()) <= 0.005 * frames, refused


def test_a_single_odd_frame_is_left_out_and_named_nowhere(
    reads: Specification, lung: list[np.ndarray]
) -> None:
    pictures = list(lung)
    for i in (10, 11, 17):
        pictures[i] = np.zeros_like(lung[0])
    views = look(reads, pictures)
    assert {view.reason for view in views} == {None}
    assert [i for i, view in enumerate(views) if view.pixels is None] == [10, 11, 17]


def test_a_left_out_frame_repeats_the_reading_before_it(
    phantom_bundle: Bundle, lung: list[np.ndarray]
) -> None:
    reader = Reader(phantom_bundle.manifest.reads, phantom_bundle.runner(1))
    before = [reader.read(Frame(picture, i / RATE, i)) for i, picture in enumerate(lung)][-1]
    left_out = reader.read(Frame(np.zeros_like(lung[0]), 1.0, 25))
    assert (left_out.state, left_out.p) == (before.state, before.p)
    assert left_out.frame.sequence == 25
    assert left_out.verdict is None


def test_a_fault_from_the_start_is_named_at_once(reads: Specification, lung: list[np.ndarray]) -> None:
    assert look(reads, [np.zeros_like(lung[0])])[0].reason == "no-signal"


def test_a_fault_that_comes_and_goes_does_not_flicker(reads: Specification, lung: list[np.ndarray]) -> None:
    dark = np.zeros_like(lung[0])
    broken = [dark if i % 8 < 7 else picture for i, picture in enumerate(lung * 3)]
    states = [view.reason for view in look(reads, lung + broken)][25 + 8 :]
    assert set(states) == {"no-signal"}


@pytest.mark.parametrize("sigma", [0.0, 2.0, 5.0])
def test_a_picture_frozen_under_moving_noise_is_frozen_and_a_live_one_is_not(
    reads: Specification, lung: list[np.ndarray], sigma: float
) -> None:
    random = np.random.default_rng(3)
    live = [noisy(picture, sigma, random) for picture in lung]
    still = [noisy(lung[-1], sigma, random) for _ in range(25)]
    views = look(reads, live + still)
    assert {view.reason for view in views[:25]} == {None}
    assert {view.reason for view in views[-5:]} == {"frozen"}


def test_stills_are_never_frozen_nor_refused_for_their_texture(
    reads: Specification, lung: list[np.ndarray]
) -> None:
    reader = Reader(reads)
    views = [reader.look(Frame(lung[0], float(i), i, still=True)) for i in range(4)]
    assert {view.reason for view in views} == {None}


def test_no_beam_is_found_in_the_grabbers_own_picture(reads: Specification, lung: list[np.ndarray]) -> None:
    placeholder = np.full_like(lung[0], 60)
    cv2.circle(placeholder, (176, 176), 90, (200, 160, 90), -1, cv2.LINE_AA)
    random = np.random.default_rng(4)
    pictures = [coded(placeholder, int(random.integers(60, 92))) for _ in range(20)]
    views = look(reads, pictures + lung)
    assert {(view.reason, view.cause) for view in views[:20]} == {("no-signal", "placeholder")}
    assert {view.beam for view in views[:20]} == {None}
    assert {view.reason for view in views[-5:]} == {None}


def test_writing_on_a_bright_wash_is_a_placeholder_although_it_is_as_rough_as_speckle(
    reads: Specification, lung: list[np.ndarray]
) -> None:
    wash = np.broadcast_to(np.linspace(170, 70, 352)[:, None, None], (352, 352, 3)).astype(np.uint8)
    for text, scale in (("NO SIGNAL", 1.7), ("Waiting for source", 1.0)):
        picture = cv2.putText(wash.copy(), text, (14, 190), cv2.FONT_HERSHEY_SIMPLEX, scale, (255,) * 3, 4)
        random = np.random.default_rng(5)
        views = look(reads, lung + [coded(picture, int(random.integers(60, 92))) for _ in range(25)])
        assert {(view.reason, view.cause) for view in views[-15:]} == {("no-signal", "placeholder")}


def test_bars_are_bars_though_writing_lies_across_them(reads: Specification) -> None:
    colours = np.array(
        [(1, 1, 1), (0, 1, 1), (1, 1, 0), (0, 1, 0), (1, 0, 1), (0, 0, 1), (1, 0, 0)], np.uint8
    )
    row = 180 * colours[np.arange(352) * 7 // 352]
    bars = np.ascontiguousarray(np.broadcast_to(row, (352, 352, 3)))
    cv2.putText(bars, "TEST 0001", (20, 200), cv2.FONT_HERSHEY_SIMPLEX, 2, (0, 0, 0), 5)
    assert {(view.reason, view.cause) for view in look(reads, [bars] * 3)} == {("no-signal", "bars")}


def test_tears_between_halves_that_lie_apart_are_damage_and_those_at_rest_do_no_harm(
    reads: Specification, lung: list[np.ndarray]
) -> None:
    rows = np.random.default_rng(8).integers(90, 270, 25)
    moved = [
        np.concatenate([new[:row], np.roll(new, 14, axis=1)[row:]])
        for row, new in zip(rows, lung, strict=True)
    ]
    views = look(reads, lung + moved)
    assert {(view.reason, view.cause) for view in views[-10:]} == {("no-signal", "damaged")}
    resting = [np.concatenate([lung[i][:row], lung[i - 1][row:]]) for i, row in enumerate(rows)]
    assert {view.reason for view in look(reads, lung + resting)} == {None}


def test_a_frame_that_stays_cut_at_one_row_does_not_stop_the_search_for_the_beam(
    reads: Specification,
) -> None:
    """A beam that moved leaves dark rows in the old one, as a half frame does."""
    phantom = Phantom((Act("normal", 5.0), Act("moved", 4.0)))
    reader = Reader(reads)
    views = [reader.look(Frame(phantom.frame(t / 10), t / 10, t)) for t in range(90)]
    assert "geometry-changed" in {view.reason for view in views[50:]}
    assert views[-1].reason is None


def test_gray_pictures_and_odd_sizes_are_looked_at(reads: Specification) -> None:
    for shape in ((350, 350), (33, 50), (1080, 1920, 3), (17, 19, 3), (720, 1280)):
        for level in (0, 120):
            picture = np.full(shape, level, np.uint8)
            assert {view.reason for view in look(reads, [picture] * 3)} == {"no-signal"}
        noise = np.random.default_rng(1).integers(0, 90, shape).astype(np.uint8)
        assert len(look(reads, [noise] * 3)) == 3

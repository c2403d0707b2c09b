from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from reader.beam import Beam, BeamFinder, find_beam
from reader.clips import survey_clip
from reader.phantom import Act, Phantom

TRUTH = json.loads((Path(__file__).parent / "beam_truth.json").read_text())


def drawn_mask(entry: dict) -> np.ndarray:
    polygon = tuple((x, y) for x, y in entry["polygon"])
    return Beam(polygon, tuple(entry["size"]), "convex").mask() > 0


def agreement(beam: Beam | None, truth: np.ndarray) -> float:
    if beam is None:
        return 0.0
    found = beam.mask() > 0
    return float((found & truth).sum() / (found | truth).sum())


def test_outlines_drawn_by_eye_are_met(data: Path) -> None:
    scores = {
        entry["path"]: agreement(survey_clip(data / "lus" / entry["path"]).beam, drawn_mask(entry))
        for entry in TRUTH
    }
    values = np.array(list(scores.values()))
    print(f"IoU of {values.size} clips: mean {values.mean():.3f}, median {np.median(values):.3f}")
    assert values.mean() > 0.96
    assert np.median(values) > 0.985
    assert (values > 0.9).mean() > 0.9, {k: v for k, v in scores.items() if v <= 0.9}


def test_real_clips_are_found_within_a_whole_scanner_screen(data: Path) -> None:
    """The clip is only a part of a 1280x720 screen with a name, menus and a gray bar around it."""
    empty = Phantom().frame(3.0)
    scores = []
    for entry in TRUTH[::4]:
        finder = BeamFinder()
        side, left, top = 600, 330, 90
        for image in _frames(data / "lus" / entry["path"]):
            screen = empty.copy()
            screen[60:, 300:1100] = 0
            screen[top : top + side, left : left + side] = cv2.resize(image, (side, side))
            finder.add(screen)
        truth = np.zeros((720, 1280), bool)
        mask = drawn_mask(entry).astype(np.uint8)
        truth[top : top + side, left : left + side] = cv2.resize(mask, (side, side)) > 0
        scores.append(agreement(finder.beam(), truth))
    values = np.array(scores)
    print(f"IoU on a whole screen: mean {values.mean():.3f}, least {values.min():.3f}")
    assert values.mean() > 0.87
    assert np.median(values) > 0.93


def _frames(path: Path) -> list[np.ndarray]:
    from reader.clips import read_frames

    frames = [frame.image for frame in read_frames(path)]
    step = max(len(frames) // 8, 1)
    return [cv2.cvtColor(f, cv2.COLOR_GRAY2BGR) if f.ndim == 2 else f for f in frames[::step][:8]]


@pytest.mark.parametrize("act", ["normal", "b-lines", "consolidation", "moved"])
def test_the_phantoms_fan_is_found_and_its_burnt_in_name_left_out(act: str) -> None:
    screen = Phantom((Act(act, 60.0),)).frame(1.0)
    beam = find_beam(screen)
    assert beam is not None
    assert beam.shape == "convex"
    assert not (beam.mask()[:36] > 0).any(), "the title bar with the patient's name is in the beam"
    assert not (beam.mask()[:, :200] > 0).any(), "the menu is in the beam"


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((720, 1280, 3), np.uint8),
        np.full((480, 640), 255, np.uint8)[:1, :1],
        Phantom().frame(3.0),
    ],
    ids=["black", "one pixel", "menu"],
)
def test_no_beam_is_said_where_there_is_none(picture: np.ndarray) -> None:
    assert find_beam(picture) is None


def test_a_rectangle_is_told_from_a_fan() -> None:
    noise = np.random.default_rng(1).integers(40, 200, (400, 300)).astype(np.uint8)
    screen = np.zeros((720, 1280), np.uint8)
    screen[100:500, 500:800] = cv2.GaussianBlur(noise, (0, 0), 2)
    beam = find_beam(screen)
    assert beam is not None
    assert beam.shape == "linear"
    left, top, right, bottom = beam.bounds
    assert np.allclose([left, top, right, bottom], [500, 100, 800, 500], atol=8)


def test_studio_levels_are_noticed() -> None:
    screen = Phantom().frame(7.0).astype(np.float32)
    screen[screen < 8] = 0
    squeezed = (16 + screen * 219 / 255).astype(np.uint8)
    beam = find_beam(squeezed)
    assert beam is not None
    assert beam.levels == (16, 235)


def test_a_profile_survives_json_and_a_broken_one_is_refused() -> None:
    beam = find_beam(Phantom().frame(7.0))
    assert beam is not None
    assert Beam.from_json(json.loads(json.dumps(beam.to_json()))) == beam
    for broken in ({}, {"polygon": [[0, 0]], "size": [5, 5], "shape": "convex"}, {"shape": 3}):
        with pytest.raises(ValueError, match="beam"):
            Beam.from_json(broken)

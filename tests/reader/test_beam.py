from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from reader.beam import Beam, BeamFinder, find_beam
from reader.clips import survey_clip
from reader.phantom import Act, Phantom
from tests.reader.composites import KEPT_OUT_LAYOUTS, TUNED_LAYOUTS, compose

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
    """A third of the drawn clips; all of them by the command in docs/beam.md."""
    values = np.array(list(bare(data, TRUTH[::3]).values()))
    print(f"IoU of {values.size} clips: mean {values.mean():.3f}, median {np.median(values):.3f}")
    assert values.mean() > 0.96
    assert np.median(values) > 0.985
    assert (values > 0.9).mean() > 0.9


def bare(data: Path, entries: list[dict]) -> dict[str, float]:
    """Intersection over union of the beam of each clip with its drawn outline."""
    return {
        entry["path"]: agreement(survey_clip(data / "lus" / entry["path"]).beam, drawn_mask(entry))
        for entry in entries
    }


def test_the_beam_is_found_on_a_whole_screen_and_what_is_written_beside_it_left_out(data: Path) -> None:
    """Some of the composites; all of them by the command in docs/beam.md."""
    scores = []
    for i, entry in enumerate(TRUTH[1::6]):
        layout = (*TUNED_LAYOUTS, *KEPT_OUT_LAYOUTS)[i % 9]
        scores.append(on_screen(entry, _frames(data / "lus" / entry["path"]), layout))
    iou = np.array([score[0] for score in scores])
    print(f"IoU on {iou.size} screens: mean {iou.mean():.3f}, at least 0.9: {(iou >= 0.9).mean():.2f}")
    assert iou.mean() > 0.9
    assert (iou >= 0.9).mean() > 0.75
    assert np.median([score[1] for score in scores]) == 0


def on_screen(entry: dict, clip: list[np.ndarray], layout: str) -> tuple[float, int]:
    """Intersection over union on one composite, and pixels of console text within the outline."""
    screen = compose(entry, clip, layout)
    finder = BeamFinder()
    for frame in screen.frames:
        finder.add(frame)
    beam = finder.beam()
    if beam is None:
        return 0.0, 0
    return agreement(beam, screen.truth.mask() > 0), int((screen.text & (beam.mask() > 0)).sum())


@pytest.mark.parametrize(
    ("shape", "half_angle", "near"),
    [("convex", 40, 0), ("convex", 30, 90), ("linear", 0, 0)],
    ids=["phased", "convex", "linear"],
)
@pytest.mark.parametrize("console", [0, 30, 190])
def test_each_kind_of_probe_is_outlined_on_any_console(
    shape: str, half_angle: int, near: int, console: int
) -> None:
    rows, columns = np.mgrid[:720, :1280].astype(np.float32)
    if half_angle:
        radius, angle = np.hypot(columns - 500, rows - 150), np.arctan2(columns - 500, rows - 150)
        inside = (np.abs(angle) < np.radians(half_angle)) & (radius > near) & (radius < 450)
    else:
        inside = (columns > 400) & (columns < 700) & (rows > 150) & (rows < 600)
    random, finder = np.random.default_rng(3), BeamFinder()
    for _ in range(6):
        echoes = cv2.GaussianBlur(random.normal(0, 1, (720, 1280)).astype(np.float32), (0, 0), 2) * 100 + 60
        screen = np.full((720, 1280), console, np.uint8)
        screen[140:610, 190:810] = 0
        screen[inside] = np.clip(echoes, 5, 250)[inside]
        finder.add(screen)
    beam = finder.beam()
    assert beam is not None
    assert beam.shape == shape
    assert agreement(beam, inside) > 0.95


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


def measure(data: Path, layouts: list[str]) -> None:
    """Print the figures of docs/beam.md: every drawn clip bare, and on these layouts."""
    for name, half in (("odd", TRUTH[1::2]), ("even", TRUTH[::2])):
        _tell(f"bare, {name} half", [(value, 0) for value in bare(data, half).values()])
        clips = [_frames(data / "lus" / entry["path"]) for entry in half]
        for layout in layouts:
            pairs = list(zip(half, clips, strict=True))
            _tell(f"{layout}, {name} half", [on_screen(entry, clip, layout) for entry, clip in pairs])
            _tell(
                f"{layout}, {name} half, one frame",
                [on_screen(e, c[len(c) // 2 :][:1], layout) for e, c in pairs],
            )


def _tell(name: str, scores: list[tuple[float, int]]) -> None:
    iou, text = np.array(scores).T
    print(
        f"{name:32s} n {iou.size:3d} mean {iou.mean():.3f} median {np.median(iou):.3f} at least 0.9"
        f" {100 * (iou >= 0.9).mean():3.0f} % with text {(text > 0).sum()} of {text.sum():.0f} pixels",
        flush=True,
    )


if __name__ == "__main__":
    measure(Path(sys.argv[1]), sys.argv[2:] or [*TUNED_LAYOUTS, *KEPT_OUT_LAYOUTS])

"""The verdict rule is chosen on clips that were held out, and reaches what was asked of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from reader.beam import Beam
from reader.clips import Frame
from reader.reader import View
from training.datasets import DataError, Sample, load_task
from training.evaluation import metrics, predict
from training.fitting import Recipe
from training.rules import ABSTAIN_SHARE, choose_rule
from training.runs import specification
from training.views import NO_IMAGE, ClipViews

TASK = load_task("lus-opacity")
READS = specification(TASK, Recipe())
BEAM = Beam(((0.0, 0.0), (64.0, 0.0), (64.0, 64.0), (0.0, 64.0)), (64, 64), "linear")


def held_out(clips: int, seed: int, sharpness: float = 1.0) -> tuple[list[ClipViews], list[np.ndarray]]:
    """Clips of 4 s whose frames' logits overlap between the labels; ``sharpness`` scales them."""
    random = np.random.default_rng(seed)
    made, maps = [], []
    for i in range(clips):
        label = TASK.labels[i % 2]
        pixels = np.zeros((224, 224, 3), np.uint8)
        views = tuple(View(Frame(NO_IMAGE, t / 5, t), BEAM, pixels) for t in range(20))
        made.append(ClipViews(Sample(Path("x"), f"{i}", label, f"p{i}"), BEAM, 3.8, views))
        margin = random.normal(1.0 if i % 2 else -1.0, 1.2) + random.normal(0, 1.0, 20)
        of = np.zeros((20, 7, 7, 2), np.float32)
        of[..., 1] = (sharpness * margin)[:, None, None]
        maps.append(of)
    return made, maps


@pytest.mark.parametrize("sensitivity", [0.6, 0.8, 0.95, 0.99])
def test_the_threshold_finds_the_share_that_was_named(sensitivity: float) -> None:
    clips, maps = held_out(120, 1)
    reads, tried = choose_rule(clips, READS, maps, TASK, sensitivity)
    found = metrics(predict(clips, reads, maps), reads)["all"]["forced"]
    assert found["sensitivity"]["value"] >= sensitivity
    assert found["sensitivity"]["value"] < sensitivity + 0.03
    assert len(tried) == len(TASK.clip.windows) * len(TASK.clip.over)


def test_without_a_name_sensitivity_and_specificity_meet() -> None:
    clips, maps = held_out(120, 2)
    reads, _ = choose_rule(clips, READS, maps, TASK)
    found = metrics(predict(clips, reads, maps), reads)["all"]
    assert found["forced"]["sensitivity"]["value"] == pytest.approx(
        found["forced"]["specificity"]["value"], abs=0.04
    )
    assert found["abstained"]["value"] == pytest.approx(ABSTAIN_SHARE, abs=0.08)


def test_the_temperature_makes_up_for_a_boastful_network() -> None:
    usual, _ = choose_rule(*_swapped(held_out(120, 3)), TASK)
    loud, _ = choose_rule(*_swapped(held_out(120, 3, sharpness=4.0)), TASK)
    assert loud.temperature / usual.temperature == pytest.approx(4.0, rel=0.1)


def _swapped(made: tuple[list[ClipViews], list[np.ndarray]]) -> tuple:
    clips, maps = made
    return clips, READS, maps


def test_held_out_clips_of_one_class_choose_nothing() -> None:
    clips, maps = held_out(20, 4)
    with pytest.raises(DataError, match="one class only"):
        choose_rule(clips[::2], READS, maps[::2], TASK)
    with pytest.raises(DataError, match="no held-out clip"):
        choose_rule(clips, READS, [np.zeros((0, 1, 1, 1), np.float32)] * 20, TASK)

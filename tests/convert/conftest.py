"""One small run on drawn lungs, really trained for a moment, that all tests of conversion share."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from reader.phantom import Act, Phantom
from tests.conftest import write_clip

if TYPE_CHECKING:
    from training.datasets import Task
    from training.runs import Run

Image = NDArray[np.uint8]

PATIENTS, SWAPPED = 20, 2
"""Patients, and how many of them bear the other label, so that no figure is perfect."""
STRANGERS = 20
SURNAME = "quatermain"
"""In every patient's name and file, and to be found in no bundle."""


def still(act: str, seed: int) -> Image:
    """The phantom's act as a picture, the screen around its fan cut off."""
    return Phantom((Act(act, 3600.0),), seed=seed).frame(1.0 + seed / 7)[40:680, 300:940]


def write_still(path: Path, act: str, seed: int) -> None:
    """``still`` as a file, and its folder where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), still(act, seed))


def write_index(folder: Path, rows: Sequence[tuple[str, str, str]]) -> Path:
    """A data set's index of path, label and patient."""
    with (folder / "index.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "patient"), *rows])
    return folder


@pytest.fixture(scope="session")
def lungs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures a patient; four are clips, and one black picture can never be read."""
    folder = tmp_path_factory.mktemp("lungs")
    rows = []
    for i in range(PATIENTS):
        acts = ("normal", "consolidation")
        label = ("normal", "opacity")[(i + (i >= PATIENTS - SWAPPED)) % 2]
        for picture in range(2):
            name = f"{SURNAME}{i}-{picture}.{'mp4' if i < 4 and not picture else 'png'}"
            if name.endswith("mp4"):
                write_clip(folder / name, acts[i % 2], 0.6, rate=10, crop=True)
            else:
                write_still(folder / name, acts[i % 2], 2 * i + picture)
            rows.append((name, label, f"{SURNAME}{i}"))
    cv2.imwrite(str(folder / "black.png"), np.zeros((300, 300), np.uint8))
    return write_index(folder, [*rows, ("black.png", "normal", f"{SURNAME}0")])


def small_run(lungs: Path, task: Task, out: Path) -> Run:
    """A cross-validated run of the smallest network at the smallest size, really trained for a moment.

    What tells the labels apart without looking at a lung is left out: on each data set it takes longer than
    the training, and has tests of its own.
    """
    from training import runs
    from training.datasets import for_task, load_samples
    from training.fitting import Recipe
    from training.folds import Folds

    recipe = Recipe.of("scratch", size=96, epochs=6, frames_a_clip=4, batch=8, learning_rate=3e-3, ema=0.0)
    plan = runs.Plan(recipe, Folds(2), command="made in a test", found_at={"folder": str(lungs)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "confounds_of", lambda *_: {})
        return runs.train(for_task(load_samples(lungs), task), task, plan, out)


@pytest.fixture(scope="session")
def run(lungs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``small_run`` on lungs of two labels."""
    from training.datasets import load_task

    out = tmp_path_factory.mktemp("runs") / "run"
    small_run(lungs, load_task("lus-opacity"), out)
    return out


@pytest.fixture(scope="session")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of patients whom the run has never seen: everything between healthy and ill, so that some
    lie near the threshold."""
    folder = tmp_path_factory.mktemp("strangers")
    rows = []
    for i, ill in enumerate(np.linspace(0, 1, STRANGERS)):
        picture = cv2.addWeighted(still("normal", 100 + i), 1 - ill, still("consolidation", 100 + i), ill, 0)
        cv2.imwrite(str(folder / f"{i}.png"), picture)
        rows.append((f"{i}.png", "opacity" if ill > 0.5 else "normal", f"stranger{i}"))
    return write_index(folder, rows)

"""Networks side by side, and a new run against an old one, as a user calls them."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from reader.bundle import Bundle
from tests.conftest import Command
from tests.in_process import sonoglance_here
from training.datasets import Sample
from training.evaluation import Prediction
from training.pairing import KEEP, REPLACE, TOO_FEW, judge

STILLS = 24


@pytest.fixture(scope="module")
def stills(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bright and dark noise: something to tell apart for a network of any quality."""
    import cv2

    folder = tmp_path_factory.mktemp("stills")
    random = np.random.default_rng(1)
    with (folder / "index.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "patient"])
        for i in range(STILLS):
            label, level = (("normal", 60), ("pneumonia", 150))[i % 2]
            picture = cv2.GaussianBlur(random.normal(level, 40, (96, 96)), (0, 0), 3)
            cv2.imwrite(str(folder / f"{i}.png"), np.clip(picture, 0, 255).astype(np.uint8))
            writer.writerow([f"{i}.png", label, f"p{i}"])
    return folder


def test_networks_are_compared_on_the_same_folds(stills: Path, sonoglance: Command, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = sonoglance(
        "compare", stills, "--task", "cxr-pneumonia", "--networks", "scratch,efficientnet-lite0",
        "--folds", 3, "--reduced", "--out", out, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((out / "comparison.json").read_text())
    assert "REDUCED" in found["protocol"]
    assert "REDUCED" in (out / "comparison.md").read_text()
    rows = {row["network"]: row for row in found["networks"]}
    assert rows["scratch"]["int8_megabytes"] < rows["efficientnet-lite0"]["int8_megabytes"]
    assert rows["scratch"]["int8_ms"] < rows["efficientnet-lite0"]["int8_ms"]
    assert sum(row["against_best"] is None for row in rows.values()) == 1
    read = [
        {row["path"] for row in csv.DictReader((out / f"predictions_{name}.csv").open())} for name in rows
    ]
    assert read[0] == read[1]
    assert 0 < len(read[0]) < STILLS, "a reduced protocol leaves folds out"
    assert (out / "comparison.png").stat().st_size > 1000


def test_patients_of_an_earlier_run_are_never_held_out(stills: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    quick = ["--task", "cxr-pneumonia", "--epochs", 2, "--frames-a-clip", 2]
    old = [f"--where=patient!=p{i}" for i in range(10)]
    scratch = ["--network", "scratch", "--folds", 0]
    done = sonoglance_here("train", stills, *quick, *old, *scratch, "--out", first)
    assert done.returncode == 0, done.stderr
    done = sonoglance_here("train", stills, *quick, "--from", first, "--folds", 2, "--out", second)
    assert done.returncode == 0, done.stderr
    held = {row["patient"] for row in csv.DictReader((second / "predictions.csv").open())}
    assert held == {f"p{i}" for i in range(10)}
    done = sonoglance_here("compare", first, second, "--data", stills, "--out", tmp_path / "verdict")
    assert done.returncode == 1
    assert "no patient is new to both" in done.stderr
    done = sonoglance_here(
        "compare", first, first, "--data", stills, "--out", tmp_path / "verdict", "--where", "label!=mass"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "verdict" / "comparison.json").read_text())
    assert found["clips"] + found["without_reading"] == 10
    assert found["verdict"] == TOO_FEW


def read_by(quality: float, patients: int, seed: int) -> list[Prediction]:
    """Predictions of a network whose scores tell the labels apart by ``quality`` standard deviations."""
    shared, own = np.random.default_rng(1), np.random.default_rng(seed)
    found = []
    for i in range(patients * 2):
        positive = i % 4 < 2
        margin = shared.normal() + own.normal(0, 0.2) + quality * positive
        p = 1 / (1 + np.exp(-margin))
        sample = Sample(Path("x"), f"{i}", "opacity" if positive else "normal", f"p{i // 2}")
        found.append(Prediction(sample, "opacity", np.array([1 - p, p], np.float32)))
    return found


def test_a_new_network_replaces_an_old_one_only_on_evidence(default_bundle: Bundle) -> None:
    reads = default_bundle.manifest.reads
    assert judge(read_by(0.5, 300, 2), read_by(2.5, 300, 3), reads)["verdict"] == REPLACE
    assert judge(read_by(2.5, 300, 2), read_by(0.5, 300, 3), reads)["verdict"] == KEEP
    assert judge(read_by(0.5, 16, 2), read_by(2.5, 16, 3), reads)["verdict"] == TOO_FEW
    unread = [replace(item, p=None) for item in read_by(0.5, 300, 2)]
    assert judge(unread, unread, reads)["verdict"] == TOO_FEW

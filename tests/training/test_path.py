"""Train, convert, evaluate and run on small real clips: the whole path, as a user calls it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.conftest import Command, write_clip
from tests.in_process import sonoglance_here
from training.datasets import DataError, load_task
from training.runs import load_run

PATIENTS = 8


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantom clips of made-up patients; what is learnt from them means nothing."""
    folder = tmp_path_factory.mktemp("data")
    with (folder / "index.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "patient", "source", "grade"])
        for patient in range(PATIENTS):
            label, act = (("normal", "normal"), ("opacity", "b-lines"))[patient % 2]
            for clip in range(2):
                name = f"p{patient}_{clip}_{'x' * patient}.mp4"
                write_clip(folder / name, act, 1.0, rate=10, crop=True)
                writer.writerow([name, label, f"p{patient}", "made-up", "" if patient % 2 else "0"])
    return folder


@pytest.fixture(scope="module")
def run_folder(data_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from training.datasets import for_task, load_samples
    from training.fitting import Recipe
    from training.folds import Folds
    from training.runs import Plan, train

    task = load_task("lus-opacity")
    out = tmp_path_factory.mktemp("runs") / "run"
    recipe = Recipe.of("scratch", size=96, epochs=6, frames_a_clip=6, batch=8, learning_rate=3e-3, ema=0.0)
    train(for_task(load_samples(data_set), task), task, Plan(recipe, Folds(2), command="made in a test"), out)
    return out


def test_a_run_is_whole_and_holds_no_patient_twice(run_folder: Path) -> None:
    run = load_run(run_folder)
    assert run.record["figures"]["pooled"]["patients"] == PATIENTS
    assert run.record["figures"]["pooled"]["all"]["roc_auc"]["value"] > 0.9, "nothing was learnt"
    rows = list(csv.DictReader((run_folder / "predictions.csv").open()))
    assert len(rows) == 2 * PATIENTS
    assert not run_folder.with_name("run.part").exists()


def test_the_path_from_run_to_reading(
    run_folder: Path, data_set: Path, sonoglance: Command, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    converted = sonoglance("convert", run_folder, "--data", data_set, "--out", bundle)
    assert converted.returncode == 0, converted.stderr
    assert sonoglance("bundle", "verify", bundle).returncode == 0

    scores = {}
    for name, model in (("float", run_folder), ("int8", bundle)):
        out = tmp_path / name
        done = sonoglance_here("evaluate", model, "--data", data_set, "--out", out)
        assert done.returncode == 0, done.stderr
        assert "trained on 8 of these patients" in done.stdout
        rows = list(csv.DictReader((out / "predictions.csv").open()))
        assert list(rows[0]) == ["path", "label", "patient", "source", "p_normal", "p_opacity", "state"]
        scores[name] = {row["path"]: float(row["p_opacity"]) for row in rows}
        figures = json.loads((out / "metrics.json").read_text())
        assert figures["all"]["roc_auc"]["value"] > 0.9
    apart = [abs(scores["float"][path] - scores["int8"][path]) for path in scores["float"]]
    assert sum(apart) / len(apart) < 0.05, "int8 says something else than float"

    clip = next(iter(scores["int8"]))
    results = tmp_path / "r.jsonl"
    done = sonoglance(
        "run",
        "--source",
        data_set / clip,
        "--bundle",
        bundle,
        "--display",
        "none",
        "--pace",
        "max",
        "--results",
        results,
    )
    assert done.returncode == 0, done.stderr
    last = json.loads(results.read_text().splitlines()[-1])
    assert last["p"]["opacity"] == pytest.approx(scores["int8"][clip], abs=1e-3), (
        "the bedside and the evaluation read the same clip differently"
    )


def test_what_exists_is_never_overwritten(run_folder: Path, data_set: Path, tmp_path: Path) -> None:
    for arguments in (
        ["train", data_set, "--task", "lus-opacity", "--out", run_folder],
        ["convert", run_folder, "--out", tmp_path],
        ["evaluate", run_folder, "--data", data_set, "--out", tmp_path],
    ):
        done = sonoglance_here(*arguments)
        assert done.returncode == 1
        assert "exists already" in done.stderr


def test_a_run_that_is_not_whole_is_refused(run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text((run_folder / "run.json").read_text()[:-200])
    with pytest.raises(DataError, match="not a whole training run"):
        load_run(tmp_path)


def test_bad_data_ends_in_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    cases = {
        "missing": "path,label,patient\nnowhere.mp4,normal,a\n",
        "strange": "path,label,patient\nindex.csv,mass,a\n",
        "one class": "path,label,patient\nindex.csv,normal,a\n",
        "torn": "path,label,patient,split\nindex.csv,normal,a,train\nindex.csv,opacity,a,test\n",
    }
    words = {"missing": "nowhere.mp4", "strange": "'mass'", "one class": "opacity", "torn": "both sides"}
    for name, text in cases.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "index.csv").write_text(text)
        done = sonoglance_here("train", folder, "--task", "lus-opacity", "--out", tmp_path / "out")
        assert done.returncode == 1, done.stderr
        assert words[name] in done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "out").exists()
        assert not (tmp_path / "out.part").exists()

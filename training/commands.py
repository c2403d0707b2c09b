"""The training side's subcommands: train, evaluate."""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from reader.bundle import Specification, load_bundle
from training.datasets import (
    DataError,
    Sample,
    Task,
    check_trainable,
    for_task,
    load_samples,
    load_task,
    patient_digest,
)
from training.evaluation import Prediction, metrics, predict, write_json, write_predictions
from training.views import ClassMaps, look_through, read_maps


def train(arguments: list[str]) -> int:
    """Train a network, cross-validated by patient; the run's folder is what convert takes."""
    parser = argparse.ArgumentParser("sonoglance train", description=train.__doc__)
    _data_options(parser)
    parser.add_argument("--task", required=True, help="a task's name, or its own .json file")
    parser.add_argument("--folds", type=int, default=5, help="0: no cross-validation, no figures")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seed", type=int)
    options = parser.parse_args(arguments)
    if options.folds < 0 or options.folds == 1:
        parser.error("--folds is 0, or 2 and more")
    from training import runs
    from training.fitting import Recipe

    task = load_task(options.task)
    samples = for_task(load_samples(options.data, options.where, options.patient_pattern), task)
    check_trainable(samples, task)
    samples = _training_part(samples)
    changes = {k: getattr(options, k) for k in ("epochs", "seed") if getattr(options, k) is not None}
    # Names, not places: the command goes into bundles, and folders are nobody else's business.
    named = [Path(word).name if "/" in word else word for word in arguments]
    command = shlex.join(["sonoglance", "train", *named])
    run = runs.train(samples, task, Recipe(**changes), options.folds, options.out, command)
    print(_summary(run.record["figures"].get("pooled")))
    print(f"run: {run.path}")
    return 0


def evaluate(arguments: list[str]) -> int:
    """Read every clip of a data set and score it: predictions.csv and metrics.json."""
    parser = argparse.ArgumentParser("sonoglance evaluate", description=evaluate.__doc__)
    parser.add_argument("model", type=Path, help="a bundle, or a training run's folder")
    _data_options(parser, named=True)
    parser.add_argument("--fps", type=float, help="look at so many frames a second (all)")
    options = parser.parse_args(arguments)
    if options.fps is not None and not 0.5 <= options.fps <= 240:
        parser.error("--fps lies between 0.5 and 240")
    reads, class_maps, trained_on, task = _open_model(options.model)
    samples = load_samples(options.data, options.where, options.patient_pattern)
    samples = for_task(samples, task)
    if options.out.exists():
        raise DataError(f"{options.out}: exists already; name another folder or remove it")
    predictions = _predict(samples, reads, class_maps, options.fps)
    figures = {
        "model": str(options.model),
        "data": str(options.data),
        "where": options.where,
        "fps": options.fps,
        **_known_patients(samples, trained_on),
        **metrics(predictions, reads),
    }
    options.out.mkdir(parents=True)
    write_predictions(options.out / "predictions.csv", predictions, reads.labels)
    write_json(options.out / "metrics.json", figures)
    print(_summary(figures))
    if figures["patients_trained_on"]:
        print(f"beware: the network was trained on {figures['patients_trained_on']} of these patients")
    print(f"written: {options.out}")
    return 0


def _data_options(parser: argparse.ArgumentParser, named: bool = False) -> None:
    if named:
        parser.add_argument("--data", type=Path, required=True, help="a data set's folder")
    else:
        parser.add_argument("data", type=Path, help="a data set's folder")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument(
        "--where", action="append", default=[], metavar="COLUMN=VALUE", help="or COLUMN!=VALUE"
    )
    parser.add_argument(
        "--patient-pattern", help="regular expression whose group is the patient in a file's name"
    )


def _training_part(samples: list[Sample]) -> list[Sample]:
    """Rows that the data set's own split gives to training; all, where it has none."""
    splits = {sample.split for sample in samples}
    if splits <= {""}:
        return samples
    kept = [sample for sample in samples if sample.split == "train"]
    print(f"split: {len(kept)} of {len(samples)} samples are marked train; the others are left out")
    if not kept:
        raise DataError("the index has a split column but no row says train")
    return kept


def _open_model(path: Path) -> tuple[Specification, ClassMaps, set[str], Task]:
    if (path / "run.json").is_file():
        from training.fitting import NetworkMaps
        from training.runs import load_run

        run = load_run(path)
        return (
            run.reads,
            NetworkMaps(run.network()),
            set(run.record["data"]["patients"]),
            run.task,
        )
    bundle = load_bundle(path)
    runner = bundle.runner()
    reads = bundle.manifest.reads
    trained_on = set(bundle.manifest.provenance.get("data", {}).get("patients", ()))
    task = load_task(bundle.manifest.task)
    return reads, lambda x: np.stack([runner.class_map(p) for p in x]), trained_on, task


def _predict(
    samples: list[Sample], reads: Specification, class_maps: ClassMaps, fps: float | None
) -> list[Prediction]:
    predictions = []
    for sample in tqdm(samples, desc="reading", unit="clip", dynamic_ncols=True, disable=None):
        clip = look_through(sample, reads, fps)
        predictions += predict([clip], reads, [read_maps(clip, class_maps)])
    return predictions


def _known_patients(samples: list[Sample], trained_on: set[str]) -> dict[str, Any]:
    return {
        "patients_trained_on": len(
            {s.patient for s in samples if s.patient and patient_digest(s.patient) in trained_on}
        ),
        "patients_unknown": sum(not sample.patient for sample in samples),
    }


def _summary(figures: dict[str, Any] | None) -> str:
    if not figures:
        return "no figures: nothing was held out"
    lines = []
    for name in ("all", "without_grade_1"):
        part = figures.get(name)
        if part is None:
            continue
        if "roc_auc" not in part:
            lines.append(f"{name}: {part['note']}")
            continue
        auc, forced = part["roc_auc"], part["forced"]
        lines.append(
            f"{name}: {part['positive']} positive, {part['negative']} negative; "
            f"AUC {auc['value']:.3f} ({auc['low']:.3f}-{auc['high']:.3f}), "
            f"sensitivity {forced['sensitivity']['value']:.3f}, "
            f"specificity {forced['specificity']['value']:.3f}, "
            f"abstained {part['abstained']['value']:.3f}"
        )
    if figures.get("without_reading"):
        lines.append(f"{figures['without_reading']} samples gave no reading")
    return "\n".join(lines)

"""The training side's subcommands: train, evaluate."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
import re
import shlex
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from training.datasets import (
    DataError,
    Sample,
    Task,
    check_trainable,
    check_untorn,
    for_task,
    load_samples,
    load_task,
    patient_digest,
)
from training.evaluation import Evaluated, full_metrics, read_samples, write_json, write_predictions
from training.models import Model, open_model

if TYPE_CHECKING:
    from training.folds import Folds


def train(arguments: list[str]) -> int:
    """Train a network, cross-validated by patient; the run's folder is what convert takes."""
    parser = argparse.ArgumentParser("sonoglance train", description=train.__doc__)
    _data_options(parser)
    parser.add_argument("--task", required=True, help="a task's name, or its own .json file")
    parser.add_argument("--network", help="see the README for the table (efficientnet-lite0)")
    parser.add_argument("--weights", type=Path, help="a file with the network's ImageNet weights")
    parser.add_argument("--from", dest="earlier", type=Path, help="an earlier run, to go on from")
    parser.add_argument("--sensitivity", type=float, help="what the threshold aims at, 0.5 to 0.99")
    parser.add_argument("--resume", action="store_true", help="go on with a run that was stopped")
    for name in ("epochs", "head-epochs", "frames-a-clip", "batch", "patience", "seed"):
        parser.add_argument(f"--{name}", type=int, help="see training/fitting.py, Recipe")
    parser.add_argument(
        "--balance-sources", action="store_true", help="labels weigh alike within each source"
    )
    add_fold_options(parser)
    options = parser.parse_args(arguments)
    if options.sensitivity is not None and not 0.5 <= options.sensitivity <= 0.99:
        parser.error("--sensitivity lies between 0.5 and 0.99")
    folds = read_folds(parser, options)
    from training import runs
    from training.fitting import Recipe, Start

    task = load_task(options.task)
    samples = training_samples(options.data, options.where, options.patient_pattern, task)
    changes = ("epochs", "head_epochs", "frames_a_clip", "batch", "patience", "seed")
    given = {k: getattr(options, k) for k in changes if getattr(options, k) is not None}
    if options.balance_sources:
        given["balance_sources"] = True
    if options.earlier:
        if options.network or options.weights:
            parser.error("--from goes on with the earlier run's network and weights")
        earlier = runs.load_run(options.earlier)
        if earlier.reads.labels != task.labels:
            raise DataError(f"{options.earlier}: was trained for {earlier.task.name}, not {task.name}")
        recipe = dataclasses.replace(earlier.recipe, **given)
        start = Start(run_weights=earlier.path / runs.WEIGHTS)
    else:
        earlier, recipe = None, Recipe.of(options.network or "efficientnet-lite0", **given)
        start = Start(options.weights)
    found_at = {"folder": str(options.data.resolve()), "patient_pattern": options.patient_pattern}
    command = command_line("train", arguments)
    plan = runs.Plan(recipe, folds, start, options.sensitivity, earlier, command, found_at)
    run = runs.train(samples, task, plan, options.out, options.resume)
    print(_summary(run.record["figures"].get("pooled")))
    print(f"run: {run.path}")
    return 0


def command_line(name: str, arguments: list[str]) -> str:
    """What was called, for the record."""
    # Names, not places: the command goes into bundles, and folders are nobody else's business.
    named = [
        word if before == "--where" or word.startswith("--where=") else re.sub(r"(^|=)\S*/", r"\1", word)
        for before, word in zip(["", *arguments], arguments, strict=False)
    ]
    return shlex.join(["sonoglance", name, *named])


def training_samples(
    folder: Path, where: Sequence[str], patient_pattern: str | None, task: Task
) -> list[Sample]:
    """A data set's samples for a task, of its training part. Raises DataError where they cannot train."""
    samples = for_task(load_samples(folder, where, patient_pattern), task)
    check_untorn(samples)
    kept = _training_part(samples)
    check_trainable(kept, task)
    return kept


def add_fold_options(parser: argparse.ArgumentParser) -> None:
    """The options of cross-validation and of the machine that it runs on."""
    parser.add_argument("--folds", type=int, default=5, help="0: no cross-validation, no figures")
    parser.add_argument("--only-folds", type=int, metavar="N", help="fit the first N of them, to save time")
    parser.add_argument("--by-source", action="store_true", help="hold out whole sources")
    parser.add_argument("--processes", type=int, default=1, help="folds fitted at a time")
    parser.add_argument("--ray", metavar="ADDRESS", help="fit folds on a Ray cluster; local: start one")
    parser.add_argument("--mixed", action="store_true", help="compute in bfloat16, keep float32 weights")
    parser.add_argument("--devices", type=int, help="so many GPUs together (JAX backend)")


def read_folds(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Folds:
    """Check the options of ``add_fold_options`` and set Keras up by them."""
    if options.folds < 0 or options.folds == 1:
        parser.error("--folds is 0, or 2 and more")
    if options.only_folds is not None and not 1 <= options.only_folds <= options.folds:
        parser.error("--only-folds lies between 1 and --folds")
    if options.processes < 1:
        parser.error("--processes is 1 or more")
    if (options.mixed or options.devices) and (options.processes > 1 or options.ray):
        parser.error("--mixed and --devices go with one process")
    from training.folds import Folds
    from training.machine import use_machine

    use_machine(options.mixed, options.devices)
    return Folds(options.folds, options.by_source, options.only_folds, options.processes, options.ray)


def evaluate(arguments: list[str]) -> int:
    """Read a data set and score it: report.html, metrics.json, predictions.csv, the worst as pictures."""
    parser = argparse.ArgumentParser("sonoglance evaluate", description=evaluate.__doc__)
    parser.add_argument("model", type=Path, help="a bundle, or a training run's folder")
    _data_options(parser, named=True)
    parser.add_argument("--fps", type=float, help="look at so many frames a second (all)")
    parser.add_argument("--external", type=Path, help="a second data set's folder, all of it, scored apart")
    parser.add_argument("--no-pictures", action="store_true", help="no folder of the worst mistakes")
    options = parser.parse_args(arguments)
    if options.fps is not None and not 0.5 <= options.fps <= 240:
        parser.error("--fps lies between 0.5 and 240")
    from training.report import Evaluation, render, worst_mistakes, write_pictures

    if options.out.exists():
        raise DataError(f"{options.out}: exists already; name another folder or remove it")
    model = open_model(options.model)
    sets = [_open_data(options.data, options.where, options.patient_pattern, model.task)]
    if options.external:
        sets.append(_open_data(options.external, [], options.patient_pattern, model.task))
    parts = [_evaluated(data, model, options.fps) for data in sets]
    facts = {**model.facts, "command": command_line("evaluate", arguments), "made": time.strftime("%Y-%m-%d")}
    title = f"{model.task.title}, {options.model.name}"
    page = render(Evaluation(title, model.reads, parts, facts, model.limits, model.history))
    options.out.mkdir(parents=True)
    figures = {
        "model": str(options.model),
        "data": str(options.data),
        "where": options.where,
        "fps": options.fps,
        **parts[0].figures,
    }
    write_predictions(options.out / "predictions.csv", parts[0].predictions, model.reads.labels)
    if options.external:
        figures["external"] = {"data": str(options.external), **parts[1].figures}
        write_predictions(options.out / "predictions_external.csv", parts[1].predictions, model.reads.labels)
    write_json(options.out / "metrics.json", figures)
    (options.out / "report.html").write_text(page, encoding="utf-8")
    if not options.no_pictures:
        mistakes = worst_mistakes(parts[0].predictions, model.reads)
        write_pictures(options.out / "pictures", mistakes, model.reads, model.class_maps, options.fps)
    for part in parts:
        print(f"{part.name}:\n{_summary(part.figures)}")
        if part.figures["patients_trained_on"]:
            seen = part.figures["patients_trained_on"]
            print(f"beware: the network was trained on {seen} of these patients")
    print(f"written: {options.out}")
    return 0


def _data_options(parser: argparse.ArgumentParser, named: bool = False) -> None:
    if named:
        parser.add_argument("--data", type=Path, required=True, help="a data set's folder")
    else:
        parser.add_argument("data", type=Path, help="a data set's folder")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    add_row_options(parser)


def add_row_options(parser: argparse.ArgumentParser) -> None:
    """The options that choose rows of a data set and say who its patients are."""
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


@dataclasses.dataclass(frozen=True)
class _DataSet:
    """A data set's samples for a task. ``left_out``: how many the task passes over, by label."""

    folder: Path
    where: Sequence[str]
    samples: Sequence[Sample]
    left_out: dict[str, int]


def _open_data(folder: Path, where: Sequence[str], patient_pattern: str | None, task: Task) -> _DataSet:
    samples = load_samples(folder, where, patient_pattern)
    kept = for_task(samples, task)
    if not kept:
        raise DataError(f"{folder}: no sample has a label of task {task.name}: {', '.join(task.labels)}")
    words = [str(getattr(sample, task.column)) for sample in samples]
    left_out = Counter(word for word in words if task.synonyms.get(word, word) not in task.labels)
    return _DataSet(folder, where, kept, dict(left_out))


def _evaluated(data: _DataSet, model: Model, fps: float | None) -> Evaluated:
    name = data.folder.resolve().name
    waiting = tqdm(data.samples, desc=f"reading {name}", unit="clip", dynamic_ncols=True, disable=None)
    predictions = list(read_samples(waiting, model.reads, model.class_maps, fps))
    figures = {
        "left_out": data.left_out,
        **_known_patients(data.samples, model.trained_on),
        **full_metrics(predictions, model.reads, model.trained_on),
    }
    listed = sorted(f"{sample.name},{sample.label},{sample.patient}" for sample in data.samples)
    facts = {
        "samples": f"{len(predictions)}" + (f" where {', '.join(data.where)}" if data.where else ""),
        "frames": "every one" if fps is None else f"{fps:g} a second",
        "SHA-256 of its paths, labels and patients": hashlib.sha256("\n".join(listed).encode()).hexdigest(),
    }
    return Evaluated(name, predictions, figures, facts)


def _known_patients(samples: Sequence[Sample], trained_on: set[str]) -> dict[str, int | None]:
    seen = {s.patient for s in samples if s.patient and patient_digest(s.patient) in trained_on}
    return {
        "patients_trained_on": len(seen) if trained_on else None,
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

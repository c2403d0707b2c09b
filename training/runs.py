"""A training run: cross-validate a recipe by patient, choose the verdict rule, fit on everything.

A run's folder holds ``run.json`` (recipe, task, specification, figures, history, patients), the
network's weights, ``calibration.npz`` (inputs of training patients, for quantization), ``folds`` (each
fold's network, with what it was not fitted on, so that its quantization can be proven there), the pooled
out-of-fold ``predictions.csv``, ``patterns.json`` and ``patterns.npz`` where patterns were fitted, and
``logs`` for TensorBoard. It is written under ``<name>.part`` and
renamed when whole; a part left by the same recipe and data can be resumed.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import keras

from reader.bundle import FAMILIARITY, Specification
from reader.familiar import Familiarity
from training import networks
from training.audit import confounds_of
from training.calibration import choose_calibration
from training.datasets import DataError, Sample, Task, patient_digest
from training.evaluation import Prediction, full_metrics, metrics, predict, write_json, write_predictions
from training.familiarity import familiarity_of
from training.fitting import Fitted, Recipe, Start, fit
from training.folds import FOLDS, Fold, Folds, cross_validate, load_fold
from training.patterns import PATTERNS, WHOLE, fit_patterns, load_patterns, with_channels
from training.rules import choose_rule, starting_rule
from training.views import ClipViews, gather_views

RATE = 5.0
"""Frames a second that are looked at in training; the verdict counts in seconds, not frames."""
WEIGHTS = "network.weights.h5"
CALIBRATION = "calibration.npz"
STARTED = "started.json"


@dataclass(frozen=True)
class Run:
    """A finished run, as read back from its folder."""

    path: Path
    task: Task
    recipe: Recipe
    reads: Specification
    record: dict[str, Any]

    def network(self, batch: int | None = None, fold: Fold | None = None) -> keras.Model:
        """The trained network, or a fold's, with the channels of supported patterns after the labels';
        ``batch`` fixes its batch dimension."""
        network = self.label_network(fold, batch)
        if len(self.reads.map_channels) == len(self.reads.labels):
            return network
        name = WHOLE if fold is None else fold.name
        weights = with_channels(network.get_weights(), self.path, name, self.reads.patterns)
        network = self._built(len(self.reads.map_channels), batch)
        network.set_weights(weights)
        return network

    def label_network(self, fold: Fold | None = None, batch: int | None = None) -> keras.Model:
        """The same without patterns, as it was trained."""
        network = self._built(len(self.reads.labels), batch)
        if fold is None:
            try:
                network.load_weights(self.path / WEIGHTS)
            except (OSError, ValueError) as error:
                raise DataError(f"{self.path / WEIGHTS}: not this network's weights ({error})") from error
        else:
            network.set_weights(fold.weights)
        return network

    def _built(self, channels: int, batch: int | None) -> keras.Model:
        of, whole = self.recipe, self.reads.beam == "whole"
        return networks.build(of.network, of.size, channels, of.dropout, batch, whole)

    def folds(self) -> list[Fold]:
        """What cross-validation left, in order; none where the run has no folds."""
        return [load_fold(path) for path in sorted((self.path / FOLDS).glob("*.npz"))]

    @cached_property
    def pattern_scores(self) -> dict[str, dict[str, float]]:
        """Out-of-fold probabilities by clip and pattern; empty where there are no patterns."""
        if not self.reads.patterns:
            return {}
        scores: dict[str, dict[str, float]] = json.loads((self.path / PATTERNS).read_text())["clips"]
        return scores

    @property
    def patients(self) -> set[str]:
        """Digests of every patient that the network, or the one it started from, was trained on."""
        return {*self.record["data"]["patients"], *self.record["data"].get("earlier_patients", ())}


@dataclass(frozen=True)
class Plan:
    """How a run is made. ``folds`` 0: no cross-validation and no figures. ``sensitivity``: what the
    threshold aims at, None for where sensitivity and specificity meet. ``earlier``: the run
    whose weights are the start; its patients are never held out. ``found_at``: ``folder`` and
    ``patient_pattern`` of the data, so that conversion finds them again."""

    recipe: Recipe
    folds: Folds
    start: Start = field(default_factory=Start)
    sensitivity: float | None = None
    earlier: Run | None = None
    command: str = ""
    found_at: dict[str, str | None] = field(default_factory=dict)

    @property
    def known(self) -> frozenset[str]:
        """Digests of the patients that the start was trained on."""
        return frozenset(self.earlier.patients if self.earlier else ())


def load_run(path: Path) -> Run:
    """Read a run's folder. Raises DataError where it is not a whole run."""
    try:
        record = json.loads((path / "run.json").read_text(encoding="utf-8"))
        specification = Specification.from_json(record["reads"])
        if (path / FAMILIARITY).is_file():
            known = Familiarity.from_json(json.loads((path / FAMILIARITY).read_text(encoding="utf-8")))
            specification = dataclasses.replace(specification, familiarity=known)
        if patterns := load_patterns(path):
            shown = tuple(of.name for of in patterns if of.temperature is not None)
            channels = specification.labels + shown
            specification = dataclasses.replace(specification, patterns=patterns, map_channels=channels)
        task = Task.from_json(record["task"])
        return Run(path, task, Recipe(**record["recipe"]), specification, record)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not a whole training run ({error})") from error


def train(samples: Sequence[Sample], task: Task, plan: Plan, out: Path, resume: bool = False) -> Run:
    """Cross-validate, choose the verdict rule on the pooled folds, fit on everything, write a run.

    Without folds the threshold stays at one half and no figure is given. Raises DataError where ``out``
    exists, or was begun and ``resume`` is not asked for.
    """
    started = {
        "task": asdict(task),
        "recipe": asdict(plan.recipe),
        "folds": [plan.folds.count, plan.folds.by_source],
        "start": [str(plan.start.weights), str(plan.start.run_weights)],
        "precision": keras.config.dtype_policy().name,
        "samples": named(samples),
    }
    part = open_part(out, started, resume)
    reads = specification(task, plan.recipe)
    clips = gather_views(samples, reads, RATE)
    figures, history, reads = _cross_validated(clips, task, plan, reads, part)
    fitted = fit(clips, task, plan.recipe, plan.start, part / "fits" / "all", "all")
    fitted.network.save_weights(part / WEIGHTS)
    if task.beam == "ultrasound":
        _keep_familiarity(clips, reads, part)
    choose_calibration(clips, plan.recipe.seed).save(part / CALIBRATION)
    record = _record(samples, task, plan, reads, figures, fitted, history + fitted.history)
    write_json(part / "run.json", record)
    fit_patterns(load_run(part), clips, task.patterns, plan.command)
    _keep_logs(part)
    close_part(part, out)
    return load_run(out)


def specification(task: Task, recipe: Recipe) -> Specification:
    """How networks of a task are read before a rule was chosen."""
    return Specification(
        labels=task.labels,
        negative=task.negative,
        size=recipe.size,
        channels=task.channels,
        beam=task.beam,
        map_channels=task.labels,
        temperature=1.0,
        verdict=starting_rule(task),
    )


def _cross_validated(
    clips: Sequence[ClipViews], task: Task, plan: Plan, reads: Specification, part: Path
) -> tuple[dict[str, Any], list[dict[str, Any]], Specification]:
    if not plan.folds.count:
        return {}, [], reads
    held, history = cross_validate(
        clips, task, plan.recipe, plan.folds, plan.start, plan.known, reads, RATE, part
    )
    out = [clip for clip, maps in zip(clips, held, strict=True) if maps is not None]
    maps = [of for of in held if of is not None]
    reads, tried = choose_rule(out, reads, maps, task, plan.sensitivity)
    predictions = predict(out, reads, maps)
    write_predictions(part / "predictions.csv", predictions, reads.labels)
    figures = _pooled_figures(predictions, reads, plan)
    return {**figures, "rules_tried": tried}, history, reads


def _keep_familiarity(clips: Sequence[ClipViews], reads: Specification, part: Path) -> None:
    try:
        known = familiarity_of(clips, reads)
    except DataError as error:
        print(f"*** NO NOT-LUNG TEST: {error}; anything in a beam will get a verdict ***", flush=True)
        return
    (part / FAMILIARITY).write_text(json.dumps(known.to_json()), encoding="utf-8")


def _keep_logs(part: Path) -> None:
    for logs in (part / "fits").glob("*/*/logs"):
        logs.rename(_made(part / "logs") / f"{logs.parent.parent.name}-{logs.parent.name}")
    shutil.rmtree(part / "fits")


def _made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


def _pooled_figures(predictions: Sequence[Prediction], reads: Specification, plan: Plan) -> dict[str, Any]:
    """Out-of-fold figures of everything, and of each source that holds both labels."""
    folds = plan.folds
    by = "source" if folds.by_source else "patient and small source"
    some = f", {folds.only} of the folds" if folds.only else ""
    some += ", of patients new to the earlier run" if plan.earlier else ""
    seen = " The not-lung test was not applied." if reads.beam == "ultrasound" else ""
    figures: dict[str, Any] = {
        "how": f"{folds.count}-fold cross-validation by {by}{some}, pooled; the threshold, temperature and "
        f"abstain band were chosen on these same folds.{seen}",
        "pooled": full_metrics(predictions, reads, set()),
    }
    figures["pooled"].get("abstaining", {}).pop("curve", None)
    sources = sorted({item.sample.source for item in predictions})
    for source in sources if len(sources) > 1 else ():
        of = [item for item in predictions if item.sample.source == source]
        if source and len({item.sample.label for item in of}) > 1 and len(of) >= 20:
            figures[source] = metrics(of, reads)
    return figures


def _record(
    samples: Sequence[Sample],
    task: Task,
    plan: Plan,
    reads: Specification,
    figures: dict[str, Any],
    fitted: Fitted,
    history: list[dict[str, Any]],
) -> dict[str, Any]:
    data: dict[str, Any] = {
        "samples": len(samples),
        **{
            column + "s": _counts(samples, column) for column in ("label", "source", "grade", "probe", "site")
        },
        "licences": sorted({sample.license for sample in samples if sample.license}),
        "patients": sorted({patient_digest(s.patient) for s in samples}),
        "earlier_patients": sorted(plan.known),
    }
    if plan.earlier:
        before = plan.earlier.record["data"]
        data["earlier_sources"] = before["sources"] | before.get("earlier_sources", {})
        data["earlier_licences"] = sorted({*before["licences"], *before.get("earlier_licences", ())})
    return {
        "command": plan.command,
        "made": time.strftime("%Y-%m-%d"),
        "task": asdict(task),
        "recipe": asdict(plan.recipe),
        "folds": {k: v for k, v in asdict(plan.folds).items() if k not in ("processes", "ray")},
        "start": fitted.start,
        "sensitivity_aimed_at": plan.sensitivity,
        "reads": reads.to_json(),
        "backend": f"keras {keras.__version__} on {keras.backend.backend()}",
        "data": data,
        "data_found_at": plan.found_at,
        "confounds": confounds_of(samples, task),
        "figures": figures,
        "history": history,
    }


def _counts(samples: Sequence[Sample], column: str) -> dict[str, int]:
    values = Counter(str(getattr(sample, column)) or "not known" for sample in samples)
    return dict(sorted(values.items()))


def named(samples: Sequence[Sample]) -> list[list[str]]:
    """What a split depends on, to notice data that changed between two halves of a run."""
    return [[s.name, s.label, s.patient, s.source, s.grade] for s in samples]


def open_part(out: Path, started: dict[str, Any], resume: bool) -> Path:
    """The folder that ``out`` grows in, ``<name>.part``; one begun with the same ``started`` is taken up.

    Raises DataError where ``out`` exists, where one was begun and ``resume`` is not asked for, or where
    it was begun otherwise.
    """
    if out.exists():
        raise DataError(f"{out}: exists already; name another folder or remove it")
    part = out.with_name(out.name + ".part")
    text = json.dumps(started, sort_keys=True)
    if part.exists():
        if not resume:
            raise DataError(f"{part}: a run was begun there; add --resume to go on with it, or remove it")
        if not (part / STARTED).is_file() or (part / STARTED).read_text() != text:
            raise DataError(f"{part}: was begun with another recipe or data; name another folder")
    part.mkdir(parents=True, exist_ok=True)
    (part / STARTED).write_text(text)
    return part


def close_part(part: Path, out: Path) -> None:
    """Give a finished folder its name."""
    (part / STARTED).unlink()
    part.rename(out)

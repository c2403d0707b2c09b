"""A run becomes a bundle, and what that cost is proven on patients it was not fitted on.

Where the run was cross-validated, each fold's network is converted by the same recipe and read on the
patients that the fold left out; the shipped network, fitted on all, inherits the pooled figures and is
itself checked by agreement alone. Or the caller names patients that the run has never seen.
"""

from __future__ import annotations

import fcntl
import math
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from convert import proof
from convert.artifacts import (
    FLOAT_TFLITE,
    ONNX_UINT8,
    Artifact,
    Recipe,
    float_artifacts,
    int8_artifacts,
    measure,
    offer_mixed,
)
from convert.bundles import bundle_files, golden_vectors
from convert.edgetpu import check_for_edgetpu, compile_for_edgetpu
from convert.gate import Limits, judge
from convert.layers import find_blame
from convert.onnx import to_onnx, to_onnx_int8
from convert.pictures import write_flipped
from convert.report import render
from convert.tflite import CONVERTER, ConversionError
from reader.beam import Beam
from reader.bundle import EDGE_TPU, MODEL, ONNX, ONNX_INT8, REPORT, Specification, write_bundle
from reader.clips import Frame
from reader.reader import View
from training.calibration import Calibration, choose_calibration
from training.datasets import DataError, Sample, for_task, load_samples, patient_digest
from training.evaluation import write_json
from training.fitting import NetworkMaps
from training.folds import Fold
from training.runs import CALIBRATION, RATE, Run
from training.views import NO_IMAGE, ClipViews, gather_views, read_maps

Image = NDArray[np.uint8]
Float = NDArray[np.float32]

SCHEMA = 1
THREADS = 2
COMPARED = 16
"""Calibration inputs on which float TFLite is compared with Keras."""
LARGEST_FLOAT_DIFFERENCE = 1e-2
"""Logits by which the two may differ: they compute the same in another order."""


@dataclass(frozen=True)
class Conversion:
    """How a run is converted. ``data``: where the run's data are, if not where they were. ``held_out``:
    patients the run has never seen, instead of its folds; ``where`` and ``patient_pattern`` choose of
    them. ``calibration``: a data set of training patients instead of the run's own inputs. ``int8``: an
    int8 TFLite graph made elsewhere from the same network, to be judged instead of our own.
    ``onnx``: the ONNX files that the bundle holds. ``allow_partial``: of an Edge TPU graph.
    ``float_layers``, ``finetune``: as of ``Recipe``."""

    version: str
    data: Path | None = None
    held_out: Path | None = None
    where: Sequence[str] = ()
    patient_pattern: str | None = None
    calibration: Path | None = None
    int8: Path | None = None
    onnx: tuple[str, ...] = (ONNX, ONNX_INT8)
    allow_partial: bool = False
    command: str = ""
    float_layers: tuple[str, ...] = ()
    finetune: int = 0
    limits: Limits = field(default_factory=Limits)

    def recipe(self, run: Run) -> Recipe:
        """How the run's weights come down to int8."""
        return Recipe(run.recipe.seed, self.float_layers, self.finetune)


def convert_run(run: Run, how: Conversion, out: Path, report: Path) -> dict[str, Any]:
    """Write the bundle ``out`` and, in the folder ``report``, report.html, report.json and pictures of the
    flipped clips. Returns the report.

    Raises DataError where a set cannot be used or a folder exists, ConversionError where int8 cannot hold
    the network, and ``OSError`` where the disk is full; then nothing is left behind.
    """
    for path in (out, report):
        if path.exists():
            raise DataError(f"{path}: exists already; name another folder or remove it")
    with _alone(out), _Steps() as steps:
        part, pictures = out.with_name(out.name + ".part"), report.with_name(report.name + ".part")
        # What a killed conversion left is nobody's now.
        for left in (part, pictures):
            shutil.rmtree(left, ignore_errors=True)
        try:
            # The not-lung test decides before any network: it would only hide clips from the comparison.
            bare = replace(run, reads=replace(run.reads, familiarity=None))
            found, networks, golden = _converted(bare, how, steps, pictures)
            write_bundle(part, bundle_files(run, how.version, found, networks, golden))
            write_json(pictures / REPORT, found)
            (pictures / "report.html").write_text(render(found), encoding="utf-8")
            part.rename(out)
            pictures.rename(report)
        finally:
            shutil.rmtree(part, ignore_errors=True)
            shutil.rmtree(pictures, ignore_errors=True)
    return found


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold a lock beside ``out``, so that two conversions into one folder do not mix."""
    out.parent.mkdir(parents=True, exist_ok=True)
    path = out.with_name(out.name + ".lock")
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(
                f"{out}: another conversion is writing it; wait, or name another folder"
            ) from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


class _Steps:
    """Progress with the time left: a bar on a terminal, else a line a step."""

    def __enter__(self) -> _Steps:
        self._bar = tqdm(unit="step", dynamic_ncols=True, disable=None)
        self._began = time.monotonic()
        self._done = 0
        return self

    def expect(self, steps: int) -> None:
        """How many there will be."""
        self._total = self._bar.total = steps

    def next(self, what: str) -> None:
        """Begin one."""
        self._bar.set_description(what)
        passed = time.monotonic() - self._began
        left = f", about {passed / self._done * (self._total - self._done):.0f} s left" if self._done else ""
        if self._bar.disable:
            print(f"{self._done + 1} of {self._total}: {what} ({passed:.0f} s{left})", flush=True)
        self._done += 1
        self._bar.update()

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def _converted(
    run: Run, how: Conversion, steps: _Steps, pictures: Path
) -> tuple[dict[str, Any], dict[str, bytes], bytes]:
    """The report, the networks that go into the bundle, and its golden vectors."""
    folds = [] if how.held_out else run.folds()
    samples = _samples(run, how, folds)
    steps.expect(6 + 2 * len(folds) + bool(samples) + bool(how.held_out))
    given = _given_clips(run, how) if how.calibration else []
    calibration = _chosen(given, (), run) if given else Calibration.load(run.path / CALIBRATION)
    calibration.check(str(how.calibration or run.path / CALIBRATION))
    clips = _looked(samples, run, steps) if samples else []
    _check_unchanged(folds, clips)
    steps.next("converting the network")
    artifacts, rounded = int8_artifacts(run.network, calibration, how.recipe(run))
    artifacts |= float_artifacts(run.network(batch=1))
    if how.int8:
        artifacts[MODEL] = Artifact(MODEL, how.int8.read_bytes())
    apart = _float_difference(run, artifacts[FLOAT_TFLITE], calibration)
    maps: dict[str, list[Float]] = {}
    if how.held_out:
        steps.next("reading the held-out patients")
        maps = _read_by_all(clips, artifacts)
    for number, fold in enumerate(folds, 1):
        for name, of in _fold_maps(
            run, how, fold, clips, given, steps, f"fold {number} of {len(folds)}"
        ).items():
            maps.setdefault(name, [np.zeros(0, np.float32)] * len(clips))
            for place, found in of.items():
                maps[name][place] = found
    # The gate is about verdicts, and folds keep the maps of their labels alone.
    judged = replace(run, reads=replace(run.reads, patterns=()))
    steps.next("reading with the shipped network")
    shipped_clips = clips or _as_clips(calibration, run.reads)
    maps_of = {proof.FLOAT: FLOAT_TFLITE, MODEL: MODEL}
    shipped = proof.read(
        shipped_clips,
        {name: _read(shipped_clips, artifacts[of]) for name, of in maps_of.items()},
        judged.reads,
    )
    steps.next("comparing")
    held = proof.read(clips, maps, judged.reads) if clips else None
    report = _report(judged, how, folds, held, shipped, calibration, apart)
    report["patterns"] = _patterns(run, how, held, shipped)
    if held is not None:
        write_flipped(held, judged.reads, MODEL, pictures)
    else:
        pictures.mkdir(parents=True)
    steps.next("judging every layer")
    inputs = calibration.inputs
    report["blame"] = asdict(find_blame(artifacts[MODEL].content, artifacts[FLOAT_TFLITE].content, inputs))
    report["gate"] = _gate(report, held, judged, how.limits)
    steps.next("trying mixed precision")
    worst = [layer["name"] for layer in sorted(report["blame"]["layers"], key=_rmse_if_float)]
    report["mixed"] = offer_mixed(rounded, artifacts, calibration, worst)
    report["edgetpu"], compiled = _edgetpu(artifacts[MODEL], how)
    steps.next("measuring")
    uint8 = Artifact(ONNX_UINT8, to_onnx_int8(to_onnx(rounded), inputs, symmetric=False))
    report["measured"] = measure({**artifacts, ONNX_UINT8: uint8}, rounded, inputs)
    golden, report["golden"] = golden_vectors(artifacts, run.reads)
    shown = {name: artifacts[name].content for name in (MODEL, *how.onnx)}
    if compiled:
        shown[EDGE_TPU] = compiled
    return report, shown, golden


def _samples(run: Run, how: Conversion, folds: Sequence[Fold]) -> list[Sample]:
    """Those that the proof is made on; none where nothing was held out."""
    if how.held_out:
        return _new_patients(run, how)
    if not folds:
        print("*** NOTHING WAS HELD OUT: the run has no folds and --held-out names none ***", flush=True)
        return []
    found = run.record.get("data_found_at", {})
    folder = how.data or Path(found.get("folder") or "unknown")
    if not folder.is_dir():
        raise DataError(f"{folder}: the data of the run are not there any more: give --data DIR")
    pattern = how.patient_pattern or found.get("patient_pattern")
    samples = for_task(load_samples(folder, (), pattern), run.task)
    names = {name for fold in folds for name in fold.maps}
    kept = [sample for sample in samples if sample.name in names]
    if lost := names - {sample.name for sample in kept}:
        raise DataError(f"{folder}: lacks {min(lost)} and {len(lost) - 1} more that the run was tried on")
    return kept


def _new_patients(run: Run, how: Conversion) -> list[Sample]:
    assert how.held_out is not None
    samples = for_task(load_samples(how.held_out, how.where, how.patient_pattern), run.task)
    nameless = [sample.name for sample in samples if not sample.patient]
    if nameless:
        raise DataError(
            f"{how.held_out}: {len(nameless)} samples name no patient ({nameless[0]}), so that nobody can "
            "tell whether the network knows them: add the column, or --patient-pattern"
        )
    shared = sorted({s.patient for s in samples if patient_digest(s.patient) in run.patients})
    if shared:
        raise DataError(
            f"{how.held_out}: {len(shared)} patients were trained on: {', '.join(shared)}; leave them out"
        )
    return samples


def _given_clips(run: Run, how: Conversion) -> list[ClipViews]:
    """What the caller would calibrate on."""
    assert how.calibration is not None
    samples = for_task(load_samples(how.calibration, (), how.patient_pattern), run.task)
    if how.held_out:
        held = {sample.patient for sample in _new_patients(run, how)}
        if shared := sorted(held & {sample.patient for sample in samples}):
            raise DataError(f"{how.calibration}: shares patients with the held-out set: {', '.join(shared)}")
    return gather_views(samples, run.reads, RATE)


def _chosen(given: Sequence[ClipViews], away: Sequence[ClipViews], run: Run) -> Calibration:
    """Calibration inputs from the caller's clips, but of none of the patients who are held out."""
    patients = {clip.sample.patient for clip in away} - {""}
    names = {clip.sample.name for clip in away}
    rest = [c for c in given if c.sample.patient not in patients and c.sample.name not in names]
    if not any(clip.pixels for clip in rest):
        raise DataError("no calibration image is left: all are of patients who are held out, or unreadable")
    return choose_calibration(rest, run.recipe.seed)


def _looked(samples: Sequence[Sample], run: Run, steps: _Steps) -> list[ClipViews]:
    steps.next(f"looking at {len(samples)} clips and pictures")
    clips = gather_views(samples, run.reads, RATE)
    if not any(clip.pixels for clip in clips):
        raise DataError("no held-out clip has a frame that can be read: nothing can be proven on them")
    return clips


def _check_unchanged(folds: Sequence[Fold], clips: Sequence[ClipViews]) -> None:
    frames = {name: len(of) for fold in folds for name, of in fold.maps.items()}
    for clip in clips if folds else ():
        if len(clip.pixels) != frames[clip.sample.name]:
            raise DataError(f"{clip.sample.path}: was changed since the run read it: train again")


def _fold_maps(
    run: Run,
    how: Conversion,
    fold: Fold,
    clips: Sequence[ClipViews],
    given: Sequence[ClipViews],
    steps: _Steps,
    name: str,
) -> dict[str, dict[int, Float]]:
    """Class maps of a fold's own patients, by network and the clip's place."""
    places = [i for i, clip in enumerate(clips) if clip.sample.name in fold.maps]
    held = [clips[i] for i in places]
    floats = [fold.maps[clip.sample.name] for clip in held]
    steps.next(f"{name}: converting")
    calibration = _chosen(given, held, run) if given else fold.calibration
    calibration.check(name)
    artifacts, _ = int8_artifacts(lambda batch: run.network(batch, fold), calibration, how.recipe(run))
    steps.next(f"{name}: reading {sum(map(len, floats))} frames")
    found = {proof.FLOAT: floats, **{key: _read(held, of) for key, of in artifacts.items()}}
    return {key: dict(zip(places, of, strict=True)) for key, of in found.items()}


def _read_by_all(clips: Sequence[ClipViews], artifacts: Mapping[str, Artifact]) -> dict[str, list[Float]]:
    found = {name: _read(clips, of) for name, of in artifacts.items() if name != ONNX}
    return {proof.FLOAT: found.pop(FLOAT_TFLITE), **found}


def _read(clips: Sequence[ClipViews], artifact: Artifact) -> list[Float]:
    runner = artifact.runner(THREADS)
    return read_maps(clips, lambda pixels: np.stack([runner.class_map(one) for one in pixels]))


def _float_difference(run: Run, of: Artifact, calibration: Calibration) -> float:
    """Largest difference in logits between Keras and float TFLite. Raises ConversionError where they
    do not compute the same."""
    inputs = calibration.inputs[:: -(-len(calibration.inputs) // COMPARED)]
    runner = of.runner(THREADS)
    found = np.stack([runner.class_map(pixels) for pixels in inputs])
    apart = float(np.abs(found - NetworkMaps(run.network(), batch=1)(inputs)).max())
    if apart > LARGEST_FLOAT_DIFFERENCE:
        raise ConversionError(f"float TFLite differs from Keras by {apart:.3f} logits")
    return apart


def _rmse_if_float(layer: dict[str, Any]) -> float:
    found = layer["map_rmse_if_float"]
    return math.inf if found is None else float(found)


def _edgetpu(model: Artifact, how: Conversion) -> tuple[dict[str, Any], bytes | None]:
    checked = check_for_edgetpu(model.content)
    compiled = compile_for_edgetpu(model.content, how.allow_partial)
    print(f"Edge TPU: {compiled.sentence} {checked.sentence}", flush=True)
    report = None if compiled.report is None else asdict(compiled.report)
    return {"compiler": compiled.sentence, "report": report, "checked": asdict(checked)}, compiled.model


def _report(
    run: Run,
    how: Conversion,
    folds: Sequence[Fold],
    held: proof.Read | None,
    shipped: proof.Read,
    calibration: Calibration,
    float_difference: float,
) -> dict[str, Any]:
    compared = proof.compare(held, run.reads) if held else None
    agreement = proof.compare(shipped, run.reads)
    return {
        "schema": SCHEMA,
        "made": time.strftime("%Y-%m-%d"),
        "name": run.task.name,
        "title": run.task.title,
        "version": how.version,
        "labels": list(run.reads.labels),
        "negative": run.reads.negative,
        "command": how.command,
        "converter": CONVERTER,
        "trained": {key: run.record[key] for key in ("command", "made", "backend")},
        "how": _how(run, how, folds),
        "held": compared,
        "calibration": proof.calibration(held, run.reads, MODEL) if held else None,
        "shipped": {
            "clips": agreement["clips"],
            "frames": agreement["frames"],
            "seen_in_training": how.held_out is None,
            "agreement": agreement["agreement"][MODEL],
        },
        "representative": calibration.facts(),
        "float_tflite_against_keras": round(float_difference, 6),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
    }


def _patterns(run: Run, how: Conversion, held: proof.Read | None, shipped: proof.Read) -> dict[str, Any]:
    """Agreement of int8 with float in every supported pattern, of the folds pooled and of the shipped
    network. Raises ConversionError where int8 moves one further than a label may be moved."""
    reads = run.reads
    scores = [proof.pattern_scores(shipped, reads, name) for name in (proof.FLOAT, MODEL)]
    found = {"shipped": proof.pattern_agreement(scores[0], scores[1], reads)}
    if held is not None:
        if how.held_out:
            said: Sequence[Mapping[str, float]] = proof.pattern_scores(held, reads, proof.FLOAT)
        else:
            said = [run.pattern_scores.get(clip.sample.name, {}) for clip in held.clips]
        found["held"] = proof.pattern_agreement(said, proof.pattern_scores(held, reads, MODEL), reads)
    for where, by in found.items():
        for name, of in by.items():
            if of["difference_of_p"]["mean"] > how.limits.difference_of_p:
                moved = of["difference_of_p"]["mean"]
                raise ConversionError(
                    f"int8 moves the pattern {name} by {moved:.3f} on average ({where}), "
                    f"{how.limits.difference_of_p:g} allowed: take it out of the task"
                )
    return found


def _gate(report: dict[str, Any], held: proof.Read | None, run: Run, limits: Limits) -> dict[str, Any]:
    worst = report["blame"]["layers"][0]
    agreed = report["shipped"]["agreement"]
    broken = worst["name"], worst["lost_db"]
    return judge(proof.evidence(report["held"], held, agreed, broken, run.reads, MODEL), limits)


def _how(run: Run, how: Conversion, folds: Sequence[Fold]) -> str:
    if how.held_out:
        where = f" where {', '.join(how.where)}" if how.where else ""
        return (
            f"Both networks read {how.held_out.name}{where}: patients of whom none was trained on. "
            "The threshold and temperature are the run's own."
        )
    if not folds:
        return "Nothing was held out: only agreement on the calibration inputs is known."
    some = run.record["folds"]["count"]
    fitted = f"{len(folds)} of {some}" if len(folds) < some else str(some)
    return (
        f"Cross-validation, {fitted} folds: the network of each fold was converted by this recipe and read "
        "on the patients whom that fold left out; the readings are pooled. The shipped network was fitted "
        "on all of them: it inherits these figures and was itself checked by agreement with its own float "
        "network alone. The threshold and temperature were chosen on the same folds with the float networks."
    )


def _as_clips(calibration: Calibration, reads: Specification) -> list[ClipViews]:
    """Calibration inputs as stills, for agreement where there is nothing else to read."""
    whole = Beam(
        ((0, 0), (reads.size, 0), (reads.size, reads.size), (0, reads.size)), (reads.size,) * 2, "linear"
    )
    clips = []
    for pixels, name, label in zip(calibration.inputs, calibration.samples, calibration.labels, strict=True):
        sample = Sample(Path(str(name)), str(name), str(label), str(name))
        view = View(Frame(NO_IMAGE, 0.0, 0, still=True), whole, pixels)
        clips.append(ClipViews(sample, whole, None, (view,)))
    return clips

"""Cross-validation: every clip read by a network that saw neither its patient nor its small source.

Folds are fitted one after another, in parallel processes, or on a Ray cluster whose machines have
Sonoglance and reach the data under the same paths.
"""

from __future__ import annotations

import json
import multiprocessing
import zipfile
import zlib
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from reader.bundle import Specification
from training.calibration import Calibration, choose_calibration
from training.datasets import DataError, Sample, Task, patient_folds
from training.fitting import FitError, NetworkMaps, Recipe, Start, fit
from training.views import ClipViews, gather_views, read_maps

Float = NDArray[np.float32]
FOLDS = "folds"


@dataclass(frozen=True)
class Fold:
    """What one fold leaves. ``maps``: class maps [frames, rows, columns, labels] of the samples that
    were held out, by name. ``weights``: its network's, in Keras' order. ``calibration``: inputs of
    the patients it was fitted on. ``history``: a row an epoch. ``name``: its file's, once it has one."""

    maps: dict[str, Float]
    weights: list[NDArray[Any]]
    calibration: Calibration
    history: list[dict[str, Any]]
    name: str = ""


@dataclass(frozen=True)
class Folds:
    """``by_source``: whole sources are held out. ``only``: fit so many of the folds, where the machine is
    too small for all; the rest of the clips then get no figure. ``processes``: folds fitted at a time.
    ``ray``: a cluster's address; ``local`` starts one on this machine."""

    count: int
    by_source: bool = False
    only: int | None = None
    processes: int = 1
    ray: str | None = None


@dataclass(frozen=True)
class _Job:
    """All that another process needs to fit a fold."""

    samples: tuple[Sample, ...]
    held: tuple[int, ...]
    task: Task
    recipe: Recipe
    start: Start
    reads: Specification
    rate: float
    folder: Path
    name: str


def cross_validate(
    clips: Sequence[ClipViews],
    task: Task,
    recipe: Recipe,
    folds: Folds,
    start: Start,
    known: Collection[str],
    reads: Specification,
    rate: float,
    part: Path,
) -> tuple[list[Float | None], list[dict[str, Any]]]:
    """Class maps [frames, rows, columns, labels] of every clip, None where it was never held out.

    Finished folds are kept in ``part`` and not fitted again. Raises DataError where a label has too few
    patients, or Ray is asked for and not installed.
    """
    samples = tuple(clip.sample for clip in clips)
    split = patient_folds(samples, folds.count, recipe.seed, folds.by_source, known)[: folds.only]
    saved = [part / FOLDS / f"{fold + 1:02}.npz" for fold in range(len(split))]
    jobs = {
        fold: _Job(
            samples, tuple(held), task, recipe, start, reads, rate,
            part / "fits" / f"fold{fold + 1}", f"fold {fold + 1} of {folds.count}",
        )
        for fold, held in enumerate(split)
        if not saved[fold].exists()
    }  # fmt: skip
    (part / FOLDS).mkdir(exist_ok=True)
    for place, fold in _results(jobs, clips, folds):
        _save(saved[place], fold)
    done = [load_fold(path) for path in saved]
    maps = {name: of for fold in done for name, of in fold.maps.items()}
    return [maps.get(sample.name) for sample in samples], [row for fold in done for row in fold.history]


def _results(jobs: dict[int, _Job], clips: Sequence[ClipViews], folds: Folds) -> Iterator[tuple[int, Fold]]:
    if folds.ray is not None:
        yield from _on_ray(jobs, folds.ray)
    elif folds.processes > 1:
        # Spawned: a forked process would inherit the backend's threads and hang.
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(folds.processes, mp_context=spawn) as pool:
            waiting = {pool.submit(_fit_apart, job): fold for fold, job in jobs.items()}
            try:
                for done in as_completed(waiting):
                    yield waiting[done], done.result()
                pool.shutdown()
            except BrokenProcessPool:
                raise FitError(
                    "a fold's process was killed, most often for want of memory: "
                    "take fewer --processes and add --resume"
                ) from None
            finally:
                # Once a fold has failed nobody waits for those in work; they left checkpoints.
                for worker in multiprocessing.active_children():
                    worker.terminate()
    else:
        for fold, job in jobs.items():
            yield fold, _fit_fold(job, clips)


def _on_ray(jobs: dict[int, _Job], address: str) -> Iterator[tuple[int, Fold]]:
    try:
        import ray
    except ImportError:
        raise DataError("--ray: Ray is not installed: pip install 'sonoglance[ray]'") from None
    same = {"env_vars": {"KERAS_BACKEND": keras.backend.backend()}}
    try:
        cluster = ray.init(address=address, runtime_env=same)
    except ConnectionError as error:
        raise DataError(f"--ray {address}: no cluster answers there ({error})") from error
    with cluster:
        # Ray hides the GPUs from a fold that does not ask for one.
        remote = ray.remote(num_gpus=min(1, ray.cluster_resources().get("GPU", 0)))(_fit_apart)
        waiting = {remote.remote(_anywhere(job)): fold for fold, job in jobs.items()}
        while waiting:
            (done, *_), _ = ray.wait(list(waiting))
            try:
                held = ray.get(done)
            except ray.exceptions.RayTaskError as error:
                # Without the far machine's traceback, which Ray makes part of the message.
                raise error.cause from None
            yield waiting.pop(done), held


def _anywhere(job: _Job) -> _Job:
    """The job for a process that works in another folder."""
    start = Start(*(path and path.resolve() for path in (job.start.weights, job.start.run_weights)))
    samples = tuple(replace(sample, path=sample.path.resolve()) for sample in job.samples)
    return replace(job, samples=samples, start=start, folder=job.folder.resolve())


def _fit_apart(job: _Job) -> Fold:
    return _fit_fold(job, gather_views(job.samples, job.reads, job.rate))


def _fit_fold(job: _Job, clips: Sequence[ClipViews]) -> Fold:
    away = set(job.held)
    fitting = [clip for place, clip in enumerate(clips) if place not in away]
    fitted = fit(fitting, job.task, job.recipe, job.start, job.folder, job.name)
    held = [clips[place] for place in job.held]
    maps = read_maps(held, NetworkMaps(fitted.network))
    names = (clip.sample.name for clip in held)
    return Fold(
        dict(zip(names, maps, strict=True)),
        fitted.network.get_weights(),
        choose_calibration(fitting, job.recipe.seed),
        fitted.history,
    )


def _save(path: Path, fold: Fold) -> None:
    part = path.with_suffix(".part.npz")
    arrays = {
        "history": np.array(json.dumps(fold.history)),
        **{f"weights/{i:04}": of for i, of in enumerate(fold.weights)},
        **{f"calibration/{name}": of for name, of in vars(fold.calibration).items()},
        **{f"maps/{name}": of for name, of in fold.maps.items()},
    }
    np.savez_compressed(part, **arrays)
    part.rename(path)


def load_fold(path: Path) -> Fold:
    """Read a fold's file. Raises DataError where it is damaged."""
    try:
        with np.load(path) as saved:
            of: dict[str, dict[str, Any]] = {"weights": {}, "calibration": {}, "maps": {}}
            for name in saved.files:
                kind, _, rest = name.partition("/")
                if rest:
                    of[kind][rest] = saved[name]
            history = json.loads(str(saved["history"]))
            weights = [of["weights"][name] for name in sorted(of["weights"])]
            return Fold(of["maps"], weights, Calibration(**of["calibration"]), history, path.stem)
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: not a whole fold ({error})") from error

"""Learns what lung ultrasound looks like, from real lung frames alone.

Its parameters and its limit come from no other picture: the limit is a quantile of the distances of
patients and scanners that were left out. The constants below and ``keep`` were settled by hand with an
eye on other kinds of pictures too; docs/not-lung.md says which.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GroupKFold
from sklearn.neural_network import MLPClassifier

from reader.bundle import Specification
from reader.familiar import BANDS, Familiarity, Look, Onlooker, beside_the_mean
from training.datasets import PATIENTS_TO_SPLIT_A_SOURCE, DataError
from training.views import ClipViews

Floats = NDArray[np.float64]

FOLDS = 5
"""Folds over the patients of a large source; a small source is a fold of its own."""
SHRINKAGE = 0.2
"""How far the correlations of the measures are drawn towards none: few scanners show few of them."""
HIDDEN = 24
"""Units of the network that tells a block's depth."""
BLOCKS_SHOWN, BLOCKS_A_LOOK = 120_000, 100
"""Most blocks that it is taught, and of one look."""
LOOKS_A_SECOND = 2.5
SEED = 1


def familiarity_of(clips: Sequence[ClipViews], reads: Specification) -> Familiarity:
    """``fit_familiarity`` from clips, each looked at LOOKS_A_SECOND times a second."""
    looks, patients, sources = [], [], []
    now = int(np.argmax(reads.channels))
    for clip in clips:
        if clip.beam is None:
            continue
        onlooker, due = Onlooker(clip.mask(reads.size)), -1e9
        for view in clip.views:
            if view.pixels is None or view.frame.captured_at < due - 1e-3:
                continue
            due = view.frame.captured_at + 1 / LOOKS_A_SECOND
            looks.append(onlooker.describe(view.pixels[:, :, now]))
            patients.append(clip.sample.patient)
            sources.append(clip.sample.source)
    return fit_familiarity(looks, patients, sources)


def fit_familiarity(
    looks: Sequence[Look], patients: Sequence[str], sources: Sequence[str], keep: float = 0.98
) -> Familiarity:
    """Learn from the looks of real lung frames, with each frame's patient and source.

    ``keep``: the share of frames that must pass, a patient of a source counting as any other and a
    source as the root of its patients, when neither patient nor, where it is small, source was learnt
    from. Raises DataError where there are too few patients to leave any out.
    """
    if not 0.5 <= keep < 1:
        raise DataError(f"keep {keep}: a share of frames between 0.5 and 1")
    measured = held_out(looks, patients, sources)
    weights = frame_weights(patients, sources)
    usual = [_quantile(column, weights, 0.5) for column in measured.T]
    excess = [
        _quantile(column, weights, 0.95) - middle for column, middle in zip(measured.T, usual, strict=True)
    ]
    beyond = np.hypot(*np.maximum((measured - usual) / excess, 0).T)
    return dataclasses.replace(
        _fit(looks, weights),
        usual=(usual[0], usual[1]),
        excess=(excess[0], excess[1]),
        limit=_quantile(beyond, weights, keep),
    )


def held_out(looks: Sequence[Look], patients: Sequence[str], sources: Sequence[str]) -> Floats:
    """Each look's strangeness to what was learnt without its fold: [n, 2], of texture and depth."""
    measured = np.zeros((len(looks), 2))
    folds = familiarity_folds(patients, sources)
    for fold in np.unique(folds):
        learnt, left = np.flatnonzero(folds != fold).tolist(), np.flatnonzero(folds == fold).tolist()
        weights = frame_weights([patients[i] for i in learnt], [sources[i] for i in learnt])
        without = _fit([looks[i] for i in learnt], weights)
        measured[left] = [without.strangeness(looks[i]) for i in left]
    return measured


def familiarity_folds(patients: Sequence[str], sources: Sequence[str]) -> NDArray[np.intp]:
    """The fold of each frame: patients are never torn, and a small source is a fold of its own."""
    of = np.asarray(sources)
    names = np.asarray(patients)
    folds = np.zeros(len(names), np.intp)
    several = len(set(sources)) > 1
    for source in sorted(set(sources)):
        its = of == source
        count = len(set(names[its]))
        first = folds.max() + 1
        if several and count < PATIENTS_TO_SPLIT_A_SOURCE:
            folds[its] = first
            continue
        if count < 2:
            raise DataError("familiarity: needs two patients or more, to leave one out")
        index = np.flatnonzero(its)
        splitter = GroupKFold(min(FOLDS, count))
        for number, (_, left) in enumerate(splitter.split(index, groups=names[index])):
            folds[index[left]] = first + number
    return folds


def frame_weights(patients: Sequence[str], sources: Sequence[str]) -> Floats:
    """What each frame counts, summing to 1: within a source every patient the same, and a source as
    the root of the number of its patients, so that a large one does not speak for all scanners."""
    keys = [f"{source}\n{patient}" for source, patient in zip(sources, patients, strict=True)]
    _, first, key, frames = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    of = np.asarray(sources)[first]
    names, counts = np.unique(of, return_counts=True)
    patients_of = dict(zip(names.tolist(), counts.tolist(), strict=True))
    weights = np.array([patients_of[source] ** -0.5 for source in of.tolist()]) / frames
    return np.asarray(weights[key] / weights[key].sum(), np.float64)


def _fit(looks: Sequence[Look], weights: Floats) -> Familiarity:
    pictures = np.stack([look.picture for look in looks]).astype(np.float64)
    centre = weights @ pictures
    scale = np.sqrt(weights @ (pictures - centre) ** 2) + 1e-6
    z = (pictures - centre) / scale
    correlation = (z * weights[:, None]).T @ z
    correlation = (1 - SHRINKAGE) * correlation + SHRINKAGE * np.eye(len(centre))
    values, vectors = np.linalg.eigh(correlation)
    grain_centre, grain_scale, network = _fit_depth(looks, weights)
    (first, second), (first_bias, second_bias) = network.coefs_, network.intercepts_
    single = np.float32
    return Familiarity(
        centre=centre.astype(single),
        scale=scale.astype(single),
        whitening=(vectors / np.sqrt(values)).astype(single),
        grain_centre=grain_centre.astype(single),
        grain_scale=grain_scale.astype(single),
        layers=(
            (first.astype(single), first_bias.astype(single)),
            (second.astype(single), second_bias.astype(single)),
        ),
        usual=(0.0, 0.0),
        excess=(1.0, 1.0),
        limit=0.0,
    )


def _fit_depth(looks: Sequence[Look], weights: Floats) -> tuple[Floats, Floats, MLPClassifier]:
    """The network that tells a block's depth band from its grain, every band shown as often."""
    random = np.random.default_rng(SEED)
    count = min(BLOCKS_SHOWN, BLOCKS_A_LOOK * len(looks))
    bands = random.integers(0, BANDS, count)
    chosen = random.choice(len(looks), count, p=weights)
    shown, taught = [], []
    for index in np.unique(chosen):
        look, grain = looks[index], beside_the_mean(looks[index])
        for band in bands[chosen == index]:
            blocks = np.flatnonzero(look.band == band)
            if blocks.size:
                shown.append(grain[random.choice(blocks)])
                taught.append(band)
    x, y = np.stack(shown).astype(np.float64), np.array(taught)
    missing = set(range(BANDS)) - set(taught)
    if missing:
        raise DataError(f"familiarity: no beam reaches depth bands {sorted(missing)}")
    centre, scale = x.mean(axis=0), x.std(axis=0) + 1e-6
    network = MLPClassifier(
        (HIDDEN,), alpha=0.1, max_iter=12, learning_rate_init=3e-3, batch_size=512, random_state=SEED
    )
    with warnings.catch_warnings():
        # It is stopped after twelve rounds, not run until it converges.
        warnings.simplefilter("ignore", ConvergenceWarning)
        network.fit(np.clip((x - centre) / scale, -4, 4), y)
    return centre, scale, network


def _quantile(values: Floats, weights: Floats, share: float) -> float:
    order = np.argsort(values)
    place = np.searchsorted(np.cumsum(weights[order]), share * weights.sum())
    return float(values[order][min(int(place), len(values) - 1)])

"""Patterns beside the label: one more channel of the class map each, on features left as they are.

``python -m training.patterns RUN`` adds them to a finished run; ``sonoglance train`` does so by itself.
docs/patterns.md has the rule by which one is supported. ``patterns.json`` has the figures and every
clip's probabilities, ``patterns.npz`` the channels of the network and of every fold's.
"""

from __future__ import annotations

import argparse
import json
import sys
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedGroupKFold

from reader.errors import SonoglanceError
from reader.patterns import FEWEST_PATIENTS, Pattern
from reader.preprocess import cell_weights
from training import networks
from training.calibration import Calibration
from training.datasets import DataError, PatternRule, load_task, patient_digest
from training.evaluation import clip_scores, predict, write_json
from training.fitting import NetworkMaps, scaled
from training.metrics import binary_figures, intervals, ranking
from training.rules import choose_threshold
from training.views import ClipViews, gather_views, read_maps

if TYPE_CHECKING:
    from training.runs import Run

Float = NDArray[np.float32]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

PATTERNS, CHANNELS = "patterns.json", "patterns.npz"
WHOLE = "all"
"""The name in ``patterns.npz`` of the network that was fitted on everything."""
PENALTIES = np.geomspace(1e-3, 1e3, 13)
"""Inverse strengths of the ridge penalty that are tried, as scikit-learn's ``C``."""
INNER_FOLDS = 5
CLIPS_AT_ONCE = 16
SMALLEST = 1e-6
"""Logits below which a map counts as empty."""
LEAST_REACH = 0.01
"""Below this a channel is as good as empty."""
WITHIN = 0.98
"""Share of the labels' range that patterns may fill, so that they never widen an int8 map's steps."""


@dataclass(frozen=True)
class _Shown:
    """A pattern and the clips of which it is known: their places, and whether they show it."""

    name: str
    places: NDArray[np.intp]
    truth: Flags


def fit_patterns(run: Run, clips: Sequence[ClipViews], rules: Sequence[PatternRule], command: str) -> None:
    """Fit a run's patterns and write them into its folder, with their out-of-fold figures.

    Writes nothing where none of the patterns is known of enough patients that some fold left out.
    """
    clips = [clip for clip in clips if clip.pixels]
    folds = run.folds()
    maps = {name: of for fold in folds for name, of in fold.maps.items()}
    shown = list(_shown(clips, rules, maps))
    if not shown:
        return
    said = np.full((len(clips), len(shown)), np.nan)
    channels: dict[str, Float] = {}
    reach = np.full(len(shown), LEAST_REACH)
    for fold in [*folds, None]:
        name = WHOLE if fold is None else fold.name
        print(f"patterns: network {name}", flush=True)
        network = run.label_network(fold)
        frames = _features(network, clips)
        held = np.array([fold is not None and clip.sample.name in fold.maps for clip in clips])
        columns = [_fit_channel(of, frames, held, clips, run.recipe.seed) for of in shown]
        channels[name] = np.stack(columns, axis=1).astype(np.float32)
        for place in np.flatnonzero(held):
            logits = frames[place] @ channels[name][:-1] + channels[name][-1]
            said[place] = (1 / (1 + np.exp(-logits))).mean(axis=0)
        calibration = Calibration.load(run.path / "calibration.npz") if fold is None else fold.calibration
        reach = np.maximum(reach, _reach(network, calibration, channels[name]))
    patterns, figures = [], {}
    for i, of in enumerate(shown):
        pattern, figures[of.name] = _measured(of, said[:, i], clips)
        temperature = float(f"{WITHIN / reach[i]:.3g}") if pattern.supported else None
        patterns.append(replace(pattern, temperature=temperature))
        figures[of.name]["roc_auc_of_label"] = _by_label(run, clips, of, maps)
    np.savez_compressed(run.path / CHANNELS, **channels)  # type: ignore[arg-type]
    by_clip = {
        clip.sample.name: {of.name: round(float(p), 6) for of, p in zip(shown, row, strict=True)}
        for clip, row in zip(clips, said, strict=True)
        if clip.sample.name in maps
    }
    record = {
        "command": command,
        "patterns": [asdict(pattern) for pattern in patterns],
        "figures": figures,
        "clips": by_clip,
    }
    write_json(run.path / PATTERNS, record)


def _shown(
    clips: Sequence[ClipViews], rules: Sequence[PatternRule], maps: Mapping[str, Float]
) -> Iterator[_Shown]:
    samples = [clip.sample for clip in clips]
    for rule in rules:
        known = rule.known_in(samples)
        places = np.array([i for i, has in enumerate(known) if has is not None], np.intp)
        truth = np.array([has for has in known if has is not None], bool)
        counts = [
            len({samples[i].patient for i in places[truth == has] if samples[i].name in maps})
            for has in (True, False)
        ]
        if min(counts) >= FEWEST_PATIENTS:
            yield _Shown(rule.name, places, truth)
        else:
            print(
                f"pattern {rule.name}: left out {counts[0]} patients with and {counts[1]} without it, "
                f"{FEWEST_PATIENTS} of each needed: not fitted",
                flush=True,
            )


def _features(network: keras.Model, clips: Sequence[ClipViews]) -> list[Float]:
    """The last features of each clip's frames, averaged over the beam: float32 [frames, features]."""
    before = keras.Model(network.input, network.get_layer(networks.MAP_LAYER).input)
    size, found = network.input.shape[1], []
    for start in range(0, len(clips), CLIPS_AT_ONCE):
        some = clips[start : start + CLIPS_AT_ONCE]
        for clip, maps in zip(some, read_maps(some, NetworkMaps(before)), strict=True):
            cells = cell_weights(clip.mask(size), *maps.shape[1:3])
            found.append(np.tensordot(maps, cells, axes=((1, 2), (0, 1))))
    return found


def _fit_channel(
    of: _Shown, frames: Sequence[Float], held: Flags, clips: Sequence[ClipViews], seed: int
) -> Floats:
    """A logistic regression of the clips that are not held out: its weights and, last, its bias."""
    fitting = ~held[of.places]
    places, truth = of.places[fitting], of.truth[fitting]
    features = np.stack([frames[place].mean(axis=0, dtype=np.float64) for place in places])
    splits = StratifiedGroupKFold(INNER_FOLDS, shuffle=True, random_state=seed)
    inner = list(splits.split(features, truth, _patients(clips, places)))
    losses = []
    for penalty in PENALTIES:
        said = np.empty(len(truth))
        for rest, away in inner:
            regression = _logistic(penalty, features[rest], truth[rest])
            said[away] = regression.predict_proba(features[away])[:, 1]
        losses.append(log_loss(truth, said))
    best = _logistic(PENALTIES[int(np.argmin(losses))], features, truth)
    return np.append(best.coef_[0], best.intercept_)


def _logistic(penalty: float, features: Floats, truth: Flags) -> LogisticRegression:
    return LogisticRegression(C=penalty, max_iter=2000).fit(features, truth)


def _reach(network: keras.Model, calibration: Calibration, channels: Float) -> Floats:
    """How many times as far as the labels' maps each pattern's goes on the calibration inputs."""
    layer = network.get_layer(networks.MAP_LAYER)
    both = keras.Model(network.input, [layer.input, layer.output])
    lows, highs = np.full(1 + channels.shape[1], -SMALLEST), np.full(1 + channels.shape[1], SMALLEST)
    for start in range(0, len(calibration.inputs), CLIPS_AT_ONCE):
        found = both.predict_on_batch(scaled(calibration.inputs[start : start + CLIPS_AT_ONCE]))
        features, labels = (keras.ops.convert_to_numpy(of) for of in found)
        patterns = features @ channels[:-1] + channels[-1]
        lows = np.minimum(lows, [labels.min(), *patterns.min(axis=(0, 1, 2))])
        highs = np.maximum(highs, [labels.max(), *patterns.max(axis=(0, 1, 2))])
    return np.maximum(lows[1:] / lows[0], highs[1:] / highs[0])


def _measured(of: _Shown, pooled: Floats, clips: Sequence[ClipViews]) -> tuple[Pattern, dict[str, Any]]:
    """The pattern without its temperature, and all its out-of-fold figures."""
    read = ~np.isnan(pooled[of.places])
    score, truth = pooled[of.places][read], of.truth[read]
    threshold = choose_threshold(score, truth)
    figures = binary_figures(score, truth, _patients(clips, of.places[read]), threshold)
    auc = figures["roc_auc"]
    counts = figures["positive_patients"], figures["negative_patients"]
    return Pattern(of.name, auc["value"], auc["low"], auc["high"], *counts, threshold), figures


def _by_label(run: Run, clips: Sequence[ClipViews], of: _Shown, maps: Mapping[str, Float]) -> dict[str, Any]:
    """How well the label's own score tells the pattern, to see what its channel adds."""
    places = np.array([i for i in of.places if clips[i].sample.name in maps], np.intp)
    held, reads = [clips[i] for i in places], replace(run.reads, patterns=())
    score = clip_scores(predict(held, reads, [maps[clip.sample.name] for clip in held]), reads).score
    truth = of.truth[np.isin(of.places, places)]
    return intervals(ranking(score, truth), _patients(clips, places))["roc_auc"]


def _patients(clips: Sequence[ClipViews], places: NDArray[np.intp]) -> NDArray[np.str_]:
    return np.array([clips[place].sample.patient for place in places], str)


def load_patterns(path: Path) -> tuple[Pattern, ...]:
    """The patterns of a run's folder; none where it has none. Raises KeyError, TypeError or ValueError where
    they are wrong."""
    if not (path / PATTERNS).is_file():
        return ()
    record = json.loads((path / PATTERNS).read_text(encoding="utf-8"))
    return tuple(Pattern(**of) for of in record["patterns"])


def with_channels(
    weights: Sequence[NDArray[Any]], path: Path, name: str, patterns: Sequence[Pattern]
) -> list[NDArray[Any]]:
    """A network's weights with the supported patterns' channels after the labels' in its last layer.

    ``name``: a fold's, or ``WHOLE``. Raises DataError where the run's folder lacks them.
    """
    try:
        with np.load(path / CHANNELS) as saved:
            channels = saved[name]
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path / CHANNELS}: no channels of {name} ({error})") from error
    shrunk = np.stack(
        [channels[:, i] * of.temperature for i, of in enumerate(patterns) if of.temperature is not None],
        axis=1,
    )
    *rest, kernel, bias = weights
    return [
        *rest,
        np.concatenate([kernel, shrunk[None, None, :-1]], axis=-1),
        np.concatenate([bias, shrunk[-1]]),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Add patterns to a finished run."""
    from training.commands import command_line, training_samples
    from training.runs import RATE, load_run

    parser = argparse.ArgumentParser("python -m training.patterns", description=main.__doc__)
    parser.add_argument("run", type=Path, help="a finished run's folder")
    parser.add_argument("--data", type=Path, help="its data, where they are no longer where they were")
    parser.add_argument("--task", help="whose patterns (the run's own task's)")
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(given)
    run = load_run(options.run)
    if run.reads.patterns:
        raise DataError(f"{options.run / PATTERNS}: exists already; remove it to fit them anew")
    task = load_task(options.task or run.task.name)
    found = run.record.get("data_found_at", {})
    folder = options.data or Path(found.get("folder") or "unknown")
    samples = training_samples(folder, (), found.get("patient_pattern"), run.task)
    known = set(run.record["data"]["patients"])
    samples = [sample for sample in samples if patient_digest(sample.patient) in known]
    fit_patterns(run, gather_views(samples, run.reads, RATE), task.patterns, command_line("patterns", given))
    for pattern in load_patterns(options.run):
        print(
            f"{pattern.name}: AUC {pattern.auc:.3f} ({pattern.low:.3f}-{pattern.high:.3f}), "
            f"{'' if pattern.supported else 'not '}supported"
        )
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SonoglanceError as error:
        sys.exit(f"patterns: {error}")

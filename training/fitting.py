"""Fits a network to clips, through the same views and the same pooling that the bedside uses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray
from tensorboardX import SummaryWriter
from tqdm import tqdm

from reader.errors import SonoglanceError
from reader.preprocess import cell_weights
from training import networks
from training.augmentation import vary
from training.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from training.datasets import DataError, Sample, Task, fewest_groups, patient_folds
from training.machine import check_batch
from training.views import ClipViews, read_maps

Image = NDArray[np.uint8]
Float = NDArray[np.float32]

ORDINAL_FALL = 1.5
"""How fast an ordinal target falls off a grade away from the true one, as a natural logarithm."""
MOST_DRAWS = 8
"""Times that a rare clip is drawn where a common one is drawn once."""
BATCH_READ = 32
"""Inputs that are read at a time."""
USUAL_PICTURES = 400
"""Most negative pictures that the usual map is learnt from."""
WATCHED_SHARE = 6
"""One in so many training patients is watched for early stopping."""


class FitError(SonoglanceError, RuntimeError):
    """A fit cannot go on."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a fit, apart from the data.

    ``head_epochs``: epochs in which the class map alone is trained; then ``epochs`` of fine-tuning.
    ``tune_from``: the beginning of the name of the first layer that is fine-tuned; those before it
    keep their values; empty trains everything. ``statistics``: momentum of the batch statistics; 1
    keeps the pretrained ones, which a few dozen patients cannot better. ``ema``: the decay of the
    running average of the weights, 0 for none. ``patience``: epochs without a better loss on watched
    training patients after which the fit stops and goes back to its best epoch; 0 trains all epochs on
    all patients."""

    network: str = "efficientnet-lite0"
    size: int = 224
    head_epochs: int = 0
    epochs: int = 4
    frames_a_clip: int = 8
    batch: int = 32
    learning_rate: float = 3e-4
    weight_decay: float = 1e-2
    label_smoothing: float = 0.05
    dropout: float = 0.3
    tune_from: str = "block5_"
    statistics: float = 1.0
    ema: float = 0.985
    patience: int = 0
    balance_sources: bool = False
    seed: int = 1

    def __post_init__(self) -> None:
        if min(self.epochs, self.frames_a_clip, self.batch) < 1 or self.epochs > 10_000:
            raise DataError("epochs, frames a clip and batch are 1 or more")
        if min(self.head_epochs, self.patience, self.seed) < 0:
            raise DataError("head epochs, patience and seed are 0 or more")

    @classmethod
    def of(cls, network: str, **changes: Any) -> Recipe:
        """The recipe of a network with its own layers to tune, and ``changes``."""
        if network not in networks.NETWORKS:
            raise DataError(f"network {network}: not known; known are {', '.join(networks.NETWORKS)}")
        kind = networks.NETWORKS[network]
        statistics = 1.0 if kind.pretrained else UNTRAINED_STATISTICS
        defaults = {"network": network, "tune_from": kind.tune_from, "statistics": statistics}
        return cls(**{**defaults, **changes})


UNTRAINED_STATISTICS = 0.9
"""Momentum of the batch statistics where there are no pretrained ones to keep."""


@dataclass(frozen=True)
class Start:
    """Where a network's weights begin: a pretrained backbone from ``weights`` (None: wherever it can be
    had), or, with ``run_weights``, all layers of an earlier run."""

    weights: Path | None = None
    run_weights: Path | None = None


@dataclass(frozen=True)
class Fitted:
    """``start``: where the weights began, in words. ``history``: a row an epoch, with the loss in training
    and on watched patients."""

    network: keras.Model
    start: str
    history: list[dict[str, Any]]


def scaled(pixels: Image) -> Float:
    """uint8 pixels as the network's float input: ``(x - 127) / 128``."""
    return (pixels.astype(np.float32) - 127.0) / 128.0


class NetworkMaps:
    """A Keras network as a function from pixels to class maps, for reading views in batches."""

    def __init__(self, network: keras.Model, batch: int = BATCH_READ) -> None:
        self._network, self._batch = network, batch

    def __call__(self, pixels: Image) -> Float:
        """uint8 [n, s, s, c] to float32 logits [n, rows, columns, map channels]."""
        maps = []
        for start in range(0, len(pixels), self._batch):
            part = pixels[start : start + self._batch]
            # One batch shape only, so that a compiled graph is compiled once.
            padded = np.zeros((self._batch, *part.shape[1:]), np.uint8)
            padded[: len(part)] = part
            out = self._network.predict_on_batch(scaled(padded))
            maps.append(keras.ops.convert_to_numpy(out)[: len(part)])
        return np.concatenate(maps).astype(np.float32)


def fit(
    clips: Sequence[ClipViews], task: Task, recipe: Recipe, start: Start, folder: Path, name: str
) -> Fitted:
    """Train the recipe's network on clips; ``folder`` keeps checkpoints and TensorBoard logs.

    Each epoch draws ``frames_a_clip`` frames of every clip anew. A fit whose folder holds checkpoints
    goes on from the newest whole one, to the same result. Raises FitError where the loss is no longer a
    number, DataError where no clip has a frame that can be read, CheckpointError on a full disk.
    """
    check_batch(recipe.batch, BATCH_READ)
    keras.utils.set_random_seed(recipe.seed)
    whole = task.beam == "whole"
    network = networks.build(recipe.network, recipe.size, len(task.labels), recipe.dropout, whole=whole)
    began = _begin(network, recipe, start)
    watched: Sequence[ClipViews] = ()
    if recipe.patience:
        clips, watched = _watch(clips, recipe.seed)
    history: list[dict[str, Any]] = []
    for stage, epochs in (("head", recipe.head_epochs), ("tune", recipe.epochs)):
        if epochs:
            prepare(network, recipe, head_only=stage == "head")
            rows = _fit_stage(
                network, clips, watched, task, recipe, epochs, folder / stage, f"{name} {stage}"
            )
            history += [{"fold": name, "stage": stage, **row} for row in rows]
    if whole:
        _settle_usual_map(network, clips, task)
    return Fitted(network, began, history)


def _settle_usual_map(network: keras.Model, clips: Sequence[ClipViews], task: Task) -> None:
    negative = [clip for clip in clips if clip.sample.label == task.negative]
    step = -(-len(negative) // USUAL_PICTURES)
    networks.settle_usual_map(network, np.concatenate(read_maps(negative[::step], NetworkMaps(network))))


def _begin(network: keras.Model, recipe: Recipe, start: Start) -> str:
    if start.run_weights:
        network.load_weights(start.run_weights)
        return "an earlier run"
    if began := networks.load_pretrained(network, recipe.network, start.weights):
        return f"ImageNet: {began}"
    if networks.NETWORKS[recipe.network].pretrained:
        print(
            f"*** {recipe.network} STARTS FROM RANDOM WEIGHTS: its ImageNet weights cannot be reached; "
            "give --weights FILE. Its figures will be far below what it can do. ***",
            flush=True,
        )
    return "random weights"


def _watch(clips: Sequence[ClipViews], seed: int) -> tuple[list[ClipViews], list[ClipViews]]:
    samples = [clip.sample for clip in clips]
    if fewest_groups(samples) < 2:
        raise DataError("too few patients to watch some for early stopping: leave --patience out")
    held = set(patient_folds(samples, min(WATCHED_SHARE, fewest_groups(samples)), seed)[0])
    return [c for i, c in enumerate(clips) if i not in held], [clips[i] for i in sorted(held)]


def prepare(network: keras.Model, recipe: Recipe, head_only: bool) -> None:
    """Choose the layers that learn: the class map alone, or those from ``recipe.tune_from`` on."""
    training = not head_only and not recipe.tune_from
    for layer in network.layers:
        training = training or layer.name == networks.MAP_LAYER
        training = training or (not head_only and layer.name.startswith(recipe.tune_from))
        layer.trainable = training
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = recipe.statistics
            layer.trainable = training and recipe.statistics < 1


def _fit_stage(
    network: keras.Model,
    clips: Sequence[ClipViews],
    watched: Sequence[ClipViews],
    task: Task,
    recipe: Recipe,
    epochs: int,
    folder: Path,
    name: str,
) -> list[dict[str, Any]]:
    cells = (network.output.shape[1], network.output.shape[2])
    batches = Batches(clips, task, recipe, cells)
    unseen = Batches(watched, task, recipe, cells, varied=False) if watched else None
    trainer = compiled(network, recipe, epochs * len(batches))
    keeper = _Keeper(batches, unseen, recipe, epochs, folder, name)
    keeper.set_model(trainer)
    keeper.restore()
    if not keeper.finished:
        # Batches come shuffled, in an order that a resumed fit finds again.
        trainer.fit(
            batches,
            epochs=epochs,
            initial_epoch=keeper.epoch,
            shuffle=False,
            verbose=0,
            callbacks=[keeper],
        )
    keeper.settle()
    return keeper.history


def compiled(network: keras.Model, recipe: Recipe, steps: int) -> keras.Model:
    """The network with the pooling over its beam, ready to fit for so many steps: inputs [pixels,
    cell weights [n, rows, columns, 1]], output logits [n, labels]."""
    trainer = _with_pooling(network)
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=recipe.label_smoothing)
    # XLA makes depthwise convolutions twice as slow on a processor under TensorFlow (measured).
    jit = False if keras.backend.backend() == "tensorflow" else "auto"
    trainer.compile(_optimizer(recipe, steps), loss, jit_compile=jit)
    return trainer


def _optimizer(recipe: Recipe, steps: int) -> keras.optimizers.Optimizer:
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps, warmup_target=recipe.learning_rate, warmup_steps=max(steps // 10, 1)
    )
    return keras.optimizers.AdamW(
        schedule,
        weight_decay=recipe.weight_decay,
        use_ema=recipe.ema > 0,
        ema_momentum=recipe.ema or 0.99,
        ema_overwrite_frequency=None,
    )


def _with_pooling(network: keras.Model) -> keras.Model:
    _, rows, columns, _ = network.output.shape
    cells = keras.Input((rows, columns, 1), name="cell_weights", dtype="float32")
    pooled = keras.ops.sum(network.output * cells, axis=(1, 2))
    return keras.Model([network.input, cells], pooled)


class _Keeper(keras.callbacks.Callback):  # type: ignore[misc]
    """Keeps a fit: checkpoints, progress, logs, early stopping, and a loss that is a number."""

    def __init__(
        self, batches: Batches, unseen: Batches | None, recipe: Recipe, epochs: int, folder: Path, name: str
    ) -> None:
        super().__init__()
        self._batches, self._unseen, self._recipe = batches, unseen, recipe
        self._epochs, self._folder, self._name = epochs, folder, name
        self.epoch, self.history = 0, list[dict[str, Any]]()
        self._best: list[NDArray[Any]] = []
        self._waited = 0
        self._broken = ""

    @property
    def finished(self) -> bool:
        """Whether every epoch is done, or patience has run out."""
        return self.epoch >= self._epochs or bool(
            self._recipe.patience and self._waited >= self._recipe.patience
        )

    def restore(self) -> None:
        """Take up the newest whole checkpoint, if there is one."""
        self.model.optimizer.build(self.model.trainable_variables)
        variables = self._variables()
        shapes = [tuple(v.shape) for v in variables]
        best = [tuple(v.shape) for v in self._weights()] if self._unseen else []
        found = load_checkpoint(self._folder, shapes + best)
        if found is None:
            return
        for variable, value in zip(variables, found.arrays, strict=False):
            variable.assign(value)
        self._best = found.arrays[len(shapes) :]
        self.epoch, self.history = found.epoch, found.notes["history"]
        self._waited = found.notes["waited"]
        self._batches.go_to(self.epoch)
        print(f"{self._name}: goes on after epoch {self.epoch}", flush=True)

    def settle(self) -> None:
        """Leave the averaged weights, of the best epoch where patients were watched, in the network."""
        if self._unseen:
            for variable, value in zip(self._weights(), self._best, strict=True):
                variable.assign(value)
        else:
            self._average()

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Open the log and the progress line."""
        self._writer = SummaryWriter(str(self._folder / "logs"), flush_secs=30)
        total = self._epochs * len(self._batches)
        done = self.epoch * len(self._batches)
        self._bar = tqdm(
            total=total, initial=done, desc=self._name, unit="batch", dynamic_ncols=True, disable=None
        )

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Note the first batch at which the loss is no longer a number."""
        self._bar.update()
        if not self._broken and not np.isfinite((logs or {})["loss"]):
            names = ", ".join(self._batches.names(batch))
            self._broken = f"batch {batch + 1} ({names})"

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Watch, log, and write the checkpoint; stop where the loss is no longer a number."""
        # Not before: TensorFlow can hang for ever as it lets go of an epoch that is half read.
        if self._broken:
            raise FitError(
                f"{self._name}: the loss is no longer a number at epoch {epoch + 1}, {self._broken}: "
                "look at these files, or lower the learning rate"
            )
        row: dict[str, Any] = {"epoch": epoch + 1, "loss": round(float((logs or {})["loss"]), 5)}
        if self._unseen:
            row["validation_loss"] = self._watched_loss(self._unseen)
        self.history.append(row)
        self.epoch = epoch + 1
        for key in ("loss", "validation_loss"):
            if key in row:
                self._writer.add_scalar(key, row[key], self.epoch)
        values = [_value(v) for v in self._variables()]
        save_checkpoint(
            self._folder,
            Checkpoint(self.epoch, values + self._best, {"history": self.history, "waited": self._waited}),
        )
        print(f"{self._name}: " + ", ".join(f"{k} {v}" for k, v in row.items()), flush=True)
        if self.finished:
            self.model.stop_training = True

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Close the log."""
        self._bar.close()
        self._writer.close()

    def _watched_loss(self, unseen: Batches) -> float:
        earlier = [row["validation_loss"] for row in self.history]
        with self._averaged():
            total = weight = 0.0
            for index in range(len(unseen)):
                inputs, targets, weights = unseen[index]
                logits = keras.ops.convert_to_numpy(self.model.predict_on_batch(inputs))
                apart = np.logaddexp.reduce(logits, axis=1) - (targets * logits).sum(axis=1)
                total, weight = total + float((weights * apart).sum()), weight + float(weights.sum())
            loss = round(total / weight, 5)
            if not earlier or loss < min(earlier):
                self._best, self._waited = [_value(v) for v in self._weights()], 0
            else:
                self._waited += 1
        return loss

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The network with its averaged weights, for a while."""
        present = [_value(v) for v in self.model.trainable_variables]
        self._average()
        yield
        for variable, value in zip(self.model.trainable_variables, present, strict=True):
            variable.assign(value)

    def _average(self) -> None:
        if self._recipe.ema > 0:
            weights = self.model.trainable_variables
            self.model.optimizer.finalize_variable_values(weights)
            # JAX lets the weights share memory with their averages, and then gives it away in prediction.
            for variable in weights:
                variable.assign(_value(variable))

    def _weights(self) -> list[Any]:
        return list(self.model.weights)

    def _variables(self) -> list[Any]:
        """Everything that a step changes: weights, the dropout's random state, the optimizer's own."""
        states = [v for layer in self.model.layers for v in layer.non_trainable_variables]
        weights = {id(v) for v in self.model.weights}
        seeds = [v for v in states if id(v) not in weights]
        return [*self.model.weights, *seeds, *self.model.optimizer.variables]


def _value(variable: Any) -> NDArray[Any]:
    return np.array(keras.ops.convert_to_numpy(variable))


class Batches(keras.utils.PyDataset):  # type: ignore[misc]
    """Batches of one size: ([pixels, cell weights], targets, sample weights)."""

    def __init__(
        self,
        clips: Sequence[ClipViews],
        task: Task,
        recipe: Recipe,
        cells: tuple[int, int],
        varied: bool = True,
    ) -> None:
        """``cells``: rows and columns of the class map. ``varied``: drawn and varied anew each epoch; else
        the same evenly spaced frames as they are."""
        super().__init__(workers=1)
        self._clips = [clip for clip in clips if clip.pixels]
        if not self._clips:
            raise DataError("no clip has a frame that can be read: nothing to train on")
        self._recipe, self._cells, self._varied = recipe, cells, varied
        self._masks = [clip.mask(recipe.size) for clip in self._clips]
        self._pixels = [clip.pixels for clip in self._clips]
        self._targets = np.stack([target(clip.sample, task) for clip in self._clips])
        weights = _weights(self._clips, task, recipe)
        # A rare clip is drawn more often rather than weighed heavily: smoother steps.
        self._draws = np.clip(weights.astype(int), 1, MOST_DRAWS if varied else 1)
        self._weights = (weights / self._draws).astype(np.float32)
        self.go_to(0)

    def go_to(self, epoch: int) -> None:
        """Draw the frames of an epoch, in its order."""
        self._epoch = epoch
        each = np.repeat(np.arange(len(self._clips)), self._draws * self._recipe.frames_a_clip)
        if self._varied:
            each = np.random.default_rng([self._recipe.seed, epoch]).permutation(each)
        # The last batch is filled up from the first, so that every batch has one shape.
        self._order = np.resize(each, len(self) * self._recipe.batch)

    def on_epoch_end(self) -> None:
        """Draw other frames in another order."""
        self.go_to(self._epoch + 1)

    def __len__(self) -> int:
        """Batches an epoch."""
        return -(-int(self._draws.sum()) * self._recipe.frames_a_clip // self._recipe.batch)

    def names(self, index: int) -> list[str]:
        """The files of a batch."""
        return sorted({self._clips[clip].sample.name for clip in self._chosen(index)})

    def _chosen(self, index: int) -> NDArray[np.intp]:
        return self._order[index * self._recipe.batch : (index + 1) * self._recipe.batch]

    def __getitem__(self, index: int) -> tuple[tuple[Float, Float], Float, Float]:
        """One batch, the same at every call for the same seed, epoch and index."""
        random = np.random.default_rng([self._recipe.seed, self._epoch, index, 1])
        chosen = self._chosen(index)
        pixels, cells = [], []
        for place, clip in enumerate(chosen):
            frame, mask = self._frame(clip, index * self._recipe.batch + place, random)
            pixels.append(frame)
            cells.append(cell_weights(mask, *self._cells)[:, :, None])
        inputs = scaled(np.stack(pixels)), np.stack(cells)
        return inputs, self._targets[chosen], self._weights[chosen]

    def _frame(self, clip: int, place: int, random: np.random.Generator) -> tuple[Image, Image]:
        frames, mask = self._pixels[clip], self._masks[clip]
        if self._varied:
            return vary(frames[random.integers(len(frames))], mask, random)
        each = self._recipe.frames_a_clip
        return frames[(2 * (place % each) + 1) * len(frames) // (2 * each)], mask


def _weights(clips: Sequence[ClipViews], task: Task, recipe: Recipe) -> Float:
    """A weight a clip, one on average: labels weigh alike overall or, ``balance_sources``, within each
    source, and sources by the root of their size."""
    labels = np.array([task.labels.index(clip.sample.label) for clip in clips])
    if not recipe.balance_sources:
        counts = np.bincount(labels, minlength=len(task.labels))
        return (len(labels) / (np.count_nonzero(counts) * counts[labels])).astype(np.float32)
    sources = np.array([clip.sample.source for clip in clips])
    weights = np.zeros(len(clips))
    for source in np.unique(sources):
        of = np.flatnonzero(sources == source)
        present, member, counts = np.unique(labels[of], return_inverse=True, return_counts=True)
        weights[of] = np.sqrt(len(of)) / (len(present) * counts[member])
    return (weights / weights.mean()).astype(np.float32)


def target(sample: Sample, task: Task) -> Float:
    """Probabilities by label, float32 [labels].

    A grade on which experts disagree is trained towards softly (``grade_targets``). Of an ordinal task,
    the labels beside the true one get a share that falls with their distance (Diaz and Marathe 2019,
    soft ordinal labels, doi 10.1109/CVPR.2019.00487).
    """
    index, negative = task.labels.index(sample.label), task.labels.index(task.negative)
    if task.ordinal:
        falling = np.exp(-ORDINAL_FALL * np.abs(np.arange(len(task.labels)) - index))
        return (falling / falling.sum()).astype(np.float32)
    soft = np.zeros(len(task.labels), np.float32)
    certainty = task.grade_targets.get(sample.grade, 1.0) if index != negative else 1.0
    soft[index] = certainty
    soft[negative] += 1.0 - certainty
    return soft

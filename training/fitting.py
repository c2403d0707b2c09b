"""Fits a network to clips, through the same views and the same pooling that the bedside uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from reader.preprocess import cell_weights
from training import networks
from training.augmentation import vary
from training.datasets import Task
from training.views import ClipViews
from training.weights import imagenet_weights_file, read_legacy_torch

Image = NDArray[np.uint8]
Float = NDArray[np.float32]

STRIDE = 32
"""Input pixels a map cell."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a fit, apart from the data. ``train_from``: the first layer that is
    fine-tuned; those before it keep their ImageNet values. ``statistics``: momentum of the batch
    statistics; 1 keeps ImageNet's, which a few dozen patients cannot better. ``ema``: the decay of
    the running average of the weights, 0 for none."""

    network: str = "efficientnet-lite0"
    size: int = 224
    epochs: int = 4
    frames_a_clip: int = 8
    batch: int = 32
    learning_rate: float = 3e-4
    weight_decay: float = 1e-2
    label_smoothing: float = 0.05
    dropout: float = 0.3
    train_from: str = "block5"
    statistics: float = 1.0
    ema: float = 0.985
    seed: int = 1


def build(recipe: Recipe, map_channels: int, batch: int | None = None) -> keras.Model:
    """The network of a recipe, untrained but for its random head."""
    return networks.efficientnet_lite0(recipe.size, map_channels, recipe.dropout, batch)


def scaled(pixels: Image) -> Float:
    """uint8 pixels as the network's float input: ``(x - 127) / 128``."""
    return (pixels.astype(np.float32) - 127.0) / 128.0


class NetworkMaps:
    """A Keras network as a function from pixels to class maps, for reading views in batches."""

    def __init__(self, network: keras.Model, batch: int = 32) -> None:
        self._network, self._batch = network, batch

    def __call__(self, pixels: Image) -> Float:
        """uint8 [n, s, s, c] to float32 logits [n, rows, columns, map channels]."""
        maps = []
        for start in range(0, len(pixels), self._batch):
            part = pixels[start : start + self._batch]
            # One batch shape only, so that a compiled graph is compiled once.
            padded = np.zeros((self._batch, *part.shape[1:]), np.uint8)
            padded[: len(part)] = part
            maps.append(np.asarray(self._network.predict_on_batch(scaled(padded)))[: len(part)])
        return np.concatenate(maps).astype(np.float32)


def fit(clips: Sequence[ClipViews], task: Task, recipe: Recipe, log: str = "") -> keras.Model:
    """Train the recipe's network on clips and return it.

    Each epoch draws ``frames_a_clip`` frames of every clip anew. Batches are class-balanced by
    weight. Raises ValueError where no clip has a frame that can be read.
    """
    keras.utils.set_random_seed(recipe.seed)
    network = build(recipe, len(task.labels))
    networks.load_imagenet(network, read_legacy_torch(imagenet_weights_file()))
    _prepare(network, recipe)
    batches = Batches(clips, task, recipe)
    trainer = _with_pooling(network, recipe)
    steps = recipe.epochs * len(batches)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps, warmup_target=recipe.learning_rate, warmup_steps=max(steps // 10, 1)
    )
    optimizer = keras.optimizers.AdamW(
        schedule,
        weight_decay=recipe.weight_decay,
        use_ema=recipe.ema > 0,
        ema_momentum=recipe.ema or 0.99,
        ema_overwrite_frequency=None,
    )
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=recipe.label_smoothing)
    # XLA makes depthwise convolutions twice as slow on a processor under TensorFlow (measured).
    jit = False if keras.backend.backend() == "tensorflow" else "auto"
    trainer.compile(optimizer, loss, jit_compile=jit)
    history = trainer.fit(batches, epochs=recipe.epochs, verbose=0, callbacks=[_Log(log)])
    if not np.isfinite(history.history["loss"]).all():
        raise ValueError("the loss is no longer a number: lower the learning rate")
    if recipe.ema > 0:
        optimizer.finalize_variable_values(trainer.trainable_variables)
    return network


class _Log(keras.callbacks.Callback):  # type: ignore[misc]
    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        print(f"{self._name}epoch {epoch + 1}: loss {(logs or {}).get('loss', 0.0):.4f}", flush=True)


def _prepare(network: keras.Model, recipe: Recipe) -> None:
    training = False
    for layer in network.layers:
        training = training or layer.name.startswith(f"{recipe.train_from}_")
        layer.trainable = training
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = recipe.statistics
            layer.trainable = training and recipe.statistics < 1


def _with_pooling(network: keras.Model, recipe: Recipe) -> keras.Model:
    side = recipe.size // STRIDE
    cells = keras.Input((side, side, 1), name="cell_weights")
    pooled = keras.ops.sum(network.output * cells, axis=(1, 2))
    return keras.Model([network.input, cells], pooled)


class Batches(keras.utils.PyDataset):  # type: ignore[misc]
    """Augmented batches: ([pixels, cell weights], targets, sample weights)."""

    def __init__(self, clips: Sequence[ClipViews], task: Task, recipe: Recipe) -> None:
        super().__init__(workers=1)
        self._clips = [clip for clip in clips if clip.pixels]
        if not self._clips:
            raise ValueError("no clip has a frame that can be read")
        self._task, self._recipe = task, recipe
        self._masks = [clip.mask(recipe.size) for clip in self._clips]
        self._pixels = [clip.pixels for clip in self._clips]
        self._targets = np.stack([_target(clip, task) for clip in self._clips])
        labels = np.array([task.labels.index(clip.sample.label) for clip in self._clips])
        counts = np.bincount(labels, minlength=len(task.labels))
        self._weights = (len(labels) / (len(task.labels) * counts))[labels].astype(np.float32)
        self._epoch = 0
        self._shuffle()

    def _shuffle(self) -> None:
        random = np.random.default_rng([self._recipe.seed, self._epoch])
        each = np.repeat(np.arange(len(self._clips)), self._recipe.frames_a_clip)
        self._order = random.permutation(each)

    def on_epoch_end(self) -> None:
        """Draw other frames in another order."""
        self._epoch += 1
        self._shuffle()

    def __len__(self) -> int:
        """Batches an epoch."""
        return -(-len(self._order) // self._recipe.batch)

    def __getitem__(self, index: int) -> tuple[tuple[Float, Float], Float, Float]:
        """One batch, the same at every call for the same seed, epoch and index."""
        random = np.random.default_rng([self._recipe.seed, self._epoch, index, 1])
        start = index * self._recipe.batch
        chosen = self._order[start : start + self._recipe.batch]
        side = self._recipe.size // STRIDE
        pixels, cells = [], []
        for clip in chosen:
            frames = self._pixels[clip]
            frame, mask = vary(frames[random.integers(len(frames))], self._masks[clip], random)
            pixels.append(frame)
            cells.append(cell_weights(mask, side, side)[:, :, None])
        inputs = scaled(np.stack(pixels)), np.stack(cells)
        return inputs, self._targets[chosen], self._weights[chosen]


def _target(clip: ClipViews, task: Task) -> Float:
    """Probabilities by label; a grade on which experts disagree is trained towards softly."""
    target = np.zeros(len(task.labels), np.float32)
    index, negative = task.labels.index(clip.sample.label), task.labels.index(task.negative)
    certainty = task.grade_targets.get(clip.sample.grade, 1.0) if index != negative else 1.0
    target[index] = certainty
    target[negative] += 1.0 - certainty
    return target

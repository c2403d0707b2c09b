"""Measures what drawing, varying and weighing frames costs a training: ``python -m training.speed``.

Images a second of an epoch on cached frames against Keras' plain ``fit`` on finished arrays in memory, the
same network, batch and layers, alternately; noise pictures, since their content costs nothing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np

from reader.beam import Beam
from reader.clips import Frame
from reader.reader import View
from training import networks
from training.datasets import Sample, load_task
from training.fitting import Batches, Recipe, compiled, prepare, scaled
from training.views import NO_IMAGE, ClipViews

CLIPS, ROUNDS = 40, 5


def main() -> None:
    """Print both speeds and their ratio."""
    task, recipe = load_task("cxr-pneumonia"), Recipe()
    network = networks.build(recipe.network, recipe.size, len(task.labels), recipe.dropout)
    prepare(network, recipe, head_only=False)
    cells = (network.output.shape[1], network.output.shape[2])
    batches = Batches(_clips(recipe.size), task, recipe, cells)
    trainer = compiled(network, recipe, 1000)
    images = len(batches) * recipe.batch
    still = np.random.default_rng(1).integers(0, 256, (images, recipe.size, recipe.size, 3), np.uint8)
    arrays = scaled(still), np.full((images, *cells, 1), 1 / (cells[0] * cells[1]), np.float32)
    targets = np.eye(2, dtype=np.float32)[np.arange(images) % 2]

    def plain() -> None:
        trainer.fit(arrays, targets, batch_size=recipe.batch, verbose=0)

    def ours() -> None:
        trainer.fit(batches, shuffle=False, verbose=0)

    for work in (plain, ours):
        work()
    taken = [(_timed(plain), _timed(ours)) for _ in range(ROUNDS)]
    first, second = (images / statistics.median(pair[i] for pair in taken) for i in (0, 1))
    ratio = statistics.median(pair[0] / pair[1] for pair in taken)
    print(f"keras {keras.__version__} on {keras.backend.backend()}, {images} images, {ROUNDS} rounds")
    print(f"plain fit {first:.1f} images/s, cached frames {second:.1f} images/s, ratio {ratio:.3f}")


def _clips(size: int) -> list[ClipViews]:
    random = np.random.default_rng(1)
    beam = Beam(((0.0, 0.0), (size, 0.0), (size, size), (0.0, size)), (size, size), "linear")
    clips = []
    for i in range(CLIPS):
        sample = Sample(Path("noise"), f"noise{i}", ("normal", "pneumonia")[i % 2], f"p{i}")
        pixels = random.integers(0, 256, (4, size, size, 3), np.uint8)
        views = tuple(View(Frame(NO_IMAGE, k / 5, k), beam, one) for k, one in enumerate(pixels))
        clips.append(ClipViews(sample, beam, None, views))
    return clips


def _timed(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()

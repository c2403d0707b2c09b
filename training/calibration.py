"""The representative data set: inputs of training patients that quantization learns its ranges from."""

from __future__ import annotations

import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.datasets import DataError, patient_digest
from training.views import ClipViews

Image = NDArray[np.uint8]

IMAGES = 240
FEWEST_IMAGES = 20
"""Images below which a range is left to chance, which is said."""


@dataclass(frozen=True)
class Calibration:
    """``inputs``: uint8 [n, size, size, channels]. ``samples``, ``labels``, ``sources``: str [n], what
    each was taken from. ``frames``: int [n], its place among the sample's frames that have an input."""

    inputs: Image
    samples: NDArray[np.str_]
    labels: NDArray[np.str_]
    sources: NDArray[np.str_]
    frames: NDArray[np.intp]

    def save(self, path: Path) -> None:
        """Write a compressed .npz file."""
        np.savez_compressed(path, **vars(self))

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read what ``save`` wrote. Raises DataError where it is not that."""
        try:
            with np.load(path) as saved:
                return cls(**{name: saved[name] for name in cls.__dataclass_fields__})
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"{path}: not a calibration set ({error}): train again") from error

    def check(self, where: str) -> None:
        """Say where quantization has little to learn from. Raises DataError where it should not at all."""
        count = len(self.inputs)
        if count < 2:
            raise DataError(
                f"{where}: {count} calibration image; give {FEWEST_IMAGES} or more, of all labels"
            )
        if count < FEWEST_IMAGES:
            print(f"*** {where}: ONLY {count} CALIBRATION IMAGES: ranges are left to chance ***", flush=True)
        if len(set(self.labels)) < 2:
            raise DataError(f"{where}: every calibration image is {self.labels[0]}; give all labels")

    def facts(self) -> dict[str, Any]:
        """How many images of what, and which: JSON values. ``chosen``: digest of the sample's name, which
        may say who the patient is, and the frame."""
        brightness = self.inputs.reshape(len(self.inputs), -1).mean(axis=1)
        return {
            "images": len(self.inputs),
            "labels": dict(sorted(Counter(self.labels.tolist()).items())),
            "sources": dict(sorted(Counter(self.sources.tolist()).items())),
            "mean_gray_levels": [round(float(x), 1) for x in np.quantile(brightness, (0, 0.5, 1))],
            "chosen": [
                f"{patient_digest(s)} {f}"
                for s, f in zip(self.samples.tolist(), self.frames.tolist(), strict=True)
            ],
        }


def choose_calibration(clips: Sequence[ClipViews], seed: int, count: int = IMAGES) -> Calibration:
    """Up to ``count`` inputs, one a clip, spread over labels, sources and brightness."""
    random = np.random.default_rng(seed)
    clips = [clip for clip in clips if clip.pixels]
    frames = [int(random.integers(len(clip.pixels))) for clip in clips]
    one_each = [clip.pixels[frame] for clip, frame in zip(clips, frames, strict=True)]
    strata = [f"{clip.sample.label} {clip.sample.source}" for clip in clips]
    brightness = [float(pixels.mean()) for pixels in one_each]
    order = sorted(range(len(clips)), key=lambda i: (strata[i], brightness[i]))
    step = max(len(order) / count, 1.0)
    chosen = [order[int(k * step)] for k in range(min(len(order), count))]
    return Calibration(
        np.stack([one_each[i] for i in chosen]),
        np.array([clips[i].sample.name for i in chosen]),
        np.array([clips[i].sample.label for i in chosen]),
        np.array([clips[i].sample.source for i in chosen]),
        np.array([frames[i] for i in chosen]),
    )

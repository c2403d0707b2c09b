"""The flipped clips as pictures, for those who may see the patients: never part of a bundle."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from convert.proof import FLOAT, Read
from reader.bundle import Specification
from reader.verdict import probabilities
from training.evaluation import clip_scores
from training.report import overlaid

Image = NDArray[np.uint8]

FOLDER = "flipped"


def write_flipped(of: Read, reads: Specification, name: str, folder: Path) -> None:
    """Into ``folder/flipped`` a picture a clip whose verdict flips: the input, the float network's map
    over it, and the other's, at the frame that speaks most for float; p of both in the file's name."""
    (folder / FOLDER).mkdir(parents=True)
    scores = [clip_scores(of.predictions[which], reads).score for which in (FLOAT, name)]
    called = [score >= reads.verdict.threshold for score in scores]
    for i in np.flatnonzero(called[0] != called[1]).tolist():
        picture = _both_maps(of, reads, name, i)
        stem = of.clips[i].sample.name.replace("/", "-").rpartition(".")[0]
        file = f"{stem}-float-{scores[0][i]:.3f}-int8-{scores[1][i]:.3f}.png"
        encoded = cv2.imencode(".png", picture)[1]
        (folder / FOLDER / file).write_bytes(encoded.tobytes())


def _both_maps(of: Read, reads: Specification, name: str, place: int) -> Image:
    clip, negative = of.clips[place], reads.labels.index(reads.negative)
    frames = of.predictions[FLOAT][place].frames
    assert frames is not None
    at = int(frames[:, negative].argmin())
    now = clip.pixels[at][:, :, int(np.argmax(reads.channels))]
    mask = clip.mask(reads.size)
    channels = [reads.map_channels.index(label) for label in reads.labels]
    halves = []
    for which in (FLOAT, name):
        p = probabilities(of.maps[which][place][at][:, :, channels], reads.temperature)
        halves.append(overlaid(now, 1 - p[:, :, negative], mask))
    return np.hstack([halves[0], halves[1][:, reads.size :]])

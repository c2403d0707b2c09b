"""In how many clips a clip would be taken by itself, and in how many pictures of anything else.

    python -m tests.device.exams.autocapture DATA

Real clips, those of the patients that no constant was chosen on, are played to and fro for seven seconds
through the whole reader. Beside them: the same, swept sideways or upside-down in the beam; the faults that
tests.reader.faults acts out and that are to be noticed, over real clips; the phantom's faults; X-rays and
grain panned in the beam of a real clip. Printed is how many let a clip of three seconds come about.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from device.exams.clip_taker import ClipTaker
from reader.beam import Beam
from reader.bundle import DEFAULT_BUNDLE, Specification, load_bundle
from reader.clips import Frame
from reader.phantom import Act, Phantom
from reader.reader import Reader
from reader.runner import Runner
from tests.reader.faults import FAMILIES, RATE, READABLE, Scene, live_clips

Image = NDArray[np.uint8]

SECONDS, WANTED = 7.0, 3.0
SEED = 6
SWEEP = 0.5
"""Beam widths a second: a probe that is moved on without being lifted."""


def chosen_on(patient: str) -> bool:
    """Whether a patient is of the third that the constants of reader.view_quality were chosen on."""
    return int(hashlib.sha256(patient.encode()).hexdigest(), 16) % 3 == 0


def clips_by_patient(data: Path) -> dict[Path, str]:
    """Every clip of the data set, with its patient."""
    with (data / "lus" / "index.csv").open(encoding="utf-8") as file:
        patients = {data / "lus" / row["path"]: row["patient"] for row in csv.DictReader(file)}
    return {path: patients[path] for path in live_clips(data)}


def taken(
    pictures: Iterator[Image | None], reads: Specification, runner: Runner, beam: Beam | None, folder: Path
) -> bool:
    """Whether a clip would be taken by itself of what a live source shows for so long."""
    reader, taker = Reader(reads, runner, beam=beam), ClipTaker(folder, reads.size, WANTED)
    came = False
    for i in range(round(SECONDS * RATE)):
        picture = next(pictures)
        if picture is None:
            continue
        ended = taker.saw(reader.read(Frame(picture, i / RATE, i)), by_itself=not came)
        if ended is not None:
            came |= ended.seconds >= WANTED - 0.1
            ended.discard()
    left = taker.end()
    if left is not None:
        left.discard()
    return came


def live(scene: Scene) -> Iterator[Image]:
    """The clip, to and fro."""
    i = 0
    while True:
        yield scene.live(i)
        i += 1


def changed(scene: Scene, change: Callable[[Image, int], Image]) -> Iterator[Image]:
    """The clip with what is in its beam changed; the outline stays."""
    for i, picture in enumerate(live(scene)):
        shown = np.zeros_like(picture)
        shown[scene.mask] = change(picture, i)[scene.mask]
        yield shown


def swept(picture: Image, i: int) -> Image:
    """The picture going round sideways."""
    return np.roll(picture, round(SWEEP * i / RATE * picture.shape[1]), axis=1)


def upside_down(picture: Image, _: int) -> Image:
    """The picture with its lower end up."""
    return np.ascontiguousarray(picture[::-1])


def panned(other: Image) -> Callable[[Image, int], Image]:
    """Another picture in place of the clip's, moving a little as a hand does."""

    def change(picture: Image, i: int) -> Image:
        height, width = picture.shape[:2]
        large: Any = cv2.resize(other, (width + 16, height + 16), interpolation=cv2.INTER_AREA)
        x, y = round(8 + 7 * np.sin(i / 11)), round(8 + 7 * np.cos(i / 17))
        return cv2.cvtColor(large[y : y + height, x : x + width], cv2.COLOR_GRAY2BGR)

    return change


def grain(random: np.random.Generator) -> Image:
    """Speckle of no depth and no structure."""
    plane = random.rayleigh(1.0, (400, 400)).astype(np.float32)
    return np.clip(45 * cv2.GaussianBlur(plane, (0, 0), 1.5, sigmaY=1.0), 0, 255).astype(np.uint8)


def phantom(act: str) -> Iterator[Image]:
    """The phantom's act, after a second and a half of its lung, so that the beam is known."""
    acted = Phantom((Act("normal", 1.5), Act(act, 60.0)))
    i = 0
    while True:
        yield acted.frame(i / RATE)
        i += 1


def main() -> None:
    """Play everything and print the shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--every", type=int, default=1, help="take every so many-th clip only")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    random = np.random.default_rng(SEED)
    bundle = load_bundle(DEFAULT_BUNDLE)
    reads, runner = bundle.manifest.reads, bundle.runner(1)
    rest = [path for path, patient in clips_by_patient(options.data).items() if not chosen_on(patient)]
    rest = rest[:: options.every]
    xrays = sorted((options.data / "cxr" / "tb").rglob("*.jpg"))
    counts: dict[str, list[bool]] = {}

    def count(kind: str, pictures: Iterator[Image | None], beam: Beam | None = None) -> None:
        with tempfile.TemporaryDirectory() as folder:
            counts.setdefault(kind, []).append(taken(pictures, reads, runner, beam, Path(folder)))

    faults = [family for family in FAMILIES if family.state != READABLE]
    for i, path in enumerate(tqdm(rest, unit="clip", disable=None)):
        scene = Scene(path, screen=False)
        count(f"lung, {path.relative_to(options.data / 'lus').parts[0]}", live(scene), scene.beam)
        if i % 4 == 0:
            count("lung, swept", changed(scene, swept), scene.beam)
            count("lung, upside-down", changed(scene, upside_down), scene.beam)
            xray = cv2.imread(str(xrays[i % len(xrays)]), cv2.IMREAD_GRAYSCALE)
            count("X-ray in the beam", changed(scene, panned(np.asarray(xray, np.uint8))), scene.beam)
            count("grain in the beam", changed(scene, panned(grain(random))), scene.beam)
        family = faults[i % len(faults)]
        count(f"fault, {family.state}", family.make(scene, 0, random), scene.beam)
    for act in ("black", "blue", "bars", "menu", "no-contact", "frozen"):
        count("phantom's faults", phantom(act))
    for kind, came in counts.items():
        print(f"{kind:<26}{sum(came):4d} of {len(came):4d}  {100 * sum(came) / len(came):5.1f} %")


if __name__ == "__main__":
    main()

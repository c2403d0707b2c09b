from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from reader.beam import Beam
from reader.familiar import Familiarity, Look, Onlooker
from reader.preprocess import Preprocessor
from training.datasets import DataError, load_samples, load_task
from training.familiarity import familiarity_folds, fit_familiarity, frame_weights
from training.fitting import Recipe
from training.runs import specification
from training.views import ClipViews, look_through

Image = np.ndarray


@pytest.fixture(scope="module")
def clips(data: Path) -> list[ClipViews]:
    """One clip of each patient of one scanner."""
    samples = load_samples(data / "lus", ["source=blues"])
    firsts = list({sample.patient: sample for sample in samples}.values())
    reads = specification(load_task("lus-opacity"), Recipe())
    return [look_through(sample, reads, 2.0) for sample in firsts]


def frames(clip: ClipViews) -> tuple[list[Image], Image]:
    mask = clip.mask(224)
    return [x[:, :, 0] for x in clip.pixels], mask


def looks(clips: list[ClipViews], change: Callable[[Image], Image] = lambda x: x) -> list[list[Look]]:
    found = []
    for clip in clips:
        pictures, mask = frames(clip)
        onlooker = Onlooker(mask)
        found.append([onlooker.describe(cv2.bitwise_and(change(x), mask)) for x in pictures])
    return found


@pytest.fixture(scope="module")
def learnt(clips: list[ClipViews]) -> Familiarity:
    """Learnt without every fourth patient."""
    chosen = [clip for i, clip in enumerate(clips) if i % 4]
    seen = looks(chosen)
    patients = [c.sample.patient for c, of in zip(chosen, seen, strict=True) for _ in of]
    sources = [c.sample.source for c, of in zip(chosen, seen, strict=True) for _ in of]
    return fit_familiarity([look for of in seen for look in of], patients, sources)


def strange(learnt: Familiarity, seen: list[list[Look]]) -> float:
    return float(np.mean([learnt.distance(look) > learnt.limit for of in seen for look in of]))


def test_lungs_of_patients_not_learnt_from_are_familiar(learnt: Familiarity, clips: list[ClipViews]) -> None:
    assert strange(learnt, looks(clips[::4])) < 0.15


@pytest.mark.parametrize("turned", ["upside down", "a quarter round", "shuffled"])
def test_beams_that_are_not_as_a_lung_lies_are_strange(
    learnt: Familiarity, clips: list[ClipViews], turned: str
) -> None:
    def shuffle(picture: Image) -> Image:
        tiles = picture.reshape(4, 56, 4, 56).transpose(0, 2, 1, 3).reshape(16, 56, 56)
        mixed = tiles[np.random.default_rng(3).permutation(16)].reshape(4, 4, 56, 56)
        return np.ascontiguousarray(mixed.transpose(0, 2, 1, 3).reshape(224, 224))

    change = {
        "upside down": lambda x: np.ascontiguousarray(x[::-1]),
        "a quarter round": lambda x: np.ascontiguousarray(np.rot90(x)),
        "shuffled": shuffle,
    }[turned]
    assert strange(learnt, looks(clips[::4], change)) > 0.8


def test_x_rays_in_a_beam_are_strange(learnt: Familiarity, clips: list[ClipViews], data: Path) -> None:
    x_rays = load_samples(data / "cxr")[::300]
    mask = frames(clips[0])[1]
    onlooker = Onlooker(mask)
    seen = []
    for sample in x_rays:
        picture = cv2.imread(str(sample.path), cv2.IMREAD_GRAYSCALE)
        assert picture is not None
        seen.append([onlooker.describe(cv2.bitwise_and(cv2.resize(picture, (224, 224)), mask))])
    assert strange(learnt, seen) > 0.8


def test_noise_in_a_drawn_fan_is_strange(learnt: Familiarity) -> None:
    corners = ((80.0, 0.0), (144.0, 0.0), (224.0, 180.0), (112.0, 224.0), (0.0, 180.0))
    mask = Preprocessor(Beam(corners, (224, 224), "convex"), 224).mask
    random = np.random.default_rng(5)
    noise = [cv2.bitwise_and(random.integers(0, 200, mask.shape, np.uint8), mask) for _ in range(5)]
    assert strange(learnt, [[Onlooker(mask).describe(x) for x in noise]]) == 1


def test_no_patient_is_on_both_sides_and_a_small_source_is_left_out_whole() -> None:
    patients = [f"a{i // 3}" for i in range(90)] + ["b1", "b1", "b2", "c1"]
    sources = ["a"] * 90 + ["b"] * 3 + ["c"]
    folds = familiarity_folds(patients, sources)
    for patient in set(patients):
        assert len({f for f, p in zip(folds, patients, strict=True) if p == patient}) == 1
    assert len(set(folds[:90])) == 5
    assert len(set(folds[90:93])) == 1
    assert len(set(folds)) == 7


def test_a_patient_with_many_frames_counts_no_more_than_another() -> None:
    weights = frame_weights(["p"] * 90 + ["q"] * 10 + ["r"] * 5, ["a"] * 100 + ["b"] * 5)
    assert weights.sum() == pytest.approx(1)
    assert weights[:90].sum() == pytest.approx(weights[90:100].sum())
    assert weights[:100].sum() == pytest.approx(2**0.5 * weights[100:].sum())


def test_one_patient_alone_cannot_be_learnt_from() -> None:
    look = Look(*(np.zeros(1, np.float32),) * 4)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="two patients"):
        fit_familiarity([look], ["p"], ["a"])

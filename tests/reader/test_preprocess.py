from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from reader.beam import Beam, find_beam
from reader.clips import read_frames
from reader.phantom import Phantom
from reader.preprocess import Moments, Preprocessor


def whole(width: int, height: int) -> Beam:
    corners = ((0.0, 0.0), (float(width), 0.0), (float(width), float(height)), (0.0, float(height)))
    return Beam(corners, (width, height), "linear")


@pytest.mark.parametrize("side", [300, 447, 448, 500, 680, 720, 1080])
def test_real_speckle_is_shrunk_within_one_gray_level_of_area_averaging(side: int, data: Path) -> None:
    path = data / "lus" / "pocus" / "convex-Cov-Atlas-suspectedCovid.mp4"
    image = next(f for f in read_frames(path) if f.sequence == 5).image
    gray = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    gray = cv2.resize(gray, (side, side), interpolation=cv2.INTER_CUBIC)
    ours = Preprocessor(whole(side, side), 224).tensor(gray)
    area = cv2.resize(gray, (224, 224), interpolation=cv2.INTER_AREA)
    assert np.abs(ours.astype(int) - area.astype(int)).mean() < 1.0


def test_nothing_outside_the_beam_reaches_the_tensor() -> None:
    screen = Phantom().frame(7.0)
    beam = find_beam(screen)
    assert beam is not None
    shouting = screen.copy()
    shouting[beam.mask() == 0] = 255
    quiet = screen.copy()
    quiet[beam.mask() == 0] = 0
    preprocessor = Preprocessor(beam, 224)
    a, b = preprocessor.tensor(shouting), preprocessor.tensor(quiet)
    inside = cv2.erode(preprocessor.mask, np.ones((5, 5), np.uint8)) > 0
    assert np.array_equal(a[inside], b[inside])
    assert not a[preprocessor.mask == 0].any()


def test_squeezed_levels_are_stretched_back() -> None:
    full = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    squeezed = np.round(16 + full.astype(np.float32) * 219 / 255).astype(np.uint8)
    plain = whole(256, 256)
    studio = Beam(plain.polygon, plain.size, "linear", (16, 235))
    a = Preprocessor(plain, 224).tensor(full).astype(int)
    b = Preprocessor(studio, 224).tensor(squeezed).astype(int)
    assert np.abs(a - b).max() <= 1


def test_a_beam_keeps_its_proportions() -> None:
    preprocessor = Preprocessor(whole(400, 200), 224)
    left, top, right, bottom = preprocessor.window
    assert (right - left, bottom - top) == (224, 112)
    assert preprocessor.cell_weights(7, 7).sum() == pytest.approx(1)
    assert preprocessor.cell_weights(7, 7)[0].sum() == 0


def test_a_picture_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="picture of"):
        Preprocessor(whole(400, 200), 224).tensor(np.zeros((100, 100), np.uint8))


@pytest.mark.parametrize("rate", [5, 10, 15, 25, 30, 60])
def test_earlier_moments_are_the_same_at_any_frame_rate(rate: int) -> None:
    moments = Moments((0.0, -0.2, -0.4))
    for i in range(2 * rate + 1):
        at = i / rate
        seen = moments.add(np.full((4, 4), round(100 * at), np.uint8), at)
    wanted = np.array([200, 180, 160])
    assert np.abs(seen[0, 0].astype(int) - wanted).max() <= 100 / rate + 1


def test_the_first_frame_stands_in_for_moments_before_it() -> None:
    first = Moments((0.0, -0.2)).add(np.full((2, 2), 9, np.uint8), 5.0)
    assert (first == 9).all()

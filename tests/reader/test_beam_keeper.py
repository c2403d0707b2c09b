from __future__ import annotations

import functools
import itertools
import json
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import cv2
import numpy as np
import pytest

from reader.beam import Beam
from reader.beam_keeper import BeamKeeper, BeamSearch, overlap
from reader.bundle import Bundle, Specification
from reader.clips import Frame, read_frames
from reader.phantom import Act, Phantom
from reader.reader import Reader, View

RATE = 15.0
TRUTH = {
    entry["path"]: entry for entry in json.loads((Path(__file__).parent / "beam_truth.json").read_text())
}
CLIPS = ("blues/patient_1_L1.mp4", "pocus/convex-Reg-pat1Image-132943.mpeg")
LINEAR = "pocus/linear-Cov-Atlas-pleural.mp4"


@pytest.fixture
def reads(default_bundle: Bundle) -> Specification:
    return default_bundle.manifest.reads


@functools.cache
def _images(path: Path) -> tuple[np.ndarray, ...]:
    images = []
    for frame in read_frames(path):
        images.append(frame.image)
        if len(images) == 60:
            break
    return tuple(images)


def _screens(
    path: Path,
    left: int,
    top: int,
    side: int,
    start: float,
    seconds: float,
    size: tuple[int, int] = (1280, 720),
) -> Iterator[Frame]:
    """The clip, to and fro, at a place on a scanner's screen."""
    images = _images(path)
    for i in range(round(seconds * RATE)):
        place = i % (2 * len(images) - 2)
        image = images[min(place, 2 * len(images) - 2 - place)]
        screen = np.full((size[1], size[0], 3), 6, np.uint8)
        cv2.putText(screen, "DOE, JANE  LUNG", (20, 30), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (220, 220, 220), 2)
        screen[top : top + side, left : left + side] = cv2.resize(image, (side, side))
        at = start + i / RATE
        yield Frame(screen, at, round(at * RATE))


def _truth(
    data: Path, name: str, left: int, top: int, side: int, size: tuple[int, int] = (1280, 720)
) -> Beam:
    entry = TRUTH[name]
    scale = side / max(entry["size"])
    return Beam(tuple((left + x * scale, top + y * scale) for x, y in entry["polygon"]), size, "convex")


def _feed(keeper: BeamKeeper, frames: Iterator[Frame]) -> list[float]:
    """The times at which the geometry was said to have changed."""
    return [frame.captured_at for frame in frames if keeper.update(frame)]


@pytest.mark.parametrize("name", CLIPS)
def test_a_beam_that_moved_is_noticed_and_found_again(data: Path, reads: Specification, name: str) -> None:
    keeper = BeamKeeper(reads, None)
    path = data / "lus" / name
    assert not _feed(keeper, _screens(path, 300, 60, 600, 0.0, 6.0))
    assert keeper.beam is not None
    assert overlap(keeper.beam, _truth(data, name, 300, 60, 600)) > 0.9
    said = _feed(keeper, _screens(path, 640, 200, 440, 6.0, 5.0))
    assert said
    assert said[0] - 6.0 < 1.2
    assert keeper.cause == "beam"
    assert overlap(keeper.beam, _truth(data, name, 640, 200, 440)) > 0.9


def test_a_search_done_elsewhere_keeps_no_frame_waiting(reads: Specification) -> None:
    phantom, let_go = Phantom((Act("normal", 3.0), Act("moved", 5.0))), threading.Event()

    def late(search: BeamSearch) -> Future[Beam | None]:
        return elsewhere.submit(lambda: (let_go.wait(60), search())[1])

    with ThreadPoolExecutor(1) as elsewhere:
        keeper = BeamKeeper(reads, None, late)
        frames = (Frame(phantom.frame(i / RATE), i / RATE, i) for i in range(int(8 * RATE)))
        for frame in itertools.islice(frames, int(2 * RATE)):
            keeper.update(frame)
        first = keeper.beam
        assert first is not None, "the first guess does not wait"
        let_go.set()
        for frame in frames:
            keeper.update(frame)
            elsewhere.submit(int).result()
    assert keeper.beam is not None
    assert overlap(keeper.beam, first) < 0.7, "what was found elsewhere is taken over"


class SlowSearches:
    """A searcher in a thread of its own, each of whose searches takes so many seconds of the source's time.

    Each looks twice, when it begins and before it ends: what it looks at must not change meanwhile.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds, self._at = seconds, 0.0
        self._pool = ThreadPoolExecutor(1)
        self._under_way: deque[tuple[float, threading.Event, Future[Beam | None]]] = deque()

    def __call__(self, search: BeamSearch) -> Future[Beam | None]:
        over = threading.Event()

        def twice() -> Beam | None:
            first = search()
            over.wait(60)
            assert search() == first, "the finder was gathered into while it was at work"
            return first

        future = self._pool.submit(twice)
        self._under_way.append((self._at + self._seconds, over, future))
        return future

    @property
    def waiting(self) -> int:
        """How many searches have not come to an end and were not called off."""
        return sum(not future.done() for _, _, future in self._under_way)

    def pass_to(self, at: float) -> None:
        """It is now ``at`` seconds; what is over by then has come to an end."""
        self._at = at
        while self._under_way and self._under_way[0][0] <= at:
            _, over, future = self._under_way.popleft()
            over.set()
            wait([future])

    def close(self) -> None:
        self.pass_to(float("inf"))
        self._pool.shutdown()


def _look(reads: Specification, rate: float, seconds: float, *acts: Act, most_waiting: int = 2) -> list[View]:
    """The phantom's acts through the reader, whose searches take so many seconds."""
    phantom, searches = Phantom(acts), SlowSearches(seconds)
    reader, views = Reader(reads, searcher=searches), []
    try:
        for i in range(round(phantom.duration * rate)):
            searches.pass_to(i / rate)
            views.append(reader.look(Frame(phantom.frame(i / rate), i / rate, i)))
            assert searches.waiting <= most_waiting
    finally:
        searches.close()
    return views


USUAL, MOVED = ((222, 50, 1019, 673), (382, 142, 996, 614))
"""Left, top, right and bottom of the phantom's two fans."""


def _near(beam: Beam | None, bounds: tuple[int, int, int, int], pixels: int) -> bool:
    return beam is not None and max(abs(a - b) for a, b in zip(beam.bounds, bounds, strict=True)) <= pixels


@pytest.mark.parametrize(("rate", "seconds"), [(16.0, 0.0), (8.0, 0.3), (8.0, 1.7)])
def test_slow_searches_find_the_beam_that_moved_while_the_signal_was_away(
    phantom_bundle: Bundle, rate: float, seconds: float
) -> None:
    again = 1.5 + 3 * (0.5 + seconds)
    acts = Act("moved", 6.0), Act("black", 0.5), Act("bars", 0.5), Act("consolidation", again + 2)
    views = _look(phantom_bundle.manifest.reads, rate, seconds, *acts)
    before = next(view for view in reversed(views) if view.frame.captured_at < 6)
    assert _near(before.beam, MOVED, 30)
    assert _near(views[-1].beam, USUAL, 4), "the old setting's beam is still in use"
    said = [view.frame.captured_at for view in views if view.reason == "geometry-changed"]
    assert said
    assert 7 < said[0] < 7 + again
    assert seconds or not any("beam-unchecked" in view.notes for view in views)


@pytest.mark.parametrize(("lit", "seconds"), [(3.0, 0.0), (1.5, 0.5), (2.2, 1.3)])
def test_pictures_from_before_and_after_a_black_one_are_never_searched_together(
    phantom_bundle: Bundle, seconds: float, lit: float
) -> None:
    """The signal goes away while the beam is still being settled, and another one comes back."""
    acts = Act("moved", lit), Act("black", 0.5), Act("normal", 3.5 + 3 * seconds)
    views = _look(phantom_bundle.manifest.reads, 8.0, seconds, *acts)
    for view in views:
        assert _near(view.beam, MOVED, 30) or _near(view.beam, USUAL, 45), view.beam
    assert _near(views[-1].beam, USUAL, 4)
    assert "geometry-changed" in {view.reason for view in views}


def test_a_search_of_the_picture_before_says_nothing_of_the_one_after(phantom_bundle: Bundle) -> None:
    """Another setting was there for a moment; the search in it ends when the usual one is back."""
    acts = Act("normal", 7.0), Act("black", 0.8), Act("moved", 1.2), Act("black", 0.8), Act("normal", 5.0)
    views = _look(phantom_bundle.manifest.reads, 8.0, 1.3, *acts)
    assert _near(views[-1].beam, USUAL, 45)
    assert "geometry-changed" not in {view.reason for view in views}


def test_a_search_that_never_ends_keeps_nothing_waiting_and_is_told(phantom_bundle: Bundle) -> None:
    acts = Act("normal", 3.0), *(Act("black", 0.6), Act("normal", 1.0)) * 3, Act("normal", 5.0)
    views = _look(phantom_bundle.manifest.reads, 8.0, float("inf"), *acts)
    assert views[-1].pixels is not None, "it is read on in the beam as known"
    assert "beam-unchecked" in views[-1].notes
    assert "beam-unchecked" not in views[20].notes, "a search may take a moment"


@pytest.mark.parametrize("searches", ["AABB", "AAABB", "A-BB", "--BB"])
def test_a_beam_that_two_searches_agree_on_is_taken_however_late_they_are_in_a_doubt(
    reads: Specification, searches: str
) -> None:
    """The known outline fills the picture, so that no edge tells of it."""
    known, other = (
        Beam(((left, 0.0), (320.0, 0.0), (320.0, 240.0), (left, 240.0)), (320, 240), "linear")
        for left in (0.0, 160.0)
    )
    answers = iter([known, *({"A": known, "B": other, "-": None}[letter] for letter in searches)])

    def search(_: BeamSearch) -> Future[Beam | None]:
        done: Future[Beam | None] = Future()
        done.set_result(next(answers, other))
        return done

    keeper = BeamKeeper(reads, known, search)
    picture = np.full((240, 320), 90, np.uint8)
    for number in range(60):
        keeper.update(Frame(picture, number / 30, number))
    assert keeper.beam == known
    keeper.doubt()
    for number in range(60, 180):
        keeper.update(Frame(picture, number / 30, number))
    assert keeper.beam == other
    assert keeper.cause == "beam"


def test_a_picture_of_another_size_is_said_to_be_that(data: Path, reads: Specification) -> None:
    keeper = BeamKeeper(reads, None)
    path = data / "lus" / CLIPS[0]
    _feed(keeper, _screens(path, 300, 60, 600, 0.0, 2.0))
    said = _feed(keeper, _screens(path, 600, 100, 800, 2.0, 3.0, (1920, 1080)))
    assert said
    assert said[0] - 2.0 < 0.5
    assert keeper.cause == "size"
    assert keeper.beam is not None
    assert overlap(keeper.beam, _truth(data, CLIPS[0], 600, 100, 800, (1920, 1080))) > 0.9


def test_a_profile_that_fits_is_not_touched(data: Path, reads: Specification) -> None:
    profile = _truth(data, CLIPS[0], 300, 60, 600)
    keeper = BeamKeeper(reads, profile)
    dark = [Frame(np.full((720, 1280, 3), 6, np.uint8), i / RATE, i) for i in range(30)]
    assert not _feed(keeper, iter(dark))
    assert not _feed(keeper, _screens(data / "lus" / CLIPS[0], 300, 60, 600, 2.0, 8.0))
    assert keeper.beam == profile
    assert keeper.notes == ()


def test_a_profile_of_another_scanner_is_replaced_and_said(data: Path, reads: Specification) -> None:
    name = CLIPS[0]
    keeper = BeamKeeper(reads, _truth(data, name, 60, 260, 440))
    said = _feed(keeper, _screens(data / "lus" / name, 600, 60, 600, 0.0, 6.0))
    assert said
    assert said[0] < 1.5
    assert "profile-misfit" in keeper.notes
    assert keeper.beam is not None
    assert overlap(keeper.beam, _truth(data, name, 600, 60, 600)) > 0.9


def test_a_profile_for_another_size_is_replaced_and_said(data: Path, reads: Specification) -> None:
    keeper = BeamKeeper(reads, _truth(data, CLIPS[0], 60, 60, 900, (1920, 1080)))
    _feed(keeper, _screens(data / "lus" / CLIPS[0], 600, 60, 600, 0.0, 5.0))
    assert "profile-misfit" in keeper.notes
    assert keeper.beam is not None
    assert overlap(keeper.beam, _truth(data, CLIPS[0], 600, 60, 600)) > 0.9


@pytest.mark.parametrize("given", [False, True], ids=["found", "profile"])
def test_the_outline_does_not_collapse_on_the_near_field(reads: Specification, given: bool) -> None:
    """The probe is lifted: below the near field nothing is left."""
    phantom = Phantom((Act("normal", 6.0), Act("no-contact", 8.0), Act("normal", 6.0)))
    keeper = BeamKeeper(reads, None)
    frames = [Frame(phantom.frame(i / RATE), i / RATE, i) for i in range(round(20 * RATE))]
    assert not _feed(keeper, iter(frames[:90]))
    settled = keeper.beam
    assert settled is not None
    lifted = [Frame(_emptied(f.image, settled), f.captured_at, f.sequence) for f in frames[90:210]]
    if given:
        keeper = BeamKeeper(reads, settled)
    assert not _feed(keeper, iter(lifted + frames[210:]))
    assert keeper.beam == settled


def _emptied(image: np.ndarray, beam: Beam) -> np.ndarray:
    left, top, right, bottom = beam.bounds
    picture = image.copy()
    picture[top + (bottom - top) // 4 : bottom, left:right][
        picture[top + (bottom - top) // 4 : bottom, left:right] < 60
    ] = 6
    return picture


def test_a_frozen_picture_does_not_move_the_beam(data: Path, reads: Specification) -> None:
    keeper = BeamKeeper(reads, None)
    frames = list(_screens(data / "lus" / CLIPS[0], 300, 60, 600, 0.0, 6.0))
    assert not _feed(keeper, iter(frames))
    settled = keeper.beam
    keeper.doubt()
    still = (Frame(frames[-1].image, 6.0 + i / RATE, i) for i in range(90))
    assert not _feed(keeper, still)
    assert keeper.beam == settled


def test_text_in_the_beam_is_reported_and_text_beside_it_is_not(data: Path, reads: Specification) -> None:
    for at, expected in (((560, 420), True), ((20, 600), False)):
        keeper = BeamKeeper(reads, None)
        for frame in _screens(data / "lus" / CLIPS[0], 300, 60, 600, 0.0, 9.0):
            cv2.putText(frame.image, "R2 POST", at, cv2.FONT_HERSHEY_SIMPLEX, 0.8, (220, 220, 220), 2)
            keeper.update(frame)
        assert ("text-in-beam" in keeper.notes) is expected


def test_of_two_views_the_live_one_is_read_and_the_other_noted(data: Path, reads: Specification) -> None:
    name = CLIPS[0]
    path = data / "lus" / name
    keeper = BeamKeeper(reads, None)
    stored = cv2.resize(_images(path)[0], (480, 480))
    for frame in _screens(path, 700, 120, 480, 0.0, 5.0):
        frame.image[120:600, 100:580] = stored
        keeper.update(frame)
    assert keeper.beam is not None
    assert overlap(keeper.beam, _truth(data, name, 700, 120, 480)) > 0.85
    assert "dual-view" in keeper.notes


def test_one_view_is_not_taken_for_two(data: Path, reads: Specification) -> None:
    for name in (*CLIPS, LINEAR):
        keeper = BeamKeeper(reads, None)
        _feed(keeper, _screens(data / "lus" / name, 300, 60, 600, 0.0, 5.0))
        assert keeper.notes == ()


def test_of_two_live_views_one_is_read(data: Path, reads: Specification) -> None:
    left, right = (data / "lus" / name for name in CLIPS)
    keeper = BeamKeeper(reads, None)
    pairs = zip(
        _screens(left, 100, 120, 480, 0.0, 5.0), _screens(right, 700, 120, 480, 0.0, 5.0), strict=True
    )
    for one, other in pairs:
        one.image[:, 640:] = other.image[:, 640:]
        keeper.update(one)
    assert keeper.beam is not None
    views = _truth(data, CLIPS[0], 100, 120, 480), _truth(data, CLIPS[1], 700, 120, 480)
    assert max(overlap(keeper.beam, view) for view in views) > 0.85
    assert "dual-view" in keeper.notes

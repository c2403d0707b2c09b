from __future__ import annotations

import csv
import itertools
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from reader.bundle import Bundle
from reader.clips import Frame, Survey, read_frames, survey_clip
from reader.phantom import RATE, Act, Phantom
from reader.reader import Reader, Reading
from reader.verdict import worst_moment


def read_phantom(bundle: Bundle, *acts: Act, seed: int = 7) -> list[Reading]:
    phantom = Phantom(acts, seed)
    reader = Reader(bundle.manifest.reads, bundle.runner(1))
    return [
        reader.read(Frame(phantom.frame(i / RATE), i / RATE, i)) for i in range(int(phantom.duration * RATE))
    ]


def test_a_drawing_in_the_beam_is_not_lung(default_bundle: Bundle) -> None:
    readings = read_phantom(default_bundle, Act("normal", 2.0))
    assert {r.state for r in readings if r.frame.captured_at > 0.5} == {"not-lung"}
    assert all(r.p is None for r in readings if r.state == "not-lung")


@pytest.mark.parametrize(
    ("act", "state"),
    [
        ("black", "no-signal"),
        ("blue", "no-signal"),
        ("bars", "no-signal"),
        ("menu", "no-beam"),
    ],
)
def test_each_fault_of_the_picture_is_named_and_gives_no_probability(
    phantom_bundle: Bundle, act: str, state: str
) -> None:
    readings = read_phantom(phantom_bundle, Act(act, 2.0))
    assert {reading.state for reading in readings} == {state}
    assert all(reading.p is None and reading.class_map is None for reading in readings)


def test_snow_is_no_signal(phantom_bundle: Bundle) -> None:
    reader = Reader(phantom_bundle.manifest.reads, phantom_bundle.runner(1))
    random = np.random.default_rng(2)
    for i in range(5):
        snow = random.normal(120, 50, (720, 1280)).clip(0, 255).astype(np.uint8)
        assert reader.read(Frame(snow, i / 25, i)).state == "no-signal"


def test_a_probe_in_air_is_named(phantom_bundle: Bundle) -> None:
    readings = read_phantom(phantom_bundle, Act("normal", 2.0), Act("no-contact", 2.0))
    assert {r.state for r in readings if r.frame.captured_at >= 2.3} == {"no-contact"}


def test_a_frozen_picture_is_named_within_a_second_or_so_and_left_again(phantom_bundle: Bundle) -> None:
    readings = read_phantom(phantom_bundle, Act("normal", 3.0), Act("frozen", 3.0), Act("normal", 3.0))
    frozen = [r.frame.captured_at for r in readings if r.state == "frozen"]
    assert frozen[0] == pytest.approx(3.8, abs=0.1)
    assert frozen[-1] == pytest.approx(6.5, abs=0.2)


def test_a_still_is_never_frozen(phantom_bundle: Bundle) -> None:
    reader = Reader(phantom_bundle.manifest.reads, phantom_bundle.runner(1))
    image = Phantom().frame(7.0)
    states = {reader.read(Frame(image, i * 1.0, i, still=True)).state for i in range(5)}
    assert "frozen" not in states


def test_a_beam_that_moved_is_named_found_again_and_read_on(phantom_bundle: Bundle) -> None:
    readings = read_phantom(phantom_bundle, Act("normal", 6.0), Act("moved", 6.0))
    changed = [r.frame.captured_at for r in readings if r.state == "geometry-changed"]
    assert changed
    assert 6.0 <= changed[0] < 7.5
    before, after = readings[140].beam, readings[-1].beam
    assert before is not None
    assert after is not None
    assert after.bounds[1] > before.bounds[1] + 50
    assert readings[-1].p is not None


def test_a_beam_that_moved_while_the_signal_was_away_is_noticed(phantom_bundle: Bundle) -> None:
    readings = read_phantom(phantom_bundle, Act("moved", 5.0), Act("black", 1.0), Act("consolidation", 5.0))
    beam = readings[-1].beam
    assert beam is not None
    assert beam.bounds[1] < 70, "the old setting's beam is still in use"
    assert "geometry-changed" in {r.state for r in readings if r.frame.captured_at > 6}


def test_another_picture_size_is_another_geometry(phantom_bundle: Bundle) -> None:
    reader = Reader(phantom_bundle.manifest.reads, phantom_bundle.runner(1))
    image = Phantom().frame(7.0)
    reader.read(Frame(image, 0.0, 0))
    reading = reader.read(Frame(cv2.resize(image, (640, 360)), 0.1, 1))
    assert reading.state == "geometry-changed"


def test_a_reading_says_which_frame_and_where(phantom_bundle: Bundle) -> None:
    reading = read_phantom(phantom_bundle, Act("consolidation", 3.0))[-1]
    assert reading.frame.sequence == 74
    assert reading.p is not None
    assert sum(reading.p.values()) == pytest.approx(1, abs=1e-3)
    assert reading.class_map is not None
    assert reading.class_map.shape == (7, 7)
    assert ((reading.class_map >= 0) & (reading.class_map <= 1)).all()


def test_signal_lost_for_a_moment_withdraws_the_verdict(phantom_bundle: Bundle) -> None:
    readings = read_phantom(phantom_bundle, Act("normal", 4.0), Act("black", 1.0), Act("normal", 4.0))
    back = next(r for r in readings if r.frame.captured_at > 5.6)
    assert back.state == "uncertain"
    assert not back.full


def clip_state(bundle: Bundle, frames: list[Frame], survey: Survey) -> str:
    reads = bundle.manifest.reads
    reader = Reader(reads, _RUNNER.setdefault("runner", bundle.runner(2)), survey.beam, survey.span)
    verdicts = [v for v in (reader.read(frame).verdict for frame in frames) if v is not None]
    return worst_moment(verdicts, reads.labels, reads.negative).state


_RUNNER: dict = {}


def thinned(frames: list[Frame], rate: float) -> list[Frame]:
    kept, due = [], 0.0
    for frame in frames:
        if frame.captured_at >= due - 1e-6:
            kept.append(frame)
            due = max(due + 1 / rate, frame.captured_at)
    return kept


def test_a_clip_reads_the_same_at_any_frame_rate_and_with_frames_lost(
    data: Path, default_bundle: Bundle
) -> None:
    with (data / "lus" / "index.csv").open() as file:
        names = [row["path"] for row in csv.DictReader(file)]
    random = np.random.default_rng(5)
    same: Counter[str] = Counter()
    clips = names[::12]
    for name in clips:
        path = data / "lus" / name
        frames = list(read_frames(path))
        survey = survey_clip(path)
        whole = clip_state(default_bundle, frames, survey)
        for rate in (15, 5):
            same[f"{rate}/s"] += clip_state(default_bundle, thinned(frames, rate), survey) == whole
        kept = [frame for frame in frames if random.random() > 0.2] or frames
        same["a fifth lost"] += clip_state(default_bundle, kept, survey) == whole
    print({key: f"{count}/{len(clips)}" for key, count in same.items()})
    assert min(same.values()) >= 0.9 * len(clips), same


@pytest.mark.data
def test_only_lung_in_a_real_beam_gets_a_verdict(data: Path, default_bundle: Bundle) -> None:
    """Stills through the whole reader: real lungs, and X-rays and turned lungs in the same beams."""
    reads = default_bundle.manifest.reads
    x_rays = sorted((data / "cxr" / "tb").glob("*.jpg"))
    read: dict[str, list[bool]] = {"lung": [], "x-ray": [], "upside-down": []}
    for i, path in enumerate(sorted((data / "lus" / "blues").glob("*.mp4"))[::14]):
        beam = survey_clip(path).beam
        assert beam is not None
        frame = list(itertools.islice(read_frames(path), 10))[-1]
        mask, (left, top, right, bottom) = beam.mask(), beam.bounds
        inside = mask[top:bottom, left:right, None] > 0
        pictures = {"lung": frame.image}
        for kind, fill in (("x-ray", cv2.imread(str(x_rays[i]))), ("upside-down", frame.image)):
            whole = fill if kind == "x-ray" else fill[top:bottom, left:right][::-1]
            shown = cv2.resize(whole, (right - left, bottom - top), interpolation=cv2.INTER_AREA)
            pictures[kind] = np.zeros_like(frame.image)
            pictures[kind][top:bottom, left:right] = np.where(inside, shown, 0)
        for kind, picture in pictures.items():
            reader = Reader(reads, default_bundle.runner(1), beam)
            read[kind].append(reader.read(Frame(picture, 0.0, 0, still=True)).p is not None)
    share = {kind: float(np.mean(of)) for kind, of in read.items()}
    assert share["lung"] >= 0.9, share
    assert share["x-ray"] <= 0.1, share
    assert share["upside-down"] <= 0.1, share

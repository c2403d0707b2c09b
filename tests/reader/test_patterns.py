from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from reader.bundle import Bundle, Specification
from reader.clips import Frame
from reader.patterns import Pattern, named_patterns, pattern_probabilities
from reader.phantom import RATE, Act, Phantom
from reader.reader import Reader, Reading

GOOD = Pattern("B-lines", 0.9, 0.85, 0.95, 30, 30, 0.5, temperature=0.5)
WEAK = replace(GOOD, name="A-lines", auc=0.8, low=0.74)
CHANNELS = ("normal", "opacity", "A-lines", "B-lines")
EVEN = np.full((2, 2), 0.25, np.float32)


def a_map(**logits: float) -> np.ndarray:
    names = {name.replace("-", "_"): place for place, name in enumerate(CHANNELS)}
    found = np.zeros((2, 2, len(CHANNELS)), np.float32)
    for name, logit in logits.items():
        found[:, :, names[name]] = logit
    return found


@pytest.mark.parametrize(
    ("change", "supported"),
    [
        ({}, True),
        ({"low": 0.75}, True),
        ({"low": 0.7499}, False),
        ({"with_it": 19}, False),
        ({"without_it": 19}, False),
    ],
)
def test_a_pattern_is_supported_by_its_interval_and_enough_patients(change: dict, supported: bool) -> None:
    assert replace(GOOD, **change).supported is supported


def test_only_supported_patterns_are_read() -> None:
    found = pattern_probabilities(a_map(A_lines=9, B_lines=1), EVEN, CHANNELS, (WEAK, GOOD))
    assert found == {"B-lines": pytest.approx(1 / (1 + np.exp(-2)), abs=1e-4)}


def test_cells_outside_the_beam_say_nothing_of_a_pattern() -> None:
    maps = a_map()
    maps[0, 0, 3] = 100
    weights = np.array([[0, 0.5], [0.25, 0.25]], np.float32)
    assert pattern_probabilities(maps, weights, CHANNELS, (GOOD,)) == {"B-lines": 0.5}


def test_a_clip_names_what_reaches_its_threshold_in_the_mean_of_the_frames_that_were_read() -> None:
    frames = [{}, {"B-lines": 0.3}, {"B-lines": 0.9}]
    assert named_patterns(frames, [GOOD]) == {"B-lines": 0.6}
    assert named_patterns([*frames, {"B-lines": 0.0}], [GOOD]) == {}
    assert named_patterns([{}, {}], [GOOD]) == {}


@pytest.mark.parametrize(
    "change",
    [
        {"name": ""},
        {"low": 0.97},
        {"high": 1.2},
        {"auc": float("nan")},
        {"threshold": -1},
        {"temperature": 0},
    ],
)
def test_figures_that_make_no_sense_are_refused(change: dict) -> None:
    with pytest.raises(ValueError, match="pattern"):
        replace(GOOD, **change)


def with_pattern(bundle: Bundle) -> Specification:
    reads = replace(bundle.manifest.reads, familiarity=None)
    return replace(
        reads, map_channels=(*reads.labels, "B-lines"), patterns=(GOOD, replace(WEAK, temperature=None))
    )


def test_a_manifest_keeps_its_patterns_and_one_without_reads_as_before(default_bundle: Bundle) -> None:
    reads = with_pattern(default_bundle)
    assert Specification.from_json(reads.to_json()) == reads
    bare = replace(reads, patterns=())
    assert "patterns" not in bare.to_json()
    assert Specification.from_json(bare.to_json()) == bare


def test_a_pattern_without_its_channel_is_refused(default_bundle: Bundle) -> None:
    with pytest.raises(ValueError, match="map channel"):
        replace(with_pattern(default_bundle), map_channels=default_bundle.manifest.reads.labels)


class Fixed:
    """Says the same of everything: the channels' logits."""

    name, badge = "fixed", ""
    input_shape = (224, 224, 3)

    def __init__(self, *logits: float) -> None:
        self._map = np.tile(np.float32(logits), (7, 7, 1))
        self.map_shape = self._map.shape

    def class_map(self, pixels: np.ndarray) -> np.ndarray:
        return self._map


def readings(reads: Specification, *logits: float) -> list[Reading]:
    phantom, reader = Phantom((Act("normal", 1.5),)), Reader(reads, Fixed(*logits))
    return [
        reader.read(Frame(phantom.frame(i / RATE), i / RATE, i))
        for i in range(round(phantom.duration * RATE))
    ]


def test_a_reading_names_patterns_and_its_label_stays_the_same(default_bundle: Bundle) -> None:
    reads = with_pattern(default_bundle)
    plain = replace(reads, map_channels=reads.labels, patterns=())
    both = zip(readings(reads, 2, 0, 1), readings(plain, 2, 0), strict=True)
    seen = [(named, bare) for named, bare in both if bare.p is not None]
    assert len(seen) > 5
    for named, bare in seen:
        assert named.p == bare.p
        assert named.state == bare.state
        assert named.patterns == {"B-lines": pytest.approx(1 / (1 + np.exp(-2)), abs=1e-4)}
        assert bare.patterns == {}


def test_without_a_reading_nothing_is_named(default_bundle: Bundle) -> None:
    reader = Reader(with_pattern(default_bundle), Fixed(2, 0, 1))
    reading = reader.read(Frame(np.zeros((480, 640, 3), np.uint8), 0.0, 0))
    assert reading.p is None
    assert reading.patterns == {}

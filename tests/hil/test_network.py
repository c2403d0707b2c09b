"""The network on what it is to run on: the processor, or a real accelerator."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest

from reader.bundle import GOLDEN, Bundle
from reader.clips import Frame
from reader.phantom import RATE, Act, Phantom
from reader.reader import Reader
from reader.runner import Runner
from reader.verdict import probabilities

pytestmark = pytest.mark.usefixtures("noted")
FRAMES = 40
CLOSE = 0.05
"""Probability by which two runtimes may differ in a cell."""


def test_the_golden_vectors_read_as_on_the_processor(bundle: Bundle, runner: Runner) -> None:
    processor = bundle.runner(1)
    with np.load(io.BytesIO(bundle.files[GOLDEN])) as golden:
        inputs = golden["inputs"]
    for pixels in inputs:
        here, there = (
            probabilities(each.class_map(pixels), bundle.manifest.reads.temperature)
            for each in (runner, processor)
        )
        np.testing.assert_allclose(here, there, atol=CLOSE)
    assert runner.badge == "", "the accelerator has read every one of them itself"


@pytest.mark.parametrize(("act", "state"), [("normal", "normal"), ("consolidation", "opacity")])
def test_a_lung_is_read(bundle: Bundle, runner: Runner, act: str, state: str) -> None:
    phantom = Phantom((Act(act, 60.0),))
    reader = Reader(replace(bundle.manifest.reads, familiarity=None), runner)
    readings = [reader.read(Frame(phantom.frame(i / RATE), i / RATE, i)) for i in range(FRAMES)]
    assert readings[-1].state == state
    assert runner.badge == ""

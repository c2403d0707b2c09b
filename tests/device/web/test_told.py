"""What the page is told beside the live picture."""

from __future__ import annotations

from dataclasses import replace

import pytest

from device.web.live import told
from tests.device.test_exam_screen import exam_screen, panel


@pytest.mark.parametrize("phase", ["aim", "recording", "reading"])
def test_a_live_picture_has_its_state(phase: str) -> None:
    assert told(exam_screen(panel(phase)))["p"] is not None


@pytest.mark.parametrize("phase", ["review", "summary", "signed"])
def test_what_stands_in_place_of_the_live_picture_has_no_live_verdict(phase: str) -> None:
    found = told(exam_screen(panel(phase)))
    assert (found["state"], found["p"]) == ("held", None)


def test_a_held_picture_has_no_live_verdict() -> None:
    found = told(replace(exam_screen(panel("aim")), held=True))
    assert (found["state"], found["p"]) == ("held", None)

"""An exam by the panel's buttons, and the development data's clips by its lamps."""

from __future__ import annotations

import itertools
import shutil
import time
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from device.exams.exam import Zone
from device.exams.store import Store
from tests.firmware_bridge.patience import PATIENCE, in_step, until
from tests.hil.bedside import BedsideProcess, agreed
from tests.hil.conftest import Microcontroller

pytestmark = pytest.mark.usefixtures("noted")
CLIP, LONG, LOOKED_AT = 1.2, 1.0, 1.5
"""Seconds: a clip's length, a long press, and a look at what is on the screen."""
CLIPS = {"normal": "blues/patient_15_L1.mp4", "opacity": "blues/patient_12_L1.mp4"}
SHOWINGS = 4
"""Of each clip at the most: this machine may stand still during one."""
CONFIG = """
[exam]
protocol = "blue-6"
autocapture = false
operator = "Dr A"
"""


def test_an_exam_is_recorded_accepted_and_signed_by_the_buttons(
    microcontroller: Microcontroller, picture: tuple[str, str], tmp_path: Path
) -> None:
    folders = (tmp_path / str(number) for number in itertools.count())
    in_step(microcontroller.rig, lambda: sign_an_exam(microcontroller, picture[0], next(folders)))


def sign_an_exam(microcontroller: Microcontroller, source: str, folder: Path) -> None:
    config = folder.with_suffix(".toml")
    config.write_text(CONFIG)
    arguments = ["--config", config, "--source", source, "--panel", microcontroller.connection]
    with ExitStack() as held:
        run = held.enter_context(closing(BedsideProcess(folder, arguments, {})))
        run.wait_for(lambda line: line.state == "normal")
        store = held.enter_context(closing(Store(folder / "exams")))
        (line,) = store.exams()

        def zone(number: int) -> Zone:
            return store.exam(line.id).zones[number]

        microcontroller.press("next")
        # At the beginning of an act: the clip must end before its picture does.
        run.wait_for(lambda line: line.state == "no-signal")
        run.wait_for(lambda line: line.spoke)
        microcontroller.press("record")
        time.sleep(CLIP)
        microcontroller.press("record")
        microcontroller.press("back")
        until(lambda: zone(1).clips)
        assert not zone(0).clips
        time.sleep(LOOKED_AT)
        microcontroller.press("confirm")
        microcontroller.press("next")
        time.sleep(LOOKED_AT)
        microcontroller.press("confirm")
        until(lambda: zone(1).human)
        assert zone(0).human is None, "there was nothing to accept"
        assert store.exam(line.id).signed is None
        microcontroller.press("confirm", LONG)
        microcontroller.press("confirm", LONG)
        time.sleep(LOOKED_AT)
        assert store.exam(line.id).signed is None, "the summary was not looked at before the button went down"
        microcontroller.press("confirm", LONG)
        until(lambda: store.exam(line.id).signed)


@pytest.mark.data
def test_real_lungs_light_their_lamps(microcontroller: Microcontroller, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    for place, clip in enumerate([*CLIPS.values()] * SHOWINGS):
        shutil.copy(data / "lus" / clip, folder / f"{place}{Path(clip).suffix}")
    seen, give_up = set[str | None](), time.monotonic() + 3 * PATIENCE
    expected = {None, *CLIPS}
    arguments = ["--source", folder, "--panel", microcontroller.connection]
    with closing(BedsideProcess(tmp_path / "run", arguments, {})) as run:
        while run.runs and not seen >= expected:
            seen.add(agreed(microcontroller.rig, run))
            assert time.monotonic() < give_up
            time.sleep(0.05)
    assert seen == expected, "lamps and results said these together"

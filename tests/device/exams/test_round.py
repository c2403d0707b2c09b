"""Whole exams at the bedside on the phantom: hands off, one after another, cut off and gone on with."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from device.capture.sources import PhantomSource
from device.exams import round as rounds
from device.exams import session
from device.exams.exam import NOT_SCANNED, Patient
from device.exams.round import ExamRound, open_round
from device.exams.session import LOOK_FIRST
from device.exams.store import Store
from device.loop import Bedside
from device.results import Results
from device.screen.displays import Nowhere
from device.screen.drawing import Screen
from device.settings.config import Config, load_config
from reader.bundle import Bundle
from reader.phantom import Act

ACTS = (Act("no-contact", 1.0), Act("normal", 5.5), Act("no-contact", 1.5), Act("consolidation", 5.5))


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Two zones of clips of three seconds in a store of their own."""
    monkeypatch.setenv("SONOGLANCE_STATE", str(tmp_path / "state"))
    zone = {"view": "front", "y": 0.4, "title": {"en": "Front"}}
    protocol = {
        "name": "two",
        "title": {"en": "Two"},
        "source": "none",
        "zones": [
            {"name": "r1", "side": "right", "x": 0.3, **zone},
            {"name": "l1", "side": "left", "x": 0.7, **zone},
        ],
    }
    path = tmp_path / "two.json"
    path.write_text(json.dumps(protocol))
    config = load_config(None).config
    exam = dataclasses.replace(
        config.exam, protocol=str(path), folder=tmp_path / "exams", seconds=3, operator="Dr A"
    )
    return dataclasses.replace(config, exam=exam)


class Pressing(Nowhere):
    """Presses keys, each once a screen is as it wants it, then quits."""

    def __init__(self, *story: tuple[object, str]) -> None:
        self.story = [*story]
        self.screens: list[Screen] = []

    def show(self, screen: Screen) -> str:
        self.screens.append(screen)
        if self.story and self.story[0][0](screen):
            return self.story.pop(0)[1]
        return ""


def looked_at_for(seconds: float) -> Callable[[Screen], bool]:
    """Whether the summary has been on the screen for so long."""
    since: list[float] = []

    def looked(shown: Screen) -> bool:
        assert shown.exam is not None
        if shown.exam.phase == "summary" and shown.exam.acknowledged:
            since.append(time.monotonic())
        return bool(since) and since[-1] - since[0] > seconds

    return looked


def run(exams: ExamRound, bundle: Bundle, settings: Config, folder: Path, display: Nowhere) -> Bedside:
    bedside = Bedside(bundle, bundle.runner(1), display, Results(None), folder, settings, exams=exams)
    bedside.run(PhantomSource(6, ACTS), live=True)
    return bedside


def test_an_exam_hands_off_is_read_summed_and_signed(
    default_bundle: Bundle, settings: Config, tmp_path: Path
) -> None:
    display = Pressing(
        (lambda s: all(zone.state != NOT_SCANNED for zone in s.exam.zones) and s.exam.acknowledged, "e"),
        (looked_at_for(1.1), "e"),
        (lambda s: s.exam.phase == "signed", "q"),
    )
    with open_round(settings, default_bundle, Patient("17"), advance=True, drawn=True) as exams:
        run(exams, default_bundle, settings, tmp_path, display)
    store = Store(settings.store_folder)
    (line,) = store.exams()
    exam = store.exam(line.id)
    assert not display.story, "every key was pressed"
    assert [zone.state("normal") for zone in exam.zones] == ["normal", "opacity"]
    assert exam.signed is not None
    assert (exam.signed_by, exam.patient.code) == ("Dr A", "17")
    assert str(exam.summary.total) == "1-3"
    assert store.check() == []
    assert any("exam-patient 17" in screen.badges for screen in display.screens), "whose exam it is, is shown"


@pytest.fixture
def begun(settings: Config, default_bundle: Bundle) -> str:
    """The id of an exam with one reading, cut off by the end of its process."""
    with open_round(settings, default_bundle, Patient("17")) as exams:
        exam = exams.exam.id
        store = Store(settings.store_folder)
        store.add_reading(exam, "r1", "normal", 0, "", "Dr A", False)
        store.close()
    return exam


def test_an_exam_that_was_cut_off_goes_on(settings: Config, default_bundle: Bundle, begun: str) -> None:
    with open_round(settings, default_bundle) as exams:
        assert exams.exam.id == begun
        assert exams.badges == ("exam-patient 17", "exam-resumed")
        assert not exams.panel().autocapture, "nothing goes into it by itself"


def test_after_a_reboot_only_a_clock_in_step_or_the_same_patient_goes_on(
    settings: Config, default_bundle: Bundle, begun: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "boot_id", lambda: "another boot")
    with open_round(settings, default_bundle) as exams:
        assert exams.exam.id != begun, "a box without a battery wakes at the time at which it fell asleep"
    with open_round(settings, default_bundle, Patient("17")) as exams:
        assert exams.exam.id == begun


def test_another_patient_gets_another_exam(settings: Config, default_bundle: Bundle, begun: str) -> None:
    with open_round(settings, default_bundle, Patient("18")) as exams:
        assert exams.exam.id != begun
        assert exams.badges == ("exam-patient 18",)


def test_an_old_unsigned_exam_is_left_alone(
    settings: Config, default_bundle: Bundle, begun: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "GO_ON_WITHIN", 0.0)
    with open_round(settings, default_bundle) as exams:
        assert exams.exam.id != begun
    assert [line.id for line in Store(settings.store_folder).exams()] == [begun], "the empty one left nothing"


def test_the_next_exam_is_of_nobody_yet(settings: Config, default_bundle: Bundle, begun: str) -> None:
    with open_round(settings, default_bundle) as exams:
        assert exams.press("n")
        assert exams.exam.id == begun, "next zone, while scanning"
        exams.press("e")
        assert exams.press("n")
        assert exams.exam.id != begun
        assert (exams.exam.patient, exams.badges) == (Patient(), ())
        assert exams.panel().autocapture
    assert Store(settings.store_folder).exam(begun).signed is None


def test_a_signed_exam_waits_for_its_archive(
    settings: Config, default_bundle: Bundle, begun: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(session, "now", lambda: clock[0])
    settings = dataclasses.replace(
        settings, send=dataclasses.replace(settings.send, destination="127.0.0.1:9/NOWHERE")
    )
    with open_round(settings, default_bundle) as exams:
        exams.press("e")
        exams.press("e")
        assert exams.panel().phase == "summary", "a key held too long signs nothing"
        clock[0] += LOOK_FIRST
        exams.press("e")
    store = Store(settings.store_folder)
    assert store.exam(begun).signed is not None
    assert [(parcel.exam, parcel.destination) for parcel in store.parcels(waiting=True)] == [
        (begun, "127.0.0.1:9/NOWHERE")
    ]


def test_without_room_for_the_next_exam_this_one_stays_and_it_is_said(
    settings: Config, default_bundle: Bundle, begun: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_round(settings, default_bundle) as exams:
        exams.press("e")
        with monkeypatch.context() as full:
            full.setattr(Store, "room", lambda store: 0)
            assert exams.press("n")
        assert exams.exam.id == begun
        assert "no-next-exam" in exams.badges


def test_what_was_typed_elsewhere_of_an_empty_exam_is_kept(settings: Config, default_bundle: Bundle) -> None:
    with open_round(settings, default_bundle) as exams:
        store = Store(settings.store_folder)
        store.describe(exams.exam.id, "Dr A", patient=Patient("19"))
        store.close()
        empty = exams.exam.id
    assert [line.id for line in Store(settings.store_folder).exams()] == [empty]

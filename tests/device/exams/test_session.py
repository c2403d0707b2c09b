"""Exams from live readings and keys to a real store: nothing here stands in for anything."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from device.errors import StoreError
from device.exams import clips as clips_module
from device.exams import keeping
from device.exams import session as session_module
from device.exams.clip_taker import SHORTEST
from device.exams.clips import read_again
from device.exams.exam import ClipReading, Exam
from device.exams.protocols import load_protocol
from device.exams.session import LOOK_FIRST, MESSAGES, ExamSession
from device.exams.store import CLIPS, Store
from device.reading import Taken
from device.screen.exam_drawing import ExamPanel
from reader.bundle import Bundle, load_bundle
from reader.clips import Frame
from reader.phantom import RATE, Act, Phantom
from reader.reader import Reader, Reading

PATIENCE = 120.0
STORY = (Act("normal", 5.6), Act("no-contact", 1.6), Act("consolidation", 5.6), Act("no-contact", 1.6))


@lru_cache(1)
def _read(bundle_path: Path) -> list[Reading]:
    """The story as the reader reads it, once for all tests, on pictures of a quarter of the phantom's."""
    bundle = load_bundle(bundle_path)
    reader = Reader(replace(bundle.manifest.reads, familiarity=None), bundle.runner(1))
    phantom = Phantom(STORY)
    count = round(phantom.duration * RATE)
    return [reader.read(Frame(phantom.frame(i / RATE)[::2, ::2].copy(), i / RATE, i)) for i in range(count)]


@pytest.fixture
def story(default_bundle: Bundle) -> list[Reading]:
    return _read(default_bundle.path)


class Bedside:
    """One exam at the bedside, and the hands that do it."""

    def __init__(self, folder: Path, bundle: Bundle, operator: str = "Ada", **options: object) -> None:
        self.bundle, self.store = bundle, Store(folder, owner=True)
        reads, self.protocol = bundle.manifest.reads, load_protocol("blue-6")
        names = [zone.name for zone in self.protocol.zones]
        self.id = self.store.begin("blue-6", names, reads.labels, reads.negative, operator=operator).id
        self.open(**options)

    def open(self, **options: object) -> None:
        exam = self.store.exam(self.id)
        self.session = ExamSession(
            self.store, exam, self.protocol, self.bundle, drawn=True, **options  # type: ignore[arg-type]
        )  # fmt: skip

    @property
    def panel(self) -> ExamPanel:
        panel = self.session.panel()
        assert not panel.message or panel.message.split()[0] in MESSAGES
        return panel

    @property
    def exam(self) -> Exam:
        return self.store.exam(self.id)

    def see(self, readings: list[Reading], begin: float = 0.0, end: float = 1e9) -> None:
        for reading in readings:
            if begin <= reading.frame.captured_at < end:
                self.session.saw(Taken(reading, 0.0, 0.0))

    def press(self, keys: str) -> None:
        for key in keys:
            assert self.session.press(key)

    def look_anew(self, key: str) -> None:
        """Press a key that has the exam looked at again, and wait until it was: a look that comes late would
        see what is done to the exam afterwards."""
        seen = f"{self.exam.comment}."
        self.store.describe(self.id, "Ada", comment=seen)
        self.press(key)
        self.wait(lambda _: self.session.exam.comment == seen)

    def wait(self, until: Callable[[ExamPanel], bool]) -> ExamPanel:
        give_up = time.monotonic() + PATIENCE
        while not until(panel := self.panel):
            assert time.monotonic() < give_up, panel
            time.sleep(0.01)
        return panel

    def settled(self) -> ExamPanel:
        return self.wait(lambda panel: panel.acknowledged)


@pytest.fixture
def bedside(tmp_path: Path, default_bundle: Bundle) -> Iterator[Bedside]:
    bedside = Bedside(tmp_path, default_bundle, autocapture=False)
    yield bedside
    bedside.session.close()
    assert bedside.store.check() == []
    bedside.store.close()


@pytest.fixture
def scanned(bedside: Bedside, story: list[Reading]) -> Bedside:
    """One zone with a clip of a good second."""
    bedside.see(story, 0.0, 1.0)
    assert not bedside.session.at_work
    bedside.press("r")
    bedside.see(story, 1.0, 2.4)
    assert bedside.session.at_work, "a clip is being recorded"
    bedside.press("r")
    assert bedside.session.at_work, "it is being kept"
    assert bedside.settled().phase == "review"
    return bedside


def test_an_exam_without_hands(
    tmp_path: Path, default_bundle: Bundle, story: list[Reading], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clips start and stop by themselves, each zone once, and a new one only after the probe was moved."""
    # Frames come here much faster than the encoder takes them: all may wait.
    monkeypatch.setattr(clips_module, "QUEUED_FRAMES", len(story))
    bedside = Bedside(tmp_path, default_bundle, clip_seconds=2.5, advance=True)
    first, second, third = (zone.name for zone in bedside.protocol.zones[:3])
    bedside.see(story, 0.0, 4.4)
    bedside.settled()
    assert bedside.panel.current == second
    bedside.see(story, 4.4, 5.6)
    assert bedside.panel.phase == "aim"
    bedside.see(story, 5.6)
    panel = bedside.settled()
    assert panel.current == third
    assert [(zone.name, zone.state) for zone in panel.zones[:3]] == [
        (first, "normal"), (second, "opacity"), (third, "not-scanned"),
    ]  # fmt: skip
    bedside.press("e")
    time.sleep(LOOK_FIRST)
    bedside.press("e")
    assert bedside.wait(lambda panel: panel.phase == "signed").summary == bedside.exam.summary
    assert bedside.exam.signed_by == "Ada"
    assert not bedside.session.at_work
    clips = [clip for zone in bedside.exam.zones for clip in zone.clips]
    assert [clip.automatic for clip in clips] == [True, True]
    reads = replace(default_bundle.manifest.reads, familiarity=None)
    for clip in clips:
        assert clip.seconds == pytest.approx(2.5, abs=0.06)
        again = read_again(
            bedside.store.clip_path(clip), clip.times, clip.beam, reads, default_bundle.runner(2)
        )
        assert replace(again, bundle=clip.reading.bundle) == clip.reading
    assert bedside.session.close()
    assert bedside.store.check() == []


def test_the_live_picture_meets_the_checks_and_air_does_not(bedside: Bedside, story: list[Reading]) -> None:
    bedside.see(story, 0.0, 2.0)
    assert all(bedside.panel.quality.values())
    bedside.see(story, 5.6, 6.8)
    assert bedside.panel.quality == {"beam": True, "contact": False, "pleura": False, "steady": False}


def test_a_clip_by_hand_is_shown_as_saved_only_once_it_is(bedside: Bedside, story: list[Reading]) -> None:
    bedside.see(story, 0.0, 1.0)
    assert bedside.panel.phase == "aim"
    bedside.press("r")
    bedside.see(story, 1.0, 2.4)
    panel = bedside.panel
    assert (panel.phase, panel.seconds_wanted) == ("recording", 30.0)
    assert panel.seconds == pytest.approx(1.4, abs=0.06)
    bedside.press("r")
    panel = bedside.panel
    assert (panel.phase, panel.acknowledged) == ("reading", False)
    assert panel.zones[0].state == "not-scanned"
    panel = bedside.settled()
    assert (panel.phase, panel.zones[0].state) == ("review", "normal")
    assert panel.clip == bedside.exam.zones[0].clips[0].reading
    assert not bedside.exam.zones[0].clips[0].automatic


def test_the_clip_is_replayed_from_its_key_frame(scanned: Bedside) -> None:
    moment = scanned.wait(lambda panel: panel.replay is not None).replay
    clip = scanned.exam.zones[0].clips[0]
    assert moment is not None
    assert moment.class_map is not None
    assert moment.frame.sequence == clip.reading.key_frame
    assert moment.beam == clip.beam
    assert moment.frame.image.shape[1::-1] == clip.beam.size


def test_a_key_that_was_meant_for_another_screen_does_nothing_but_steps_do(scanned: Bedside) -> None:
    aimed, closing = (replace(scanned.panel, phase=phase) for phase in ("aim", "summary"))
    for key, seen in [(key, aimed) for key in "ax2c"] + [(key, closing) for key in "aenrx"]:
        assert scanned.session.press(key, seen=seen), "it is an exam's key all the same"
    assert (scanned.settled().phase, scanned.exam.zones[0].human) == ("review", None)
    elsewhere = replace(scanned.panel, current=scanned.protocol.zones[1].name)
    assert scanned.session.press("a", seen=elsewhere)
    assert scanned.settled().human is None
    assert scanned.session.press("n", seen=elsewhere)
    assert scanned.panel.current == scanned.protocol.zones[1].name
    scanned.press("b")
    assert scanned.session.press("a", seen=scanned.panel)
    assert scanned.settled().human is not None


def test_the_clinicians_reading_stands_beside_the_networks(scanned: Bedside) -> None:
    scanned.press("a")
    assert scanned.settled().human is not None
    scanned.press("c")
    scanned.settled()
    scanned.press("2")
    panel = scanned.settled()
    assert panel.human is not None
    assert (panel.human.state, panel.human.grade) == ("opacity", 2)
    assert panel.clip is not None
    assert panel.clip.state == "normal"
    given = scanned.exam.zones[0].readings
    assert [(x.state, x.grade, x.accepted) for x in given] == [
        ("normal", None, True), ("opacity", None, False), ("opacity", 2, False),
    ]  # fmt: skip
    scanned.press("cc")
    assert scanned.settled().zones[0].state == "normal"


def test_a_discarded_clip_is_gone(scanned: Bedside) -> None:
    file = scanned.store.clip_path(scanned.exam.zones[0].clips[0])
    scanned.press("x")
    assert scanned.settled().phase == "aim"
    assert not file.exists()
    assert scanned.panel.zones[0].state == "not-scanned"


def test_a_clip_under_way_can_be_discarded(bedside: Bedside, story: list[Reading]) -> None:
    bedside.see(story, 0.0, 1.0)
    bedside.press("r")
    bedside.see(story, 1.0, 2.0)
    bedside.press("x")
    assert bedside.panel.phase == "aim"
    bedside.session.close()
    assert not any(zone.clips for zone in bedside.exam.zones)
    assert not any(path.is_file() for path in (bedside.store.folder / CLIPS).rglob("*"))


def test_zones_go_round_and_a_clip_ends_when_one_leaves_its_zone(
    bedside: Bedside, story: list[Reading]
) -> None:
    names = [zone.name for zone in bedside.protocol.zones]
    bedside.press("b")
    assert bedside.panel.current == names[-1]
    bedside.press("n")
    bedside.see(story, 0.0, 1.0)
    bedside.press("r")
    bedside.see(story, 1.0, 2.0)
    bedside.press("n")
    assert (bedside.panel.current, bedside.panel.phase) == (names[1], "aim")
    assert bedside.settled().zones[0].state == "normal"


def test_a_clip_cut_short_is_not_kept_and_that_is_told(
    tmp_path: Path, default_bundle: Bundle, story: list[Reading]
) -> None:
    bedside = Bedside(tmp_path, default_bundle)
    bedside.see(story, 3.6, 5.6)
    assert bedside.panel.phase == "recording"
    bedside.see(story, 5.6, 7.2)
    assert (bedside.panel.phase, bedside.panel.message) == ("aim", "clip-too-short")
    bedside.session.close()
    assert not any(zone.clips for zone in bedside.exam.zones)


def test_the_shortest_clip_is_long_enough_although_frames_are_missing(
    tmp_path: Path, default_bundle: Bundle, story: list[Reading]
) -> None:
    """A slow box reads every third frame, and none of them comes just when the clip has lasted so long."""
    bedside = Bedside(tmp_path, default_bundle, clip_seconds=SHORTEST)
    bedside.see(story[::3], 0.0, 5.0)
    assert bedside.settled().message == ""
    (clip,) = bedside.exam.zones[0].clips
    assert SHORTEST <= clip.seconds < SHORTEST + 0.12
    bedside.session.close()


def test_without_a_view_there_is_no_clip(bedside: Bedside, story: list[Reading]) -> None:
    bedside.see(story, 6.4, 7.0)
    bedside.press("r")
    assert (bedside.panel.phase, bedside.panel.message) == ("aim", "no-view")


def test_what_comes_after_the_view_is_lost_is_not_recorded(bedside: Bedside, story: list[Reading]) -> None:
    bedside.see(story, 4.0, 4.8)
    bedside.press("r")
    bedside.see(story, 4.8, 7.2)
    bedside.press("r")
    bedside.settled()
    (clip,) = bedside.exam.zones[0].clips
    assert clip.seconds < 1.0


def test_an_exam_goes_on_where_it_was_left(
    scanned: Bedside, default_bundle: Bundle, story: list[Reading]
) -> None:
    assert scanned.session.close()
    scanned.store.close()
    scanned.store = Store(scanned.store.folder, owner=True)
    scanned.open(autocapture=False)
    panel = scanned.panel
    assert panel.current == scanned.protocol.zones[1].name
    assert (panel.phase, panel.zones[0].state) == ("aim", "normal")
    scanned.press("b")
    assert scanned.panel.phase == "review"


def test_an_exam_is_not_signed_while_a_clip_is_being_read(
    bedside: Bedside, story: list[Reading], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, go_on = [0.0], threading.Event()

    def read_later(*clip: Any) -> ClipReading:
        go_on.wait(PATIENCE)
        return read_again(*clip)

    monkeypatch.setattr(session_module, "now", lambda: clock[0])
    monkeypatch.setattr(keeping, "read_again", read_later)
    bedside.see(story, 0.0, 1.0)
    bedside.press("r")
    bedside.see(story, 1.0, 2.4)
    bedside.press("ee")
    assert (bedside.panel.phase, bedside.panel.message) == ("summary", ""), "one key held too long"
    clock[0] += LOOK_FIRST
    bedside.press("e")
    assert (bedside.panel.phase, bedside.panel.message) == ("summary", "wait-for-clips")
    go_on.set()
    bedside.settled()
    clock[0] += LOOK_FIRST
    bedside.press("e")
    assert bedside.wait(lambda panel: panel.phase == "signed").zones[0].state == "normal"
    bedside.press("rnbacx2")
    assert bedside.panel.phase == "signed"


def test_what_somebody_else_changed_since_the_summary_is_not_signed_unseen(
    bedside: Bedside, story: list[Reading]
) -> None:
    bedside.look_anew("e")
    zone = bedside.exam.zones[0].name
    bedside.store.add_reading(bedside.exam.id, zone, "opacity", 2, "", "Grace", False)
    time.sleep(LOOK_FIRST)
    bedside.press("e")
    assert bedside.wait(lambda panel: panel.message.startswith("not-saved-signature")).phase == "summary"
    assert bedside.wait(lambda panel: panel.zones[0].state == "opacity").phase == "summary"
    bedside.press("x")
    time.sleep(LOOK_FIRST)
    bedside.press("e")
    assert bedside.wait(lambda panel: panel.phase == "signed")


def test_an_exam_of_another_network_is_not_gone_on_with(bedside: Bedside, default_bundle: Bundle) -> None:
    other = bedside.store.begin("blue-6", ["x"], ("healthy", "ill"), "healthy")
    with pytest.raises(StoreError, match="begun with a network that tells healthy, ill"):
        ExamSession(bedside.store, other, bedside.protocol, default_bundle)


def test_nobody_signs_namelessly_and_one_can_go_back(tmp_path: Path, default_bundle: Bundle) -> None:
    bedside = Bedside(tmp_path, default_bundle, operator="")
    bedside.press("e")
    bedside.settled()
    time.sleep(LOOK_FIRST)
    bedside.press("e")
    assert (bedside.panel.phase, bedside.panel.message) == ("summary", "no-operator")
    bedside.press("b")
    assert bedside.panel.phase == "aim"
    bedside.session.close()


def test_what_the_store_refuses_is_never_shown_as_saved_and_is_tried_again(
    bedside: Bedside, story: list[Reading], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file lies where the exam's folder of clips should be."""
    monkeypatch.setattr(keeping, "TRY_AGAIN_AFTER", 0.2)
    obstacle = bedside.store.folder / CLIPS / bedside.id
    obstacle.touch()
    zone = bedside.protocol.zones[0].name
    bedside.see(story, 0.0, 1.0)
    bedside.press("r")
    bedside.see(story, 1.0, 2.4)
    bedside.press("r")
    panel = bedside.wait(lambda panel: bool(panel.message))
    assert (panel.message, panel.zones[0].state) == (f"not-saved-clip {zone}", "not-scanned")
    bedside.press("nb")
    assert bedside.panel.message == f"not-saved-clip {zone}"
    obstacle.unlink()
    panel = bedside.wait(lambda panel: not panel.message)
    assert panel.zones[0].state == "normal"
    assert len(bedside.exam.zones[0].clips) == 1


def test_the_user_can_give_up_what_was_refused(scanned: Bedside, story: list[Reading]) -> None:
    """Somebody else signs the exam meanwhile: nothing in it may change any more."""
    scanned.look_anew("n")
    scanned.see(story, 2.4, 3.4)
    scanned.press("r")
    scanned.see(story, 3.4, 4.4)
    elsewhere = Store(scanned.store.folder)
    elsewhere.sign(scanned.id, "Grace")
    elsewhere.close()
    scanned.press("r")
    scanned.wait(lambda panel: panel.message.startswith("not-saved-clip"))
    scanned.press("x")
    assert scanned.panel.message == ""
    assert len(list((scanned.store.folder / CLIPS).rglob("*.mkv"))) == 1


def test_a_disk_that_stands_still_does_not_hold_the_screen_up(
    bedside: Bedside, story: list[Reading], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clip's file is a pipe that nobody reads; a screen's thread that waited for it would never end."""
    pipe = bedside.store.folder / CLIPS / ".slow.mkv"
    os.mkfifo(pipe)
    monkeypatch.setattr(clips_module.secrets, "token_hex", lambda _: "slow")
    bedside.see(story, 0.0, 1.0)
    bedside.press("r")
    bedside.see(story, 1.0, 5.5)
    bedside.press("r")
    monkeypatch.undo()
    bedside.press("n")
    bedside.see(story, 7.2, 9.0)
    assert (bedside.panel.phase, bedside.panel.acknowledged) == ("aim", False)
    drain = threading.Thread(target=pipe.read_bytes)
    drain.start()
    panel = bedside.wait(lambda panel: bool(panel.message))
    assert panel.message == f"not-saved-clip {bedside.protocol.zones[0].name}"
    drain.join(PATIENCE)


def test_only_the_beam_is_in_the_store(scanned: Bedside) -> None:
    clip = scanned.exam.zones[0].clips[0]
    assert clip.beam is not None
    outside = clip.beam.mask() == 0
    path = scanned.store.clip_path(clip)
    for frame in clips_module.read_clip_frames(path, clip.times):
        assert not np.asarray(frame.image)[outside].any()

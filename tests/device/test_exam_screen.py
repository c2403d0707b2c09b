from __future__ import annotations

import fcntl
import itertools
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

from device.exams.exam import NOT_SCANNED, ClipReading, Score, Summary
from device.exams.protocols import MOST_ZONES, Protocol, ProtocolError, load_protocol, protocols
from device.screen import canvas as canvas_module
from device.screen import exam_drawing
from device.screen.canvas import ABNORMAL, ALARM, FAULT, NORMAL, PAPER, THEMES, UNSURE, Box, Theme
from device.screen.displays import Terminal, exam_line, keys_of
from device.screen.drawing import FOOT, KEYS, ROOM, Screen, button_at, buttons_of, draw
from device.screen.exam_drawing import (
    CHECKS,
    EXAM_KEYS,
    NOT_SAVED,
    PHASES,
    READINGS,
    RECORDED,
    TORSO,
    ExamPanel,
    HumanShown,
    status_line,
)
from device.screen.torso import ZoneMark, torso_map, torso_svg
from device.screen.words import languages, load_words
from tests.conftest import ROOT
from tests.device.test_screen import BEAM, IMAGE, centre, has_colour, part, screen, wait_until
from tests.device.x_server import PATIENCE, do, heard, x_server

BLUE = load_protocol("blue-6")
WORDS = load_words("en")
TALLY = Summary(6, 4, 1, 1, 2, Score(3, 5), Score(2, 3))
CLIP = ClipReading("opacity", {"normal": 0.09, "opacity": 0.91}, 3, patterns={"A-lines": 0.2, "B-lines": 0.8})
SCORES = {"normal": Score(0, 0), "opacity": Score(1, 3)}


def mark(name: str, state: str = NOT_SCANNED, by_clinician: bool = False) -> ZoneMark:
    return ZoneMark(name, state, SCORES.get(state), by_clinician)


def panel(
    phase: str = "aim", protocol: Protocol = BLUE, states: tuple[str, ...] = (), **more: object
) -> ExamPanel:
    zones = tuple(
        mark(place.name, states[i] if i < len(states) else NOT_SCANNED)
        for i, place in enumerate(protocol.zones)
    )
    given = {"quality": dict.fromkeys(CHECKS, True), "seconds_wanted": 6.0, "exam_id": "E-1"}
    if phase in ("summary", "signed"):
        given["summary"] = TALLY
    return ExamPanel(protocol, zones, **{"current": zones[0].name, "phase": phase, **given, **more})  # type: ignore[arg-type]


def exam_screen(exam: ExamPanel, state: str = "normal", **more: object) -> Screen:
    return screen(state, exam=exam, **more)


COLUMN: Box = (812, 284, 1264, 680)
"""What is drawn of an exam beside the picture."""


# Protocols


def test_the_protocols_of_the_field_come_with_the_program() -> None:
    assert protocols() == ("blue-6", "zones-8", "zones-12", "zones-14")
    for name in protocols():
        protocol = load_protocol(name)
        assert len(protocol.zones) == int(name.rpartition("-")[2])
        assert "doi 10." in protocol.source
        by_side = [sum(zone.side == side for zone in protocol.zones) for side in ("right", "left")]
        assert by_side[0] == by_side[1]
        for zone in protocol.zones:
            assert zone.title.keys() >= set(languages())
    first = load_protocol("zones-14").zones[0]
    assert (first.side, first.view, first.titled("en")) == ("right", "back", "Right, back, lower")


@pytest.mark.parametrize("name", protocols())
def test_left_is_on_the_side_where_the_examiner_sees_it(name: str) -> None:
    for zone in load_protocol(name).zones:
        if zone.view != "side":
            assert (zone.x < 0.5) == (zone.side == ("right" if zone.view == "front" else "left")), zone


def own(folder: Path, **changes: object) -> Path:
    zone = {"name": "here", "side": "left", "view": "front", "x": 0.7, "y": 0.4, "title": {"en": "Here"}}
    values = {"name": "ours", "title": {"en": "Ours"}, "zones": [{**zone, **changes.pop("zone", {})}]}  # type: ignore[dict-item]
    path = folder / "ours.json"
    path.write_text(json.dumps({k: v for k, v in {**values, **changes}.items() if v is not None}))
    return path


def test_a_clinic_lays_its_own_protocol_into_a_folder_or_names_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SONOGLANCE_STATE", str(tmp_path))
    (tmp_path / "protocols").mkdir()
    path = own(tmp_path / "protocols")
    assert protocols()[-1] == "ours"
    assert load_protocol("ours") == load_protocol(str(path))
    zone = load_protocol("ours").zone("here")
    assert (zone.titled("en"), zone.titled("sw")) == ("Here", "Here"), "English stands in"
    bare = own(tmp_path / "protocols", zone={"title": {"fr": "Ici"}})
    assert load_protocol(str(bare)).zone("here").titled("en") == "here", "else the name"


WRONG = [
    ({"zones": []}, "zones must be a list of 1 to"),
    ({"zones": None}, "has no zones"),
    ({"zones": [3]}, "zone 1 must be a table"),
    ({"zone": {"side": "up"}}, "zone 1: side must be right or left"),
    ({"zone": {"view": "top"}}, "zone 1: view must be front or side or back"),
    ({"zone": {"x": 1.5}}, "zone 1: x must be a number from 0 to 1"),
    ({"zone": {"y": True}}, "zone 1: y must be a number from 0 to 1"),
    ({"zone": {"name": "A B"}}, "zone 1: name must be 1 to 32 small letters"),
    ({"zone": {"colour": "red"}}, "zone 1 has 'colour', which is not known"),
    ({"zone": {"title": {}}}, "zone 1: title must be a table"),
    ({"zone": {"title": {"en": "x" * 60}}}, "more than 40 letters"),
    ({"zone": {"title": {"en": "a\nb"}}}, "must be a line of text"),
    ({"name": "theirs"}, "it is named theirs"),
    ({"title": "Ours"}, "title must be a table"),
    ({"source": 5}, "source must be a line of text"),
]


@pytest.mark.parametrize(("changes", "complaint"), WRONG, ids=[complaint for _, complaint in WRONG])
def test_a_mistake_in_a_protocol_is_one_clear_line(
    tmp_path: Path, changes: dict[str, object], complaint: str
) -> None:
    path = own(tmp_path, **changes)
    with pytest.raises(ProtocolError) as caught:
        load_protocol(str(path))
    message = str(caught.value)
    assert message.startswith(str(path))
    assert complaint in message
    assert "\n" not in message


def test_what_is_no_protocol_at_all_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "twice.json").write_text('{"name": "a", "name": "b"}')
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe")
    (tmp_path / "deep.json").write_text("[" * 50_000)
    (tmp_path / "large.json").write_text(" " * 70_000)
    (tmp_path / "folder.json").mkdir()
    same = own(tmp_path, zones=[json.loads(own(tmp_path).read_text())["zones"][0]] * 2)
    many = [{"name": f"z{i}"} for i in range(MOST_ZONES + 1)]
    for path in (*tmp_path.glob("*.json"), tmp_path / "absent.json", same):
        with pytest.raises(ProtocolError, match=re.escape(str(path))):
            load_protocol(str(path))
    with pytest.raises(ProtocolError, match="list of 1 to"):
        load_protocol(str(own(tmp_path, zones=many)))
    with pytest.raises(ProtocolError, match="no protocol 'zones-9': there are blue-6"):
        load_protocol("zones-9")
    with pytest.raises(ProtocolError, match="small letters"):
        load_protocol("x y")


# The torso map


def torso(states: tuple[str, ...], theme: Theme = THEMES["dark"], **more: object) -> np.ndarray:
    exam = panel(states=states)
    zones = more.pop("zones", exam.zones)
    given = {"size": (1000, 440), "theme": theme, "words": WORDS}
    return torso_map(exam.protocol, zones, "normal", **{**given, **more})  # type: ignore[arg-type]


UNIT = 440 / 168
"""Pixels a unit of the map, whose three views of 100 by 168 units stand in the middle of 1000 pixels."""


def mark_at(number: int) -> tuple[float, float]:
    place = BLUE.zones[number]
    view = {"front": 1, "side": 0 if place.side == "right" else 2}[place.view]
    return 500 + (view * 100 - 150 + 100 * place.x) * UNIT, 150 * place.y * UNIT


def around(picture: np.ndarray, number: int, reach: float = 17) -> np.ndarray:
    x, y = mark_at(number)
    r = round(reach * UNIT)
    return picture[round(y) - r : round(y) + r, round(x) - r : round(x) + r].astype(int)


@pytest.mark.parametrize("theme", [*THEMES.values(), PAPER], ids=[*THEMES, "paper"])
def test_a_zones_state_is_told_without_colour(theme: Theme) -> None:
    marks = []
    for state in ("normal", "opacity", "uncertain", NOT_SCANNED):
        gray = cv2.cvtColor(torso((state,), theme), cv2.COLOR_BGR2GRAY)
        marks.append(cv2.threshold(gray, 110, 255, cv2.THRESH_BINARY)[1])
    for a, b in itertools.combinations(marks, 2):
        assert (around(a, 0) != around(b, 0)).mean() > 0.06


def test_colours_are_those_of_the_verdict() -> None:
    picture = torso(("normal", "opacity", "uncertain"))
    for number, colour in enumerate((NORMAL, ABNORMAL, UNSURE)):
        assert has_colour(around(picture, number), colour, 1000)
        for other in {NORMAL, ABNORMAL, UNSURE} - {colour}:
            assert not has_colour(around(picture, number), other, 20)


def test_a_mark_shows_its_score_its_tick_and_the_ring_of_the_current_zone() -> None:
    first, *rest = panel(states=("opacity",)).zones
    pictures = [
        torso((), zones=(zone, *rest))
        for zone in (first, replace(first, score=Score(2, 2)), replace(first, score=Score(3, 3)))
    ]
    pictures.append(torso((), zones=(replace(first, by_clinician=True), *rest)))
    pictures.append(torso((), zones=(first, *rest), current=first.name))
    for a, b in itertools.combinations(pictures, 2):
        changed = (a != b).any(axis=2)
        assert changed.sum() > 150
        x, y = mark_at(0)
        rows, columns = np.nonzero(changed)
        assert np.abs(columns - x).max() < 25 * UNIT
        assert np.abs(rows - y).max() < 25 * UNIT


def test_every_zone_is_drawn_where_its_protocol_says() -> None:
    empty = torso(())
    for number, place in enumerate(BLUE.zones):
        states = tuple("normal" if i == number else NOT_SCANNED for i in range(6))
        rows, columns = np.nonzero((torso(states) != empty).any(axis=2))
        x, y = mark_at(number)
        assert (columns.mean(), rows.mean()) == pytest.approx((x, y), abs=4), place.name


def test_pixels_and_svg_share_one_geometry() -> None:
    exam = panel(states=("normal", "opacity", "uncertain"))
    drawing = ElementTree.fromstring(torso_svg(BLUE, exam.zones, "normal", WORDS, current="right-upper"))
    svg = "{http://www.w3.org/2000/svg}"
    zones = [group for group in drawing.iter(f"{svg}g") if "data-zone" in group.attrib]
    by_name = {group.get("data-zone"): group for group in zones}
    assert by_name.keys() == {place.name for place in BLUE.zones}
    for number, place in enumerate(BLUE.zones):
        shapes = by_name[place.name].findall(f"{svg}polygon")
        corners = np.array([[float(n) for n in p.split(",")] for p in str(shapes[-1].get("points")).split()])
        middle = (corners.max(axis=0) + corners.min(axis=0)) / 2
        x, y = mark_at(number)
        assert middle * UNIT == pytest.approx((x - 500 + 150 * UNIT, y), abs=3 * UNIT)
    said = by_name["right-lower"].get("aria-label")
    assert said == "Right, lower BLUE point: OPACITY, Score 1-3"
    assert "#ff9f00" in ElementTree.tostring(by_name["right-lower"], "unicode")


@pytest.mark.parametrize("code", languages())
def test_left_and_right_are_named_as_the_examiner_sees_the_patient(code: str) -> None:
    words, protocol = load_words(code), load_protocol("zones-12")
    drawing = ElementTree.fromstring(torso_svg(protocol, [], "normal", words))
    at = [(str(t.text), float(t.get("x", 0))) for t in drawing.iter("{http://www.w3.org/2000/svg}text")]
    names = [words.exam(key) for key in ("right-side", "front", "left-side", "back")]
    assert [text for text, _ in sorted(at, key=lambda pair: pair[1]) if text in names] == names
    right, left = words.exam("right-letter"), words.exam("left-letter")
    assert right != left
    assert max(len(right), len(left)) <= 4
    letters = [text for text, _ in sorted(at, key=lambda pair: pair[1]) if text in (right, left)]
    assert letters == [right, left, left, right], "in front the right is on the left, from behind it is not"


def test_a_title_of_ones_own_cannot_break_out_of_the_svg(tmp_path: Path) -> None:
    path = own(tmp_path, zone={"title": {"en": '"><script>x</script>'}})
    protocol = load_protocol(str(path))
    text = torso_svg(protocol, [mark("here")], "normal", WORDS)
    assert "<script" not in text
    ElementTree.fromstring(text)


# The screen


@pytest.mark.parametrize("phase", ["aim", "recording", "reading"])
def test_the_live_picture_and_its_verdict_stay_while_scanning(phase: str) -> None:
    for state in ("opacity", "no-contact", "no-signal", "stale"):
        plain, exam = draw(screen(state)), draw(exam_screen(panel(phase), state))
        assert np.array_equal(part(plain, ROOM), part(exam, ROOM))
        assert np.array_equal(part(plain, FOOT), part(exam, FOOT))
    assert has_colour(part(draw(exam_screen(panel(phase), "opacity")), READINGS), ABNORMAL, 2000)
    assert has_colour(part(draw(exam_screen(panel(phase), "no-signal")), READINGS), FAULT, 2000)


@pytest.mark.parametrize("phase", PHASES)
def test_without_a_picture_the_torso_map_stays(phase: str) -> None:
    states = ("normal", "opacity")
    live, lost = (draw(exam_screen(panel(phase, states=states), state)) for state in ("normal", "no-device"))
    assert np.array_equal(part(live, TORSO), part(lost, TORSO))
    assert has_colour(part(lost, TORSO), NORMAL, 200)
    assert has_colour(part(lost, TORSO), ABNORMAL, 200)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("theme", THEMES)
def test_buttons_are_large_lie_apart_and_are_found_where_they_are_drawn(phase: str, theme: str) -> None:
    shown = exam_screen(panel(phase, clip=CLIP), theme=theme)
    buttons = buttons_of(shown)
    boxes = [ROOM, FOOT, READINGS, TORSO, *(button.box for button in buttons)]
    for (l1, t1, r1, b1), (l2, t2, r2, b2) in itertools.combinations(boxes, 2):
        assert r1 <= l2 or r2 <= l1 or b1 <= t2 or b2 <= t1
    resting = draw(shown)
    for button in buttons:
        left, top, right, bottom = button.box
        assert bottom - top >= 88
        assert right - left >= 88
        assert button_at(left, top, buttons) == button_at(right - 1, bottom - 1, buttons) == button.key
        pressed = draw(shown, pressed=button.key)
        assert (part(resting, button.box) != part(pressed, button.box)).mean() > 0.4
        assert np.array_equal(part(resting, ROOM), part(pressed, ROOM))
    assert button_at(2, 2, buttons) == ""


def test_every_key_of_an_exam_can_be_touched_in_some_phase() -> None:
    touched = {button.key for phase in PHASES for button in buttons_of(exam_screen(panel(phase)))}
    assert touched == set(KEYS + EXAM_KEYS)
    assert set(keys_of(exam_screen(panel()))) == touched
    assert set(keys_of(screen("normal"))) == set(KEYS)


@pytest.mark.parametrize("code", languages())
@pytest.mark.parametrize("phase", PHASES)
def test_no_two_buttons_of_a_phase_are_called_the_same(phase: str, code: str) -> None:
    labels = {button.label for button in buttons_of(exam_screen(panel(phase)))}
    assert len({load_words(code).button(label) for label in labels}) == len(labels)


@pytest.mark.parametrize("phase", PHASES)
def test_nothing_outside_the_beam_is_drawn_in_an_exam(phase: str) -> None:
    assert BEAM is not None
    other = IMAGE.copy()
    other[BEAM.mask() == 0] = (17, 203, 91)
    pictures = []
    for image in (IMAGE, other):
        shown = screen("opacity", image=image)
        exam = panel(phase, clip=CLIP, replay=shown.reading if phase == "review" else None)
        pictures.append(draw(replace(shown, exam=exam)))
    assert np.array_equal(*pictures)


def test_a_recording_is_seen_and_grows() -> None:
    def red(seconds: float, phase: str = "recording") -> int:
        shown = part(draw(exam_screen(panel(phase, seconds=seconds))), RECORDED)
        return int((np.abs(shown.astype(int) - exam_drawing.RED).max(axis=2) < 12).sum())

    assert red(0.0, "aim") == 0
    assert 100 < red(0.5) < red(2.0) < red(5.9)
    longest, longer = (draw(exam_screen(panel("recording", seconds=s))) for s in (6.0, 6.9))
    assert np.array_equal(longest, longer), "a longer clip stays within its bar"
    assert status_line(panel("recording", seconds=3.9), WORDS) == "Recording 3 of 6 s"
    assert status_line(panel(autocapture=True), WORDS) != status_line(panel(), WORDS)


def test_checks_that_are_not_met_are_told_from_those_that_are() -> None:
    good = draw(exam_screen(panel()))
    for check in CHECKS:
        lacking = draw(exam_screen(panel(quality={c: c != check for c in CHECKS})))
        rows, columns = np.nonzero((good != lacking).any(axis=2))
        assert RECORDED[3] <= rows.min() <= rows.max() < RECORDED[3] + 40
        place = 812 + 113 * CHECKS.index(check)
        assert place <= columns.min() <= columns.max() < place + 113


def words_drawn(monkeypatch: pytest.MonkeyPatch, shown: Screen) -> list[str]:
    """What is written on a screen, in order."""
    said: list[str] = []

    def put(canvas: np.ndarray, text: str, *more: object) -> None:
        said.append(text)
        real(canvas, text, *more)  # type: ignore[arg-type]

    real = canvas_module.put
    with monkeypatch.context() as patch:
        patch.setattr(canvas_module, "put", put)
        draw(shown)
    return said


def test_saved_is_said_only_of_what_the_store_has_acknowledged(monkeypatch: pytest.MonkeyPatch) -> None:
    def said(**more: object) -> list[str]:
        return words_drawn(monkeypatch, exam_screen(panel(states=("normal",), **more)))

    assert "Saved" in said()
    assert "Saved" not in said(acknowledged=False)
    assert "Saving" in said(acknowledged=False)
    lost = said(message="not-saved-clip right-lower")
    assert "NOT SAVED: clip of Right, lower BLUE point" in lost
    assert "Saved" not in lost
    assert "Saved" not in words_drawn(monkeypatch, exam_screen(panel())), "nothing was taken yet"
    for phase in PHASES:
        shown = draw(exam_screen(panel(phase, message="not-saved-clip right-lower")))
        assert has_colour(part(shown, COLUMN), ALARM, 5000)


def test_every_message_and_badge_of_an_exam_has_words() -> None:
    # Here and not above: the programs that the tests start import this file, and need none of these.
    from device.exams import keeping, session
    from device.exams import round as round_module

    def told(*modules: object) -> set[str]:
        """The constants that are messages: small letters and hyphens."""
        values = {value for module in modules for name, value in vars(module).items() if name.isupper()}
        return {
            value for value in values if isinstance(value, str) and re.fullmatch("[a-z]+(-[a-z]+)+", value)
        }

    known = WORDS.table["exam-messages"].keys()
    assert told(session, keeping) - {NOT_SCANNED, NOT_SAVED} == known
    assert told(round_module) - {NOT_SAVED} <= WORDS.table["badges"].keys()
    for key in known:
        if key.startswith(NOT_SAVED):
            assert WORDS.exam_message(f"{key} x").startswith("NOT ")


def test_the_two_readings_stand_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    left, top, right, bottom = READINGS
    middle = (left + right) // 2
    halves = (left, top, middle, bottom), (middle, top, right, bottom)

    def cards(human: HumanShown | None, clip: ClipReading = CLIP) -> list[np.ndarray]:
        shown = draw(exam_screen(panel("review", clip=clip, human=human)))
        return [part(shown, half) for half in halves]

    none, graded = cards(None), cards(HumanShown("opacity", 2))
    normal, accepted = cards(HumanShown("normal")), cards(HumanShown("opacity", accepted=True))
    for other in (graded, normal, accepted):
        assert np.array_equal(none[0], other[0]), "the network's reading stays what it was"
        assert not np.array_equal(none[1], other[1])
    assert has_colour(none[0], ABNORMAL, 2000)
    assert not has_colour(none[1], ABNORMAL, 20)
    assert has_colour(normal[1], NORMAL, 2000)
    assert not has_colour(
        cards(None, replace(CLIP, state="no-contact", p=None, patterns={}))[0], ABNORMAL, 20
    )
    said = words_drawn(monkeypatch, exam_screen(panel("review", clip=CLIP, human=HumanShown("opacity", 2))))
    for text in ("Finding: 91%", "A-lines: 20%", "B-lines: 80%", "Grade 2"):
        assert text in said
    shown = buttons_of(exam_screen(panel("review", human=HumanShown("opacity", 2))))
    assert [button.key for button in shown if button.lit and button.label == "grade"] == ["2"]


def test_a_replayed_clip_is_told_from_the_live_picture() -> None:
    clip = screen("opacity", opacity=0.9).reading
    dark = np.zeros_like(IMAGE)
    shown, other = (
        draw(replace(screen("normal", image=image), exam=panel("review", clip=CLIP, replay=clip)))
        for image in (IMAGE, dark)
    )
    assert has_colour(part(shown, ROOM), FAULT, 5000)
    assert np.array_equal(shown, other), "the live picture shows through"
    assert np.array_equal(
        shown, draw(replace(screen("no-signal"), exam=panel("review", clip=CLIP, replay=clip)))
    )


@pytest.mark.parametrize("phase", ["summary", "signed"])
def test_the_summary_says_what_was_not_scanned_and_what_cannot_be_told(
    phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = ("normal", "opacity", "uncertain", "opacity", "normal", NOT_SCANNED)
    said = words_drawn(monkeypatch, exam_screen(panel(phase, states=states)))
    text = " ".join(said)
    assert "4 of 6 zones scored; 1 not scanned, 1 cannot tell" in text
    for place in BLUE.zones:
        assert place.titled("en") in said
    for word, count in (
        ("NOT SCANNED", 1),
        ("CANNOT TELL", 1),
        ("OPACITY   Score 1-3", 2),
        ("NORMAL   Score 0", 2),
    ):
        assert said.count(word) == count
    if phase == "summary":
        assert "3-5" in said
        assert "Not signed yet: touch Sign or press E" in said
    else:
        assert "SIGNED" in said
        assert "Exam E-1" in said
        assert any("E-1" in line and "PDF" in line for line in said)
    live = draw(exam_screen(panel(phase), image=np.zeros_like(IMAGE)))
    assert np.array_equal(live, draw(exam_screen(panel(phase)))), "no live picture is under the summary"


def test_an_exam_without_any_score_has_no_total(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = Summary(6, 0, 6, 0, 0, None, None)
    said = words_drawn(monkeypatch, exam_screen(panel("summary", summary=nothing)))
    assert "NO SCORE" in said
    assert "TOTAL" not in said


@pytest.mark.parametrize("phase", PHASES)
def test_badges_and_the_pairing_code_find_room_in_every_phase(
    phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = exam_screen(panel(phase, clip=CLIP), badges=("pairing-code 481516",))
    assert "Pairing code: 481516" in words_drawn(monkeypatch, shown)
    crowded = replace(shown, badges=tuple(f"badge-{i}" for i in range(9)))
    said = words_drawn(monkeypatch, crowded)
    drawn_badges = [text for text in said if text.startswith("badge-")]
    assert drawn_badges[0].startswith("badge-0"), "the first is never left out"
    assert any(text.endswith(f"+ {9 - len(drawn_badges)}") for text in said)
    assert np.array_equal(part(draw(crowded), ROOM), part(draw(shown), ROOM))
    for button in buttons_of(crowded):
        assert np.array_equal(part(draw(crowded), button.box), part(draw(shown), button.box))


@pytest.mark.parametrize("code", languages())
@pytest.mark.parametrize("name", protocols())
def test_words_of_an_exam_stay_inside_the_screen(code: str, name: str) -> None:
    protocol = load_protocol(name)
    states = ("normal", "opacity", "uncertain") * 5
    for phase in PHASES:
        exam = panel(phase, protocol, states, clip=CLIP, message="frames-dropped 12")
        picture = draw(exam_screen(exam, language=code))
        assert (picture[40:660, [0, 1, -2, -1]] == picture[0, 0]).all(), (
            f"{phase} runs over the screen's edge"
        )


def test_a_protocol_of_many_zones_fits_its_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zone = json.loads(own(tmp_path).read_text())["zones"][0]
    zones = [{**zone, "name": f"z{i}", "title": {"en": f"Zone {i}"}} for i in range(MOST_ZONES)]
    protocol = load_protocol(str(own(tmp_path, zones=zones)))
    shown = exam_screen(panel("summary", protocol, ("opacity",) * MOST_ZONES))
    said = words_drawn(monkeypatch, shown)
    assert all(f"Zone {i}" in said for i in range(MOST_ZONES))
    assert (draw(shown)[560:576, 20:780] == draw(exam_screen(panel("summary")))[560:576, 20:780]).all()


# Window and terminal

SHOW_EXAM = """
import sys
from device.screen.displays import open_display
from tests.device.test_exam_screen import CLIP, exam_screen, panel
display = open_display(sys.argv[1])
shown = exam_screen(panel(sys.argv[2], states=("normal", "opacity"), clip=CLIP), "opacity", opacity=0.9)
display.show(shown)
print("begun", flush=True)
key = ""
while key != "q":
    key = display.show(shown)
    if key:
        print(key, flush=True)
display.close()
"""


@pytest.mark.parametrize("phase", ["aim", "review"])
def test_an_exams_buttons_and_keys_are_met_in_a_real_window(tmp_path: Path, phase: str) -> None:
    with x_server(tmp_path) as display:
        command = [sys.executable, "-c", SHOW_EXAM, "window", phase]
        environment = {**os.environ, "DISPLAY": display.name}
        child = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE)
        try:
            # A touch is meant for what was shown before: there must be something.
            assert heard(child) == "begun"
            assert wait_until(lambda: has_colour(display.pixels.copy(), ABNORMAL), child)
            for button in buttons_of(exam_screen(panel(phase))):
                do(display, "mousemove", *centre(button.box), "click", 1)
                assert heard(child) == button.key
            for key in "x2t" if phase == "aim" else "a3":
                # Arrows and letters that mean nothing go before it unheard.
                do(display, "key", "Left", "g", key)
                assert heard(child) == key
            do(display, "key", "q")
            assert child.wait(PATIENCE) == 0
        finally:
            child.kill()
            child.wait(PATIENCE)


class OnTerminal:
    """A program whose standard input and output are a terminal of its own."""

    def __init__(self, *command: str) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
        self.settings = termios.tcgetattr(slave)
        self.slave, self.output = slave, ""

        def own_terminal() -> None:
            os.setsid()
            # Whoever runs the tests in the background may have it ignored.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
        self.child = subprocess.Popen(
            command,
            env=environment,
            cwd=ROOT,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            preexec_fn=own_terminal,
        )

    def read_until(self, text: str) -> None:
        seen = len(self.output)
        self._read(lambda: text in self.output[seen:], f"no {text!r}")

    def ended(self) -> int | None:
        """How the program ended, read to its end: it waits where a terminal is full that nobody reads."""
        self._read(lambda: self.child.poll() is not None and not self._more(), "no end")
        return self.child.returncode

    def _read(self, enough: Callable[[], bool], lacking: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not enough():
            assert time.monotonic() < deadline, f"{lacking} in {self.output[-500:]!r}"
            if self._more(0.2):
                self.output += os.read(self.master, 65536).decode()

    def _more(self, wait: float = 0.0) -> bool:
        return bool(select.select([self.master], [], [], wait)[0])

    def type(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def echoes(self) -> bool:
        return bool(termios.tcgetattr(self.slave)[3] & termios.ECHO)

    def is_as_before(self) -> bool:
        return termios.tcgetattr(self.slave) == self.settings

    def end(self) -> None:
        self.child.kill()
        self.child.wait(PATIENCE)
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminal() -> Iterator[OnTerminal]:
    running = OnTerminal(sys.executable, "-c", SHOW_EXAM, "terminal", "aim")
    running.read_until("begun")
    yield running
    running.end()


def test_an_exam_can_be_done_on_a_terminal_without_enter(terminal: OnTerminal) -> None:
    assert "1/6  Right, upper BLUE point" in terminal.output
    assert "Touch Record or press R" in terminal.output
    assert not terminal.echoes()
    for key in "r2e":
        terminal.type(key)
        terminal.read_until(f"{key}\r\n")
    # Arrows, a function key and a letter that means nothing; then a blank, which freezes.
    terminal.type("\x1b[A\x1b[15~\x1bOBg ")
    terminal.read_until("f\r\n")
    terminal.type("\x1b")
    assert terminal.ended() == 0
    taken = [line[-1] for line in re.findall(r"(?:^|[\r\n ])(\w)\r\n", terminal.output)]
    assert taken == list("r2efq")
    assert terminal.is_as_before()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_terminal_is_given_back_however_the_program_ends(terminal: OnTerminal, how: int) -> None:
    assert not terminal.is_as_before()
    terminal.child.send_signal(how)
    assert terminal.ended() is not None
    deadline = time.monotonic() + PATIENCE
    while not terminal.is_as_before():
        assert time.monotonic() < deadline, "the terminal echoes nothing"
        time.sleep(0.05)


def test_the_terminals_line_names_readings_and_summary(capsys: pytest.CaptureFixture[str]) -> None:
    review = panel("review", clip=CLIP, human=HumanShown("opacity", 2), states=("opacity",))
    line = exam_line(review, WORDS)
    assert line.startswith("1/6  Right, upper BLUE point; ")
    assert "Network: OPACITY" in line
    assert "Clinician: OPACITY 2" in line
    closing = exam_line(panel("summary"), WORDS)
    assert "TOTAL 3-5" in closing
    assert "1 not scanned" in closing
    assert "Saving" in exam_line(panel(acknowledged=False), WORDS)
    Terminal().show(exam_screen(review))
    assert "Right, upper BLUE point" in capsys.readouterr().out

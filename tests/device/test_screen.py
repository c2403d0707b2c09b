from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from device.errors import DisplayError
from device.exams.exam import NOT_SCANNED
from device.exams.protocols import load_protocol, protocols
from device.news import WITH_RELEASE
from device.screen import canvas, exam_drawing
from device.screen import drawing as module
from device.screen.canvas import (
    ABNORMAL,
    ALARM,
    FAULT,
    NO_PICTURE,
    NO_READING,
    NORMAL,
    THEMES,
    UNSURE,
    WHITE,
    Box,
    Colour,
    Slot,
    fitted,
)
from device.screen.displays import Terminal, framed, open_display, screen_reachable
from device.screen.drawing import (
    BUTTONS,
    FOOT,
    KEYS,
    ROOM,
    VERDICT,
    Screen,
    button_at,
    buttons_of,
    draw,
    shown_state,
)
from device.screen.illustrations import illustration
from device.screen.words import languages, load_words, placeholders
from device.screen.x_root import root_size, seen_at
from reader.beam import find_beam
from reader.bundle import Bundle
from reader.clips import Frame
from reader.phantom import Phantom
from reader.reader import Reading
from reader.verdict import VerdictTracker
from tests.conftest import ROOT
from tests.device.x_server import PATIENCE, do, heard, x_server

IMAGE = Phantom().frame(7.0)
BEAM = find_beam(IMAGE)
STATES = sorted(load_words("en").table["states"])


def screen(
    state: str, image: np.ndarray = IMAGE, opacity: float | None = 0.5, cause: str = "", **more: object
) -> Screen:
    p = None if opacity is None else {"normal": 1 - opacity, "opacity": opacity}
    class_map = None if opacity is None else np.full((7, 7), opacity, np.float32)
    full = bool(more.pop("full", True))
    notes = more.pop("notes", ())
    reading = Reading(state, Frame(image, 1.0, 25), BEAM, p, class_map, full, cause=cause, notes=notes)  # type: ignore[arg-type]
    return Screen(reading, "normal", "phantom", **{"age_ms": 40, "fps": 25, **more})  # type: ignore[arg-type]


def part(picture: np.ndarray, box: Box) -> np.ndarray:
    left, top, right, bottom = box
    return picture[top:bottom, left:right]


def has_colour(picture: np.ndarray, colour: Colour, least: int = 500) -> bool:
    return int((np.abs(picture.astype(int) - colour).max(axis=2) < 12).sum()) > least


def test_the_same_reading_draws_the_same_screen() -> None:
    assert np.array_equal(draw(screen("opacity", opacity=0.9)), draw(screen("opacity", opacity=0.9)))


@pytest.mark.parametrize("theme", THEMES)
def test_verdicts_differ_by_shape_and_not_by_colour_alone(theme: str) -> None:
    left, top, right, _ = VERDICT
    shapes = []
    for state in ("normal", "opacity", "uncertain", "no-signal"):
        gray = cv2.cvtColor(draw(screen(state, theme=theme)), cv2.COLOR_BGR2GRAY)[top + 12 : top + 140]
        gray = gray[:, left + 150 : right - 150].astype(int)
        shapes.append(abs(gray - gray[0, 0]) > 60)
    for a, b in itertools.combinations(shapes, 2):
        assert (a ^ b).sum() > 1500


@pytest.mark.parametrize("theme", THEMES)
def test_colours_stand_for_verdicts(theme: str) -> None:
    assert has_colour(draw(screen("normal", opacity=0.1, theme=theme)), NORMAL)
    assert has_colour(draw(screen("opacity", opacity=0.9, theme=theme)), ABNORMAL)
    assert not has_colour(draw(screen("normal", opacity=0.1, theme=theme)), ABNORMAL)
    assert not has_colour(draw(screen("stale", theme=theme)), NORMAL)


def test_a_label_of_any_bundle_is_a_finding_unless_it_is_the_negative_one() -> None:
    for label in ("pneumonia", "tuberculosis", "some-new-label"):
        assert has_colour(draw(screen(label)), ABNORMAL)
    assert load_words("en").state("some-new-label") == ("SOME-NEW-LABEL", "")


@pytest.mark.parametrize("state", ["normal", "opacity", "frozen", "held", "no-signal"])
def test_nothing_outside_the_beam_is_ever_drawn(state: str) -> None:
    assert BEAM is not None
    other = IMAGE.copy()
    other[BEAM.mask() == 0] = (17, 203, 91)
    assert np.array_equal(draw(screen(state)), draw(screen(state, image=other)))


def test_the_tint_marks_what_speaks_for_an_opacity_inside_the_beam_alone() -> None:
    plain, tinted = (part(draw(screen("opacity", opacity=0.95, overlay=o)), ROOM) for o in (False, True))
    changed = (plain != tinted).any(axis=2)
    assert changed.sum() > 50_000
    assert not changed[(plain == 0).all(axis=2)].any(), "tinted outside the beam"
    mild = [part(draw(screen("normal", opacity=0.3, overlay=o)), ROOM) for o in (False, True)]
    assert np.array_equal(*mild)


@pytest.mark.parametrize("state", sorted(NO_READING))
def test_a_picture_is_shown_or_the_screen_says_why_not(state: str) -> None:
    room = part(draw(screen(state, opacity=None)), ROOM)
    live = part(draw(screen("normal", opacity=None)), ROOM)
    inner = slice(60, -60)
    if state in NO_PICTURE:
        other = screen(state, image=np.zeros_like(IMAGE), opacity=None)
        assert np.array_equal(room, part(draw(other), ROOM)), "the last picture shows through"
        assert has_colour(room, FAULT, 4000)
    else:
        assert np.array_equal(room[inner, inner], live[inner, inner])
    assert has_colour(part(draw(screen(state, opacity=None)), VERDICT), FAULT, 2000)


def test_each_no_reading_state_has_a_drawing_of_its_own() -> None:
    drawings = [illustration(state, 100, WHITE, (0, 0, 0)) > 128 for state in sorted(NO_READING)]
    for a, b in itertools.combinations(drawings, 2):
        assert (a ^ b).mean() > 0.05


def test_no_picture_is_shown_where_it_does_not_belong_to_the_beam() -> None:
    small = np.ascontiguousarray(IMAGE[:480, :640])
    room = part(draw(screen("geometry-changed", image=small, opacity=None, cause="size")), ROOM)
    assert has_colour(room, FAULT, 4000)


def test_an_old_picture_is_never_shown_as_live_whatever_the_caller_says() -> None:
    old = screen("normal", opacity=0.1, age_ms=1600.0)
    assert shown_state(old) == "stale"
    assert not has_colour(draw(old), NORMAL)
    assert np.array_equal(part(draw(old), ROOM), part(draw(screen("stale", opacity=None)), ROOM))
    assert shown_state(replace(old, held=True)) == "held"
    assert shown_state(replace(screen("no-signal"), held=True)) == "no-signal"


def test_a_held_picture_is_told_from_a_live_one() -> None:
    live, held = draw(screen("opacity", opacity=0.9)), draw(screen("opacity", opacity=0.9, held=True))
    assert has_colour(part(held, ROOM), FAULT, 5000)
    assert not has_colour(part(live, ROOM), FAULT)
    assert not np.array_equal(part(live, BUTTONS["f"]), part(held, BUTTONS["f"]))


def test_nothing_ever_covers_the_picture() -> None:
    crowded = screen(
        "opacity",
        badges=("phantom", "unsigned", "slow-screen", "no-accelerator"),
        alarm="int8-failed",
        notes=("levels", "duplicates", "text-in-beam"),
    )
    assert np.array_equal(part(draw(crowded), ROOM), part(draw(screen("opacity")), ROOM))
    boxes = [ROOM, VERDICT, module.COLUMN, FOOT, *BUTTONS.values()]
    for (l1, t1, r1, b1), (l2, t2, r2, b2) in itertools.combinations(boxes, 2):
        assert r1 <= l2 or r2 <= l1 or b1 <= t2 or b2 <= t1


def test_badges_notes_and_the_alarm_have_places_of_their_own() -> None:
    plain = part(draw(screen("normal")), module.COLUMN)
    for more in ({"badges": ("unsigned",)}, {"notes": ("levels",)}):
        assert not np.array_equal(plain, part(draw(screen("normal", **more)), module.COLUMN))
    crowd = tuple(f"badge-{i}" for i in range(20))
    seven, eight, twenty = (draw(screen("normal", badges=crowd[:n])) for n in (7, 8, 20))
    assert not np.array_equal(seven, eight), "badges beyond the last line are counted"
    left, top, right, bottom = module.COLUMN
    for box in (VERDICT, (left, top, right, top + 60), (left, bottom - 40, right, bottom)):
        assert np.array_equal(part(seven, box), part(twenty, box))
    assert has_colour(part(draw(screen("normal", alarm="int8-failed")), FOOT), ALARM, 20_000)


def test_research_use_is_always_said() -> None:
    foot = part(draw(screen("normal")), FOOT)
    assert np.array_equal(foot, part(draw(screen("no-signal", opacity=None)), FOOT))
    assert (foot > 200).sum() > 1000


def test_progress_is_shown_while_the_verdict_gathers() -> None:
    def bar(seconds: float, full: bool = False) -> int:
        trend = tuple((i / 25, 0.5 if i > 10 else None) for i in range(round(25 * seconds)))
        picture = part(draw(screen("uncertain", full=full, trend=trend, window=4.0)), VERDICT)
        return int(has_colour(picture[-24:-14], UNSURE, 0) and (picture[-20, :, 0] > 150).sum())

    assert 0 < bar(1.0) < bar(2.0) < bar(4.0)
    assert bar(4.0, full=True) < 30 < bar(1.0), "a full window needs no bar"


@pytest.mark.parametrize("jitter", [0.05, 0.2])
@pytest.mark.parametrize("threshold", ["normal_below", "abnormal_from"])
def test_probabilities_that_jitter_at_a_threshold_do_not_make_the_verdict_flicker(
    default_bundle: Bundle, threshold: str, jitter: float
) -> None:
    reads = default_bundle.manifest.reads
    hold = reads.verdict.hold
    tracker = VerdictTracker(reads.verdict, reads.labels, reads.negative)
    random = np.random.default_rng(5)
    gravity = {reads.negative: 0, "uncertain": 1}
    changes: list[tuple[float, int]] = []
    last, before = None, ""
    for i in range(25 * 60):
        p = float(np.clip(getattr(reads.verdict, threshold) + random.normal(0, jitter), 0, 1))
        scores = np.array([1 - p if x == reads.negative else p for x in reads.labels], np.float32)
        verdict = tracker.add(scores, i / 25)
        if not verdict.full:
            continue
        # Without a picture: a third of the time, the same verdict.
        shown = replace(screen(verdict.state, opacity=p, age_ms=40 + i % 30), overlay=False)
        reading = replace(shown.reading, frame=Frame(np.zeros((0, 0), np.uint8), i / 25, i))
        drawn = part(draw(replace(shown, reading=reading)), VERDICT)
        if last is not None and not np.array_equal(drawn, last):
            changes.append((i / 25, gravity.get(verdict.state, 2) - gravity.get(before, 2)))
        last, before = drawn, verdict.state
    times = [0.0, *(at for at, _ in changes)]
    if jitter < reads.verdict.hysteresis * 2:
        assert all(b - a >= hold for a, b in itertools.pairwise(times))
        assert len(changes) <= 1
    # A graver verdict is shown at once, however short the milder one was; a milder one must last.
    for previous, (at, step) in zip(times, changes, strict=False):
        assert step > 0 or at - previous >= hold - 1e-6


def luminance(colour: Colour) -> float:
    """WCAG 2.2, relative luminance of sRGB, from BGR."""
    parts = np.array(colour[::-1]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def contrast(a: Colour, b: Colour) -> float:
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", THEMES.values(), ids=THEMES.keys())
def test_words_stand_out_from_their_ground_in_both_lights(theme: canvas.Theme) -> None:
    for colour in (NORMAL, ABNORMAL, UNSURE, FAULT):
        paper, ink, text = theme.panel(colour)
        assert contrast(paper, ink) >= 7
        assert contrast(paper, text) >= 7
    for paper in (theme.ground, theme.room, theme.button):
        assert contrast(paper, theme.text) >= 7
    assert contrast(theme.room, theme.text if theme.filled else FAULT) >= 7
    assert contrast(theme.ground, theme.dim) >= 7
    assert contrast(ALARM, WHITE) >= 7


@pytest.mark.parametrize("key", KEYS)
def test_buttons_are_large_enough_for_gloves_and_found_where_they_are_drawn(key: str) -> None:
    left, top, right, bottom = BUTTONS[key]
    assert bottom - top >= 88
    assert right - left >= 88
    buttons = buttons_of(screen("normal"))
    assert button_at(left, top, buttons) == button_at((left + right) / 2, (top + bottom) / 2, buttons) == key
    assert button_at(left, top - 1, buttons) == button_at(right + 1, top, buttons) == ""
    resting, pressed = draw(screen("normal")), draw(screen("normal"), pressed=key)
    assert (part(resting, BUTTONS[key]) != part(pressed, BUTTONS[key])).mean() > 0.5
    assert np.array_equal(part(resting, ROOM), part(pressed, ROOM))


def texts(table: object, path: str = "") -> dict[str, str]:
    """Every text of a language by its path."""
    if isinstance(table, str):
        return {path: table}
    pairs = table.items() if isinstance(table, dict) else enumerate(table)  # type: ignore[arg-type]
    return {k: v for key, value in pairs for k, v in texts(value, f"{path}/{key}").items()}


@pytest.mark.parametrize("code", languages())
def test_every_language_has_the_same_texts_with_the_same_places_for_values(code: str) -> None:
    ours, english = (texts(load_words(c).table) for c in (code, "en"))
    assert ours.keys() == english.keys()
    for path, text in ours.items():
        assert text.strip() == text
        assert text, path
        assert placeholders(text) == placeholders(english[path]), path


CAUSES = """no-signal: black one-colour bars snow placeholder damaged no-lock unsupported
frozen: still noise
geometry-changed: beam size
no-device: unplugged busy ambiguous refused not-capture
stale: silent hung slow
no-reader: hung cannot-start"""


def test_every_cause_says_what_to_check() -> None:
    words = load_words("en")
    expected = {f"{s}/{c}" for s, cs in (x.split(": ") for x in CAUSES.splitlines()) for c in cs.split()}
    assert words.table["causes"].keys() == expected
    assert words.state("no-signal", "bars")[1] != words.state("no-signal")[1]
    assert words.state("no-signal", "of no kind known") == words.state("no-signal")
    assert set(STATES) >= NO_READING | {"uncertain", "normal", "opacity", "pneumonia", "tuberculosis"}


def test_badges_are_filled_in_and_unknown_ones_stand_as_they_are() -> None:
    words = load_words("en")
    assert words.badge("accelerator-lost 1 3") == "Accelerator lost: restart 1 of 3"
    assert "1280x720 MJPG" in words.badge("other-mode 1280x720 MJPG")
    assert words.badge("something never heard of") == "something never heard of"
    assert words.badge("accelerator-lost 1") == "accelerator-lost 1"
    assert words.alarm("") == ""


def test_a_language_that_is_not_there_is_refused_in_words() -> None:
    with pytest.raises(DisplayError, match="no language 'tlh': there are en, fr"):
        draw(screen("normal", language="tlh"))


def badly_fitting(code: str) -> Iterator[tuple[str, str]]:
    """Texts of a language that do not fit a place where they are shown."""
    words = load_words(code)
    table = words.table
    shown: list[tuple[str, Slot]] = [(words["no-reading"], module.VERDICT_TITLE)]
    # Its second line's place is the bar's.
    shown.append((words["gathering"], replace(module.VERDICT_HINT, lines=1)))
    hints = [(state, hint) for state, (_, hint) in table["states"].items()]
    hints += [(key.partition("/")[0], hint) for key, hint in table["causes"].items()]
    for state, (title, _) in table["states"].items():
        shown.append((title, module.REASON_TITLE if state in NO_PICTURE else module.VERDICT_TITLE))
        if state in NO_READING:
            shown.append((title, module.REASON_TITLE))
        else:
            shown.append((words["when-held"].format(title), module.VERDICT_HINT))
    for state, hint in hints:
        if state in NO_READING:
            shown.append((hint, module.REASON_HINT))
        if state not in NO_PICTURE:
            shown.append((hint, module.VERDICT_HINT))
    examples = {"onnx-fallback": ("TensorRT", "CPU"), "slow-runtime": ("tflite-runtime",)}
    examples |= {
        "other-mode": ("1920x1080 MJPG 59.94/s",),
        "snapshot-saved": ("snapshot-20301224-235959.png",),
    }
    examples |= {f"update-{what}": ("lus-opacity-0.10.0",) for what in WITH_RELEASE}
    for key, text in table["badges"].items():
        shown.append((text.format(*examples.get(key, ("10", "10"))), module.LINE))
    shown += [(text, module.LINE) for text in table["notes"].values()]
    shown += [(text, module.PLATE) for text in table["buttons"].values()]
    shown += [(f"{text}   {words['research']}", module.FOOT_LINE) for text in table["alarms"].values()]
    for age in (f"{words.unit('age', 1480)} {words.unit('delay', 880)}", words.unit("age-seconds", 36000)):
        shown.append((age, module.FACT))
    shown.append((f"{words.unit('rate', 60)}   USB3.0 HD 1920x1080 MJPG 60/s", module.FACT))
    shown.append((words.unit("trend", 12), module.FACT))
    shown += exam_texts(code)
    for text, slot in shown:
        size, lines = fitted(text, slot)
        if " ".join(lines) != text or size < slot.least:
            yield text, f"needs more than {slot.width} pixels at size {slot.least}: {lines}"


def exam_texts(code: str) -> Iterator[tuple[str, Slot]]:
    """Texts of exam mode with the places where they are shown, filled in as wide as they may become."""
    words = load_words(code)

    def exam(key: str, *values: object) -> str:
        return words.exam(key).format(*values)

    narrow = replace(exam_drawing.STATUS, width=exam_drawing.STATUS.width - 32)
    for name in protocols():
        protocol = load_protocol(name)
        yield protocol.titled(code), exam_drawing.ZONE_LINE
        for zone in protocol.zones:
            yield f"{len(protocol.zones)}/{len(protocol.zones)}  {zone.titled(code)}", exam_drawing.ZONE_LINE
            yield zone.titled(code), replace(exam_drawing.ZONE_ENTRY, width=300)
    for key in ("aim", "aim-auto", "reading"):
        yield exam(key), exam_drawing.STATUS
    yield exam("recording", 10, 10), narrow
    yield exam("replay"), exam_drawing.EXAM_LINE
    for key in exam_drawing.CHECKS:
        yield exam(key), exam_drawing.CHECK
    for text in (exam("saving"), exam("saved")):
        yield text, exam_drawing.MESSAGE
    zones = [zone.titled(code) for name in protocols() for zone in load_protocol(name).zones]
    for key, text in words.table["exam-messages"].items():
        lost = key.startswith(exam_drawing.NOT_SAVED)
        for value in zones if lost else ("100",):
            yield text.format(value), exam_drawing.WARNING if lost else exam_drawing.MESSAGE
    for key in ("network", "clinician"):
        yield exam(key), exam_drawing.CARD_HEAD
    for state in ("normal", "opacity", "pneumonia", "uncertain", *sorted(NO_READING), NOT_SCANNED):
        yield words.zone_state(state), exam_drawing.CARD_TITLE
        score = exam("score", "1-3")
        yield f"{words.zone_state(state)}   {score}", replace(exam_drawing.ZONE_ENTRY, width=300)
    yield exam("not-read"), exam_drawing.CARD_TITLE
    details = [exam("accepted"), exam("grade", 3), exam("chance", 100)]
    details += [exam("pattern", text, 100) for text in words.table["patterns"].values()]
    for text in details:
        yield text, exam_drawing.CARD_LINE
    yield exam("total"), exam_drawing.TOTAL_TITLE
    yield exam("no-total"), exam_drawing.SIGNED_TITLE
    yield exam("signed"), exam_drawing.SIGNED_TITLE
    yield exam("worst", "2-3"), exam_drawing.TOTAL_LINE
    rest = f"{exam('rest-not-scanned', 14)}, {exam('rest-cannot-tell', 14)}"
    yield f"{exam('scored', 14, 14)}; {rest}", exam_drawing.SUMMARY_HEAD
    yield exam("to-sign"), exam_drawing.SUMMARY_FOOT
    # An id is as long as the store makes it.
    yield exam("number", "20301224-235959-9f3c2a1b"), exam_drawing.TOTAL_LINE
    yield exam("pdf", "20301224-235959-9f3c2a1b"), exam_drawing.SUMMARY_FOOT
    # Seven buttons share the row, four the column.
    for text in words.table["buttons"].values():
        yield text, replace(module.PLATE, width=98)
    yield words.button("grade"), replace(module.PLATE, width=100)


@pytest.mark.parametrize("code", languages())
def test_every_text_fits_its_room_at_a_size_that_can_be_read(code: str) -> None:
    assert not list(badly_fitting(code))


def test_a_text_that_is_too_long_for_its_room_is_seen_to_be_cut() -> None:
    size, (line,) = fitted("x" * 200, module.LINE)
    assert size == module.LINE.least
    assert line.endswith("...")


@pytest.mark.parametrize("code", languages())
@pytest.mark.parametrize("state", STATES)
def test_titles_are_read_from_two_metres(state: str, code: str) -> None:
    """At least 40 of 720 lines high: 5.8 mm on a 10-inch screen, 10 minutes of arc at two metres."""
    title = load_words(code).state(state)[0] if state not in NO_PICTURE else load_words(code)["no-reading"]
    size, _ = fitted(title, module.VERDICT_TITLE)
    sheet = np.zeros((200, 200, 3), np.uint8)
    canvas.put(sheet, "H", (50, 150), size, module.VERDICT_TITLE.weight, WHITE)
    assert np.count_nonzero(sheet.any(axis=(1, 2))) >= 40


@pytest.mark.parametrize("code", languages())
@pytest.mark.parametrize("state", STATES)
def test_words_stay_inside_the_screen(state: str, code: str) -> None:
    picture = draw(screen(state, opacity=None, language=code, notes=("profile-misfit",)))
    edge = picture[40:660, [0, 1, -2, -1]]
    assert (edge == picture[0, 0]).all(), "words run over the screen's edge"


def test_without_truetype_text_the_stroke_font_stands_in_without_accents(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(canvas, "_font", lambda: None)
    for cached in (canvas.fitted, module._base):
        cached.cache_clear()
    try:
        assert canvas._plain("Échographe allumé ? « oui »") == 'Echographe allume ? " oui "'
        picture = draw(screen("no-beam", opacity=None, language="fr"))
        assert has_colour(part(picture, ROOM), FAULT, 4000)
        assert (picture[40:660, [0, -1]] == picture[0, 0]).all()
    finally:
        for cached in (canvas.fitted, module._base):
            cached.cache_clear()


def test_the_terminal_says_the_same_words(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal()
    terminal.show(screen("no-signal", opacity=None, cause="bars", language="fr"))
    terminal.show(screen("no-signal", opacity=None, cause="bars", language="fr"))
    terminal.show(screen("normal", language="fr", age_ms=1e5))
    out = capsys.readouterr().out.splitlines()
    title, hint = load_words("fr").state("no-signal", "bars")
    assert len(out) == 2
    assert title in out[0]
    assert hint in out[0]
    assert load_words("fr").state("stale")[0] in out[1]


@pytest.mark.parametrize("size", [(800, 480), (1024, 600), (1920, 1080), (300, 700)])
def test_a_window_of_any_size_shows_the_whole_screen_in_its_own_shape(size: tuple[int, int]) -> None:
    picture = np.full((720, 1280, 3), 200, np.uint8)
    shown = framed(picture, size)
    assert shown.shape == (size[1], size[0], 3)
    rows, columns = np.nonzero(shown[:, :, 0] == 200)
    width, height = np.ptp(columns) + 1, np.ptp(rows) + 1
    assert width == size[0] or height == size[1]
    assert abs(width / height - 16 / 9) < 0.02


def test_a_window_without_a_screen_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPLAY", ":987")
    assert not screen_reachable()
    with pytest.raises(DisplayError, match="no screen"):
        open_display("window")


def test_a_screen_is_found_although_the_file_of_its_socket_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An X server that ends takes away the file of the next one with its number."""
    with x_server(tmp_path) as display:
        Path(f"/tmp/.X11-unix/X{display.name.removeprefix(':')}").unlink()
        monkeypatch.setenv("DISPLAY", display.name)
        assert screen_reachable()


def wait_until(
    condition: Callable[[], bool], child: subprocess.Popen[Any], seconds: float = PATIENCE
) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline or child.poll() is not None:
            return False
        time.sleep(0.2)
    return True


def centre(box: Box) -> tuple[int, int]:
    return (box[0] + box[2]) // 2, (box[1] + box[3]) // 2


def test_the_window_shows_the_screen_and_takes_touch_and_keys_on_a_real_x_server(tmp_path: Path) -> None:
    with x_server(tmp_path) as display:
        command = [sys.executable, "-m", "sonoglance", "demo", "--display", "window", "--rounds", "9"]
        command += ["--out", str(tmp_path)]
        environment = {**os.environ, "DISPLAY": display.name}
        child = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, text=True)

        def room() -> np.ndarray:
            return part(display.pixels.copy(), ROOM)

        def verdict_shown() -> bool:
            shot = part(display.pixels.copy(), VERDICT)
            return any(has_colour(shot, c, 2000) for c in (NORMAL, ABNORMAL, UNSURE))

        def held() -> bool:
            lit = part(display.pixels.copy(), BUTTONS["f"])[4, 10:-10]
            return bool((lit.astype(int).min(axis=1) > 200).all())

        def hold_by_touch() -> bool:
            # Only a verdict can be held, and on a busy machine one may just have been withdrawn.
            assert wait_until(verdict_shown, child), "no verdict appeared in the window"
            do(display, "mousemove", *centre(BUTTONS["f"]), "click", 1)
            return wait_until(held, child, 5.0)

        try:
            assert any(hold_by_touch() for _ in range(4)), "the click held nothing"
            time.sleep(0.5)
            first = room()
            assert has_colour(first, FAULT, 5000)
            time.sleep(0.5)
            assert np.array_equal(first, room()), "a held picture moves"
            do(display, "key", "f")
            assert wait_until(lambda: not held(), child), "the key freed nothing"
            do(display, "key", "d")
            light = THEMES["light"].ground
            assert wait_until(lambda: has_colour(display.pixels.copy(), light, 50_000), child)
            do(display, "mousemove", *centre(BUTTONS["q"]), "click", 1)
            assert child.wait(PATIENCE) == 0
        finally:
            child.kill()
            child.wait(PATIENCE)


SHOW = """
import sys
from device.screen.displays import open_display
from tests.device.test_screen import screen
window = open_display("window", fullscreen=True)
shown = screen("opacity", opacity=0.9)
window.show(shown)
print("begun", flush=True)
key = ""
while key != "q":
    key = window.show(shown)
    if key:
        print(key, flush=True)
"""


def test_a_small_screen_is_filled_and_its_buttons_are_met(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with x_server(tmp_path, 800, 480) as display:
        environment = {**os.environ, "DISPLAY": display.name}
        command = [sys.executable, "-c", SHOW]
        child = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE)
        try:
            # A touch is meant for what was shown before: there must be something.
            assert heard(child) == "begun"
            assert wait_until(lambda: has_colour(display.pixels.copy(), ABNORMAL), child)
            shot = display.pixels.copy()
            assert (shot.shape, shot[:14].max(), shot[-14:].max()) == ((480, 800, 3), 0, 0)
            monkeypatch.setenv("DISPLAY", display.name)
            assert root_size() == (800, 480), "as the server says it"
            assert seen_at(400, 463) == tuple(shot[463, 400]), "and what can be seen, by which it is checked"
            assert seen_at(400, 3) == (0, 0, 0)
            assert seen_at(800, 0) is None
            do(display, "key", "Left", "key", "space")
            assert heard(child) == "f"
            for key in "sodq":
                x, y = centre(BUTTONS[key])
                do(display, "mousemove", round(x * 0.625), round(15 + y * 0.625), "click", 1)
                assert heard(child) == key
            assert child.wait(PATIENCE) == 0
        finally:
            child.kill()
            child.wait(PATIENCE)


def test_the_end_of_the_x_server_ends_the_window_and_does_not_hang_it(tmp_path: Path) -> None:
    with x_server(tmp_path) as display:
        environment = {**os.environ, "DISPLAY": display.name}
        command = [sys.executable, "-c", SHOW]
        child = subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.DEVNULL, text=True)
        assert wait_until(lambda: has_colour(display.pixels.copy(), ABNORMAL), child)
    try:
        assert child.wait(PATIENCE) != 0
    finally:
        child.kill()
        child.wait(PATIENCE)

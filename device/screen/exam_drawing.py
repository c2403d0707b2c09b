"""What the screen shows of an exam beside the live picture: zones, recording, readings, summary."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import cv2

from device.exams.exam import NOT_SCANNED, ClipReading, Summary
from device.exams.protocols import Protocol
from device.screen.canvas import (
    ALARM,
    BLACK,
    FAULT,
    WHITE,
    Box,
    Button,
    Colour,
    Image,
    Slot,
    Theme,
    block,
    look_of,
    marker,
    paste,
    write,
)
from device.screen.illustrations import illustration
from device.screen.torso import ZoneMark, torso_map
from device.screen.words import Words
from reader.reader import Reading

AIM, RECORDING, READING, REVIEW, SUMMARY, SIGNED = PHASES = (
    "aim", "recording", "reading", "review", "summary", "signed",
)  # fmt: skip
CHECKS = ("beam", "contact", "pleura", "steady")
RED: Colour = (60, 50, 230)
"""Of what is being recorded."""
NOT_SAVED = "not-saved"
"""The message with which the store's refusal begins."""
LIVE_PHASES = (AIM, RECORDING, READING)
CLOSING_PHASES = (SUMMARY, SIGNED)
EXAM_KEYS = "rnbacxet0123"

ROW_TOP, ROW_BOTTOM = 588, 676
"""Of the buttons."""
READINGS: Box = (812, 16, 1264, 276)
"""Where the verdict stands in an exam, the two readings of a clip, or the exam's total."""
ZONE_BASE = 310
TORSO: Box = (812, 320, 1264, 510)
RECORDED: Box = (812, 514, 1264, 546)
CHECK_BASE = 568
LINE_STEP = 25

ZONE_LINE = Slot(26, 18, 700, 452, 34)
STATUS = Slot(24, 18, 600, 452, 30)
CHECK = Slot(20, 16, 600, 88, 26)
MESSAGE = Slot(22, 17, 600, 424, 26)
WARNING = Slot(22, 16, 600, 438, 26)
EXAM_LINE = Slot(22, 19, 500, 424, 26)
CARD_HEAD = Slot(22, 18, 600, 204, 28)
CARD_TITLE = Slot(38, 20, 800, 204, 66, 2)
CARD_LINE = Slot(21, 17, 500, 204, 26)
TOTAL_TITLE = Slot(48, 32, 700, 424, 56)
TOTAL = Slot(120, 90, 800, 424, 130)
SIGNED_TITLE = Slot(76, 44, 800, 424, 80)
TOTAL_LINE = Slot(26, 16, 500, 424, 30)
SUMMARY_HEAD = Slot(34, 22, 700, 740, 84, 2)
ZONE_ENTRY = Slot(24, 16, 600, 300, 26)
SUMMARY_FOOT = Slot(28, 20, 600, 740, 36)


@dataclass(frozen=True)
class HumanShown:
    """A clinician's reading. ``state``: a label or ``uncertain``; ``grade``: 0 to 3 or None."""

    state: str
    grade: int | None = None
    accepted: bool = False


@dataclass(frozen=True)
class ExamPanel:
    """An exam at this moment: everything that the screen shows of it.

    ``zones``: one a zone of the protocol, in its order. ``current``: the zone that is scanned or reviewed.
    ``phase``: one of ``PHASES``. ``seconds`` of ``seconds_wanted`` are recorded of the clip.
    ``quality``: by check of ``CHECKS``, whether it is met; ``autocapture``: whether clips then start by
    themselves. ``clip``: the network's reading of the current zone, ``human`` the clinician's. ``replay``:
    a moment of the clip, shown in place of the live picture while it is reviewed.
    ``message``: ``KEY [VALUE...]`` of ``exam-messages`` in the language file, empty for none; one that
    begins with ``not-saved`` says that something is lost. ``acknowledged``: whether the store has
    everything that was handed to it. ``summary``: from the phase ``summary`` on. ``exam_id``: as the
    store has it.
    """

    protocol: Protocol
    zones: tuple[ZoneMark, ...]
    current: str
    phase: str = AIM
    seconds: float = 0.0
    seconds_wanted: float = 0.0
    quality: Mapping[str, bool] = field(default_factory=dict)
    autocapture: bool = False
    clip: ClipReading | None = None
    human: HumanShown | None = None
    replay: Reading | None = None
    message: str = ""
    acknowledged: bool = True
    summary: Summary | None = None
    exam_id: str = ""

    @property
    def live(self) -> bool:
        """Whether the live picture and its verdict are what is shown."""
        return self.phase in LIVE_PHASES

    @property
    def place(self) -> tuple[str, ...]:
        """Exam, zone and phase: what a key means depends on them."""
        return self.exam_id, self.current, self.phase

    @property
    def closing(self) -> bool:
        """Whether the summary is shown in place of the picture."""
        return self.phase in CLOSING_PHASES


def zone_line(panel: ExamPanel, language: str) -> str:
    """The current zone: its number, how many there are, and its title."""
    names = [zone.name for zone in panel.zones]
    place = panel.protocol.zone(panel.current)
    return f"{names.index(panel.current) + 1}/{len(names)}  {place.titled(language)}"


def status_line(panel: ExamPanel, words: Words) -> str:
    """What goes on: how to begin a clip, how far it is, that it is being read, or what is to be done."""
    if panel.phase == RECORDING:
        return words.exam("recording").format(math.floor(panel.seconds), math.ceil(panel.seconds_wanted))
    if panel.phase == AIM:
        return words.exam("aim-auto" if panel.autocapture else "aim")
    return words.exam("to-sign" if panel.phase == SUMMARY else panel.phase)


def message_line(panel: ExamPanel, words: Words) -> str:
    """What has just happened, a zone by its title."""
    key, _, value = panel.message.partition(" ")
    titles = {zone.name: zone.titled(words.code) for zone in panel.protocol.zones}
    return words.exam_message(f"{key} {titles[value]}" if value in titles else panel.message)


def exam_buttons(panel: ExamPanel, overlay: bool, held: bool, room: Box) -> tuple[Button, ...]:
    """The buttons of a phase: a row under the room, and grades in the column while a clip is reviewed."""
    faces = {
        "r": ("again", False) if panel.phase == REVIEW else ("record", False),
        "b": ("back", False),
        "n": ("new" if panel.closing else "next", False),
        "t": ("auto", panel.autocapture),
        "f": ("go-on" if held else "freeze", held),
        "o": ("overlay", overlay),
        "a": ("accept", panel.human is not None and panel.human.accepted),
        "c": ("change", False),
        "x": ("discard", False),
        "e": ("sign", False) if panel.phase == SUMMARY else ("end", False),
        "s": ("snapshot", False),
        "d": ("theme", False),
        "q": ("quit", False),
    }
    if panel.phase == RECORDING:
        faces["r"] = "stop", True
    keys = {REVIEW: "acrxbne", SUMMARY: "bnsdqe", SIGNED: "nsdq"}.get(panel.phase, "rbntfoe")
    boxes = _row(room[0], room[2], len(keys))
    buttons = [Button(key, faces[key][0], box, faces[key][1]) for key, box in zip(keys, boxes, strict=True)]
    if panel.phase == REVIEW:
        given = None if panel.human is None else panel.human.grade
        for grade, box in enumerate(_row(READINGS[0], READINGS[2], 4)):
            buttons.append(Button(str(grade), "grade", box, grade == given))
    return tuple(buttons)


def _row(left: int, right: int, count: int, gap: int = 6) -> list[Box]:
    wide = (right - left - gap * (count - 1)) // count
    return [(x, ROW_TOP, x + wide, ROW_BOTTOM) for x in (left + i * (wide + gap) for i in range(count))]


def draw_column(
    canvas: Image,
    panel: ExamPanel,
    negative: str,
    lines: Sequence[tuple[Colour, str]],
    fact: str,
    words: Words,
    theme: Theme,
) -> None:
    """Zone, torso map, recording, checks, what is saved, then the box's own ``lines`` and the ``fact`` of
    the live picture."""
    left, top, right, bottom = TORSO
    title = zone_line(panel, words.code) if not panel.closing else panel.protocol.titled(words.code)
    write(canvas, title, (left, ZONE_BASE), ZONE_LINE, theme.text)
    ring = "" if panel.closing else panel.current
    size = right - left, bottom - top
    canvas[top:bottom, left:right] = torso_map(
        panel.protocol, panel.zones, negative, size, theme, words, ring
    )
    base = RECORDED[1] + 15
    if panel.live:
        _draw_recorded(canvas, panel, words, theme)
        _draw_checks(canvas, panel, words, theme)
        base = CHECK_BASE + LINE_STEP
    _draw_message(canvas, panel, base, words, theme)
    last = ROW_TOP - 9 if panel.phase == REVIEW else ROW_BOTTOM - 4
    if fact:
        write(canvas, fact, (left, last), EXAM_LINE, theme.text)
        last -= LINE_STEP
    room = (last - base) // LINE_STEP
    if len(lines) > room:
        # The first, often whose exam it is, is never left out.
        kept = max(room - 1, 1)
        rest = FAULT, f"+ {len(lines) - kept}"
        lines = [*lines[:kept], rest] if room > 1 else [(lines[0][0], f"{lines[0][1]}   {rest[1]}")]
    for row, (colour, line) in enumerate(lines, 1):
        foot = base + LINE_STEP * row
        marker(canvas, (left + 8, foot - 8), colour, theme)
        write(canvas, line, (left + 26, foot), EXAM_LINE, theme.text)


def _draw_recorded(canvas: Image, panel: ExamPanel, words: Words, theme: Theme) -> None:
    left, top, right, bottom = RECORDED
    text_left = left
    if panel.phase == RECORDING:
        cv2.circle(canvas, (left + 11, top + 13), 11, theme.text, -1, cv2.LINE_AA)
        cv2.circle(canvas, (left + 11, top + 13), 9, RED, -1, cv2.LINE_AA)
        share = min(panel.seconds / panel.seconds_wanted, 1.0) if panel.seconds_wanted else 0.0
        cv2.rectangle(canvas, (left, bottom - 6), (right - 1, bottom - 1), theme.line, 1)
        cv2.rectangle(
            canvas, (left, bottom - 6), (left + round(share * (right - left - 1)), bottom - 1), RED, -1
        )
        text_left += 32
    slot = replace(STATUS, width=right - text_left)
    write(canvas, status_line(panel, words), (text_left, top + 20), slot, theme.text)


def _draw_checks(canvas: Image, panel: ExamPanel, words: Words, theme: Theme) -> None:
    wide = (TORSO[2] - TORSO[0]) // len(CHECKS)
    for place, check in enumerate(CHECKS):
        left, met = TORSO[0] + wide * place, panel.quality.get(check, False)
        drawing = illustration(
            "accept" if met else "quit", 16, theme.text if met else theme.dim, theme.ground
        )
        paste(canvas, drawing, (left + 8, CHECK_BASE - 7))
        write(canvas, words.exam(check), (left + 22, CHECK_BASE), CHECK, theme.text if met else theme.dim)


def _draw_message(canvas: Image, panel: ExamPanel, base: int, words: Words, theme: Theme) -> None:
    left, right = TORSO[0], TORSO[2]
    at = left + 26, base
    if panel.message.startswith(NOT_SAVED):
        cv2.rectangle(canvas, (left, base - 20), (right - 1, base + 5), ALARM, -1)
        write(canvas, message_line(panel, words), (left + 8, base), WARNING, WHITE)
    elif panel.message:
        marker(canvas, (left + 8, base - 8), theme.text, theme)
        write(canvas, message_line(panel, words), at, MESSAGE, theme.text)
    elif not panel.acknowledged:
        paste(canvas, illustration("starting", 20, theme.text, theme.ground), (left + 10, base - 8))
        write(canvas, words.exam("saving"), at, MESSAGE, theme.text)
    elif any(zone.state != NOT_SCANNED for zone in panel.zones):
        paste(canvas, illustration("accept", 20, theme.text, theme.ground), (left + 10, base - 8))
        write(canvas, words.exam("saved"), at, MESSAGE, theme.text)


def draw_readings(canvas: Image, panel: ExamPanel, negative: str, words: Words, theme: Theme) -> None:
    """In place of the verdict: what the network says of the clip and, beside it, the clinician."""
    left, top, right, bottom = READINGS
    middle = (left + right) // 2
    clip, human = panel.clip, panel.human
    network: list[str] = []
    if clip is not None and clip.p is not None:
        network.append(words.exam("chance").format(round(100 * (1 - clip.p[negative]))))
        network += [
            words.exam("pattern").format(words.pattern(name), round(100 * p))
            for name, p in clip.patterns.items()
        ]
    clinician: list[str] = []
    if human is not None and human.grade is not None:
        clinician.append(words.exam("grade").format(human.grade))
    if human is not None and human.accepted:
        clinician.append(words.exam("accepted"))
    boxes = (left, top, middle - 6, bottom), (middle + 6, top, right, bottom)
    states = clip.state if clip else NOT_SCANNED, human.state if human else ""
    for box, head, state, details in zip(
        boxes, ("network", "clinician"), states, (network, clinician), strict=True
    ):
        _draw_card(canvas, box, words.exam(head), state, details, negative, words, theme)


def _draw_card(
    canvas: Image,
    box: Box,
    head: str,
    state: str,
    details: Sequence[str],
    negative: str,
    words: Words,
    theme: Theme,
) -> None:
    left, top, right, bottom = box
    middle = (left + right) // 2
    shape, colour = _zone_look(state, negative, theme) if state else ("", theme.dim)
    paper, ink, text = (
        theme.panel(colour) if state not in ("", NOT_SCANNED) else (theme.ground, colour, theme.text)
    )
    cv2.rectangle(canvas, (left, top), (right - 1, bottom - 1), paper, -1)
    cv2.rectangle(canvas, (left + 1, top + 1), (right - 2, bottom - 2), ink, 3)
    block(canvas, head, (middle, top + 24), CARD_HEAD, text)
    if shape:
        paste(canvas, illustration(shape, 56, ink, paper), (middle, top + 72))
    block(
        canvas,
        words.zone_state(state) if state else words.exam("not-read"),
        (middle, top + 136),
        CARD_TITLE,
        ink,
    )
    for row, line in enumerate(details[:3]):
        block(canvas, line, (middle, top + 186 + 26 * row), CARD_LINE, text)


def draw_total(canvas: Image, panel: ExamPanel, words: Words, theme: Theme) -> None:
    """In place of the verdict: what the zones add up to, or that the exam is signed and how to hand it on."""
    left, top, right, bottom = READINGS
    middle, summary = (left + right) // 2, panel.summary
    assert summary is not None, "the summary's phases have one"
    cv2.rectangle(canvas, (left + 1, top + 1), (right - 2, bottom - 2), theme.text, 3)
    if panel.phase == SIGNED:
        paste(canvas, illustration("accept", 64, theme.text, theme.ground), (middle, top + 48))
        block(canvas, words.exam("signed"), (middle, top + 128), SIGNED_TITLE, theme.text)
        block(canvas, words.exam("number").format(panel.exam_id), (middle, top + 216), TOTAL_LINE, theme.text)
        return
    if summary.total is None or summary.worst is None:
        block(canvas, words.exam("no-total"), (middle, top + 130), SIGNED_TITLE, theme.text)
        return
    block(canvas, words.exam("total"), (middle, top + 44), TOTAL_TITLE, theme.text)
    block(canvas, str(summary.total), (middle, top + 136), TOTAL, theme.text)
    block(canvas, words.exam("worst").format(summary.worst), (middle, top + 226), TOTAL_LINE, theme.text)


def draw_summary(
    canvas: Image, room: Box, panel: ExamPanel, negative: str, words: Words, theme: Theme
) -> None:
    """In place of the picture: every zone with what stands for it, and what remains to be done."""
    left, top, right, bottom = room
    cv2.rectangle(canvas, (left, top), (right - 1, bottom - 1), theme.room, -1)
    block(canvas, summary_line(panel, words), ((left + right) // 2, top + 50), SUMMARY_HEAD, theme.text)
    columns = max(2, math.ceil(len(panel.zones) / 7))
    rows = math.ceil(len(panel.zones) / columns)
    wide, high = (right - left - 24) // columns, min((bottom - top - 160) // rows, 84)
    for number, zone in enumerate(panel.zones):
        x, y = left + 16 + wide * (number // rows), top + 100 + high * (number % rows)
        box = x, y, x + wide - 12, y + high
        _draw_zone(canvas, box, panel.protocol, zone, negative, words, theme)
    line = words.exam("pdf" if panel.phase == SIGNED else "to-sign").format(panel.exam_id)
    block(canvas, line, ((left + right) // 2, bottom - 30), SUMMARY_FOOT, theme.text)


def summary_line(panel: ExamPanel, words: Words) -> str:
    """How many zones have a score, and why the others have none."""
    summary = panel.summary
    assert summary is not None, "the summary's phases have one"
    rest = [
        words.exam(key).format(count)
        for key, count in (
            ("rest-not-scanned", summary.not_scanned),
            ("rest-cannot-tell", summary.cannot_tell),
        )
        if count
    ]
    scored = words.exam("scored").format(summary.scored, summary.zones)
    return f"{scored}; {', '.join(rest)}" if rest else scored


def _draw_zone(
    canvas: Image,
    box: Box,
    protocol: Protocol,
    zone: ZoneMark,
    negative: str,
    words: Words,
    theme: Theme,
) -> None:
    left, top, right, bottom = box
    size = round((bottom - top) * 0.36)
    shape, colour = _zone_look(zone.state, negative, theme)
    paper, ink = (colour, BLACK) if theme.filled and zone.state != NOT_SCANNED else (theme.room, colour)
    tile = left, top + 2, left + 2 * size, top + 2 + 2 * size + 4
    cv2.rectangle(canvas, tile[:2], (tile[2] - 1, tile[3] - 1), paper, -1)
    drawing = illustration(shape, 2 * size - 6, ink, paper)
    paste(canvas, drawing, ((tile[0] + tile[2]) // 2, (tile[1] + tile[3]) // 2))
    text_left = left + 2 * size + 8
    title = protocol.zone(zone.name).titled(words.code)
    slot = replace(ZONE_ENTRY, size=min(size, ZONE_ENTRY.size), width=right - text_left)
    write(canvas, title, (text_left, top + round(1.1 * size)), slot, theme.text)
    said = words.zone_state(zone.state)
    if zone.score is not None:
        said = f"{said}   {words.exam('score').format(zone.score)}"
    foot = top + round(2.3 * size)
    if zone.by_clinician:
        paste(canvas, illustration("accept", 16, theme.text, theme.room), (text_left + 8, foot - 7))
        text_left += 22
    write(canvas, said, (text_left, foot), replace(slot, width=right - text_left), theme.text)


def _zone_look(state: str, negative: str, theme: Theme) -> tuple[str, Colour]:
    return (state, theme.text) if state == NOT_SCANNED else look_of(state, negative)

"""An exam on one A4 page: what was seen by zone, by whom it was read, what it adds up to, and its limits."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from io import BytesIO
from itertools import islice
from pathlib import Path

import numpy as np
import pypdfium2
from numpy.typing import NDArray
from PIL import Image as Picture
from reportlab.lib.colors import Color
from reportlab.lib.pagesizes import A4
from reportlab.lib.utils import ImageReader
from reportlab.pdfbase.pdfmetrics import stringWidth
from reportlab.pdfgen.canvas import Canvas

from device.exams.advice import Advice, AdviceTable, advise, load_advice
from device.exams.clips import read_clip_frames
from device.exams.exam import NOT_SCANNED, Clip, Exam, Stamp, Zone
from device.exams.protocols import Protocol
from device.exams.store import Store
from device.screen.canvas import BLACK, THEMES, WHITE, look_of, put, resized, text_width
from device.screen.drawing import beam_mask, beam_picture, tinted
from device.screen.torso import mark_text, torso_map, zone_marks
from device.screen.words import Words, load_words
from device.state import write_whole
from reader.bundle import DEFAULT_BUNDLE, MANIFEST, Manifest
from reader.errors import ClipError
from reader.reader import Reading

Image = NDArray[np.uint8]
Ink = tuple[float, float, float]

WORDS = Path(__file__).parent / "words"
WIDTH, HEIGHT = A4
MARGIN = 34.0
RIGHT = WIDTH - MARGIN
INK: Ink = (0.08, 0.08, 0.1)
DIM: Ink = (0.38, 0.38, 0.4)
RULE: Ink = (0.78, 0.78, 0.8)
WARNING: Ink = (0.72, 0.05, 0.05)
PAPER = replace(THEMES["light"], ground=WHITE, text=BLACK)
TORSO_PIXELS_A_POINT = 4
KEY_FRAME_PIXELS = 320
"""Longest side of a key frame: sharp at its size on the page, and 14 of them stay a small file."""
LETTER_PIXELS = 48
"""Of letters that the page's own font lacks."""
MOST_NETWORKS = 2
"""An exam is read by one, unless it was updated in between."""
MOST_ADVICE = 4
HIGHEST_ROW, LOWEST_PART, ADVICE_HEIGHT, NETWORK_HEIGHT = 66.0, 101.0, 20.2, 45.0
"""Points: a zone's row is never higher; what lies under the zones needs so much, and more an advice and a
network."""
NEXT_INDENT = 60.0


def write_report(
    exam: Exam,
    store: Store,
    protocol: Protocol,
    path: Path,
    language: str = "en",
    advice: Path | None = None,
) -> Path:
    """Write the report of an exam as a PDF of one page, whole or not at all; returns its path.

    ``protocol``: the exam's. ``advice``: a clinic's own table of what is usually examined next. Raises
    OSError where it cannot be written, DisplayError where there is no such language, AdviceError for a broken
    table.
    """
    write_whole(path, report(exam, store, protocol, language, advice))
    return path


def page_picture(
    exam: Exam,
    store: Store,
    protocol: Protocol,
    dpi: int,
    language: str = "en",
    advice: Path | None = None,
) -> Image:
    """The same page as a picture: BGR uint8 [h, w, 3], height and width even."""
    document = pypdfium2.PdfDocument(report(exam, store, protocol, language, advice))
    page = np.asarray(document[0].render(scale=dpi / 72).to_numpy(), np.uint8)
    return np.ascontiguousarray(page[: page.shape[0] // 2 * 2, : page.shape[1] // 2 * 2, :3])


def report(
    exam: Exam, store: Store, protocol: Protocol, language: str = "en", advice: Path | None = None
) -> bytes:
    """The report as the bytes of a PDF; the same exam gives the same bytes."""
    file = BytesIO()
    canvas = Canvas(file, pagesize=A4, invariant=1, pageCompression=1)
    canvas.setTitle(f"Sonoglance {exam.id}")
    table = load_advice(advice)
    page = _Page(canvas, exam, store, protocol, load_words(language), report_words(language), table)
    page.draw()
    canvas.showPage()
    canvas.save()
    return file.getvalue()


@lru_cache
def report_words(language: str) -> dict[str, str]:
    """The report's own words in a language of the screen's."""
    words: dict[str, str] = json.loads((WORDS / f"{language}.json").read_text(encoding="utf-8"))
    return words


def told_time(stamp: Stamp, words: dict[str, str]) -> str:
    """A time to the minute, and whether it can be relied on."""
    time = f"{stamp.wall[:10]} {stamp.wall[11:16]} UTC"
    return time if stamp.verified else f"{time} ({words['not-verified']})"


@dataclass
class _Page:
    """One report on its way to paper. ``y`` runs down the page, in points from its lower edge."""

    canvas: Canvas
    exam: Exam
    store: Store
    protocol: Protocol
    screen: Words
    words: dict[str, str]
    table: AdviceTable
    y: float = HEIGHT - MARGIN

    def draw(self) -> None:
        """Everything, from top to bottom."""
        self._head()
        self._zones()
        self._sums()
        self._next()
        self._foot()
        if self.exam.signed is None:
            self._across(self.words["not-signed"])

    # --- parts ---------------------------------------------------------------------------------------

    def _head(self) -> None:
        exam, words = self.exam, self.words
        self.text(MARGIN, self.y - 14, words["title"], 18, bold=True)
        self.text(RIGHT, self.y - 7, words["page"].format(version("sonoglance")), 8, ink=DIM, right=True)
        self.text(RIGHT, self.y - 17, self.screen["research"], 8, ink=WARNING, right=True)
        self.y -= 26
        self._rule(INK, 1.2)
        torso_wide, torso_high = 260.0, 116.0
        self._torso(RIGHT - torso_wide, self.y - 4 - torso_high, torso_wide, torso_high)
        patient = "  ".join(part for part in (exam.patient.code, exam.patient.name) if part)
        facts = (
            ("patient", patient or words["not-typed"], bool(patient)),
            ("exam", exam.id, False),
            ("begun", told_time(exam.started, words), False),
            ("protocol", self.protocol.titled(self.screen.code), False),
            ("site", exam.site or words["not-typed"], False),
            ("operator", exam.operator or words["not-typed"], False),
        )
        line = self.y - 16
        width = RIGHT - torso_wide - MARGIN - 62
        for key, value, bold in facts:
            self.text(MARGIN, line, words[key], 8, ink=DIM)
            unsure = key == "begun" and not exam.started.verified
            self.text(MARGIN + 56, line, value, 9.5, bold=bold, ink=WARNING if unsure else INK, width=width)
            line -= 14
        if exam.comment:
            self.text(MARGIN, line, words["comment"], 8, ink=DIM)
            self.lines(MARGIN + 56, line, exam.comment, 8, width, 2)
        self.y -= torso_high + 8

    def _zones(self) -> None:
        widths = (0.0, 92.0, 222.0, 340.0, 488.0)
        titles = ("", self.words["zone"], self.screen.exam("network"), self.screen.exam("clinician"), "")
        self._rule(RULE, 0.6)
        for at, title in zip(widths, titles, strict=True):
            self.text(MARGIN + at, self.y - 10, title, 8, ink=DIM)
        self.text(RIGHT, self.y - 10, self.words["score"], 8, ink=DIM, right=True)
        self.y -= 14
        below = LOWEST_PART + ADVICE_HEIGHT * len(self._advice) + NETWORK_HEIGHT * len(self._networks)
        row = min((self.y - MARGIN - below) / len(self.exam.zones), HIGHEST_ROW)
        for zone in self.exam.zones:
            self._rule(RULE, 0.4)
            self._zone(zone, row, widths)
            self.y -= row
        self._rule(INK, 1.2)

    def _zone(self, zone: Zone, row: float, widths: tuple[float, ...]) -> None:
        exam, words = self.exam, self.words
        worst = zone.worst(exam.negative)
        self._key_frame(worst, MARGIN, row, widths[1] - 8)
        first, more = self.y - 11, max(int((row - 14) / 8.5), 1)

        def column(number: int, bold: str, small: str) -> None:
            at, width = MARGIN + widths[number], widths[number + 1] - widths[number] - 8
            self.text(at, first, bold, 9, bold=True, width=width)
            self.lines(at, first - 9, small, 7, width, more)

        title = self.protocol.zone(zone.name).titled(self.screen.code)
        taken = words["clips"].format(len(zone.clips)) if zone.clips else ""
        at = MARGIN + widths[1]
        used = self.lines(at, first, title, 9, widths[2] - widths[1] - 8, 2, bold=True)
        self.text(at, used, f"{zone.name}   {taken}".rstrip(), 7, ink=DIM, width=widths[2] - widths[1] - 8)
        column(2, self.screen.zone_state(zone.network_state(exam.negative)), self._told_by_network(worst))
        if zone.human is None:
            column(3, words["not-read"] if zone.clips else "-", "")
        else:
            how = words["accepted-by" if zone.human.accepted else "changed-by"]
            small = how.format(zone.human.by or words["nobody"])
            grade = zone.human.grade
            state = self.screen.zone_state(zone.human.state)
            state += "" if grade is None else f", {self.screen.exam('grade').format(grade).lower()}"
            column(3, state, f"{small}: {zone.human.comment}" if zone.human.comment else small)
        self._mark(zone, RIGHT - 16, self.y - row / 2, min(row / 2 - 3, 13))

    def _told_by_network(self, worst: Clip | None) -> str:
        if worst is None or worst.reading.p is None:
            return "" if worst is None else self.screen.state(worst.reading.state)[0]
        told = [self.words["finding"].format(f"{100 * (1 - worst.reading.p[self.exam.negative]):.0f}")]
        told += [f"{self.screen.pattern(name)} {100 * p:.0f} %" for name, p in worst.reading.patterns.items()]
        return ", ".join(told)

    def _key_frame(self, clip: Clip | None, x: float, row: float, width: float) -> None:
        """The worst moment of a clip, tinted where the network sees something; or why it is not shown."""
        if clip is None:
            return
        try:
            picture = key_picture(clip, self.store)
        except ClipError:
            self.lines(x, self.y - 11, self.words["clip-gone"], 7, width, 3, ink=WARNING)
            return
        if picture is None:
            self.lines(x, self.y - 11, self.words["not-kept"], 7, width, 3, ink=DIM)
            return
        high, wide = picture.shape[:2]
        scale = min(width / wide, (row - 4) / high)
        size = wide * scale, high * scale
        left = x + (width - size[0]) / 2
        self._picture(picture, left, self.y - 2 - size[1], *size)

    def _sums(self) -> None:
        summary, screen = self.exam.summary, self.screen
        self.y -= 20
        total = (
            screen.exam("no-total") if summary.total is None else f"{screen.exam('total')} {summary.total}"
        )
        self.text(MARGIN, self.y, total, 15, bold=True)
        rest = [screen.exam("scored").format(summary.scored, summary.zones)]
        if summary.not_scanned:
            rest.append(screen.exam("rest-not-scanned").format(summary.not_scanned))
        if summary.cannot_tell:
            rest.append(screen.exam("rest-cannot-tell").format(summary.cannot_tell))
        if summary.worst is not None:
            rest.append(screen.exam("worst").format(summary.worst))
        self.text(MARGIN + 150, self.y, "  \N{MIDDLE DOT}  ".join(rest), 10, width=RIGHT - MARGIN - 150)
        self.y -= 8

    def _next(self) -> None:
        """What is usually examined next, the most urgent first."""
        given = self._advice
        if not given:
            return
        self.y -= 6
        self.text(MARGIN, self.y, self.table.led(self.screen.code), 9, bold=True)
        self.y -= 11
        for advice in given:
            self.text(MARGIN, self.y, self.words[advice.urgency], 8, bold=True, width=NEXT_INDENT - 4)
            told = advice.told(self.screen.code)
            self.y = self.lines(MARGIN + NEXT_INDENT, self.y, told, 8, RIGHT - MARGIN - NEXT_INDENT, 2) - 1

    @property
    def _networks(self) -> list[str]:
        named = {clip.reading.bundle for zone in self.exam.zones for clip in zone.clips} - {""}
        return sorted(named)[:MOST_NETWORKS]

    @property
    def _advice(self) -> list[Advice]:
        return advise(self.exam, self.table)[:MOST_ADVICE]

    def _foot(self) -> None:
        exam, words = self.exam, self.words
        self.y -= 8
        for network in self._networks:
            told = f"{words['network']}: {network}. {figures(network, words)}"
            self.y = self.lines(MARGIN, self.y, told, 7, RIGHT - MARGIN, 6, ink=DIM) - 1
        self.y = self.lines(MARGIN, self.y, words["legend"], 7, RIGHT - MARGIN, 4, ink=DIM) - 1
        self.lines(MARGIN, self.y, words["not-medical"], 8, RIGHT - MARGIN, 2, bold=True, ink=WARNING)
        self.y = MARGIN + 14
        self._rule(INK, 1.2)
        if exam.signed is None:
            self.text(MARGIN, MARGIN, words["not-signed"], 12, bold=True, ink=WARNING)
        else:
            signed = words["signed-by"].format(exam.signed_by, told_time(exam.signed, words))
            self.text(MARGIN, MARGIN, signed, 11, bold=True, width=RIGHT - MARGIN - 130)
        self.text(RIGHT, MARGIN, exam.id, 8, ink=DIM, right=True)

    # --- how it is drawn -----------------------------------------------------------------------------

    def _torso(self, x: float, y: float, width: float, height: float) -> None:
        size = round(width * TORSO_PIXELS_A_POINT), round(height * TORSO_PIXELS_A_POINT)
        drawn = torso_map(self.protocol, zone_marks(self.exam), self.exam.negative, size, PAPER, self.screen)
        self._picture(drawn, x, y, width, height)

    def _mark(self, zone: Zone, x: float, y: float, r: float) -> None:
        """The zone's score in the shape and colour of its state, as on the torso map."""
        state = zone.state(self.exam.negative)
        mark = next(mark for mark in zone_marks(self.exam) if mark.name == zone.name)
        shape, colour = look_of(state, self.exam.negative)
        corners = [(math.cos(t), math.sin(t)) for t in np.linspace(0, 2 * math.pi, 40)]
        if shape == "abnormal":
            corners = [(0, 1.05), (1.1, -0.8), (-1.1, -0.8)]
        elif shape == "unsure":
            corners = [(0, 1), (1, 0), (0, -1), (-1, 0)]
        fill = Color(*(part / 255 for part in reversed(colour)))
        if state == NOT_SCANNED:
            corners, fill = [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)], Color(1, 1, 1)
        outline = self.canvas.beginPath()
        for number, (across, up) in enumerate(corners):
            (outline.lineTo if number else outline.moveTo)(x + r * across, y + r * up)
        outline.close()
        self.canvas.setFillColor(fill)
        self.canvas.setStrokeColorRGB(*INK)
        self.canvas.setLineWidth(0.6)
        self.canvas.drawPath(outline, fill=1)
        text = mark_text(mark)
        size = r * (0.75 if len(text) > 1 else 0.95)
        lower = 0.3 * r if shape == "abnormal" and state != NOT_SCANNED else 0.0
        self.text(x - self.width(text, size, True) / 2, y - 0.35 * size - lower, text, size, bold=True)

    def _picture(self, picture: Image, x: float, y: float, width: float, height: float) -> None:
        image = Picture.fromarray(np.ascontiguousarray(picture[:, :, ::-1]))
        self.canvas.drawImage(ImageReader(image), x, y, width, height)

    def _rule(self, ink: Ink, width: float) -> None:
        self.canvas.setStrokeColorRGB(*ink)
        self.canvas.setLineWidth(width)
        self.canvas.line(MARGIN, self.y, RIGHT, self.y)

    def _across(self, text: str) -> None:
        self.canvas.saveState()
        self.canvas.translate(WIDTH / 2, HEIGHT / 2)
        self.canvas.rotate(52)
        self.canvas.setFillColorRGB(*WARNING)
        self.canvas.setFillAlpha(0.16)
        self.canvas.setFont("Helvetica-Bold", 92)
        self.canvas.drawCentredString(0, -30, text)
        self.canvas.restoreState()

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float,
        bold: bool = False,
        ink: Ink = INK,
        right: bool = False,
        width: float = math.inf,
    ) -> None:
        """One line, cut short with an ellipsis where it is wider than ``width``."""
        if self.width(text, size, bold) > width:
            while text and self.width(text + "...", size, bold) > width:
                text = text[:-1]
            text = text.rstrip() + "..."
        if not text:
            return
        if right:
            x -= self.width(text, size, bold)
        if not _printable(text):
            self._lettered(x, y, text, size, bold, ink)
            return
        self.canvas.setFillColorRGB(*ink)
        self.canvas.setFont(_font(bold), size)
        self.canvas.drawString(x, y, text)

    def lines(
        self, x: float, y: float, text: str, size: float, width: float, most: int,
        bold: bool = False, ink: Ink = INK,
    ) -> float:  # fmt: skip
        """Text in at most so many lines; returns where the next line would stand."""
        rest = text.split()
        for number in range(most):
            if not rest:
                break
            taken = 1
            while taken < len(rest) and self.width(" ".join(rest[: taken + 1]), size, bold) <= width:
                taken += 1
            last = number == most - 1
            self.text(x, y, " ".join(rest if last else rest[:taken]), size, bold, ink, width=width)
            rest, y = rest[taken:], y - 1.2 * size
        return y

    def width(self, text: str, size: float, bold: bool) -> float:
        """Points that a line takes."""
        if not _printable(text):
            return text_width(text, LETTER_PIXELS, 700 if bold else 400) * size / LETTER_PIXELS
        return float(stringWidth(text, _font(bold), size))

    def _lettered(self, x: float, y: float, text: str, size: float, bold: bool, ink: Ink) -> None:
        """A line with letters that the page's font lacks, as a picture of it in the screen's font."""
        weight = 700 if bold else 400
        wide, high, base = text_width(text, LETTER_PIXELS, weight) + 8, 2 * LETTER_PIXELS, 68
        strip = np.full((high, wide, 3), 255, np.uint8)
        blue, green, red = (round(255 * part) for part in reversed(ink))
        put(strip, text, (0, base), LETTER_PIXELS, weight, (blue, green, red))
        scale = size / LETTER_PIXELS
        image = ImageReader(Picture.fromarray(np.ascontiguousarray(strip[:, :, ::-1])))
        # White is left transparent: what lies under the line stays.
        self.canvas.drawImage(
            image, x, y - (high - base) * scale, wide * scale, high * scale, mask=[250, 255] * 3
        )


def key_picture(clip: Clip, store: Store) -> Image | None:
    """A clip's worst moment within the beam, tinted where the network sees something: BGR uint8 [h, w, 3].

    None for a picture that is not kept in the store. Raises ClipError where the clip's file is gone or is
    not what was recorded.
    """
    if clip.beam is None or Path(clip.file).is_absolute():
        return None
    frames = read_clip_frames(store.clip_path(clip), clip.times)
    frame = next(islice(frames, clip.reading.key_frame, None), None)
    if frame is None:
        raise ClipError(f"{clip.file}: has no frame {clip.reading.key_frame}")
    picture = beam_picture(Reading(clip.reading.state, frame, clip.beam))
    if picture is None:
        raise ClipError(f"{clip.file}: its pictures are not of the size that was recorded")
    if clip.reading.class_map:
        cells = np.asarray(clip.reading.class_map, np.float32)
        picture = tinted(picture, cells, beam_mask(clip.beam, 1.0))
    scale = min(KEY_FRAME_PIXELS / max(picture.shape[:2]), 1.0)
    return resized(picture, (round(picture.shape[1] * scale), round(picture.shape[0] * scale)))


def figures(bundle: str, words: dict[str, str]) -> str:
    """How well a network reads patients it was not fitted on, in a line; of the networks that come with the
    program. ``bundle``: as ``ClipReading.bundle`` has it."""
    name, _, rest = bundle.partition(" ")
    path = DEFAULT_BUNDLE.parent / name / MANIFEST
    manifest = Manifest.from_json(path.read_bytes(), str(path)) if name and path.is_file() else None
    found = manifest.figures.get("int8", {}).get("figures") if manifest is not None else None
    if manifest is None or found is None or rest.split(" ")[0] != manifest.version:
        return words["no-figures"]

    def told(figure: dict[str, float]) -> str:
        return f"{figure['value']:.2f} ({figure['low']:.2f}-{figure['high']:.2f})"

    forced = found["forced"]
    line = words["figures"].format(
        found["positive"] + found["negative"],
        told(found["roc_auc"]),
        told(forced["sensitivity"]),
        told(forced["specificity"]),
    )
    return " ".join([line, *manifest.limits])


def _font(bold: bool) -> str:
    return "Helvetica-Bold" if bold else "Helvetica"


def _printable(text: str) -> bool:
    """Whether the page's own fonts have every letter: those of PDF's WinAnsiEncoding."""
    try:
        text.encode("cp1252")
    except UnicodeEncodeError:
        return False
    return True

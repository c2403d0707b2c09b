"""The drawings of docs/panel.md and docs/bench-rig.md: python -m tests.firmware_bridge.pictures docs

The picture of the states is drawn from firmware/lamps.def, and a test says when the kept one no longer
matches it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path

from firmware_bridge.gpio_panel import GpioPins
from firmware_bridge.lamps import LIMITS, RULES, SHOWN, STEPS
from firmware_bridge.wire import Shown

LAMPS = ("normal", "opacity", "no reading")
GROUND = "M{x} {y} v8 m-9 0 h18 m-15 4 h12 m-9 4 h6"


class Drawing:
    """An SVG picture, dark on white."""

    def __init__(self, width: int, height: int) -> None:
        self._size = width, height
        self._parts: list[str] = []

    def text(
        self, x: float, y: float, said: str, anchor: str = "start", size: int = 13, bold: bool = False
    ) -> None:
        weight = ' font-weight="bold"' if bold else ""
        self._parts.append(
            f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="{size}"{weight}'
            f' fill="#111" stroke="none">{escape(said)}</text>'
        )

    def path(self, shape: str, arrow: bool = False, dashed: bool = False) -> None:
        extra = ' marker-end="url(#arrow)"' if arrow else ""
        extra += ' stroke-dasharray="5 4"' if dashed else ""
        self._parts.append(f'<path d="{shape}"{extra}/>')

    def box(
        self, x: float, y: float, width: float, height: float, fill: str = "none", round_by: int = 0
    ) -> None:
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{round_by}" fill="{fill}"/>'
        )

    def dot(self, x: float, y: float) -> None:
        self._parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="3" fill="#111"/>')

    def ground(self, x: float, y: float) -> None:
        self.path(GROUND.format(x=x, y=y))

    def resistor(self, x: float, y: float, value: str, upright: bool = False) -> None:
        """40 long, from (x, y) to the right or down."""
        if upright:
            self.box(x - 6, y + 4, 12, 32, "#fff")
            self.path(f"M{x} {y} v4 M{x} {y + 36} v4")
            self.text(x + 11, y + 25, value)
        else:
            self.box(x + 4, y - 6, 32, 12, "#fff")
            self.path(f"M{x} {y} h4 M{x + 36} {y} h4")
            self.text(x + 20, y - 10, value, "middle")

    def contact(self, x: float, y: float) -> None:
        """A button or switch, 40 long, from (x, y) to the left."""
        self.path(f"M{x} {y} h-10 M{x - 10} {y} l-20 -9 M{x - 30} {y} h-10")
        self.dot(x - 10, y)
        self.dot(x - 30, y)

    def diode(self, x: float, y: float) -> None:
        """A lamp, 40 long, from its anode at (x, y) to the right."""
        self.path(f"M{x} {y} h12 M{x + 12} {y - 9} v18 l16 -9 z M{x + 28} {y - 9} v18 M{x + 28} {y} h12")
        self.path(
            f"M{x + 18} {y - 12} l7 -9 m0 0 l-5 2 m5 -2 l-1 5 M{x + 26} {y - 12} l7 -9 m0 0 l-5 2 m5 -2 l-1 5"
        )

    def svg(self) -> str:
        width, height = self._size
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}"'
            f' height="{height}" font-family="sans-serif" stroke="#111" stroke-width="1.5" fill="none">\n'
            '<defs><marker id="arrow" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8"'
            ' orient="auto"><path d="M0 0 10 5 0 10z" fill="#111" stroke="none"/></marker></defs>\n'
            f'<rect width="{width}" height="{height}" fill="#fff" stroke="none"/>\n'
            + "\n".join(self._parts)
            + "\n</svg>\n"
        )


def words(name: str) -> str:
    return name.lower().replace("_", " ")


def states() -> str:
    """What decides, from top to bottom, and how each state looks."""
    silent, old = (f"{LIMITS[name] / 1000:g} s" for name in ("LINK_SILENT_MS", "READING_OLD_MS"))
    asks = {
        "LINK_SILENT": f"No word from the box for {silent}?",
        "ASKED_TEST": "Does it ask for the test?",
        "READING_OLD": f"Is the last reading {old} old?",
        "NUMBER_STUCK": f"Its number the same for {old}?",
        "OTHERWISE": "Otherwise",
    }
    order = (Shown.NO_LINK, Shown.TEST, Shown.NO_READING, Shown.NORMAL, Shown.OPACITY, Shown.CANNOT_TELL)
    drawing = Drawing(900, 560)
    rows = {shown: 52 + 84 * place for place, shown in enumerate(order)}
    for shown, y in rows.items():
        drawing.box(400, y, 480, 72, "#fff", 8)
        drawing.text(414, y + 41, words(shown.name), bold=True, size=15)
        for lamp, (name, pattern) in enumerate(zip(LAMPS, SHOWN[shown], strict=True)):
            top = y + 7 + 20 * lamp
            drawing.text(622, top + 13, name, "end", 12)
            for step in range(STEPS):
                lit = pattern >> (STEPS - 1 - step) & 1
                drawing.box(630 + 15 * step, top, 15, 16, "#111" if lit else "#fff")
    drawing.text(630, 34, "one second: black is lit", size=12)
    drawing.text(30, 34, "The first that holds decides", bold=True)
    tops = [rows[Shown.NO_LINK] + 12, rows[Shown.TEST] + 12, 224, 306, 388]
    for place, ((condition, then), top) in enumerate(zip(RULES, tops, strict=True)):
        drawing.box(30, top, 236, 48, "#fff", 24)
        drawing.text(148, top + 29, asks[condition], "middle")
        if place + 1 < len(RULES):
            drawing.path(f"M148 {top + 48} V{tops[place + 1]}", arrow=True)
            drawing.text(156, top + 48 + 20, "no", size=12)
            target = rows[Shown[then]] + (18 if condition == "READING_OLD" else 36)
            drawing.path(f"M266 {top + 24} H320 V{target} H398", arrow=True)
            drawing.text(274, top + 18, "yes", size=12)
    top = tops[-1] + 24
    drawing.text(276, top + 18, "what the", size=12)
    drawing.text(276, top + 33, "box asks", size=12)
    asked = (Shown.NO_READING, Shown.NORMAL, Shown.OPACITY, Shown.CANNOT_TELL)
    drawing.path(f"M266 {top} H350")
    drawing.path(f"M350 {rows[asked[0]] + 56} V{rows[asked[-1]] + 36}")
    for shown in asked:
        y = rows[shown] + (56 if shown == Shown.NO_READING else 36)
        drawing.path(f"M350 {y} H398", arrow=True)
    return drawing.svg()


def _chip(drawing: Drawing, x: int, width: int, name: Sequence[str], rows: Sequence[int]) -> None:
    drawing.box(x, rows[0] - 40, width, rows[-1] - rows[0] + 70, "#f4f4f4", 6)
    for line, said in enumerate(name):
        drawing.text(x + width / 2, rows[0] - 60 + 15 * line - 8 * len(name), said, "middle", 14, True)


def _buttons(drawing: Drawing, x: int, pins: Sequence[tuple[str, str]], rows: Sequence[int]) -> None:
    """Contacts to the left of a chip's edge, all to one ground."""
    for (pin, name), y in zip(pins, rows, strict=False):
        drawing.text(x + 8, y + 5, pin)
        drawing.path(f"M{x} {y} h-30")
        drawing.contact(x - 30, y)
        drawing.path(f"M{x - 70} {y} h-20")
        drawing.dot(x - 90, y)
        drawing.text(x - 104, y + 5, name, "end")
    last = rows[len(pins) - 1]
    drawing.path(f"M{x - 90} {rows[0]} V{last + 18}")
    drawing.ground(x - 90, last + 18)


def microcontroller() -> str:
    """The panel with an Arduino Nano or Uno."""
    drawing = Drawing(900, 650)
    rows = list(range(100, 640, 42))
    left, right = 340, 520
    _chip(drawing, left, right - left, ["Arduino Nano or Uno", "(ATmega328P, 5 V)"], rows)
    pins = [
        ("D2", "freeze"),
        ("D3", "next zone"),
        ("D4", "previous zone"),
        ("D5", "record"),
        ("D6", "confirm"),
    ]
    _buttons(drawing, left, [*pins, ("D12", "mute switch")], rows)
    dial, battery = rows[7], rows[10]
    drawing.text(left + 8, dial + 5, "A0")
    drawing.text(left + 8, dial - 37, "5V")
    drawing.path(f"M{left} {dial - 42} H{left - 130} v22 M{left - 130} {dial + 20} v14")
    drawing.box(left - 136, dial - 20, 12, 40, "#fff")
    drawing.path(f"M{left} {dial} H{left - 122}", arrow=True)
    drawing.ground(left - 130, dial + 34)
    drawing.text(left - 148, dial + 5, "dial 10 kΩ", "end")
    drawing.text(left + 8, battery + 5, "A1")
    drawing.path(
        f"M{left} {battery} H{left - 130} M{left - 60} {battery} v6 m-10 0 h20 m-20 6 h20 m-10 0 v28"
    )
    drawing.dot(left - 60, battery)
    drawing.dot(left - 130, battery)
    drawing.text(left - 46, battery + 14, "100 nF")
    drawing.ground(left - 60, battery + 40)
    drawing.resistor(left - 130, battery - 40, "150 kΩ", upright=True)
    drawing.resistor(left - 130, battery, "10 kΩ", upright=True)
    drawing.ground(left - 130, battery + 40)
    drawing.path(f"M{left - 130} {battery - 40} v-4 h-40")
    drawing.text(left - 176, battery - 39, "battery + (to 17.6 V)", "end")
    drawing.text(left + 8, rows[12] + 5, "GND")
    drawing.path(f"M{left} {rows[12]} h-60")
    drawing.ground(left - 60, rows[12])
    drawing.text(left - 78, rows[12] + 14, "battery -, all grounds", "end")

    common = 740
    for (pin, name), y in zip(
        (("D7", "normal"), ("D8", "opacity"), ("D10", "no reading")), rows, strict=False
    ):
        drawing.text(right - 8, y + 5, pin, "end")
        drawing.path(f"M{right} {y} h40")
        drawing.resistor(right + 40, y, "330 Ω")
        drawing.path(f"M{right + 80} {y} h30")
        drawing.diode(right + 110, y)
        drawing.path(f"M{right + 150} {y} H{common}")
        drawing.dot(common, y)
        drawing.text(common + 14, y + 5, name)
    base = rows[4]
    drawing.path(f"M{common} {rows[0]} V{base - 20} l-24 12 M{common - 24} {base - 20} v40")
    drawing.path(f"M{common - 24} {base + 8} l24 12", arrow=True)
    drawing.path(f"M{common} {base + 20} v14")
    drawing.ground(common, base + 34)
    drawing.text(common + 14, base + 5, "NPN, BC547B:")
    drawing.text(common + 14, base + 21, "dims all three")
    drawing.text(right - 8, base + 5, "D9", "end")
    drawing.path(f"M{right} {base} h60 M{right + 100} {base} H{common - 24}")
    drawing.resistor(right + 60, base, "1 kΩ")
    piezo = rows[7]
    drawing.text(right - 8, piezo + 5, "D11", "end")
    drawing.path(f"M{right} {piezo} h60 M{right + 100} {piezo} h40 M{right + 140} {piezo - 16} v32")
    drawing.resistor(right + 60, piezo, "220 Ω")
    drawing.box(right + 146, piezo - 18, 8, 36, "#fff")
    drawing.path(f"M{right + 160} {piezo - 16} v32 M{right + 160} {piezo} h40 v10")
    drawing.ground(right + 200, piezo + 10)
    drawing.text(right + 218, piezo + 5, "passive piezo")
    reset = rows[10]
    drawing.text(right - 8, reset + 5, "RESET", "end")
    drawing.path(f"M{right} {reset} h60")
    drawing.path(f"M{right + 60} {reset} l30 -10 M{right + 90} {reset} h30")
    drawing.dot(right + 60, reset)
    drawing.dot(right + 90, reset)
    drawing.text(right + 75, reset + 24, "open to flash", "middle", 12)
    drawing.path(f"M{right + 120} {reset} h28 m0 -14 v28 M{right + 156} {reset - 14} q-6 14 0 28")
    drawing.path(f"M{right + 153} {reset} h47 v10")
    drawing.text(right + 136, reset - 10, "+", "middle")
    drawing.ground(right + 200, reset + 10)
    drawing.text(right + 218, reset + 5, "10 µF, 16 V")
    drawing.text(right - 8, rows[12] + 5, "USB", "end")
    drawing.path(f"M{right} {rows[12]} h60", arrow=True)
    drawing.text(right + 70, rows[12] + 5, "to the box")
    return drawing.svg()


HEADER = {5: 29, 6: 31, 13: 33, 19: 35, 26: 37, 17: 11, 27: 13, 22: 15, 18: 12, 23: 16}
"""Pins of the 40-pin header by their BCM numbers."""


def raspberry_pi() -> str:
    """The panel on a Raspberry Pi's own pins."""
    drawing = Drawing(900, 390)
    rows = list(range(100, 380, 48))
    left, right, pins = 340, 560, GpioPins()
    _chip(drawing, left, right - left, ["Raspberry Pi, 40-pin header", "(3.3 V!)"], rows)

    def named(bcm: int | None) -> str:
        assert bcm is not None
        return f"GPIO{bcm} ({HEADER[bcm]})"

    buttons = {
        "freeze": pins.freeze,
        "next zone": pins.next,
        "previous zone": pins.back,
        "record": pins.record,
    }
    buttons |= {"confirm": pins.confirm}
    wired = [(named(bcm), name) for name, bcm in buttons.items()]
    _buttons(drawing, left, [*wired, (named(pins.mute), "mute switch")], rows)
    common = 780
    lamps = {"normal": pins.normal, "opacity": pins.opacity, "no reading": pins.no_reading}
    for (name, bcm), y in zip(lamps.items(), rows, strict=False):
        drawing.text(right - 8, y + 5, named(bcm), "end")
        drawing.path(f"M{right} {y} h40")
        drawing.resistor(right + 40, y, "330 Ω")
        drawing.path(f"M{right + 80} {y} h30")
        drawing.diode(right + 110, y)
        drawing.path(f"M{right + 150} {y} H{common}")
        drawing.dot(common, y)
        drawing.text(common + 14, y + 5, name)
    drawing.path(f"M{common} {rows[0]} V{rows[2] + 20}")
    drawing.ground(common, rows[2] + 20)
    piezo = rows[4]
    drawing.text(right - 8, piezo + 5, named(pins.buzzer), "end")
    drawing.path(f"M{right} {piezo} h60 M{right + 100} {piezo} h40 M{right + 140} {piezo - 16} v32")
    drawing.resistor(right + 60, piezo, "220 Ω")
    drawing.box(right + 146, piezo - 18, 8, 36, "#fff")
    drawing.path(f"M{right + 160} {piezo - 16} v32 M{right + 160} {piezo} H{common} v10")
    drawing.ground(common, piezo + 10)
    drawing.text(common + 14, piezo + 5, "passive piezo")
    drawing.text(right - 8, rows[5] + 5, "GND (39)", "end")
    drawing.path(f"M{right} {rows[5]} H{common}")
    drawing.ground(common, rows[5])
    drawing.text(common + 14, rows[5] + 5, "all grounds")
    return drawing.svg()


def bench_rig() -> str:
    """A real panel with a Raspberry Pi for fingers and eyes."""
    drawing = Drawing(900, 510)

    def block(x: int, y: int, width: int, height: int, *said: str) -> None:
        drawing.box(x, y, width, height, "#f4f4f4", 6)
        for line, part in enumerate(said):
            top = y + height / 2 + 5 + 17 * (line - (len(said) - 1) / 2)
            drawing.text(x + width / 2, top, part, "middle", bold=line == 0)

    block(40, 60, 220, 150, "Raspberry Pi", "runs pytest -m hil", "and the reader")
    block(640, 60, 220, 150, "the panel", "Arduino Nano with", "this firmware")
    drawing.path("M260 85 H638", arrow=True)
    drawing.text(450, 78, "5 GPIO → transistors → button pins", "middle")
    drawing.path("M640 120 H262", arrow=True)
    drawing.text(450, 113, "3 lamp pins → dividers → 3 GPIO", "middle")
    drawing.path("M260 155 H638", arrow=True)
    drawing.text(450, 148, "1 GPIO → transistor → RESET", "middle")
    drawing.path("M260 190 H640")
    drawing.text(450, 183, "ground", "middle")
    block(40, 270, 220, 60, "USB hub", "switched by uhubctl")
    drawing.path("M100 210 V268", arrow=True)
    drawing.text(108, 245, "USB")
    block(370, 270, 160, 60, "relay", "closed at rest")
    drawing.path("M260 300 H370 M530 300 H750 V212", arrow=True)
    drawing.text(316, 293, "USB", "middle")
    drawing.text(640, 293, "USB, its 5 V through the relay", "middle")
    drawing.path("M220 210 V240 H450 V268", arrow=True)
    drawing.text(456, 258, "1 GPIO → transistor")
    block(370, 400, 160, 60, "USB grabber")
    drawing.path("M370 430 H200 V332", arrow=True)
    drawing.text(282, 423, "USB", "middle")
    drawing.path("M40 135 H16 V490 H450 V462", arrow=True)
    drawing.text(30, 482, "HDMI: the Pi's own screen, which shows the phantom")
    block(640, 400, 220, 60, "Coral USB", "for --hil-runner edgetpu")
    drawing.path("M640 445 H560 V370 H150 V332", arrow=True, dashed=True)
    return drawing.svg()


PICTURES = {
    "panel-states.svg": states,
    "panel-wiring.svg": microcontroller,
    "panel-wiring-pi.svg": raspberry_pi,
    "bench-rig.svg": bench_rig,
}

if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (Path(sys.argv[1]) / name).write_text(draw(), encoding="utf-8")

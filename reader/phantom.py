"""A scanner drawn by code: a test pattern that acts out lungs and faults. It is not evidence.

No network is trained or scored on it, and its lungs were drawn until the default network told them
apart: that it does so says nothing about how well it reads.

Echoes are made in polar coordinates, depth by beam angle, as a scanner's are: reflectivity times
Rayleigh speckle, log-compressed, then scan-converted into a fan. Around the fan stand a patient's
name, menus and a gray bar, which must never get past the beam finder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Float = NDArray[np.float32]

WIDTH, HEIGHT = 1280, 720
RATE = 25.0
"""Frames a second."""
DEPTHS, ANGLES = 384, 256
"""Samples along and across the beam."""
PATIENT = "PHANTOM, ADA"
"""The burnt-in name that must never leave the box."""
PLEURA = 0.24
"""Depth of the pleural line as a share of the whole depth."""
DYNAMIC_RANGE = 58.0
"""Decibels from black to white."""


@dataclass(frozen=True)
class Act:
    """What the phantom shows, and for how many seconds."""

    name: str
    seconds: float


PROGRAMME = (
    Act("blue", 2.5),
    Act("menu", 2.5),
    Act("normal", 8.0),
    Act("no-contact", 3.0),
    Act("consolidation", 8.0),
    Act("frozen", 3.0),
    Act("moved", 6.0),
    Act("black", 1.5),
    Act("bars", 1.5),
    Act("consolidation", 8.0),
)
"""One round of the demonstration: lungs, and each fault that a picture can show. ``b-lines`` can be
acted too, but the default network takes these drawn ones for a normal lung."""

ZONES_SHOWN = ("normal", "normal", "consolidation", "normal", "normal", "consolidation")
EXAM_PROGRAMME = tuple(act for lung in ZONES_SHOWN for act in (Act("no-contact", 2.5), Act(lung, 10.0)))
"""One round of an exam: a lung a zone, the probe lifted before each."""


@dataclass(frozen=True)
class _Fan:
    apex: tuple[float, float]
    near: float
    far: float
    half_angle: float


USUAL_FAN = _Fan((620.0, -58.0), 130.0, 728.0, math.radians(33))
MOVED_FAN = _Fan((690.0, 96.0), 60.0, 520.0, math.radians(36))


class Phantom:
    """Draws the scanner's whole screen at any moment; the same moment looks the same every time."""

    def __init__(self, programme: tuple[Act, ...] = PROGRAMME, seed: int = 7) -> None:
        self.programme = programme
        self.duration = sum(act.seconds for act in programme)
        self._random = np.random.default_rng(seed)
        # Longer than the beam is deep, so that a window can wander over it.
        self._speckle = [_speckle(self._random, DEPTHS + 256, ANGLES * 2) for _ in range(3)]
        self._layers = _layers(self._random)
        self._console = _console()
        self._maps = {fan: _scan_conversion(fan) for fan in (USUAL_FAN, MOVED_FAN)}

    def act(self, t: float) -> tuple[str, float]:
        """The act at ``t`` seconds and when it began; the programme repeats."""
        began = t // self.duration * self.duration
        for act in self.programme:
            if t < began + act.seconds:
                return act.name, began
            began += act.seconds
        return self.programme[-1].name, began - self.programme[-1].seconds

    def frame(self, t: float) -> Image:
        """The screen at ``t`` seconds: BGR uint8 [720, 1280, 3]."""
        name, began = self.act(t)
        if name == "black":
            return np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        if name == "blue":
            return np.full((HEIGHT, WIDTH, 3), (190, 30, 20), np.uint8)
        if name == "bars":
            return _bars()
        screen = self._console.copy()
        if name == "menu":
            return _menu(screen)
        fan = MOVED_FAN if name == "moved" else USUAL_FAN
        lung = {"frozen": "consolidation", "moved": "normal"}.get(name, name)
        echoes = self._echoes(lung, began if name == "frozen" else t)
        x, y, valid = self._maps[fan]
        beam = cv2.remap(echoes, x, y, cv2.INTER_LINEAR)
        screen[valid] = beam[valid][:, None]
        return screen

    def _echoes(self, lung: str, t: float) -> Image:
        """Polar picture uint8 [DEPTHS, ANGLES] of a lung at a moment."""
        breath = 0.5 - 0.5 * math.cos(2 * math.pi * t / 3.6)
        depth = np.linspace(0, 1, DEPTHS, dtype=np.float32)[:, None]
        angle = np.linspace(-1, 1, ANGLES, dtype=np.float32)[None, :]
        if lung == "no-contact":
            ringing = 9 * (np.cos(depth * 260) - 1)
            decibels = np.asarray(-8 - 520 * depth + ringing + 0 * angle, np.float32)
        else:
            decibels = self._tissue(depth, angle)
            below = _smooth_step(depth - _pleura(angle), 0.004)
            decibels = decibels * (1 - below) + below * _lung(lung, depth, angle, breath, t)
            decibels = np.maximum(decibels, _pleural_line(lung, depth, angle, breath))
            decibels -= 60 * _rib_shadow(depth, angle)
            decibels = np.maximum(decibels, _rib_surface(depth, angle))
        speckle = self._moving_speckle(breath, t)
        # Amplified electronic noise keeps even a shadow from being as black as the console.
        gain = -60 if lung == "no-contact" else -57
        noise = np.roll(speckle, 91, axis=0) + gain + 3 * depth
        decibels = np.maximum(decibels + speckle, noise)
        gray = 255 * (decibels + DYNAMIC_RANGE) / DYNAMIC_RANGE
        return np.clip(gray, 7, 250).astype(np.uint8)

    def _tissue(self, depth: Float, angle: Float) -> Float:
        rows = np.clip(depth / 0.3 * 255, 0, 255).astype(int)
        wave = (3 * np.sin(angle * 2.5)).astype(int)
        return np.asarray(self._layers[np.clip(rows + wave, 0, 255)] - 6 * depth / 0.3, np.float32)

    def _moving_speckle(self, breath: float, t: float) -> Float:
        """Speckle in decibels: it slides with breathing and changes a little in every frame."""
        slide = int(40 * breath)
        first = self._speckle[0][40:, slide : slide + ANGLES][:DEPTHS]
        shift = int(t * RATE) * 37 % 200
        second = self._speckle[1 + int(t * RATE) % 2][shift:, shift : shift + ANGLES][:DEPTHS]
        mixed = np.hypot(0.85 * first, 0.5 * second)
        return np.asarray(20 * np.log10(mixed + 0.02), np.float32)


def _speckle(random: np.random.Generator, rows: int, columns: int) -> Float:
    """Rayleigh amplitudes, finer in depth than across, mean square 1."""
    parts = [
        cv2.GaussianBlur(random.standard_normal((rows, columns)).astype(np.float32), (0, 0), 2.2, sigmaY=0.9)
        for _ in range(2)
    ]
    amplitude = np.hypot(*parts)
    return np.asarray(amplitude / np.sqrt((amplitude**2).mean()), np.float32)


def _layers(random: np.random.Generator) -> Float:
    """Skin, fat and muscle: brightness in decibels by depth, 256 rows down to the pleura."""
    rough = cv2.GaussianBlur(random.standard_normal((256, 1)).astype(np.float32), (1, 0), 0.1, sigmaY=5)
    return np.asarray((rough / rough.std() * 7 - 22)[:, 0], np.float32)


def _pleura(angle: Float) -> Float:
    return np.asarray(PLEURA + 0.012 * np.cos(angle * 2.2) - 0.01, np.float32)


def _smooth_step(x: Float, width: float) -> Float:
    return np.asarray(1 / (1 + np.exp(-np.clip(x / width, -30, 30))), np.float32)


def _bump(x: NDArray[Any], width: float) -> Float:
    return np.asarray(np.exp(-((x / width) ** 2)), np.float32)


def _pleural_line(lung: str, depth: Float, angle: Float, breath: float) -> Float:
    ragged = 0.0
    if lung in ("consolidation", "b-lines"):
        ragged = 0.006 * np.sin(angle * 31 + 4 * breath) + 0.004 * np.sin(angle * 57)
    shimmer = 3 * np.sin(angle * 40 + 9 * breath)
    line = -64 + (58 + shimmer) * _bump(depth - _pleura(angle) - ragged, 0.008)
    if lung == "consolidation":
        line = line - 30 * _bump(angle - 0.05, 0.28)
    return np.asarray(line, np.float32)


def _lung(lung: str, depth: Float, angle: Float, breath: float, t: float) -> Float:
    """What lies under the pleura, in decibels."""
    beyond = depth - _pleura(angle)
    haze = -27 - 38 * beyond + 0 * angle
    if lung == "normal":
        for echo in (1, 2):
            line = _bump(depth - (echo + 1) * _pleura(angle), 0.010) * _bump(angle, 0.5)
            haze = haze + (26 - 8 * echo) * line
        return np.asarray(haze, np.float32)
    drift = 0.05 * (breath - 0.5)
    if lung == "b-lines":
        streaks = sum(
            gain * _bump(angle - place - drift, width)
            for place, width, gain in (
                (-0.42, 0.07, 26),
                (-0.12, 0.10, 30),
                (0.1, 0.06, 24),
                (0.38, 0.09, 29),
            )
        )
        return np.asarray(haze + streaks * (0.8 + 0.5 * beyond), np.float32)
    # Consolidation: airless tissue under a ragged edge, air bronchograms that move with breathing.
    edge = 0.33 + 0.06 * np.sin(angle * 9 + 1) + 0.035 * np.sin(angle * 23)
    within = edge * _bump(angle - 0.05, 0.75) - beyond
    body = _smooth_step(within, 0.012)
    moved = 0.22 * (breath - 0.5)
    air = sum(_bump(np.hypot((angle - x - moved) * 0.45, depth - y), 0.02) for x, y in BRONCHI)
    deep = -17 - 22 * beyond
    return np.asarray(
        body * (-31 + 36 * np.minimum(air, 1)) + (1 - body) * deep + 18 * _bump(within, 0.02), np.float32
    )


BRONCHI = np.random.default_rng(3).uniform((-0.5, 0.3), (0.5, 0.62), (26, 2))
"""Angle and depth of the air bronchograms."""
RIBS = ((-0.78, 0.17), (0.80, 0.15))


def _rib_shadow(depth: Float, angle: Float) -> Float:
    shade = sum(_smooth_step(width - np.abs(angle - place), 0.02) for place, width in RIBS)
    return np.asarray(shade * _smooth_step(depth - 0.19, 0.006) * 0.6, np.float32)


def _rib_surface(depth: Float, angle: Float) -> Float:
    line = sum(
        _bump(depth - 0.18 - 0.4 * (angle - place) ** 2, 0.008) * _bump(angle - place, width)
        for place, width in RIBS
    )
    return np.asarray(-64 + 54 * line, np.float32)


def _scan_conversion(fan: _Fan) -> tuple[Float, Float, NDArray[np.bool_]]:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    dx, dy = columns + 0.5 - fan.apex[0], rows + 0.5 - fan.apex[1]
    radius, angle = np.hypot(dx, dy), np.arctan2(dx, dy)
    x = (angle / fan.half_angle + 1) / 2 * (ANGLES - 1)
    y = (radius - fan.near) / (fan.far - fan.near) * (DEPTHS - 1)
    valid = (np.abs(angle) <= fan.half_angle) & (radius >= fan.near) & (radius <= fan.far)
    return x, y, valid


def _console() -> Image:
    """The scanner's own screen around the beam: name, menus, gray bar, depth scale."""
    screen = np.full((HEIGHT, WIDTH, 3), (6, 6, 6), np.uint8)
    font = cv2.FONT_HERSHEY_SIMPLEX
    screen[:34] = (46, 38, 32)
    cv2.putText(screen, PATIENT, (14, 24), font, 0.7, (230, 230, 230), 2, cv2.LINE_AA)
    cv2.putText(
        screen, "ID 000-000   LUNG   MI 0.7  TIs 0.1", (820, 24), font, 0.55, (210, 210, 210), 1, cv2.LINE_AA
    )
    for i, word in enumerate(("GAIN 52", "DEPTH 12", "FREQ 3.5", "DR 58", "MAP B", "THI ON")):
        cv2.putText(screen, word, (14, 120 + 44 * i), font, 0.55, (170, 190, 150), 1, cv2.LINE_AA)
    screen[110:366, 1240:1256] = np.arange(255, -1, -1).astype(np.uint8)[:, None, None]
    for i in range(13):
        cv2.line(screen, (1180, 70 + 46 * i), (1190 if i % 5 else 1198, 70 + 46 * i), (200, 200, 200), 1)
    return screen


def _menu(screen: Image) -> Image:
    font = cv2.FONT_HERSHEY_SIMPLEX
    for i, word in enumerate(("NEW PATIENT", "PRESETS", "REVIEW", "EXPORT", "SETTINGS")):
        cv2.putText(screen, word, (420, 180 + 80 * i), font, 1.0, (190, 190, 190), 2, cv2.LINE_AA)
    return screen


def _bars() -> Image:
    """Colour bars (SMPTE EG 1's upper part)."""
    colours = [
        (192, 192, 192),
        (0, 192, 192),
        (192, 192, 0),
        (0, 192, 0),
        (192, 0, 192),
        (0, 0, 192),
        (192, 0, 0),
    ]
    bars = np.repeat(np.array(colours, np.uint8), WIDTH // 7 + 1, axis=0)[:WIDTH]
    return np.ascontiguousarray(np.broadcast_to(bars[None], (HEIGHT, WIDTH, 3)))

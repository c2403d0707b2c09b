"""Checks of the picture's way: grabber, beam profile, bundle, golden vectors, runner."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from device.accelerator import LIBRARY
from device.capture.devices import USB_NAME, V4L2
from device.capture.driver import GrabberSpec, Mode
from device.health.box import KEYS, PROGRAMS, Box
from device.health.check import Check, Finding, fail, ok, unknown, warn
from device.health.usb import UsbDevice, usb_device, usb_devices
from device.runners import AUTO, EDGETPU
from device.settings.config import SourceTable
from device.settings.scanners import ProfileError, fits, load_profile
from reader.bundle import EDGE_TPU, ONNX_INT8, Bundle, load_bundle
from reader.bundle import ONNX as ONNX_FILE
from reader.errors import BundleError, SonoglanceError
from reader.runner import LITERT, ONNX
from reader.signing import KEYS_VARIABLE, check_trust

SOURCE_MODE = re.compile(r" (\d{1,5})x(\d{1,5}) (\S+)(?: (\d{1,5}(?:\.\d{1,5})?)/s)?$", re.ASCII)
"""A grabber's mode as its name ends (device.capture.driver.Mode)."""
NO_DEVICE = "no-device"
"""The bedside reader's state without a grabber."""
PLUG_IN = "plug the grabber in firmly; see source.device and lsusb"
STARTING = "starting"
"""The one before its first frame."""
LEAST = 0.05
"""Frames a second; of fewer, 0.0 would be told."""
SLOWEST = 0.8
"""The share of the rate asked for below which frames arrive too seldom."""
USB_2 = 480
"""Megabits a second."""
CORAL = ("1a6e:089a", "18d1:9302")
"""A Coral on USB, before and after it got its firmware."""
FALLEN_BACK = re.compile("(no-)?accelerator|slow-runtime|onnx-fallback")
"""Badges of a runner that is not the one that was wanted."""
LIBRARY_PLACES = ("usr/lib", "usr/lib/*-linux-gnu*", "usr/local/lib")
FAILED, TOO_FEW = "FAIL", "TOO FEW TO SHOW"
GOLDEN_DEADLINE = 60.0
"""Seconds: networks are loaded, on a slow box."""


@dataclass(frozen=True)
class Grabber:
    """A grabber that is plugged in. ``stable``: as scanner profiles name it."""

    node: str
    stable: str
    usb: UsbDevice | None


def find_grabber(box: Box, asked: str) -> Grabber | None:
    """The capture device that a path or VID:PID means, found without opening anything; None where there is
    none."""
    devices = box.path("dev")
    by_id = {_led_to(link): link for link in sorted((devices / "v4l/by-id").glob("*"))}
    for entry in sorted(box.path("sys/class/video4linux").glob("video*")):
        usb = _usb_above(box, entry)
        node = devices / entry.name
        if USB_NAME.fullmatch(asked):
            # Nodes after the first hand out metadata.
            meant = usb is not None and usb.number == asked.lower() and not box.number(entry / "index")
        else:
            meant = _led_to(box.path(asked.lstrip("/"))) == _led_to(node)
        if meant:
            link = by_id.get(_led_to(node))
            named = f"/{link.relative_to(box.root)}" if link else usb.number if usb else f"/dev/{entry.name}"
            return Grabber(f"/dev/{entry.name}", named, usb)
    return None


def _led_to(path: Path) -> str:
    return os.path.realpath(path)


def _usb_above(box: Box, entry: Path) -> UsbDevice | None:
    above = Path(_led_to(entry / "device"))
    found = (usb_device(box, folder) for folder in (above, *above.parents[:3]))
    return next((device for device in found if device is not None), None)


def told_mode(box: Box) -> Mode | None:
    """The mode that the bedside reader took the grabber in; None where it does not run, or has taken none."""
    found = SOURCE_MODE.search(str(box.running.get("source", ""))) if box.running is not None else None
    return Mode(int(found[1]), int(found[2]), found[3], float(found[4] or 0)) if found else None


def _asked_of(node: str) -> Mode | None:
    """The mode that a device says it is in; None where it does not say."""
    from linuxpy.video.device import Device, VideoCapture  # there is none but on Linux

    try:
        with Device(node) as device:
            capture: Any = VideoCapture(device)
            form, rate = capture.get_format(), float(capture.get_fps())
    except (OSError, ValueError, ZeroDivisionError):
        return None
    return Mode(form.width, form.height, form.pixel_format.name, rate)


class GrabberCheck(Check):
    """The configured grabber: whether it is there, the mode asked for and got, the frames that arrive in a
    second, its USB speed. While the bedside reader runs, all is taken from what it tells.

    Warns where size or rate fall short of what was asked for, where fewer than 80 % of the frames arrive, and
    where the source is no grabber at all; fails where the grabber is not there, or gives no frames.

    Plug it in firmly, into a blue (USB 3) socket where it falls short; name it by VID:PID (`lsusb`) in
    `source.device`; ask for a mode that it has (docs/grabber.md).
    """

    name = "grabber"

    def _findings(self, box: Box) -> Iterator[Finding]:
        asked = box.config.source
        if not asked.device.startswith(V4L2):
            kind = "demo, a test pattern," if asked.device == "demo" else "a file or folder"
            yield warn(f"{kind} is read, no scanner", "set source.device to the grabber")
            return
        name = asked.device.removeprefix(V4L2)
        grabber, running = find_grabber(box, name), box.running
        if running is not None and running.get("state") == NO_DEVICE:
            yield fail(f"{name}: {running.get('cause') or 'not there'}", PLUG_IN)
            return
        # Where the bedside reader has it, its word is taken: the page may see no devices.
        if grabber is None and running is None:
            chosen = box.installed or box.loaded.path is not None
            yield fail(f"{name}: not there", PLUG_IN) if chosen else unknown("no grabber is configured")
            return
        there = name
        if grabber is not None:
            there += f" is {grabber.node}, {grabber.usb.told_speed if grabber.usb else 'not on USB'}"
        text = f"{there}; asked for {asked.width}x{asked.height} {asked.rate}/s"
        mode = told_mode(box)
        if running is None:
            # Whatever it was left in, the bedside reader will set it anew.
            left = _asked_of(grabber.node) if grabber is not None and box.root == Path("/") else None
            yield ok(f"{text}; left in {left or 'a mode that is not told'}: the bedside reader does not run")
        elif mode is None:
            yield unknown(f"{text}; not yet opened")
        else:
            yield self._judged(f"{text}, got {mode}", mode, asked, grabber)
            yield from self._arriving(running, mode.rate or asked.rate)

    def _judged(self, text: str, mode: Mode, asked: SourceTable, grabber: Grabber | None) -> Finding:
        if not mode.falls_short(GrabberSpec(asked.device, asked.width, asked.height, asked.rate)):
            return ok(text)
        slow = grabber is not None and grabber.usb is not None and grabber.usb.speed <= USB_2
        socket = "use a USB 3 socket, or " if slow else ""
        return warn(text, f"{socket}ask for a mode that it has (source.width, height, rate)")

    def _arriving(self, running: dict[str, Any], rate: float) -> Iterator[Finding]:
        fps = running.get("fps")
        if not isinstance(fps, (int, float)):
            return
        text = f"{fps:.1f} frames a second arrive"
        if running.get("state") == STARTING:
            yield unknown(f"{text} so far: it is starting")
        elif fps < LEAST:
            yield fail(text, PLUG_IN)
        elif fps < SLOWEST * rate:
            yield warn(
                f"{text}, fewer than {SLOWEST:.0%} of them", "see temperature, power, and the USB socket"
            )
        else:
            yield ok(text)


class BeamProfile(Check):
    """The configured scanner profile: whether it can be loaded, and is of this grabber and picture size.

    Warns where none is configured (the beam is then looked for in the picture), or where it was made with
    another grabber or for another size; fails where it cannot be loaded.

    Run `sonoglance setup` with the scanner switched on (docs/setup.md).
    """

    name = "beam"

    def _findings(self, box: Box) -> Iterator[Finding]:
        advice = "run: sonoglance setup"
        asked = box.config.source
        if not asked.scanner:
            yield warn("no scanner profile is configured: the beam is looked for in the picture", advice)
            return
        try:
            profile = load_profile(box.state_folder, asked.scanner)
        except ProfileError as error:
            yield fail(str(error), advice)
            return
        name = asked.device.removeprefix(V4L2)
        grabber = find_grabber(box, name)
        mode = told_mode(box)
        size = (mode.width, mode.height) if mode else (asked.width, asked.height)
        misfit = fits(profile, grabber.stable if grabber else name, size)
        made = (
            f"{profile.name}, made {profile.made_at[:10]} for {profile.beam.size[0]}x{profile.beam.size[1]}"
        )
        yield warn(misfit, advice) if misfit else ok(f"{made} with {profile.grabber}")


class BundleCheck(Check):
    """The model bundle: whether it is whole, who signed it and whether that is trusted here, and what its
    quantization gate said.

    Warns where it is accepted only because no key is trusted here, or its quantization was not judged, or on
    too few pictures; fails where it is damaged, gone, not trusted, or failed its gate.

    Copy the bundle again; put the signer's key into /etc/sonoglance/keys (docs/signing.md); use another
    bundle.
    """

    name = "bundle"

    def _findings(self, box: Box) -> Iterator[Finding]:
        chosen = box.path(f"{PROGRAMS}/current/bundle")
        if chosen.is_symlink() and not chosen.exists() and "reader.bundle" not in box.loaded.given:
            advice = "put the stick with the bundle in again, or install again"
            yield fail(f"{chosen} leads to nothing: {chosen.readlink()} is gone", advice)
        try:
            bundle = load_bundle(box.bundle)
            trust = check_trust(bundle, _keys(box))
        except SonoglanceError as error:
            yield fail(str(error), "copy the bundle again, or put its signer's key into /etc/sonoglance/keys")
            return
        manifest, outcome = bundle.manifest, bundle.manifest.gate_outcome
        text = f"{manifest.name} {manifest.version}, {trust.reason}"
        if trust.badge:
            yield warn(text, "have it signed, and put the signer's key into /etc/sonoglance/keys")
        else:
            yield ok(text)
        if outcome == FAILED:
            yield fail(
                "its int8 network failed the quantization gate", "do not rely on it: use another bundle"
            )
        elif outcome == TOO_FEW:
            text = f"quantization gate: {outcome}, too few pictures with findings to tell what int8 cost"
            yield warn(text, "use a bundle that was judged on more")
        elif outcome is None:
            yield warn("what int8 cost was never measured", "convert it anew, with its report")
        else:
            yield ok(f"quantization gate: {outcome}")


def _keys(box: Box) -> Path | None:
    """The folder of trusted keys; None for the usual one."""
    usual = box.path(KEYS)
    named = box.config.reader.keys or os.environ.get(KEYS_VARIABLE)
    return Path(named) if named else usual if usual.exists() else None


class Golden(Check):
    """Golden vectors: pictures whose class maps are known, through each runner that is there (LiteRT, and
    ONNX where the bundle has its graph). An Edge TPU's map is not compared: bundles hold none for it.

    Fails where a map differs by more than the bundle allows: this machine does not compute what was tested.

    Install the program anew; if that does not help, replace the memory or the board.
    """

    name = "golden"
    deadline = GOLDEN_DEADLINE
    slow = True

    def _findings(self, box: Box) -> Iterator[Finding]:
        try:
            bundle = load_bundle(box.bundle)
            # Before the network: the interpreter is not made for graphs of strangers.
            check_trust(bundle, _keys(box))
        except SonoglanceError as error:
            yield unknown(f"no bundle to compute with ({error})")
            return
        kinds = [LITERT]
        if {ONNX_FILE, ONNX_INT8} & bundle.files.keys() and importlib.util.find_spec("onnxruntime"):
            kinds.append(ONNX)
        for kind in kinds:
            yield self._compared(bundle, kind)

    def _compared(self, bundle: Bundle, kind: str) -> Finding:
        try:
            runner = bundle.runner(1, kind)
            worst = bundle.check_golden(runner)
        except SonoglanceError as error:
            return fail(str(error), "install the program anew; then suspect the memory or the board")
        return ok(f"on {runner.name} they differ by {worst:g} {runner.unit}")


class RunnerCheck(Check):
    """What the network was asked to run on, what it does run on, and a Coral: on USB (1a6e:089a,
    18d1:9302) or PCIe (/dev/apex_*), with its library and a graph for it in the bundle.

    Warns where a Coral lies idle, is on USB 2, was lost, or where the processor stands in for it; fails where
    what was asked for is not installed.

    Plug the Coral into a blue (USB 3) socket; install libedgetpu1-std; choose a bundle with an Edge TPU
    graph, or another `reader.runner`.
    """

    name = "runner"

    def _findings(self, box: Box) -> Iterator[Finding]:
        asked = box.config.reader.runner
        if box.running is not None:
            told, runner = box.running.get("badges"), box.running.get("runner")
            shown = map(str, told) if isinstance(told, list) else ()
            badges = ", ".join(filter(FALLEN_BACK.match, shown))
            text = f"asked for {asked}, running on {runner or 'nothing yet'}"
            if badges:
                advice = "see the accelerator's plug and power, and journalctl -u sonoglance"
                yield warn(f"{text} ({badges})", advice)
            else:
                yield ok(text) if runner else unknown(text)
        else:
            yield ok(f"asked for {asked}")
        if asked == ONNX and not importlib.util.find_spec("onnxruntime"):
            yield fail("onnxruntime is not installed", "pip install 'sonoglance[onnx]', or set reader.runner")
        yield from self._coral(box, asked)

    def _coral(self, box: Box, asked: str) -> Iterator[Finding]:
        on_usb = [device for device in usb_devices(box) if device.number in CORAL]
        corals = [*map(str, on_usb), *(f"/dev/{node.name}" for node in box.path("dev").glob("apex_*"))]
        if box.running is not None and box.running.get("runner") == EDGETPU:
            yield ok(f"Coral: {', '.join(corals) or 'it reads'}")
        elif asked == EDGETPU or (corals and asked == AUTO):
            lacking = list(self._lacking(box, corals))
            advice = "plug it in, install libedgetpu1-std, use a bundle with its graph; or set reader.runner"
            if not lacking:
                yield ok(f"Coral: {', '.join(corals)}")
            elif asked == EDGETPU:
                yield fail(f"{EDGETPU} was asked for: {', '.join(lacking)}", advice)
            else:
                yield warn(f"Coral idle: {', '.join(lacking)}", advice)
        else:
            yield ok(f"Coral, not asked for: {', '.join(corals)}" if corals else "no Coral")
        for device in on_usb:
            if 0 < device.speed <= USB_2 and asked in (AUTO, EDGETPU):
                yield warn(f"the Coral is on {device.told_speed}", "plug it into a blue (USB 3) socket")

    def _lacking(self, box: Box, corals: list[str]) -> Iterator[str]:
        """What a Coral needs to read and is not there."""
        if not corals:
            yield "no Coral is plugged in"
        if not any(file for place in LIBRARY_PLACES for file in box.root.glob(f"{place}/{LIBRARY}")):
            yield f"no {LIBRARY}"
        # A bundle that cannot be loaded is told by its own check.
        with contextlib.suppress(BundleError):
            if EDGE_TPU not in load_bundle(box.bundle).files:
                yield "no graph for it in the bundle"

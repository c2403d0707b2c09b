"""What a program and its bundle must be able to do here before they may run: compute, read, and open the
grabber.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from device.capture.devices import V4L2
from device.capture.driver import GrabberSpec
from device.capture.grabber import START_DEADLINE, Grabber
from device.clock import now
from device.settings.config import SourceTable, load_config, read_config
from device.update.errors import FAILED, SELF_TEST, UpdateError
from device.update.release import Box
from reader.bundle import DEFAULT_BUNDLE, Bundle, load_bundle
from reader.clips import Frame
from reader.phantom import Act, Phantom
from reader.reader import Reader, Reading
from reader.runner import LITERT, ONNX
from reader.signing import check_trust

SHOWN = {"menu": 0.56, "normal": 2.0, "no-contact": 0.8, "black": 0.56, "consolidation": 2.0}
"""Acts of the phantom, and for how many seconds."""
RATE = 12.5
"""Frames a second: half the phantom's own, for it must not take long on a small processor."""
SETTLED = 0.1
"""Seconds at the end of an act for which its state must be shown."""
NAMED = {"menu": "no-beam", "no-contact": "no-contact", "black": "no-signal"}
EXPECTED_BY_DEFAULT = {"normal": "normal", "consolidation": "opacity"}
"""Of the bundle that comes along, which tells these drawn lungs apart; another need not."""


def selftest(box: Box, bundle: Path | None) -> Iterator[str]:
    """Try what runs with this program, and say of each part how it went, a line each.

    ``bundle``: the one to read with; None for the configuration's. Raises SonoglanceError for what does not
    work. That a grabber is busy or not there is no fault.
    """
    file = box.configuration
    settings = (read_config(file) if file.exists() else load_config(None)).config
    loaded = load_bundle(bundle or settings.reader.bundle)
    trust = check_trust(loaded, settings.reader.keys or box.keys)
    yield f"{loaded.manifest.name} {loaded.manifest.version}: {trust.reason}"
    runner = loaded.runner(settings.reader.threads, ONNX if settings.reader.runner == ONNX else LITERT)
    yield f"golden vectors: differ by {loaded.check_golden(runner):g} {runner.unit} on {runner.name}"
    # Any drawing is refused as no lung where the bundle knows what lung looks like.
    reads = replace(loaded.manifest.reads, familiarity=None)
    yield from _read_phantom(loaded, Reader(reads, runner))
    yield _open_grabber(settings.source)


def _read_phantom(bundle: Bundle, reader: Reader) -> Iterator[str]:
    reads = bundle.manifest.reads
    lung = {name: {*reads.labels, "uncertain"} for name in EXPECTED_BY_DEFAULT}
    if bundle.path.resolve() == DEFAULT_BUNDLE.resolve():
        lung = {name: {state} for name, state in EXPECTED_BY_DEFAULT.items()}
    expected = lung | {name: {state} for name, state in NAMED.items()}
    phantom = Phantom(tuple(Act(name, seconds) for name, seconds in SHOWN.items()))
    states: dict[str, list[Reading]] = {}
    for number in range(int(phantom.duration * RATE)):
        at = number / RATE
        name, began = phantom.act(at)
        reading = reader.read(Frame(phantom.frame(at), at, number))
        if at >= began + SHOWN[name] - SETTLED:
            states.setdefault(name, []).append(reading)
    for name, readings in states.items():
        found = {reading.state for reading in readings}
        if not found <= expected[name]:
            told = f"the phantom's {name} is read as {', '.join(sorted(found))}"
            raise UpdateError(f"{told}, not as {' or '.join(sorted(expected[name]))}", SELF_TEST, FAILED)
        yield f"phantom: {name} is read as {', '.join(sorted(found))}"


def _open_grabber(source: SourceTable) -> str:
    """Have the capture's own process open the grabber as the bedside does."""
    if not source.device.startswith(V4L2):
        return f"capture: none is configured ({source.device.split('?')[0]})"
    spec = GrabberSpec(source.device.removeprefix(V4L2), source.width, source.height, source.rate)
    grabber = Grabber(spec)
    try:
        until = now() + START_DEADLINE
        while grabber.take(0.1) is None and grabber.trouble is None and now() < until:
            pass
        trouble = grabber.trouble
    finally:
        grabber.close()
    if trouble is None:
        return f"capture: {grabber.name} gives pictures"
    if trouble.cause == "hung":
        raise UpdateError(f"capture: {trouble.detail}", SELF_TEST, FAILED)
    return f"capture: {trouble.detail}"

"""Which runner reads: the accelerator where there is one, else the processor."""

from __future__ import annotations

import ctypes.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from device.accelerator import EdgeTpuRunner
from device.errors import AcceleratorError
from reader.bundle import EDGE_TPU, Bundle
from reader.errors import BundleError
from reader.runner import LITERT, ONNX, Runner

EDGETPU, AUTO = "edgetpu", "auto"
KINDS = (AUTO, LITERT, ONNX, EDGETPU)
NOT_JUDGED = "onnx-not-judged"
NO_ACCELERATOR = "no-accelerator"

_log = logging.getLogger(__name__)


@contextmanager
def open_runner(bundle: Bundle, kind: str, threads: int) -> Iterator[tuple[Runner, tuple[str, ...]]]:
    """The runner that was asked for, self-tested on the bundle's golden vectors, and what the screen must
    say of it all the time.

    ``kind``: of ``KINDS``; ``auto`` takes the Edge TPU where the bundle has a graph for it and its library
    is installed. An Edge TPU that does not start leaves the processor reading, and a badge. Raises
    BundleError where the bundle lacks the graph or its golden vectors differ, RunnerError where no
    runtime is installed.
    """
    if kind == AUTO:
        installed = EDGE_TPU in bundle.files and ctypes.util.find_library("edgetpu")
        kind = EDGETPU if installed else LITERT
    runner = bundle.runner(threads, LITERT if kind == EDGETPU else kind)
    bundle.check_golden(runner)
    if kind != EDGETPU:
        yield runner, (NOT_JUDGED,) if kind == ONNX else ()
        return
    if EDGE_TPU not in bundle.files:
        raise BundleError(f"{bundle.path}: holds no {EDGE_TPU}: convert the run where edgetpu_compiler is")
    try:
        accelerator = EdgeTpuRunner(bundle.files[EDGE_TPU], runner)
    except AcceleratorError as error:
        _log.warning("%s; the CPU reads", error)
        yield runner, (NO_ACCELERATOR,)
        return
    try:
        yield accelerator, ()
    finally:
        accelerator.close()

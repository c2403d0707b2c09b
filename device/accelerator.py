"""The Edge TPU behind a process of its own: whatever becomes of it, every frame is read.

libedgetpu can abort the process that it lives in, an accelerator can hang, and a USB plug can be pulled.
So the delegate lives in a child process that sees the pixels and the class map in shared memory. Crash,
hang and error all end alike: the frame in hand is read on the CPU, the child is killed, and another is
started while frames go on being read on the CPU. Linux only.
"""

from __future__ import annotations

import contextlib
import enum
import json
import logging
import math
import mmap
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device.child_process import ChildProcess, die_with_parent
from device.errors import AcceleratorError
from reader.runner import Runner

Image = NDArray[np.uint8]
Float = NDArray[np.float32]
Shape = tuple[int, int, int]

LIBRARY = "libedgetpu.so.1"
FRAME_DEADLINE = 0.25
"""Seconds that the accelerator has for a frame, of which it needs some 5 ms."""
START_DEADLINE = 10.0
"""Seconds from the start of the child to its first map; an accelerator on USB takes firmware first."""
RESTART_AFTER = (0.5, 2.0, 8.0)
"""Seconds to wait before each restart in a row. After the last one the CPU reads for good."""
STEADY_FRAMES = 250
"""Frames that a restarted accelerator must read for its earlier failures to be forgotten."""
CLOSE_DEADLINE = 2.0
"""Seconds to wait for a killed child to be gone."""

REQUEST, DONE = b"read", b"done"
LONGEST_MESSAGE = 4096

_log = logging.getLogger(__name__)


class _Stage(enum.Enum):
    STARTING = enum.auto()
    READING = enum.auto()
    LOST = enum.auto()


class EdgeTpuRunner:
    """A compiled network on an Edge TPU, with the CPU to stand in for it.

    Nothing happens between frames: each call of ``class_map`` first takes whatever step is due to bring
    a lost accelerator back, without waiting for it. Not to be called from two threads at a time.
    """

    name = "edgetpu"

    def __init__(
        self,
        graph: bytes,
        fallback: Runner,
        library: str = LIBRARY,
        frame_deadline: float = FRAME_DEADLINE,
        start_deadline: float = START_DEADLINE,
        restart_after: Sequence[float] = RESTART_AFTER,
    ) -> None:
        """Start the accelerator and wait until it has read a black frame.

        ``graph``: the content of a .tflite file compiled for the Edge TPU. ``fallback``: the same network
        on the CPU; its shapes are the ones expected. ``library``: the delegate's name or path. Deadlines
        and ``restart_after`` are in seconds, the latter one value a restart in a row.

        Raises AcceleratorError where this first start fails, be it for the library, the accelerator or
        the graph: whoever prefers the CPU to an end catches it and reads with ``fallback``.
        """
        self.input_shape, self.map_shape = fallback.input_shape, fallback.map_shape
        self._fallback, self._library = fallback, library
        self._frame_deadline, self._start_deadline = frame_deadline, start_deadline
        self._restart_after = tuple(restart_after)
        self._restarts = self._steady = 0
        # When a start must have succeeded, or when the next may be made.
        self._due = 0.0
        # Shared memory without a name: nothing of it can be left behind.
        self._memory = os.fdopen(os.memfd_create("edgetpu"), "r+b")
        sizes = 4 * math.prod(self.map_shape), math.prod(self.input_shape), len(graph)
        self._memory.truncate(sum(sizes))
        self._shared = _Shared(self._memory.fileno(), self.input_shape, self.map_shape)
        self._shared.graph[:] = np.frombuffer(graph, np.uint8)
        self._child = self._start()
        try:
            self._await(start_deadline)
        except AcceleratorError as error:
            self.close()
            raise AcceleratorError(f"the Edge TPU cannot be used through {library}: {error}") from error
        self._stage = _Stage.READING

    @property
    def badge(self) -> str:
        """What the screen must say of the accelerator; empty while it works."""
        if self._stage is _Stage.READING:
            return ""
        if self._due == math.inf:
            return "accelerator-failed"
        return f"accelerator-lost {self._restarts} {len(self._restart_after)}"

    def class_map(self, pixels: Image) -> Float:
        """uint8 [h, w, channels] to float32 logits [rows, columns, map channels].

        Returns within the frame deadline and the CPU's time, whatever the accelerator does."""
        if self._works():
            self._shared.pixels[:] = pixels
            try:
                self._child.request()
                self._await(self._frame_deadline)
            except AcceleratorError as error:
                self._lose(str(error))
            else:
                self._steady += 1
                if self._steady == STEADY_FRAMES:
                    self._restarts = 0
                return self._shared.class_map.copy()
        return self._fallback.class_map(pixels)

    def close(self) -> None:
        """End the child process. What is read afterwards is read on the CPU."""
        self._stage, self._due = _Stage.LOST, math.inf
        self._child.kill()
        if not self._child.gone(CLOSE_DEADLINE):
            _log.error("accelerator: its process cannot be ended, it hangs in the kernel")
        self._memory.close()

    def _works(self) -> bool:
        """Whether the accelerator takes frames; if not, the next step towards it, without waiting."""
        try:
            if self._stage is _Stage.STARTING:
                self._look_whether_started()
            elif self._stage is _Stage.LOST and self._child.gone() and time.monotonic() >= self._due:
                self._child = self._start()
        except (AcceleratorError, OSError) as error:
            self._lose(str(error))
        return self._stage is _Stage.READING

    def _start(self) -> _Child:
        child = _Child(self._library, self._memory.fileno(), self.input_shape, self.map_shape)
        self._stage, self._due = _Stage.STARTING, time.monotonic() + self._start_deadline
        return child

    def _look_whether_started(self) -> None:
        # Asked before the clock: the loop may have had no frame to read for long.
        late = time.monotonic() > self._due
        if self._child.answered(0):
            self._stage, self._steady = _Stage.READING, 0
            _log.info("accelerator: reading again after restart %d", self._restarts)
        elif late:
            raise AcceleratorError(f"not ready after {self._start_deadline:g} s")

    def _await(self, deadline: float) -> None:
        if not self._child.answered(deadline):
            raise AcceleratorError(f"no answer in {deadline:g} s")

    def _lose(self, why: str) -> None:
        self._child.kill()
        self._stage = _Stage.LOST
        if self._restarts == len(self._restart_after):
            self._due = math.inf
            _log.error("accelerator: %s; given up, the CPU reads for good", why)
            return
        wait = self._restart_after[self._restarts]
        self._restarts += 1
        self._due = time.monotonic() + wait
        _log.warning(
            "accelerator: %s; the CPU reads, restart %d of %d in %g s",
            why,
            self._restarts,
            len(self._restart_after),
            wait,
        )


class _Shared:
    """What both processes see of the shared memory: class map, pixels, compiled graph."""

    def __init__(self, descriptor: int, input_shape: Shape, map_shape: Shape) -> None:
        whole = np.frombuffer(mmap.mmap(descriptor, 0), np.uint8)
        parts = np.split(whole, np.cumsum([4 * math.prod(map_shape), math.prod(input_shape)]))
        self.class_map = parts[0].view(np.float32).reshape(map_shape)
        self.pixels = parts[1].reshape(input_shape)
        self.graph = parts[2]


class _Child:
    """One life of the process that holds the delegate. It answers once when ready, then each request."""

    def __init__(self, library: str, memory: int, input_shape: Shape, map_shape: Shape) -> None:
        """Raises OSError where the system gives no process."""
        # Whole messages, and an end that is noticed.
        self._wire, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            job = json.dumps([library, memory, theirs.fileno(), input_shape, map_shape])
            self._process = ChildProcess("device.accelerator", job, (memory, theirs.fileno()))

    def request(self) -> None:
        """Ask for the class map of the pixels in shared memory."""
        with contextlib.suppress(ConnectionError):  # a child that is gone shows in its answer
            self._wire.send(REQUEST)

    def answered(self, wait: float) -> bool:
        """Whether it has done what is asked within ``wait`` seconds.

        Raises AcceleratorError with what it says went wrong, or how it ended."""
        self._wire.settimeout(wait)
        try:
            said = self._wire.recv(LONGEST_MESSAGE)
        except (BlockingIOError, TimeoutError):
            return False
        except ConnectionError:
            said = b""
        if said != DONE:
            raise AcceleratorError(said.decode(errors="replace") or self._process.ending())
        return True

    def kill(self) -> None:
        """Have it killed, without waiting for it to be gone."""
        self._process.kill()
        self._wire.close()

    def gone(self, wait: float = 0.0) -> bool:
        """Whether it has ended, or does so within ``wait`` seconds; only then is the accelerator free."""
        return self._process.gone(wait)


def _serve(library: str, memory: int, wire: int, input_shape: Shape, map_shape: Shape) -> None:
    """The child: load the delegate, then read what is asked for until the parent is gone."""
    die_with_parent()
    with socket.socket(fileno=wire) as connection:
        try:
            read = _load(library, _Shared(memory, input_shape, map_shape))
            # The first invoke takes the weights to the accelerator.
            read()
            connection.send(DONE)
            while connection.recv(LONGEST_MESSAGE):
                read()
                connection.send(DONE)
        except AcceleratorError as error:
            connection.send(" ".join(str(error).split()).encode()[:LONGEST_MESSAGE])
            # At once: a library's clean-up after an error can hang or abort.
            os._exit(1)


def _load(library: str, shared: _Shared) -> Callable[[], None]:
    """A function that reads the shared pixels into the shared class map on the accelerator.

    It raises AcceleratorError where the accelerator fails, as does this where it cannot be used."""
    try:
        from ai_edge_litert.interpreter import Interpreter, load_delegate
    except ModuleNotFoundError as error:
        raise AcceleratorError("LiteRT is not installed: pip install ai-edge-litert") from error
    try:
        delegate = load_delegate(library)
    except (OSError, AttributeError) as error:
        raise AcceleratorError(
            f"not a delegate library that can be loaded ({error}); install the Edge TPU runtime"
        ) from error
    except ValueError as error:
        raise AcceleratorError(f"it finds no accelerator ({error}); plug one in") from error
    try:
        interpreter = Interpreter(model_content=shared.graph.tobytes(), experimental_delegates=[delegate])
        # Asked before LiteRT's own delegate takes what is left of the graph.
        taken = any(op["op_name"] == "DELEGATE" for op in interpreter._get_ops_details())
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise AcceleratorError(f"the compiled graph cannot be run ({error}); compile it again") from error
    source, target = _tensors(interpreter, shared)
    if not taken:
        raise AcceleratorError("it takes no part of the graph; compile the graph for the Edge TPU")
    scale, zero_point = (np.float32(value) for value in target["quantization"])

    def read() -> None:
        interpreter.set_tensor(source["index"], shared.pixels[None])
        try:
            interpreter.invoke()
        except RuntimeError as error:
            raise AcceleratorError(f"an error from the accelerator ({error})") from error
        quantized = interpreter.get_tensor(target["index"])[0].astype(np.float32)
        shared.class_map[:] = (quantized - zero_point) * scale

    return read


def _tensors(interpreter: Any, shared: _Shared) -> tuple[dict[str, Any], dict[str, Any]]:
    """The graph's only input and output, found to be what the CPU's graph has."""
    sources, targets = interpreter.get_input_details(), interpreter.get_output_details()
    found = [f"{x['dtype'].__name__} {x['shape'].tolist()}" for x in (*sources, *targets)]
    pixels, class_map = [1, *shared.pixels.shape], [1, *shared.class_map.shape]
    expected = [[f"uint8 {pixels}", f"{kind} {class_map}"] for kind in ("int8", "uint8")]
    if found not in expected:
        raise AcceleratorError(
            f"the compiled graph has {', '.join(found)} where the CPU's has {', '.join(expected[0])}; "
            "compile the bundle's own network"
        )
    return sources[0], targets[0]


if __name__ == "__main__":
    _serve(*json.loads(sys.argv[1]))

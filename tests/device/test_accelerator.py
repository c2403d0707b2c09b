from __future__ import annotations

import itertools
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from device import child_process
from device.accelerator import STEADY_FRAMES, EdgeTpuRunner
from device.errors import AcceleratorError
from reader.bundle import MODEL, Bundle
from reader.runner import LiteRtRunner

ROOT = Path(__file__).parent.parent.parent
DESCRIPTORS = Path("/proc/self/fd")
PATIENCE = 120.0
PATIENT = {"frame_deadline": PATIENCE, "start_deadline": PATIENCE, "restart_after": (0.0, 0.0, 0.0)}
"""Deadlines that only a real hang misses, on a machine however busy, and no pause before a restart."""
HURRIED = 2.0
"""That of a frame where a hang is wanted."""
GIVEN_UP = "accelerator-failed"

Frames = list[tuple[NDArray[np.uint8], NDArray[np.float32]]]


class StandIn:
    """The accelerator that the stand-in delegate plays."""

    def __init__(self, folder: Path, library: Path) -> None:
        self.folder, self.library = folder, str(library)

    def order(self, what: str) -> None:
        (self.folder / "order").write_text(what)

    @property
    def invokes(self) -> list[int]:
        """The process of each invoke so far."""
        log = self.folder / "invokes"
        return [int(line) for line in log.read_text().split()] if log.exists() else []

    @property
    def pids(self) -> list[int]:
        """The processes in order of their first invoke."""
        return list(dict.fromkeys(self.invokes))


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        assert not os.environ.get("CI"), "CI must have a C compiler"
        pytest.skip("no C compiler here to build the stand-in delegate with")
    built = tmp_path_factory.mktemp("delegate") / "libstandin.so"
    source = Path(__file__).with_name("standin_delegate.c")
    strict = ["-std=c11", "-D_POSIX_C_SOURCE=200809L", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([compiler, *strict, "-O2", "-shared", "-fPIC", "-o", built, source], check=True)
    return built


@pytest.fixture
def standin(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    monkeypatch.setenv("STANDIN_DELEGATE", str(tmp_path))
    monkeypatch.setattr(child_process, "EXIT_DEADLINE", 10.0)
    return StandIn(tmp_path, library)


@pytest.fixture(scope="module")
def graph(default_bundle: Bundle) -> bytes:
    return default_bundle.files[MODEL]


@pytest.fixture(scope="module")
def cpu(default_bundle: Bundle) -> LiteRtRunner:
    return default_bundle.runner(1)


@pytest.fixture(scope="module")
def frames(cpu: LiteRtRunner) -> Frames:
    """Frames and the CPU's maps of them, none like the one before: a stale map would be noticed."""
    random = np.random.default_rng(3)
    pixels = [
        (random.integers(0, 256, cpu.input_shape) >> random.integers(0, 6)).astype(np.uint8)
        for _ in range(12)
    ]
    maps = [cpu.class_map(x) for x in pixels]
    assert all(np.abs(a - b).max() > 0.1 for a, b in itertools.pairwise([*maps, maps[0]]))
    return list(zip(pixels, maps, strict=True))


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    """After each test, whatever befell its children: no process, not even a zombie."""
    before = children()
    yield
    assert children() == before


def children(of: int | None = None) -> set[int]:
    """The child processes of one, zombies among them."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it ended meanwhile
            continue
        if parent == (of or os.getpid()):
            found.add(int(stat.parent.name))
    return found


def read_until(done: Callable[[], bool], runner: EdgeTpuRunner, frames: Frames) -> int:
    """Read at a bedside's pace until ``done``; every map must be the CPU's. Returns the frames read."""
    give_up = time.monotonic() + PATIENCE
    for count, (pixels, expected) in enumerate(itertools.cycle(frames)):
        if done():
            return count
        np.testing.assert_array_equal(runner.class_map(pixels), expected)
        assert time.monotonic() < give_up
        time.sleep(0.01)
    raise AssertionError("there is no end to the frames")


def read(count: int, runner: EdgeTpuRunner, frames: Frames) -> None:
    countdown = iter(range(count))
    read_until(lambda: next(countdown, None) is None, runner, frames)


def edited(model: bytes, edit: Callable[[Any], None]) -> bytes:
    """A graph with something changed in it."""
    tree = schema.ModelT.InitFromPackedBuf(model, 0)
    edit(tree)
    builder = flatbuffers.Builder(len(model))
    builder.Finish(tree.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def test_reads_in_another_process_through_the_delegate_what_the_cpu_reads(
    graph: bytes, cpu: LiteRtRunner, standin: StandIn, frames: Frames
) -> None:
    with closing(EdgeTpuRunner(graph, cpu, standin.library, **PATIENT)) as runner:
        assert (runner.input_shape, runner.map_shape) == (cpu.input_shape, cpu.map_shape)
        read(30, runner, frames)
        assert runner.badge == ""
    assert len(standin.invokes) == 1 + 30
    assert len(standin.pids) == 1
    assert os.getpid() not in standin.pids


def test_the_map_is_what_the_accelerator_says(
    graph: bytes, cpu: LiteRtRunner, standin: StandIn, frames: Frames
) -> None:
    with closing(EdgeTpuRunner(graph, cpu, standin.library, **PATIENT)) as runner:
        standin.order("invert")
        for pixels, expected in frames:
            assert np.abs(runner.class_map(pixels) - expected).max() > 0.1
        assert runner.badge == ""


def test_a_compiled_map_of_another_quantization_means_the_same(
    graph: bytes, cpu: LiteRtRunner, standin: StandIn, frames: Frames
) -> None:
    steps = []

    def coarser(model: Any) -> None:
        output = model.subgraphs[0].tensors[model.subgraphs[0].outputs[0]]
        output.quantization.scale = [2 * output.quantization.scale[0]]
        steps.append(output.quantization.scale[0])

    with closing(EdgeTpuRunner(edited(graph, coarser), cpu, standin.library, **PATIENT)) as runner:
        for pixels, expected in frames:
            np.testing.assert_allclose(runner.class_map(pixels), expected, atol=steps[0])
        assert runner.badge == ""
    assert max(np.abs(expected).max() for _, expected in frames) > 10 * steps[0]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("abort", "killed by signal 6 (Aborted)"),
        ("hang", "no answer in 2 s"),
        ("vanish", "the accelerator does not answer"),
    ],
)
def test_no_frame_is_lost_to_a_fault_and_the_accelerator_takes_over_again(
    fault: str,
    words: str,
    graph: bytes,
    cpu: LiteRtRunner,
    standin: StandIn,
    frames: Frames,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "device.accelerator")
    deadlines = PATIENT | ({"frame_deadline": HURRIED} if fault == "hang" else {})
    with closing(EdgeTpuRunner(graph, cpu, standin.library, **deadlines)) as runner:
        read(30, runner, frames)
        standin.order(fault)
        read(1, runner, frames)
        assert runner.badge == "accelerator-lost 1 3"
        standin.order("")
        read(29, runner, frames)
        read_until(lambda: not runner.badge, runner, frames)
        first, second = standin.pids
        before = len(standin.invokes)
        read(10, runner, frames)
        assert standin.invokes[before:] == [second] * 10
        assert first not in children()
    lost, back = [record.getMessage() for record in caplog.records]
    assert words in lost
    assert "restart 1 of 3" in lost
    assert "reading again" in back


@pytest.mark.parametrize(
    ("fault", "after", "restarts", "words"),
    [
        ("abort", "abort", 3, "killed by signal 6 (Aborted)"),
        ("vanish", "vanish", 3, "the accelerator does not answer"),
        ("vanish", "refuse", 3, "finds no accelerator"),
        ("hang", "hang", 1, "not ready after 120 s"),
    ],
)
def test_after_restarts_that_fail_in_a_row_the_cpu_reads_for_good(
    fault: str,
    after: str,
    restarts: int,
    words: str,
    graph: bytes,
    cpu: LiteRtRunner,
    standin: StandIn,
    frames: Frames,
    caplog: pytest.LogCaptureFixture,
) -> None:
    others = children()
    deadlines = PATIENT | {"restart_after": (0.0,) * restarts}
    if fault == "hang":
        deadlines["frame_deadline"] = HURRIED
    with closing(EdgeTpuRunner(graph, cpu, standin.library, **deadlines)) as runner:
        standin.order(fault)
        read(1, runner, frames)
        standin.order(after)
        assert runner.badge
        if after == "hang":
            # Its deadline is not waited for; but it must have come to the hang.
            read_until(lambda: len(standin.pids) == 1 + restarts, runner, frames)
            runner._due = 0.0
        read_until(lambda: runner.badge == GIVEN_UP, runner, frames)
        standin.order("")
        processes = len(standin.pids)
        read(60, runner, frames)
        assert runner.badge == GIVEN_UP
        assert len(standin.pids) == processes == (1 if after == "refuse" else 1 + restarts)
        assert children() == others
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1 + restarts
    assert all(words in message for message in messages[1:])
    assert "given up" in messages[-1]


def test_an_accelerator_that_fails_after_each_restart_is_given_up_too(
    graph: bytes, cpu: LiteRtRunner, standin: StandIn, frames: Frames
) -> None:
    with closing(EdgeTpuRunner(graph, cpu, standin.library, **PATIENT)) as runner:
        for _ in range(3):
            standin.order("abort")
            read(1, runner, frames)
            assert runner.badge not in ("", GIVEN_UP)
            standin.order("")
            read_until(lambda: not runner.badge, runner, frames)
        standin.order("abort")
        read(1, runner, frames)
        assert runner.badge == GIVEN_UP


def test_a_fault_is_forgotten_after_steady_reading(
    graph: bytes, cpu: LiteRtRunner, standin: StandIn, frames: Frames
) -> None:
    deadlines = {**PATIENT, "restart_after": (0.0,)}
    with closing(EdgeTpuRunner(graph, cpu, standin.library, **deadlines)) as runner:
        for _ in range(2):
            standin.order("vanish")
            read(1, runner, frames)
            assert runner.badge == "accelerator-lost 1 1"
            standin.order("")
            read_until(lambda: not runner.badge, runner, frames)
            for _ in range(STEADY_FRAMES):
                runner.class_map(frames[0][0])


def test_a_child_that_dies_between_frames_costs_none(
    graph: bytes, cpu: LiteRtRunner, standin: StandIn, frames: Frames, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(EdgeTpuRunner(graph, cpu, standin.library, **PATIENT)) as runner:
        os.kill(standin.pids[0], signal.SIGKILL)
        read(1, runner, frames)
        assert runner.badge
        read_until(lambda: not runner.badge, runner, frames)
    assert "killed by signal 9 (Killed)" in caplog.text


def test_frames_go_on_while_a_restart_hangs(
    graph: bytes, cpu: LiteRtRunner, standin: StandIn, frames: Frames
) -> None:
    with closing(EdgeTpuRunner(graph, cpu, standin.library, **PATIENT)) as runner:
        standin.order("vanish")
        read(1, runner, frames)
        standin.order("hang")
        # A frame that waited for the restart would see it fail, and the next one begin.
        read_until(lambda: len(standin.pids) == 2, runner, frames)
        read(60, runner, frames)
        assert runner.badge == "accelerator-lost 1 3"


@pytest.mark.parametrize(
    ("order", "words"),
    [
        ("refuse", "it finds no accelerator .*no device.*; plug one in"),
        ("vanish", "an error from the accelerator .*does not answer"),
        ("abort", r"its process was killed by signal 6 \(Aborted\)"),
        ("hang", "no answer in 5 s"),
    ],
)
def test_a_first_start_that_fails_says_why(
    order: str, words: str, graph: bytes, cpu: LiteRtRunner, standin: StandIn
) -> None:
    standin.order(order)
    deadline = 5.0 if order == "hang" else PATIENCE
    with pytest.raises(AcceleratorError, match=words) as caught:
        EdgeTpuRunner(graph, cpu, standin.library, start_deadline=deadline)
    assert "\n" not in str(caught.value)


def test_a_library_that_is_none_says_so_and_nothing_else(
    graph: bytes, cpu: LiteRtRunner, capfd: pytest.CaptureFixture[str]
) -> None:
    for library in ("libedgetpu-that-is-missing.so.1", "libc.so.6"):
        with pytest.raises(AcceleratorError, match=f"{library}.*install the Edge TPU runtime"):
            EdgeTpuRunner(graph, cpu, library)
    assert capfd.readouterr() == ("", "")


def _with_custom_op(model: Any) -> None:
    second = model.subgraphs[0].operators[1]
    code = model.operatorCodes[second.opcodeIndex]
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
    code.customCode = b"edgetpu-custom-op"
    for operator in model.subgraphs[0].operators:
        if operator.opcodeIndex == second.opcodeIndex:
            operator.builtinOptions, operator.builtinOptionsType = None, 0


def _first_node_only(model: Any) -> None:
    subgraph = model.subgraphs[0]
    subgraph.operators = subgraph.operators[:1]
    subgraph.outputs = subgraph.operators[0].outputs


def _without_first_node(model: Any) -> None:
    subgraph = model.subgraphs[0]
    subgraph.inputs = subgraph.operators[0].outputs
    subgraph.operators = subgraph.operators[1:]


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (_with_custom_op, "unresolved custom op: edgetpu-custom-op"),
        (_first_node_only, r"int8 \[1, 224, 224, 3\] where the CPU's has .* int8 \[1, 7, 7, 2\]"),
        (_without_first_node, r"has int8 \[1, 224, 224, 3\], int8 .* where the CPU's has uint8"),
    ],
)
def test_a_graph_that_does_not_belong_is_refused(
    edit: Callable[[Any], None], words: str, graph: bytes, cpu: LiteRtRunner, standin: StandIn
) -> None:
    with pytest.raises(AcceleratorError, match=words):
        EdgeTpuRunner(edited(graph, edit), cpu, standin.library)


def test_a_graph_that_the_accelerator_takes_no_part_of_is_refused(
    graph: bytes, cpu: LiteRtRunner, standin: StandIn
) -> None:
    """It would be read on the CPU, in a child process, under the accelerator's name."""
    standin.order("decline")
    with pytest.raises(AcceleratorError, match="compile the graph for the Edge TPU"):
        EdgeTpuRunner(graph, cpu, standin.library)


def test_restarts_and_a_close_leave_no_descriptor_open(
    graph: bytes, cpu: LiteRtRunner, standin: StandIn, frames: Frames
) -> None:
    def wear_out() -> None:
        runner = EdgeTpuRunner(graph, cpu, standin.library, **PATIENT)
        standin.order("vanish")
        read_until(lambda: runner.badge == GIVEN_UP, runner, frames)
        runner.close()
        runner.close()
        read(1, runner, frames)

    before = len(list(DESCRIPTORS.iterdir()))
    wear_out()
    assert len(list(DESCRIPTORS.iterdir())) == before


HOLDER = """
import sys
from pathlib import Path
import numpy as np
from device.accelerator import EdgeTpuRunner
from reader.bundle import DEFAULT_BUNDLE, MODEL, load_bundle

library, order = sys.argv[1], Path(sys.argv[2])
bundle = load_bundle(DEFAULT_BUNDLE)
cpu = bundle.runner(1)
runner = EdgeTpuRunner(bundle.files[MODEL], cpu, library, frame_deadline=1000.0)
order.write_text(sys.argv[3])
print("ready", flush=True)
runner.class_map(np.zeros(cpu.input_shape, np.uint8))
"""


def test_the_child_dies_with_a_killed_parent_even_while_it_hangs(standin: StandIn) -> None:
    command = [sys.executable, "-c", HOLDER, standin.library, str(standin.folder / "order"), "hang"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        while len(standin.invokes) < 2:
            assert parent.poll() is None
            time.sleep(0.01)
        (child,) = children(parent.pid)
        assert [child] == standin.pids
        parent.kill()
    assert _gone(child)


def test_a_parent_that_forgets_to_close_leaves_nothing_and_says_nothing(standin: StandIn) -> None:
    command = [sys.executable, "-c", HOLDER, standin.library, str(standin.folder / "order"), ""]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode == 0
    assert [line for line in ended.stderr.splitlines() if not line.startswith("INFO: ")] == []
    assert _gone(standin.pids[0])


def _gone(pid: int) -> bool:
    """Whether a process ends within a while; a zombie that nobody reaps has ended."""
    stat = Path(f"/proc/{pid}/stat")
    for _ in range(10_000):
        try:
            if stat.read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.01)
    return False

"""int8 TFLite to the Edge TPU: run Coral's compiler where it is installed, and say beforehand what it
should make of a graph.

``compile_for_edgetpu`` asks Google's closed ``edgetpu_compiler`` and reads its log. ``check_for_edgetpu``
needs no compiler: it holds a graph against the constraints that Coral publishes. That check is this
project's own reading of them, and the compiler has the last word: it knows limits that are published
nowhere, such as how large an activation may be.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from convert.tflite import ConversionError

COMPILER = "edgetpu_compiler"
NOT_INSTALLED = (
    f"{COMPILER} is not installed, so no Edge TPU graph was made: see coral.ai/docs/edgetpu/compiler"
)
DEADLINE = 300.0
"""Seconds for the compiler, which gives itself 180 for a graph."""
EDGE_TPU_OPERATION = "edgetpu-custom-op"
MAPPED = "Mapped to Edge TPU"

SOURCE = "coral.ai/docs/edgetpu/models-intro (model requirements; supported operations), Edge TPU runtime 14"
ON_CHIP_BYTES = 8 * 2**20
"""Memory for parameters on the chip, "roughly 8 MB"; compiler logs show 6.9 to 7.9 MiB of it free."""

NEWEST_VERSION = {
    "ADD": 2, "AVERAGE_POOL_2D": 2, "CONCATENATION": 2, "CONV_2D": 3, "DEPTHWISE_CONV_2D": 3,
    "EXPAND_DIMS": 1, "FULLY_CONNECTED": 4, "L2_NORMALIZATION": 2, "LOGISTIC": 2, "MAXIMUM": 2,
    "MAX_POOL_2D": 2, "MEAN": 2, "MINIMUM": 2, "MUL": 3, "PACK": 2, "PAD": 2, "PRELU": 1, "QUANTIZE": 1,
    "REDUCE_MAX": 2, "REDUCE_MIN": 2, "RELU": 2, "RELU6": 2, "RELU_N1_TO_1": 1, "RESHAPE": 1,
    "RESIZE_BILINEAR": 3, "RESIZE_NEAREST_NEIGHBOR": 3, "RSQRT": 2, "SLICE": 2, "SOFTMAX": 2,
    "SPACE_TO_DEPTH": 2, "SPLIT": 2, "SQUARED_DIFFERENCE": 2, "SQUEEZE": 1, "STRIDED_SLICE": 2, "SUB": 2,
    "SUM": 2, "TANH": 2, "TRANSPOSE": 2, "TRANSPOSE_CONV": 3, "UNIDIRECTIONAL_SEQUENCE_LSTM": 3,
}  # fmt: skip
"""The supported operations, each with the newest version that is taken for safe.

ADD, CONV_2D, DEPTHWISE_CONV_2D, FULLY_CONNECTED, MEAN, QUANTIZE and SOFTMAX: the version in Coral's own
models. The others: the version of the 8-bit operation in TFLite 2.5 (its runtime_version.cc), which is of
the time of the last compiler, 16.0 of 2021. Later ones it cannot even parse: CONV_2D 6 (issue 631 of
google-coral/edgetpu) and TRANSPOSE_CONV 4 (issue 845) are reported.
"""
WEIGHTS = {
    "CONV_2D": (1, 2),
    "DEPTHWISE_CONV_2D": (1, 2),
    "FULLY_CONNECTED": (1, 2),
    "PRELU": (1,),
    "TRANSPOSE_CONV": (1, 3),
}
"""Which inputs are an operation's weights and biases."""
SOFTMAX_ELEMENTS = 16_000


@dataclass(frozen=True)
class OperatorCount:
    """A line of the compiler's table: so many operations of a kind, and what became of them."""

    operator: str
    count: int
    status: str


@dataclass(frozen=True)
class CompilerReport:
    """What the compiler's log says. ``mapped``, ``on_cpu``: operations; ``mapped_share``: 0 to 1.

    ``on_chip_bytes``: parameters kept on the chip; ``streamed_bytes``: parameters sent for every frame.
    """

    compiler: str
    subgraphs: int
    mapped: int
    on_cpu: int
    mapped_share: float
    on_chip_bytes: int
    streamed_bytes: int
    operators: tuple[OperatorCount, ...]


@dataclass(frozen=True)
class Compiled:
    """``sentence``: what came of it, in one line. ``model``: the content of an ``_edgetpu.tflite`` file;
    it and ``report`` are None where no compiler is installed."""

    sentence: str
    model: bytes | None = None
    report: CompilerReport | None = None


@dataclass(frozen=True)
class Operation:
    """An operation of a graph. ``output``, ``shape``: its first output's name and size, the name up to
    the first of the layers that were fused into it.

    ``reason``: why it is not ``ok``, or what cannot be told of it without the compiler.
    """

    index: int
    operator: str
    version: int
    output: str
    shape: tuple[int, ...]
    ok: bool
    reason: str


@dataclass(frozen=True)
class EdgeTpuCheck:
    """A graph held against the published constraints, by us and not by the compiler."""

    sentence: str
    maps_wholly: bool
    parameter_bytes: int
    operations: tuple[Operation, ...]
    source: str = SOURCE


def compile_for_edgetpu(model: bytes, allow_partial: bool = False, deadline: float = DEADLINE) -> Compiled:
    """Compile an int8 TFLite graph with the ``edgetpu_compiler`` on PATH, if there is one.

    ``deadline``: seconds. Raises ConversionError where the compiler fails, takes too long or writes what
    cannot be read, and where it leaves an operation on the CPU, unless ``allow_partial``.
    """
    compiler = shutil.which(COMPILER)
    if compiler is None:
        return Compiled(NOT_INSTALLED)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "model.tflite").write_bytes(model)
        log = _run([compiler, "-s", "model.tflite"], folder, deadline)
        output = folder / "model_edgetpu.tflite"
        if not output.is_file():
            raise ConversionError(f"{COMPILER} wrote no graph: {_complaint(log)}")
        compiled = output.read_bytes()
    report = read_compiler_log(log)
    total = report.mapped + report.on_cpu
    if report.on_cpu and not (allow_partial and report.mapped):
        left = [
            f"{row.count} {row.operator} ({row.status})" for row in report.operators if row.status != MAPPED
        ]
        raise ConversionError(
            f"{report.on_cpu} of {total} operations would stay on the CPU: {', '.join(left)}; "
            "change the network so that all of them map"
        )
    if EDGE_TPU_OPERATION not in {node.operator for node in _nodes(compiled, f"what {COMPILER} wrote")}:
        raise ConversionError(f"{COMPILER} wrote a graph without an {EDGE_TPU_OPERATION}; compile it again")
    sentence = (
        f"{report.mapped} of {total} operations run on the Edge TPU, in "
        f"{_counted(report.subgraphs, 'subgraph')}; {_mebibytes(report.on_chip_bytes)} of parameters stay on "
        f"the chip, {_mebibytes(report.streamed_bytes)} are streamed for every frame "
        f"(compiler {report.compiler})"
    )
    return Compiled(sentence, compiled, report)


def _run(command: list[str], folder: Path, deadline: float) -> str:
    """Run the compiler and return all that it printed."""
    printed = folder / "printed.txt"
    with printed.open("wb") as file:
        try:
            process = subprocess.Popen(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise ConversionError(f"{command[0]} cannot be started ({error}): install it again") from error
        try:
            code = process.wait(deadline)
        except subprocess.TimeoutExpired as error:
            raise ConversionError(
                f"{COMPILER} was stopped, since it took longer than {deadline:g} s: try a smaller network"
            ) from error
        finally:
            if process.returncode is None:
                # It compiles in a child process of its own, which would live on.
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    log = printed.read_text("utf-8", "replace")
    if code < 0:
        raise ConversionError(
            f"{COMPILER} was ended by signal {-code} ({signal.strsignal(-code)}): "
            "compile again with more memory free"
        )
    if code:
        raise ConversionError(f"{COMPILER} failed with exit code {code}: {_complaint(log)}")
    return log


def _complaint(log: str) -> str:
    """What a failed compiler gives as its reason, in one line."""
    lines = [" ".join(line.split()) for line in log.splitlines() if line.strip()]
    reasons = [
        line for line in lines
        if re.search(r"(?i)error|fail|invalid|could not|not quantized", line)
        and line != "Compilation failed!"
    ]  # fmt: skip
    return "; ".join(reasons or lines[-1:] or ["it gave no reason"])[:500]


def read_compiler_log(log: str) -> CompilerReport:
    """Read what ``edgetpu_compiler -s`` prints (versions 2 to 16).

    Raises ConversionError where a figure is missing or the table does not add up to the total.
    """

    def figure(name: str, form: str) -> str:
        match = re.search(rf"^{name}:? ({form})", log, re.MULTILINE)
        if match is None:
            raise ConversionError(f"cannot read the log of {COMPILER}, it lacks {name!r}: {_complaint(log)}")
        return match[1]

    size = "[0-9.]+[KMG]?i?B"
    total = int(figure("Total number of operations", r"\d+"))
    rows = re.findall(r"^([A-Z]\w*) {2,}(\d+) {2,}(\S.*?)\s*$", log, re.MULTILINE)
    operators = tuple(OperatorCount(name, int(count), status) for name, count, status in rows)
    listed = sum(row.count for row in operators)
    if listed != total or not total:
        raise ConversionError(
            f"cannot read the log of {COMPILER}: its table lists {listed} operations, its total is {total}"
        )
    mapped = sum(row.count for row in operators if row.status == MAPPED)
    return CompilerReport(
        compiler=figure("Edge TPU Compiler version", r"\S+"),
        subgraphs=int(figure("Number of Edge TPU subgraphs", r"\d+")),
        mapped=mapped,
        on_cpu=total - mapped,
        mapped_share=mapped / total,
        on_chip_bytes=_bytes(figure("On-chip memory used for caching model parameters", size)),
        streamed_bytes=_bytes(figure("Off-chip memory used for streaming uncached model parameters", size)),
        operators=operators,
    )


def _bytes(text: str) -> int:
    """Such as ``5.90MiB``."""
    number, unit = text.rstrip("KMGiB"), text.lstrip("0123456789.")
    return round(float(number) * 1024 ** ("BKMG".index(unit[0])))


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def check_for_edgetpu(model: bytes) -> EdgeTpuCheck:
    """Hold an int8 TFLite graph against the Edge TPU compiler's published constraints.

    Parameters beyond the chip's memory are no reason to refuse a graph, only a slower one, and are noted.
    Raises ConversionError where ``model`` is not a TFLite graph.
    """
    nodes = _nodes(model, "the graph to check")
    operations = []
    for index, node in enumerate(nodes):
        against = "; ".join(_objections(node))
        operations.append(
            Operation(
                index=index,
                operator=node.operator,
                version=node.version,
                output=node.outputs[0].name.partition(";")[0] if node.outputs else "",
                shape=node.shape,
                ok=not against,
                reason=against or CANNOT_TELL.get(node.operator, ""),
            )
        )
    parameters = _parameter_bytes(nodes)
    return EdgeTpuCheck(
        sentence=_sentence(operations, parameters),
        maps_wholly=all(operation.ok for operation in operations),
        parameter_bytes=parameters,
        operations=tuple(operations),
    )


def _sentence(operations: list[Operation], parameters: int) -> str:
    refused = [operation for operation in operations if not operation.ok]
    if refused:
        first = refused[0]
        verdict = (
            f"{len(refused)} of {len(operations)} operations should stay on the CPU, first number "
            f"{first.index}, {first.operator} ({first.reason}), and the compiler leaves what follows it "
            "there too"
        )
    else:
        verdict = f"all {_counted(len(operations), 'operation')} should map to the Edge TPU"
        if uncertain := sum(bool(operation.reason) for operation in operations):
            verdict += f", though {uncertain} may stay on the CPU for being large"
    memory = f"the parameters take {_mebibytes(parameters)}"
    if parameters > ON_CHIP_BYTES:
        memory += (
            f", more than the roughly {_mebibytes(ON_CHIP_BYTES)} on the chip: "
            "the rest is streamed for every frame, which is slow"
        )
    return f"By our own check, not the compiler's, {verdict}; {memory}."


@dataclass(frozen=True)
class _Tensor:
    """``dtype``: TFLite's name. ``sized``: the size is fixed. ``data``: the bytes of a constant."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    sized: bool
    state: bool
    zero_point: int
    buffer: int
    data: NDArray[np.uint8] | None

    def integers(self) -> NDArray[np.int32]:
        """An int32 constant's values: empty where it is none."""
        if self.data is None or self.dtype != "INT32":
            return np.zeros(0, np.int32)
        return self.data.view(np.int32)


@dataclass(frozen=True)
class _Node:
    """An operation: its options are the schema's own, its optional inputs may be None."""

    operator: str
    version: int
    options: Any
    inputs: tuple[_Tensor | None, ...]
    outputs: tuple[_Tensor, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.outputs[0].shape if self.outputs else ()

    def option(self, name: str) -> int:
        """An option by its name in the schema; 0, as there, where it is not written."""
        return int(getattr(self.options, name, 0))


def _nodes(content: bytes, what: str) -> list[_Node]:
    """The operations of a TFLite graph's main subgraph, in the order of running."""
    if content[4:8] != b"TFL3":
        raise ConversionError(f"{what} is not a TFLite graph: make it again")
    try:
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0))
        graph = model.subgraphs[0]
        tensors = [_tensor(tensor, model.buffers) for tensor in graph.tensors]
        nodes = []
        for operator in graph.operators:
            code = model.operatorCodes[operator.opcodeIndex]
            nodes.append(
                _Node(
                    operator=_operator_name(code),
                    version=code.version,
                    options=operator.builtinOptions,
                    inputs=tuple(tensors[i] if i >= 0 else None for i in _list(operator.inputs)),
                    outputs=tuple(tensors[i] for i in _list(operator.outputs)),
                )
            )
    except (struct.error, IndexError, KeyError, TypeError, ValueError) as error:
        raise ConversionError(f"{what} is a damaged TFLite graph: make it again") from error
    return nodes


def _list(vector: Any) -> Any:
    """A vector of the schema, which leaves out an empty one."""
    return [] if vector is None else vector


def _names(enumeration: type) -> dict[int, str]:
    return {value: name for name, value in vars(enumeration).items() if isinstance(value, int)}


OPERATORS = _names(schema.BuiltinOperator)
TYPES = _names(schema.TensorType)


def _operator_name(code: Any) -> str:
    # Operators under 127 are in the old field, newer ones in the new, the other being 0 or 127.
    number = max(code.builtinCode, code.deprecatedBuiltinCode)
    return code.customCode.decode() if code.customCode else OPERATORS[number]


def _tensor(tensor: Any, buffers: list[Any]) -> _Tensor:
    shape = _list(tensor.shape)
    signature = shape if tensor.shapeSignature is None else tensor.shapeSignature
    zero_points = None if tensor.quantization is None else tensor.quantization.zeroPoint
    return _Tensor(
        name=(tensor.name or b"").decode(),
        shape=tuple(int(n) for n in shape),
        dtype=TYPES[tensor.type],
        sized=all(n > 0 for n in signature),
        state=tensor.isVariable,
        zero_point=0 if zero_points is None else int(zero_points[0]),
        buffer=tensor.buffer,
        data=buffers[tensor.buffer].data,
    )


def _parameter_bytes(nodes: list[_Node]) -> int:
    constants = {
        tensor.buffer: len(tensor.data)
        for node in nodes for tensor in node.inputs
        if tensor is not None and tensor.data is not None
    }  # fmt: skip
    return sum(constants.values())


def _objections(node: _Node) -> Iterator[str]:
    """What the published constraints hold against an operation."""
    if node.operator not in NEWEST_VERSION:
        yield "not among the operations that the compiler supports"
    elif node.version > NEWEST_VERSION[node.operator]:
        yield (
            f"version {node.version} is newer than {NEWEST_VERSION[node.operator]}, the newest that is known "
            "to be taken"
        )
    yield from _tensor_objections(node)
    if any(i < len(node.inputs) and _computed(node.inputs[i]) for i in WEIGHTS.get(node.operator, ())):
        yield "its weights or biases are not constant"
    if limit := LIMITS.get(node.operator):
        yield from limit(node)


def _tensor_objections(node: _Node) -> Iterator[str]:
    tensors = [t for t in (*node.inputs, *node.outputs) if t is not None and not t.state]
    # Biases are 32-bit, and so are sizes and axes.
    types = {t.dtype for t in tensors} - {"INT8", "UINT8", "INT32"}
    types |= {t.dtype for t in tensors if _computed(t) and t.dtype == "INT32"}
    if types:
        yield f"works on {', '.join(sorted(types)).lower()}, not 8-bit"
    if not all(t.sized for t in tensors):
        yield "has a size that is not known at compile time"
    outer = [t.shape for t in tensors if _computed(t) and _large(t.shape[:-3])]
    if outer:
        yield f"has a batch or outer dimension over 1: {_by(outer[0])}"


def _computed(tensor: _Tensor | None) -> bool:
    return tensor is not None and tensor.data is None


def _large(dimensions: tuple[int, ...]) -> bool:
    return any(n > 1 for n in dimensions)


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


# The "known limitations" of Coral's table of supported operations, those that a graph shows.


def _not_fused(node: _Node) -> Iterator[str]:
    if node.option("fusedActivationFunction") != schema.ActivationFunctionType.NONE:
        yield "has a fused activation function"


def _concatenation(node: _Node) -> Iterator[str]:
    yield from _not_fused(node)
    constants = [tensor for tensor in node.inputs if tensor is not None and tensor.data is not None]
    zeros = all(
        (tensor.data == np.uint8(tensor.zero_point % 256)).all()
        for tensor in constants if tensor.data is not None
    )  # fmt: skip
    if constants and (len(node.inputs) != 2 or not zeros):
        yield "joins a constant that is not zeros beside one other input"


def _even_dilation(node: _Node) -> Iterator[str]:
    if node.option("dilationWFactor") != node.option("dilationHFactor"):
        yield "its dilation differs between x and y"


def _fully_connected(node: _Node) -> Iterator[str]:
    if node.option("weightsFormat") != schema.FullyConnectedOptionsWeightsFormat.DEFAULT:
        yield "its weights are not in the default format"
    yield from _one_dimensional(node)


def _one_dimensional(node: _Node) -> Iterator[str]:
    if _large(node.shape[:-1]):
        yield f"its output is not one-dimensional: {_by(node.shape)}"


def _softmax(node: _Node) -> Iterator[str]:
    yield from _one_dimensional(node)
    if np.prod(node.shape) > SOFTMAX_ELEMENTS:
        yield f"over {SOFTMAX_ELEMENTS} elements"


def _reduction(node: _Node) -> Iterator[str]:
    source, axes = node.inputs[:2]
    if source is not None and axes is not None and 0 in axes.integers() % max(len(source.shape), 1):
        yield "reduces the batch dimension"


def _mean(node: _Node) -> Iterator[str]:
    yield from _reduction(node)
    source, axes = node.inputs[:2]
    if source is None or axes is None or not source.shape:
        return
    last = len(source.shape) - 1
    if last in axes.integers() % len(source.shape) and source.shape[last] % 4:
        yield f"averages over {source.shape[last]} channels, not a multiple of 4"


def _pack(node: _Node) -> Iterator[str]:
    if node.option("axis") % len(node.shape) == 0:
        yield "packs in the batch dimension"


def _pad(node: _Node) -> Iterator[str]:
    amounts = node.inputs[1]
    if amounts is not None and amounts.integers()[:2].any():
        yield "pads the batch dimension"


def _prelu(node: _Node) -> Iterator[str]:
    slopes = node.inputs[1]
    if slopes is not None and _large(slopes.shape[:-1]):
        yield f"its slopes are not one-dimensional: {_by(slopes.shape)}"


def _split(node: _Node) -> Iterator[str]:
    axis = node.inputs[0]
    if axis is not None and 0 in axis.integers() % len(node.shape):
        yield "splits the batch dimension"


def _strided_slice(node: _Node) -> Iterator[str]:
    strides = node.inputs[3]
    if strides is not None and (strides.integers() != 1).any():
        yield "its strides are not all 1"
    if node.option("ellipsisMask") or node.option("newAxisMask"):
        yield "has an ellipsis or new axis mask"


LIMITS: dict[str, Callable[[_Node], Iterator[str]]] = {
    "AVERAGE_POOL_2D": _not_fused,
    "CONCATENATION": _concatenation,
    "CONV_2D": _even_dilation,
    "DEPTHWISE_CONV_2D": _even_dilation,
    "FULLY_CONNECTED": _fully_connected,
    "MAX_POOL_2D": _not_fused,
    "MEAN": _mean,
    "PACK": _pack,
    "PAD": _pad,
    "PRELU": _prelu,
    "REDUCE_MAX": _reduction,
    "REDUCE_MIN": _reduction,
    "SOFTMAX": _softmax,
    "SPLIT": _split,
    "STRIDED_SLICE": _strided_slice,
    "SUM": _reduction,
}
CANNOT_TELL = dict.fromkeys(
    ("RESHAPE", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"), "may stay on the CPU where it is large"
)

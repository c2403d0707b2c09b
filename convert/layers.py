"""Which layer of an int8 graph loses what the float network knew.

Every operation is judged alone: it gets what the float network itself computes at that place, rounded to
the grids of its inputs, and its integer answer is compared with the float operation's answer to the very
same rounded inputs. What earlier layers broke therefore never counts against a later one. Running the
whole int8 graph and comparing tensors does not have this property: behind a broken layer its neighbours
get inputs that they were never calibrated for, and saturate.

The int8 side runs on TFLite's built-in kernels: tensors kept under XNNPACK are not what the next
operation reads. Signal to quantization noise as a figure a layer follows Lin 2016 (arXiv 1511.06393).
"""

from __future__ import annotations

import copy
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from ai_edge_litert.tools import flatbuffer_utils
from numpy.typing import NDArray

from convert.tflite import ConversionError
from training.fitting import scaled

Image = NDArray[np.uint8]
Float = NDArray[np.float32]
Tensor = NDArray[Any]

INPUTS, FREED_INPUTS = 32, 8
BINS = 48
THREADS = 2
INPUT = -1
"""Index of the graph's input among the layers."""
BOUND_DB = 120.0
"""Decibels are kept within this: float32's own rounding lies about there."""
BROKEN_DB = 12.0
"""``Layer.lost_db`` from which a layer is broken and not just hard: an error four times what it must be.
Trained layers as TensorFlow 2.21 converts them lose up to 8.5, those with ranges or weights spoilt by a
factor of eight 17 and more."""
SAME_SCALE = 0.01
"""Relative."""
SAME_VALUES = 0.25
"""Largest relative difference (of L2 norms) between dequantized and float weights that are taken for
the same: int8 leaves some 0.01 to 0.1."""
WIDE = (np.int32, np.int64)
"""Types of biases."""
RESCALING = ("QUANTIZE", "DEQUANTIZE")
FIXED_STEP = {"LOGISTIC": 1 / 256, "SOFTMAX": 1 / 256, "TANH": 1 / 128, "L2_NORMALIZATION": 1 / 128}
"""Output steps that TFLite's int8 kernels prescribe, whatever the range."""

ONE_SCALE = {
    "AVERAGE_POOL_2D", "BATCH_TO_SPACE_ND", "CONCATENATION", "DEPTH_TO_SPACE", "EXPAND_DIMS", "GATHER",
    "MAX_POOL_2D", "MAXIMUM", "MINIMUM", "MIRROR_PAD", "PACK", "PAD", "PADV2", "RESHAPE", "RESIZE_BILINEAR",
    "RESIZE_NEAREST_NEIGHBOR", "SLICE", "SPACE_TO_BATCH_ND", "SPACE_TO_DEPTH", "SPLIT", "SPLIT_V", "SQUEEZE",
    "STRIDED_SLICE", "TILE", "TRANSPOSE", "UNPACK",
}  # fmt: skip
"""Operations whose int8 kernels want one scale for inputs and outputs."""

_KINDS = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
_TYPES: dict[int, Any] = {
    schema.TensorType.FLOAT32: np.float32,
    schema.TensorType.INT8: np.int8,
    schema.TensorType.UINT8: np.uint8,
    schema.TensorType.INT16: np.int16,
    schema.TensorType.INT32: np.int32,
    schema.TensorType.INT64: np.int64,
    schema.TensorType.BOOL: np.bool_,
}


@dataclass(frozen=True)
class Histogram:
    """Values in bins of equal width from ``low`` to ``high``, of the float operation and the int8 one."""

    low: float
    high: float
    float_counts: tuple[int, ...]
    int8_counts: tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """One operation of the int8 graph, judged alone; errors in steps are divided by ``scale``.

    ``index``: its place among the int8 graph's operations, ``INPUT`` for the graph's input. ``name``:
    unique; the Keras layer's where the tensor names tell it, with ``#index`` where layers share it.
    ``float_range``: what the float network has there. ``int8_range``: what the int8 tensor can hold.
    ``saturated``: share of the float operation's values more than half a step outside ``int8_range``; a
    fused ReLU has cut the float values already, so that its ceiling is not counted.

    ``lost_db``: by how much the error exceeds what int8 must cost this layer: its float weights rounded
    on the best grid of 8 bits that their channels allow, and its output on the best for ``float_range``
    (zero included), or for that of all tensors that kernels want on one scale, as those that are
    concatenated. 0 where it does not. Layers are sorted by it, worst first. SQNR alone names the
    layers that suffer most and not those that are wrong, since healthy layers of rare large values or of
    unequal weights have a low one; error in steps does not notice a scale that is too coarse.

    ``sqnr_db``: signal to noise of the layer alone. ``sqnr_so_far_db``: of the whole int8 graph's tensor
    against the float network's. ``rmse_steps``: ideal rounding gives 0.29. ``bias_steps``: mean error.
    ``weights_rmse_steps``: int8 weights and biases alone, in float arithmetic and not rounded.
    ``output_rmse_steps``: float weights, the output rounded and clamped. ``scale_expected``: the scale
    that a following layer's biases were made for, where it is another: then the scale was changed after
    conversion, that layer misreads its biases, and this is counted here. ``map_rmse_if_float``: what
    ``Blame.map_rmse`` becomes if this layer alone is computed in float.
    """

    index: int
    name: str
    op: str
    shape: tuple[int, ...]
    scale: float
    zero_point: int
    float_range: tuple[float, float]
    int8_range: tuple[float, float]
    saturated: float
    lost_db: float
    sqnr_db: float
    sqnr_so_far_db: float
    rmse_steps: float
    bias_steps: float
    weights_rmse_steps: float
    output_rmse_steps: float
    histogram: Histogram
    scale_expected: float | None
    map_rmse_if_float: float | None


@dataclass(frozen=True)
class Difference:
    """The dequantized map less the float one, absolute: mean, root of the mean square, largest."""

    mean: float
    rmse: float
    largest: float


@dataclass(frozen=True)
class Blame:
    """What int8 cost. ``layers``: worst first. ``int8``: the graph itself, on built-in kernels. The
    other three are emulated in float: int8 weights alone, rounded activations alone, and both.
    ``map_rmse``: of both, on the inputs that ``Layer.map_rmse_if_float`` was found on."""

    inputs: int
    layers: tuple[Layer, ...]
    int8: Difference
    weights_only: Difference
    activations_only: Difference
    both: Difference
    map_rmse: float | None


def find_blame(
    model: bytes, reference: bytes, inputs: Image, count: int = INPUTS, freed: int = FREED_INPUTS
) -> Blame:
    """Judge an int8 TFLite graph, layer by layer, against the float32 graph of the same network.

    ``inputs``: uint8 [n, size, size, channels], of which at most ``count`` are read, evenly spread, and
    ``freed`` of these for ``map_rmse_if_float`` (0: not found; one emulation a layer). Layers may also
    have been left in float or have 16-bit activations. Raises ConversionError where the graphs do not
    match, have several outputs or subgraphs, or cannot be run.
    """
    graphs = _Matched(_Graph(model, "the int8 graph"), _Graph(reference, "the reference"))
    inputs = _spread(inputs, count)
    tallies = _tally(graphs, inputs)
    exact = graphs.emulated((), ())
    float_maps = np.stack([exact(scaled(x[None])) for x in inputs])

    def apart(maps: Callable[[Float], Float], some: Iterable[int]) -> Difference:
        found = np.stack([maps(graphs.seen(inputs[i])) for i in some])
        return _difference(found, float_maps[list(some)])

    every = range(len(inputs))
    operations = set(graphs.operations)
    rmse, if_float = None, {}
    if freed:
        some = _spread(np.arange(len(inputs)), freed)
        rmse = apart(graphs.emulated(operations, operations), some).rmse
        for place in {tally.place for tally in tallies} - {INPUT}:
            rest = operations - {place}
            if_float[place] = apart(graphs.emulated(rest, rest), some).rmse
    layers = [tally.layer(if_float.get(tally.place)) for tally in tallies]
    return Blame(
        inputs=len(inputs),
        layers=tuple(sorted(layers, key=lambda layer: (-layer.lost_db, layer.sqnr_db))),
        int8=_difference(np.stack([graphs.int8_map(x) for x in inputs]), float_maps),
        weights_only=apart(graphs.emulated(operations, ()), every),
        activations_only=apart(graphs.emulated((), operations), every),
        both=apart(graphs.emulated(operations, operations), every),
        map_rmse=rmse,
    )


class _Graph:
    """A TFLite model as objects that can be taken apart, and its interpreter that keeps every tensor.

    Raises ConversionError where it cannot be run or is not one graph from one tensor to another.
    """

    def __init__(self, model: bytes, where: str) -> None:
        self.interpreter = _interpreter(model, where, preserve=True)
        content = flatbuffer_utils.read_model_from_bytearray(bytearray(model))
        graph = content.subgraphs[0]
        if len(content.subgraphs) > 1 or len(graph.inputs) != 1 or len(graph.outputs) != 1:
            raise ConversionError(f"{where}: only one graph of one input and one output can be judged")
        self.where = where
        self.codes, self._buffers = content.operatorCodes, content.buffers
        self.tensors, self.operators = graph.tensors, graph.operators
        self.input, self.output = int(graph.inputs[0]), int(graph.outputs[0])
        self.producer = {int(t): place for place, op in enumerate(self.operators) for t in op.outputs}

    def kind(self, place: int) -> str:
        """An operation's type in TFLite's words, CUSTOM and the like too."""
        code = self.codes[self.operators[place].opcodeIndex]
        return _KINDS[flatbuffer_utils.get_builtin_code_from_operator_code(code)]

    def shape(self, tensor: int) -> tuple[int, ...]:
        return tuple(int(n) for n in _listed(self.tensors[tensor].shape))

    def type(self, tensor: int) -> Any:
        kind = self.tensors[tensor].type
        if kind not in _TYPES:
            raise ConversionError(f"{self.where}: {self.said(tensor)} is of a type that cannot be judged")
        return _TYPES[kind]

    def said(self, tensor: int) -> str:
        return str(self.tensors[tensor].name.decode("utf-8", "replace"))

    def is_constant(self, tensor: int) -> bool:
        return tensor not in self.producer and tensor != self.input

    def is_quantized(self, tensor: int) -> bool:
        grid = self.tensors[tensor].quantization
        return grid is not None and len(_listed(grid.scale)) > 0 and self.type(tensor) is not np.float32

    def constant(self, tensor: int) -> Tensor:
        data = self._buffers[self.tensors[tensor].buffer].data
        return np.frombuffer(bytes(data), self.type(tensor)).reshape(self.shape(tensor))

    def scales(self, tensor: int) -> Float:
        return np.asarray(self.tensors[tensor].quantization.scale, np.float32)

    def grid(self, tensor: int) -> _Grid:
        """The grid of a tensor that is not quantized by channel, as no activation is."""
        zero_points = self.tensors[tensor].quantization.zeroPoint
        return _Grid(float(self.scales(tensor)[0]), int(zero_points[0]), np.iinfo(self.type(tensor)))

    def dequantized(self, tensor: int, scales: Float | None = None) -> Float:
        """A constant in float, at its own scales or others."""
        quantization = self.tensors[tensor].quantization
        scales = self.scales(tensor) if scales is None else scales
        axes = [1] * len(self.shape(tensor))
        if len(scales) > 1:
            axes[int(quantization.quantizedDimension)] = -1
        zero_points = np.asarray(quantization.zeroPoint, np.float64).reshape(axes)
        scales = scales.reshape(axes)
        values = (self.constant(tensor).astype(np.float64) - zero_points) * scales
        return values.astype(np.float32)

    def kept(self, tensor: int) -> Tensor:
        """A tensor of the interpreter's last run."""
        return np.asarray(self.interpreter.get_tensor(tensor))

    def run(self, value: Tensor) -> None:
        self.interpreter.set_tensor(self.input, value)
        self.interpreter.invoke()


@dataclass(frozen=True)
class _Grid:
    """What an integer tensor can hold."""

    scale: float
    zero_point: int
    levels: np.iinfo[Any]

    @property
    def low(self) -> float:
        return (self.levels.min - self.zero_point) * self.scale

    @property
    def high(self) -> float:
        return (self.levels.max - self.zero_point) * self.scale

    def dequantized(self, values: Tensor) -> Float:
        floats = values.astype(np.float32)
        floats -= np.float32(self.zero_point)
        floats *= np.float32(self.scale)
        return floats

    def quantized(self, values: Float) -> Tensor:
        steps = np.rint(values / np.float32(self.scale)) + self.zero_point
        return np.clip(steps, self.levels.min, self.levels.max).astype(self.levels.dtype)


class _Assembly:
    """A TFLite model being put together out of other models' tensors and operations."""

    def __init__(self) -> None:
        self._graph = schema.SubGraphT(tensors=[], operators=[], name=b"main")
        self._model = schema.ModelT(
            version=3, operatorCodes=[], subgraphs=[self._graph], buffers=[schema.BufferT()]
        )

    def tensor(self, like: Any, grid: _Grid | None = None) -> int:
        """A tensor of another's shape, type and, without ``grid``, grid; without its content."""
        new = copy.copy(like)
        new.buffer, new.name = 0, f"tensor{len(self._graph.tensors)}".encode()
        if grid is not None:
            new.quantization = schema.QuantizationParametersT(
                scale=np.asarray([grid.scale], np.float32), zeroPoint=np.asarray([grid.zero_point], np.int64)
            )
        self._graph.tensors.append(new)
        return len(self._graph.tensors) - 1

    def float_tensor(self, shape: Sequence[int]) -> int:
        return self.tensor(
            schema.TensorT(shape=np.asarray(shape, np.int32), type=schema.TensorType.FLOAT32, hasRank=True)
        )

    def constant(self, like: Any, content: Tensor) -> int:
        new = self.tensor(like)
        self._graph.tensors[new].buffer = len(self._model.buffers)
        data = np.ascontiguousarray(content).reshape(-1).view(np.uint8)
        self._model.buffers.append(schema.BufferT(data=data))
        return new

    def operation(self, code: Any, operator: Any, inputs: list[int], outputs: list[int]) -> None:
        if code not in self._model.operatorCodes:
            self._model.operatorCodes.append(code)
        new = copy.copy(operator)
        new.opcodeIndex = self._model.operatorCodes.index(code)
        new.inputs, new.outputs = np.asarray(inputs, np.int32), np.asarray(outputs, np.int32)
        self._graph.operators.append(new)

    def quantize(self, source: int, like: Any, grid: _Grid | None = None) -> int:
        target = self.tensor(like, grid)
        self.operation(_QUANTIZE, schema.OperatorT(), [source], [target])
        return target

    def dequantize(self, source: int) -> int:
        target = self.float_tensor(self._graph.tensors[source].shape)
        self.operation(_DEQUANTIZE, schema.OperatorT(), [source], [target])
        return target

    def interpreter(self, inputs: list[int], outputs: list[int], where: str, builtin: bool) -> Interpreter:
        self._graph.inputs, self._graph.outputs = np.asarray(inputs, np.int32), np.asarray(outputs, np.int32)
        content = bytes(flatbuffer_utils.convert_object_to_bytearray(self._model))
        return _interpreter(content, where, builtin=builtin)


def _code(operator: int) -> Any:
    return schema.OperatorCodeT(deprecatedBuiltinCode=operator, builtinCode=operator, version=2)


_QUANTIZE = _code(schema.BuiltinOperator.QUANTIZE)
_DEQUANTIZE = _code(schema.BuiltinOperator.DEQUANTIZE)


def _interpreter(model: bytes, where: str, preserve: bool = False, builtin: bool = True) -> Interpreter:
    resolver = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES if builtin else OpResolverType.AUTO
    try:
        interpreter = Interpreter(
            model_content=model,
            num_threads=THREADS,
            experimental_op_resolver_type=resolver,
            experimental_preserve_all_tensors=preserve,
        )
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise ConversionError(f"{where}: TFLite cannot run it ({' '.join(str(error).split())})") from error
    return interpreter


class _Matched:
    """The two graphs side by side.

    ``operations``: the int8 graph's operations in their order, each with its float counterpart; None
    where it only goes over to another grid. ``counterparts``: the float tensor of each int8 activation.
    """

    def __init__(self, ours: _Graph, reference: _Graph) -> None:
        self.ours, self.reference = ours, reference
        found, self.counterparts = _match(ours, reference)
        self.operations = dict(sorted(found.items()))
        self.names = _names(ours, self.operations)
        self.expected = {
            place: scale for place in self.operations if (scale := self._expected_scale(place)) is not None
        }

    def fed(self, pixels: Image) -> Tensor:
        """What the int8 graph's input tensor is given: pixels as they are where it takes uint8."""
        kind = self.ours.type(self.ours.input)
        if kind is np.uint8:
            return pixels[None]
        values = scaled(pixels[None])
        return values if kind is np.float32 else self.ours.grid(self.ours.input).quantized(values)

    def seen(self, pixels: Image) -> Float:
        """What the int8 graph takes pixels for."""
        return self.floats(self.ours.input, self.fed(pixels))

    def floats(self, tensor: int, values: Tensor) -> Float:
        return self.ours.grid(tensor).dequantized(values) if self.ours.is_quantized(tensor) else values

    def int8_map(self, pixels: Image) -> Float:
        self.ours.run(self.fed(pixels))
        return self.floats(self.ours.output, self.ours.kept(self.ours.output))

    def activations(self, place: int) -> list[int]:
        """An int8 operation's inputs that are not constants, each once."""
        inputs = dict.fromkeys(map(int, self.ours.operators[place].inputs))
        return [t for t in inputs if t >= 0 and not self.ours.is_constant(t)]

    def _constants(self, place: int) -> list[int]:
        return [
            t
            for t in map(int, self.ours.operators[place].inputs)
            if t >= 0 and self.ours.is_constant(t) and self.ours.is_quantized(t)
        ]

    def _biased(self, place: int) -> tuple[int, int, int] | None:
        """Input, weights and bias of an operation whose bias is a sum of products' units."""
        constants, inputs = self._constants(place), self.activations(place)
        biases = [t for t in constants if self.ours.type(t) in WIDE]
        weights = [t for t in constants if self.ours.type(t) not in WIDE]
        if len(inputs) == len(weights) == len(biases) == 1 and self.ours.is_quantized(inputs[0]):
            return inputs[0], weights[0], biases[0]
        return None

    def _expected_scale(self, place: int) -> float | None:
        """The input's scale that the bias was made for, where it is another than the input's.

        Kernels take biases for multiples of input scale times weight scale and ignore the bias's own.
        Where weights and biases are right at their own scales, it is the input's that was changed.
        """
        if (biased := self._biased(place)) is None or not self.ours.constant(biased[2]).any():
            return None
        source, weights, bias = biased
        implied = float(np.median(self.ours.scales(bias) / self.ours.scales(weights)))
        if abs(implied / self.ours.grid(source).scale - 1) <= SAME_SCALE:
            return None
        theirs = self._float_constants(place)
        right = all(
            t in theirs and _same(self.ours.dequantized(t), self.reference.constant(theirs[t]))
            for t in (weights, bias)
        )
        return implied if right else None

    def _float_constants(self, place: int) -> dict[int, int]:
        other = self.operations[place]
        pairs = () if other is None else _pairs(self.ours.operators[place], self.reference.operators[other])
        return {ours: theirs for ours, theirs in pairs if theirs >= 0}

    def _int8_weights(self, place: int, expected: bool) -> Callable[[int, int], Float]:
        """Quantized constants as the kernel reads them; ``expected``: at the input's expected scale."""
        biased = self._biased(place)

        def read(ours: int, _: int) -> Float:
            if biased is None or ours != biased[2]:
                return self.ours.dequantized(ours)
            scale = self.ours.grid(biased[0]).scale
            if expected:
                scale = self.expected.get(place, scale)
            return self.ours.dequantized(ours, self.ours.scales(biased[1]) * np.float32(scale))

        return read

    def _best_weights(self, ours: int, theirs: int) -> Float:
        """The float constant rounded as well as 8 bits can, by channel where the int8 graph's is."""
        if theirs < 0 or self.ours.type(ours) in WIDE:
            return self.ours.dequantized(ours) if theirs < 0 else self.reference.constant(theirs)
        values = self.reference.constant(theirs)
        axis = int(self.ours.tensors[ours].quantization.quantizedDimension)
        rest = tuple(i for i in range(values.ndim) if i != axis)
        by_channel = len(self.ours.scales(ours)) > 1
        largest = np.abs(values).max(axis=rest if by_channel else None, keepdims=True)
        step = np.where(largest > 0, largest, 1) / np.float32(np.iinfo(self.ours.type(ours)).max)
        return (np.rint(values / step) * step).astype(np.float32)

    def _float_operation(
        self, assembly: _Assembly, place: int, at: dict[int, int], weights: Callable[[int, int], Float] | None
    ) -> list[int]:
        """Add the float counterpart of an operation; its outputs. ``at``: the activations' places.
        ``weights``: what stands for the float constants that are quantized in the int8 graph, given both
        graphs' tensors (the second -1 where there is none)."""
        other = self.operations[place]
        assert other is not None
        operator = self.reference.operators[other]
        inputs = []
        for ours, theirs in _pairs(self.ours.operators[place], operator):
            if ours in at:
                inputs.append(at[ours])
            elif weights and ours >= 0 and self.ours.is_quantized(ours):
                content = weights(ours, theirs)
                like = schema.TensorT(
                    shape=np.asarray(content.shape, np.int32), type=schema.TensorType.FLOAT32, hasRank=True
                )
                inputs.append(assembly.constant(like, content))
            elif theirs >= 0:
                like = self.reference.tensors[theirs]
                inputs.append(assembly.constant(like, self.reference.constant(theirs)))
            else:
                inputs.append(-1)
        outputs = [assembly.tensor(self.reference.tensors[t]) for t in operator.outputs]
        assembly.operation(self.reference.codes[operator.opcodeIndex], operator, inputs, outputs)
        return outputs

    def emulated(self, int8_weights: Container[int], rounded: Container[int]) -> Callable[[Float], Float]:
        """The float network where the operations ``int8_weights`` have the int8 graph's weights and
        the outputs of ``rounded`` are rounded and clamped to the int8 graph's grids: a function from
        float32 [1, size, size, channels] to the class map."""
        ours, assembly = self.ours, _Assembly()
        source = assembly.float_tensor(ours.shape(ours.input))
        at = {ours.input: source}
        for place, other in self.operations.items():
            operator = ours.operators[place]
            if other is None:
                outputs = [at[int(operator.inputs[0])]]
            else:
                weights = self._int8_weights(place, expected=False) if place in int8_weights else None
                outputs = self._float_operation(assembly, place, at, weights)
            for tensor, output in zip(map(int, operator.outputs), outputs, strict=True):
                if place in rounded and ours.is_quantized(tensor):
                    output = assembly.dequantize(assembly.quantize(output, ours.tensors[tensor]))
                at[tensor] = output
        target = at[ours.output]
        interpreter = assembly.interpreter([source], [target], "the emulated network", builtin=False)

        def run(values: Float) -> Float:
            interpreter.set_tensor(source, values)
            interpreter.invoke()
            return np.asarray(interpreter.get_tensor(target))

        return run

    def probe(self, place: int, output: int, best_grid: _Grid) -> Callable[[], _Answers]:
        """One operation alone, in one model: the int8 one, the float one on the same rounded inputs, and
        the float one with other weights. The function reads the reference's kept tensors."""
        ours, assembly = self.ours, _Assembly()
        operator = ours.operators[place]
        target = int(operator.outputs[output])
        sources, integers, floats = {}, {}, {}
        for t in self.activations(place):
            source = assembly.float_tensor(ours.shape(t))
            sources[self.counterparts[t]] = integers[t] = floats[t] = source
            if ours.is_quantized(t):
                grid = ours.grid(t)
                if place in self.expected:
                    grid = replace(grid, scale=self.expected[place])
                integers[t] = assembly.quantize(source, ours.tensors[t], grid)
                floats[t] = assembly.dequantize(integers[t])
        inputs = [
            integers[t] if t in integers
            else assembly.constant(ours.tensors[t], ours.constant(t)) if t >= 0
            else -1
            for t in map(int, operator.inputs)
        ]  # fmt: skip
        outputs = [assembly.tensor(ours.tensors[t]) for t in operator.outputs]
        assembly.operation(ours.codes[operator.opcodeIndex], operator, inputs, outputs)
        if self.operations[place] is None:
            exact = weighed = best = next(iter(floats.values()))
        else:
            exact = weighed = best = self._float_operation(assembly, place, floats, None)[output]
            if self._constants(place):
                int8_weights = self._int8_weights(place, expected=True)
                weighed = self._float_operation(assembly, place, floats, int8_weights)[output]
                best = self._float_operation(assembly, place, floats, self._best_weights)[output]
        rounded = assembly.quantize(exact, ours.tensors[target])
        best_rounded = assembly.quantize(exact, ours.tensors[target], best_grid)
        wanted = [outputs[output], exact, weighed, best, rounded, best_rounded]
        interpreter = assembly.interpreter(
            list(sources.values()), list(dict.fromkeys(wanted)), self.names[place], builtin=True
        )

        def run() -> _Answers:
            for tensor, source in sources.items():
                interpreter.set_tensor(source, self.reference.kept(tensor))
            interpreter.invoke()
            int8, exact, weighed, best, rounded, best_rounded = (interpreter.get_tensor(t) for t in wanted)
            return _Answers(
                exact=exact,
                int8=self.floats(target, int8),
                weighed=weighed,
                best_weighed=best,
                rounded=self.floats(target, rounded),
                best_rounded=best_grid.dequantized(best_rounded),
            )

        return run

    def input_answers(self, best_grid: _Grid) -> Callable[[], _Answers]:
        """The same of the graph's input, which has no operation: what pixels are and are taken for."""
        grid, tensor = self.ours.grid(self.ours.input), self.ours.input

        def run() -> _Answers:
            exact = self.reference.kept(self.reference.input)
            return _Answers(
                exact=exact,
                int8=grid.dequantized(self.ours.kept(tensor)),
                weighed=exact,
                best_weighed=exact,
                rounded=grid.dequantized(grid.quantized(exact)),
                best_rounded=best_grid.dequantized(best_grid.quantized(exact)),
            )

        return run


@dataclass(frozen=True)
class _Answers:
    """What an operation makes of one input: in float; in int8, dequantized; in float with the int8
    weights, or the best ones; in float, rounded to the int8 tensor's grid, or the best one."""

    exact: Float
    int8: Float
    weighed: Float
    best_weighed: Float
    rounded: Float
    best_rounded: Float


def _pairs(ours: Any, theirs: Any) -> Iterator[tuple[int, int]]:
    """Inputs of two operations by position, -1 where one lacks an optional input."""
    for a, b in zip_longest(ours.inputs, theirs.inputs, fillvalue=-1):
        yield int(a), int(b)


def _match(ours: _Graph, reference: _Graph) -> tuple[dict[int, int | None], dict[int, int]]:
    """Walk both graphs from their outputs back to their inputs: names and order may differ, structure
    may not. Operations of the int8 graph with their counterparts, and activations with theirs.

    Raises ConversionError at the first place where they differ.
    """
    operations: dict[int, int | None] = {}
    tensors: dict[int, int] = {}
    todo = [(ours.output, reference.output)]
    while todo:
        a, b = todo.pop()
        if tensors.get(a) == b:
            continue
        if tensors.setdefault(a, b) != b or ours.shape(a) != reference.shape(b):
            raise _unlike(ours, a, reference, b, "another tensor or shape")
        if a == ours.input and b == reference.input:
            continue
        place, other = ours.producer.get(a), reference.producer.get(b)
        if place is None:
            raise _unlike(ours, a, reference, b, "an input or constant against an operation")
        operator = ours.operators[place]
        if ours.kind(place) in RESCALING:
            operations[place] = None
            todo.append((int(operator.inputs[0]), b))
            continue
        if other is None or ours.kind(place) != reference.kind(other):
            theirs = "nothing" if other is None else reference.kind(other)
            raise _unlike(ours, a, reference, b, f"{ours.kind(place)} against {theirs}")
        operations[place] = other
        if list(operator.outputs).index(a) != list(reference.operators[other].outputs).index(b):
            raise _unlike(ours, a, reference, b, "another output of the operation")
        for x, y in _pairs(operator, reference.operators[other]):
            if x >= 0 and not ours.is_constant(x):
                if y < 0 or reference.is_constant(y):
                    raise _unlike(ours, x, reference, y, "an activation against a constant")
                todo.append((x, y))
            elif x >= 0 and ours.is_quantized(x) and not ours.is_quantized(a):
                raise ConversionError(f"{ours.where}: {ours.said(a)} is float32 though its weights are not")
    return operations, tensors


def _unlike(ours: _Graph, a: int, reference: _Graph, b: int, why: str) -> ConversionError:
    named = reference.said(b) if b >= 0 else "nothing"
    return ConversionError(
        f"{ours.where} and {reference.where} are not of one network: {ours.said(a)} against {named}, "
        f"{why}; give the float32 conversion of the same network"
    )


def _same(found: Float, expected: Float) -> bool:
    return bool(np.linalg.norm(found - expected) <= SAME_VALUES * np.linalg.norm(expected))


def _listed(values: Any) -> Sequence[Any]:
    """A flatbuffer vector, which is None where it is empty."""
    return () if values is None else values


def _names(graph: _Graph, places: Container[int]) -> dict[int, str]:
    """The Keras layers' names, unique."""
    named = {place: _layer_name(graph, place) for place in range(len(graph.operators)) if place in places}
    often = Counter(named.values())
    return {p: name if often[name] == 1 else f"{name}#{p}" for p, name in named.items()}


def _layer_name(graph: _Graph, place: int) -> str:
    """The Keras layer of an operation. Tensor names join the paths of all that was fused, as in
    ``net_1/stem_activation_1/Relu6;net_1/stem_conv_1/convolution``; weights are named best."""
    operator = graph.operators[place]
    constants = [t for t in map(int, operator.inputs) if t >= 0 and graph.is_constant(t)]
    candidates = [*map(int, operator.outputs), *constants]
    paths = [path.split("/") for tensor in candidates for path in graph.said(tensor).split(";")]
    deep = [path for path in paths if len(path) > 1]
    kernels = [path for path in deep if re.match(r"(?i).*(conv|depthwise|matmul)", "/".join(path[2:]))]
    best = (kernels or deep or paths)[0]
    if len(best) < 3:
        return best[-1]
    # The tracer numbers the model and its layers alike: net_1/stem_conv_1.
    return re.sub(r"_\d+$", "", best[1]) if re.search(r"_\d+$", best[0]) else best[1]


def _spread(values: NDArray[Any], count: int) -> NDArray[Any]:
    """At most ``count`` of the values, evenly spread."""
    return values[np.linspace(0, len(values) - 1, min(count, len(values))).round().astype(int)]


@dataclass
class _Tally:
    """Sums over inputs for one layer; no tensor is kept."""

    place: int
    name: str
    op: str
    shape: tuple[int, ...]
    grid: _Grid
    float_range: tuple[float, float]
    scale_expected: float | None
    count: int = 0
    saturated: int = 0
    power: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    error: float = 0.0
    float_counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    int8_counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def add(self, answers: _Answers, network: Float, graph: Float) -> None:
        """Count one input in. ``network``, ``graph``: this tensor in the float network and in the
        int8 graph as a whole."""
        exact, half = answers.exact, self.grid.scale / 2
        wrong = answers.int8 - exact
        self.count += exact.size
        self.error += float(wrong.sum(dtype=np.float64))
        outside = (exact > self.grid.high + half) | (exact < self.grid.low - half)
        self.saturated += int(np.count_nonzero(outside))
        for name, values in (
            ("signal", exact),
            ("noise", wrong),
            ("weights", answers.weighed - exact),
            ("best weights", answers.best_weighed - exact),
            ("output", answers.rounded - exact),
            ("best output", answers.best_rounded - exact),
            ("network", network),
            ("so far", graph - network),
        ):
            self.power[name] += _power(values)
        self.float_counts += self._counts(exact)
        self.int8_counts += self._counts(answers.int8)

    def _bounds(self) -> tuple[float, float]:
        return min(self.float_range[0], self.grid.low), max(self.float_range[1], self.grid.high)

    def _counts(self, values: Float) -> NDArray[np.int64]:
        low, high = self._bounds()
        bins = ((values.ravel() - np.float32(low)) * np.float32(BINS / (high - low))).astype(np.intp)
        return np.bincount(np.clip(bins, 0, BINS - 1), minlength=BINS)

    def _lost(self) -> float:
        """The larger of what the layer and what its grid alone lose: weights can err so much by
        themselves that a grid hides behind them."""
        must = self.power["best weights"] + self.power["best output"]
        pairs = (self.power["noise"], must), (self.power["output"], self.power["best output"])
        return max([0.0, *(_decibels(power, least) for power, least in pairs if power > 0)])

    def layer(self, map_rmse_if_float: float | None) -> Layer:
        def steps(name: str) -> float:
            return math.sqrt(self.power[name] / self.count) / self.grid.scale

        low, high = self._bounds()
        return Layer(
            index=self.place,
            name=self.name,
            op=self.op,
            shape=self.shape,
            scale=self.grid.scale,
            zero_point=self.grid.zero_point,
            float_range=self.float_range,
            int8_range=(self.grid.low, self.grid.high),
            saturated=self.saturated / self.count,
            lost_db=self._lost(),
            sqnr_db=_decibels(self.power["signal"], self.power["noise"]),
            sqnr_so_far_db=_decibels(self.power["network"], self.power["so far"]),
            rmse_steps=steps("noise"),
            bias_steps=self.error / self.count / self.grid.scale,
            weights_rmse_steps=steps("weights"),
            output_rmse_steps=steps("output"),
            histogram=Histogram(
                low, high, tuple(self.float_counts.tolist()), tuple(self.int8_counts.tolist())
            ),
            scale_expected=self.scale_expected,
            map_rmse_if_float=map_rmse_if_float,
        )


def _power(values: Float) -> float:
    flat = values.ravel()
    return float(np.dot(flat, flat))


def _decibels(power: float, reference: float) -> float:
    if power <= 0 or reference <= 0:
        return math.copysign(BOUND_DB, power - reference) if power != reference else BOUND_DB
    return float(np.clip(10 * math.log10(power / reference), -BOUND_DB, BOUND_DB))


def _tally(graphs: _Matched, inputs: Image) -> list[_Tally]:
    """Judge every quantized tensor over the inputs, the graph's input first."""
    ours, reference = graphs.ours, graphs.reference
    ranges = _float_ranges(graphs, inputs)
    shared = _shared_ranges(graphs, ranges)
    expected = {graphs.activations(place)[0]: scale for place, scale in graphs.expected.items()}
    judged: list[tuple[_Tally, int, Callable[[], _Answers]]] = []

    def begin(place: int, name: str, op: str, tensor: int, probe: Callable[[], _Answers]) -> None:
        tally = _Tally(
            place=place,
            name=name,
            op=op,
            shape=ours.shape(tensor),
            grid=ours.grid(tensor),
            float_range=ranges[tensor],
            scale_expected=expected.get(tensor),
        )
        judged.append((tally, tensor, probe))

    if not any(ours.is_quantized(tensor) for tensor in graphs.counterparts):
        raise ConversionError(f"{ours.where}: nothing in it is quantized; give the int8 conversion")
    if ours.is_quantized(ours.input):
        best = _best_grid("INPUT", ours.grid(ours.input), shared[ours.input])
        begin(INPUT, "input", "INPUT", ours.input, graphs.input_answers(best))
    for place in graphs.operations:
        for output, tensor in enumerate(map(int, ours.operators[place].outputs)):
            if tensor in graphs.counterparts and ours.is_quantized(tensor):
                kind = ours.kind(place)
                best = _best_grid(kind, ours.grid(tensor), shared[tensor])
                alone = graphs.probe(place, output, best)
                begin(place, graphs.names[place], kind, tensor, alone)
    for pixels in inputs:
        reference.run(scaled(pixels[None]))
        ours.run(graphs.fed(pixels))
        for tally, tensor, probe in judged:
            network = reference.kept(graphs.counterparts[tensor])
            graph = graphs.floats(tensor, ours.kept(tensor))
            tally.add(probe(), network, graph)
    return [tally for tally, _, _ in judged]


def _float_ranges(graphs: _Matched, inputs: Image) -> dict[int, tuple[float, float]]:
    """Smallest and largest value of the float network where each int8 activation is."""
    found = {tensor: (math.inf, -math.inf) for tensor in graphs.counterparts}
    for pixels in inputs:
        graphs.reference.run(scaled(pixels[None]))
        for tensor, (low, high) in found.items():
            values = graphs.reference.kept(graphs.counterparts[tensor])
            found[tensor] = min(low, float(values.min())), max(high, float(values.max()))
    return found


def _best_grid(kind: str, grid: _Grid, values: tuple[float, float]) -> _Grid:
    """The finest grid that holds zero and a range of values, as far as the kernel leaves a choice."""
    if kind in FIXED_STEP:
        return replace(grid, scale=FIXED_STEP[kind])
    low, high = min(values[0], 0.0), max(values[1], 0.0)
    levels = grid.levels
    if grid.zero_point == 0 and levels.bits > 8:
        return replace(grid, scale=max(-low, high) / levels.max or grid.scale)
    scale = (high - low) / (levels.max - levels.min) or grid.scale
    return replace(grid, scale=scale, zero_point=round(levels.min - low / scale))


def _shared_ranges(
    graphs: _Matched, ranges: dict[int, tuple[float, float]]
) -> dict[int, tuple[float, float]]:
    """Each activation's range, with those of all tensors that must have its scale."""
    groups = {tensor: {tensor} for tensor in ranges}
    for place in graphs.operations:
        if graphs.ours.kind(place) in ONE_SCALE:
            outputs = [t for t in map(int, graphs.ours.operators[place].outputs) if t in groups]
            group = set().union(*(groups[t] for t in [*graphs.activations(place), *outputs]))
            groups.update(dict.fromkeys(group, group))
    return {
        tensor: (min(ranges[t][0] for t in group), max(ranges[t][1] for t in group))
        for tensor, group in groups.items()
    }


def _difference(found: Float, exact: Float) -> Difference:
    apart = np.abs(found.astype(np.float64) - exact)
    return Difference(float(apart.mean()), math.sqrt(float((apart**2).mean())), float(apart.max()))

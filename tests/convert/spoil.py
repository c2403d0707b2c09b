"""Int8 TFLite graphs broken on purpose in one place, to see whether it is found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from ai_edge_litert.tools import flatbuffer_utils
from numpy.typing import NDArray

INT8, INT32 = 9, 2
BIASED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")


def scale_output(model: bytes, index: int, factor: float, naive: bool = False) -> bytes:
    """Multiply the output scale of operation ``index``; its zero point stays.

    As a converter with a wrong range would: biases of the operations that read it are requantized, since
    kernels take them for multiples of input scale times weight scale. ``naive`` leaves them.
    """

    def edit(content: Any, graph: Any) -> None:
        target = int(graph.operators[index].outputs[0])
        _multiply(graph.tensors[target], factor)
        for operator in () if naive else graph.operators:
            if int(operator.inputs[0]) == target and _kind(content, operator) in BIASED:
                _rescale_bias(content, graph, operator, factor)

    return _edited(model, edit)


def scale_input(model: bytes, factor: float) -> bytes:
    """Multiply the scale of the graph's input: pixels are taken for other values."""
    return _edited(model, lambda _, graph: _multiply(graph.tensors[int(graph.inputs[0])], factor))


def scale_weights(model: bytes, index: int, factor: float) -> bytes:
    """Multiply the weight scales of operation ``index``: its int8 weights now mean larger ones."""

    def edit(content: Any, graph: Any) -> None:
        operator = graph.operators[index]
        _multiply(graph.tensors[int(operator.inputs[1])], factor)
        _rescale_bias(content, graph, operator, factor)

    return _edited(model, edit)


def zero_weights(model: bytes, index: int, share: float, seed: int = 0) -> bytes:
    """Zero a random share of the int8 weights of operation ``index``."""

    def edit(content: Any, graph: Any) -> None:
        buffer = content.buffers[graph.tensors[int(graph.operators[index].inputs[1])].buffer]
        weights = np.array(buffer.data)
        weights[np.random.default_rng(seed).random(weights.size) < share] = 0
        buffer.data = weights

    return _edited(model, edit)


def clip_map(model: bytes, factor: float = 8.0) -> bytes:
    """Divide the range of the graph's output by ``factor``."""
    return scale_output(model, len(operations(model)) - 1, 1 / factor)


def operations(model: bytes) -> list[str]:
    """The operations' types in their order."""
    content = flatbuffer_utils.read_model_from_bytearray(bytearray(model))
    return [_kind(content, operator) for operator in content.subgraphs[0].operators]


def _edited(model: bytes, edit: Callable[[Any, Any], None]) -> bytes:
    content = flatbuffer_utils.read_model_from_bytearray(bytearray(model))
    edit(content, content.subgraphs[0])
    return bytes(flatbuffer_utils.convert_object_to_bytearray(content))


def _kind(content: Any, operator: Any) -> str:
    return str(flatbuffer_utils.opcode_to_name(content, operator.opcodeIndex))


def _multiply(tensor: Any, factor: float) -> None:
    tensor.quantization.scale = (np.asarray(tensor.quantization.scale) * factor).astype(np.float32)


def _rescale_bias(content: Any, graph: Any, operator: Any, factor: float) -> None:
    bias = graph.tensors[int(operator.inputs[2])]
    assert bias.type == INT32
    buffer = content.buffers[bias.buffer]
    values: NDArray[np.int32] = np.frombuffer(bytes(buffer.data), np.int32)
    limits = np.iinfo(np.int32)
    buffer.data = np.clip(np.rint(values / factor), limits.min, limits.max).astype(np.int32).view(np.uint8)
    _multiply(bias, factor)

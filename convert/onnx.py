"""Keras to ONNX, in float32 and in int8 for TensorRT: uint8 pixels in, a float32 class map out.

Opset 17 is the newest that TensorRT 8.6 parses (onnx-tensorrt's operators.md of each release), which
JetPack 6.0 brings; JetPack 6.1 and later bring TensorRT 10, which parses it too, and so does every
onnxruntime since 1.12.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import onnx
import onnxruntime
import tensorflow as tf
import tf2onnx
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from convert.tflite import ConversionError
from training.fitting import NetworkMaps

Image = NDArray[np.uint8]

OPSET = 17
INPUT, OUTPUT = "pixels", "map"
TOLERANCE = 1e-3
"""Largest difference between the maps of Keras and ONNX, in logits. EfficientNet-Lite0 differs by 4e-6."""
PROBES = 4
"""Random pictures that the two are compared on."""


def to_onnx(network: keras.Model) -> bytes:
    """Convert a network of fixed batch 1 to float32 ONNX that takes pixels as the reader makes them.

    Input ``pixels``: uint8 [1, size, size, channels], scaled by ``(x - 127) / 128`` inside the graph.
    Output ``map``: float32 logits [1, rows, columns, map channels]. The same network gives the same
    bytes. Raises ConversionError where the batch is not 1, an operation has no counterpart, or the maps
    differ from Keras' own by more than ``TOLERANCE``.
    """
    shape = network.input.shape
    if shape[0] != 1:
        raise ConversionError(f"{network.name}: its batch is {shape[0]}; build it with batch 1 to convert it")
    signature = [tf.TensorSpec(shape, tf.uint8, name=INPUT)]

    @tf.function(input_signature=signature)  # type: ignore[untyped-decorator]
    def read(pixels: Any) -> dict[str, Any]:
        return {OUTPUT: network((tf.cast(pixels, tf.float32) - 127.0) / 128.0, training=False)}

    try:
        graph, _ = tf2onnx.convert.from_function(read, signature, opset=OPSET)
        model = _plainly_named(graph).SerializeToString()
        onnx.checker.check_model(model, full_check=True)
    except (ValueError, RuntimeError, onnx.checker.ValidationError) as error:
        raise ConversionError(f"{network.name}: cannot be told in ONNX ({error})") from error
    _compare(network, model)
    return model


def to_onnx_int8(model: bytes, inputs: Image, symmetric: bool = True) -> bytes:
    """Quantize what ``to_onnx`` made, by QuantizeLinear and DequantizeLinear nodes around int8 weights.

    ``inputs``: uint8 [n, size, size, channels], pictures of training patients to take the ranges from.
    ``symmetric`` is TensorRT's kind: int8 with zero point 0 throughout, one scale a tensor, one scale a
    channel for weights, float biases, and only what goes into a convolution is quantized, so that its
    activation and the sum with a shortcut are fused into it (TensorRT developer guide, "Q/DQ Layer-Placement
    Recommendations"). Otherwise uint8 with any zero point and quantized outputs and biases, which
    onnxruntime's kernels for processors want. Scaling of the pixels stays float in both. The same model
    and inputs give the same bytes. Raises ConversionError where the inputs do not fit.
    """
    source = onnx.load_from_string(model)
    shape = tuple(d.dim_value for d in source.graph.input[0].type.tensor_type.shape.dim)[1:]
    if inputs.dtype != np.uint8 or inputs.shape[1:] != shape or not len(inputs):
        raise ConversionError(
            f"calibration inputs are {inputs.dtype} {inputs.shape}; the network takes uint8 {('n', *shape)}"
        )
    placement: dict[str, Any] = {"ActivationSymmetric": symmetric, "QuantizeBias": not symmetric}
    if symmetric:
        placement["OpTypesToExcludeOutputQuantization"] = ["Conv"]
    with tempfile.TemporaryDirectory() as folder:
        plain, fused, quantized = (
            Path(folder) / f"{stage}.onnx" for stage in ("plain", "fused", "quantized")
        )
        plain.write_bytes(model)
        # Folds batch normalization into the depthwise convolutions too, which tf2onnx leaves beside them.
        quant_pre_process(plain, fused, skip_symbolic_shape=True)
        quantize_static(
            fused,
            quantized,
            _Pictures(inputs),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"] if symmetric else ["Conv", "Add", "Clip", "Relu"],
            per_channel=True,
            activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            # On a trained EfficientNet-Lite0 entropy and percentiles came no closer to float, and they
            # hold every activation of every picture in memory.
            calibrate_method=CalibrationMethod.MinMax,
            extra_options=placement,
        )
        graph = _plainly_named(onnx.load(quantized))
    _check_quantized(graph)
    result: bytes = graph.SerializeToString()
    onnx.checker.check_model(result, full_check=True)
    return result


class _Pictures(CalibrationDataReader):  # type: ignore[misc]
    """Feeds pictures one at a time, as quantize_static asks for them."""

    def __init__(self, inputs: Image) -> None:
        self._left: Iterator[Image] = iter(inputs)

    def get_next(self) -> dict[str, Image] | None:
        picture = next(self._left, None)
        return None if picture is None else {INPUT: picture[None]}


def _plainly_named(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its nodes and tensors numbered: tf2onnx's own names depend on what was converted
    before, and on chance."""
    graph = model.graph
    graph.doc_string = ""
    names = {"": "", INPUT: INPUT, OUTPUT: OUTPUT}
    for index, node in enumerate(graph.node):
        node.name = f"{node.op_type}_{index}"
        for slot, tensor in enumerate(node.input):
            node.input[slot] = names.setdefault(tensor, f"{node.name}_input_{slot}")
        for slot, tensor in enumerate(node.output):
            node.output[slot] = names.setdefault(tensor, f"{node.name}_output_{slot}")
    for constant in graph.initializer:
        constant.name = names[constant.name]
    constants = sorted(graph.initializer, key=lambda constant: str(constant.name))
    del graph.initializer[:], graph.value_info[:], model.opset_import[:]
    graph.initializer.extend(constants)
    model.opset_import.append(onnx.helper.make_opsetid("", OPSET))
    return model


def _compare(network: keras.Model, model: bytes) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (PROBES, *network.input.shape[1:]), np.uint8)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    maps = np.concatenate([session.run([OUTPUT], {INPUT: picture[None]})[0] for picture in pictures])
    difference = np.abs(maps - NetworkMaps(network, batch=1)(pictures)).max()
    if not difference <= TOLERANCE:
        raise ConversionError(
            f"{network.name}: its ONNX map differs from Keras' own by {difference:.2g}, {TOLERANCE} allowed"
        )


def _check_quantized(model: onnx.ModelProto) -> None:
    made_by = {tensor: node.op_type for node in model.graph.node for tensor in node.output}
    for node in model.graph.node:
        if node.op_type == "Conv" and {made_by.get(x) for x in node.input[:2]} != {"DequantizeLinear"}:
            raise ConversionError(f"{node.name} was left in float: not an int8 network")

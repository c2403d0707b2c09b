"""Keras to full-integer TFLite: uint8 pixels in, an int8 class map out."""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from ai_edge_litert.tools import flatbuffer_utils
from numpy.typing import NDArray
from tensorflow.lite.python.convert import ConverterError, mlir_quantize
from tensorflow.lite.python.util import modify_model_io_type

from reader.errors import SonoglanceError
from training.fitting import scaled

Image = NDArray[np.uint8]

# It warns of graphs that are traced anew: each network is traced once, and there are several.
tf.get_logger().setLevel("ERROR")

CONVERTER = f"TensorFlow {tf.__version__}"
THREADS = 2
INPUT_SCALE, INPUT_ZERO_POINT = 1 / 128, 127


class ConversionError(SonoglanceError, RuntimeError):
    """The network cannot be converted as it should be."""


def to_int8(network: keras.Model, calibration: Image) -> bytes:
    """Convert a network of fixed batch 1 by post-training quantization.

    ``calibration``: uint8 [n, size, size, channels], inputs of training patients. One pixel is set
    to white where none is, since the input's scale is 1/128 with zero point 127 only if both ends of
    the range occur. Raises ConversionError where the graph is not all integer.
    """
    calibration = calibration.copy()
    calibration[0, 0, 0], calibration[0, 0, 1] = 0, 255
    prepared = _prepared(network, calibration[:1])
    ranged = _with_ranges(prepared, _ranges(prepared, calibration))
    # Per-channel dense layers crash tflite-runtime 2.14 on ARM; Coral's own models have none.
    quantized = mlir_quantize(ranged, disable_per_channel_for_dense_layers=True)
    model = bytes(modify_model_io_type(quantized, tf.uint8, tf.int8))
    _check(model)
    return model


def _prepared(network: keras.Model, some: Image) -> bytes:
    """The float graph as the quantizer takes it; its ranges are those of ``some`` inputs."""
    converter = _converter(network)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([scaled(image[None])] for image in some)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter._experimental_calibrate_only = True
    return _converted(converter, network)


def _ranges(prepared: bytes, calibration: Image) -> dict[int, tuple[float, float]]:
    """Smallest and largest value of each float tensor of the graph over the calibration inputs.

    The converter's own calibration reads a convolution's output after the sum with its shortcut has
    overwritten it, and so takes the sum's range for both: residual networks lose a bit or two there.
    """
    interpreter = Interpreter(
        model_content=prepared,
        experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        num_threads=THREADS,
    )
    interpreter.allocate_tensors()
    source = interpreter.get_input_details()[0]["index"]
    ranges: dict[int, tuple[float, float]] = {}
    for image in calibration:
        interpreter.set_tensor(source, scaled(image[None]))
        interpreter.invoke()
        for details in interpreter.get_tensor_details():
            index = details["index"]
            if details["dtype"] == np.float32 and details["shape"].size:
                values = interpreter.get_tensor(index)
                low, high = ranges.get(index, (0.0, 0.0))
                ranges[index] = min(low, float(values.min())), max(high, float(values.max()))
    return ranges


def _with_ranges(prepared: bytes, ranges: dict[int, tuple[float, float]]) -> bytes:
    graph = flatbuffer_utils.read_model_from_bytearray(bytearray(prepared))
    for index, tensor in enumerate(graph.subgraphs[0].tensors):
        of = tensor.quantization
        if of is not None and of.min is not None and len(of.min) == 1 and index in ranges:
            of.min, of.max = [ranges[index][0]], [ranges[index][1]]
    return bytes(flatbuffer_utils.convert_object_to_bytearray(graph))


def to_float(network: keras.Model) -> bytes:
    """Convert a network of fixed batch 1 to float32 TFLite, batch normalization folded as in int8.

    Its input is float32, scaled as for training. Raises ConversionError where TFLite cannot hold it.
    """
    return _converted(_converter(network), network)


class FloatRunner:
    """A float32 TFLite network of ``to_float`` on the processor, behind ``reader.runner.Runner``."""

    name, badge = "litert float32", ""

    def __init__(self, model: bytes, threads: int) -> None:
        self._interpreter = Interpreter(model_content=model, num_threads=threads)
        self._interpreter.allocate_tensors()
        source, target = self._interpreter.get_input_details()[0], self._interpreter.get_output_details()[0]
        self._input, self._output = source["index"], target["index"]
        self.input_shape, self.map_shape = _shape(source), _shape(target)

    def class_map(self, pixels: Image) -> NDArray[np.float32]:
        """uint8 [h, w, channels] to float32 logits [rows, columns, map channels]."""
        self._interpreter.set_tensor(self._input, scaled(pixels[None]))
        self._interpreter.invoke()
        return np.asarray(self._interpreter.get_tensor(self._output)[0])


def _shape(details: dict[str, Any]) -> tuple[int, int, int]:
    _, rows, columns, channels = (int(n) for n in details["shape"])
    return rows, columns, channels


def _converter(network: keras.Model) -> Any:
    # Keras announces its export on standard output, which belongs to our own results.
    with contextlib.redirect_stdout(io.StringIO()):
        return tf.lite.TFLiteConverter.from_keras_model(network)


def _converted(converter: Any, network: keras.Model) -> bytes:
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            # Without types of its own the input is warned about; it is set where it matters.
            warnings.filterwarnings("ignore", message="Statistics for quantized inputs")
            model: bytes = converter.convert()
    except (ConverterError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConversionError(f"{network.name}: TFLite cannot hold it ({reason})") from error
    return model


def _check(model: bytes) -> None:
    interpreter = Interpreter(model_content=model)
    details = interpreter.get_input_details()[0]
    scale, zero_point = details["quantization"]
    if details["dtype"] != np.uint8 or zero_point != INPUT_ZERO_POINT or scale != INPUT_SCALE:
        raise ConversionError(
            f"the converted input is {details['dtype'].__name__} with scale {scale} and zero point "
            f"{zero_point}, not uint8 with 1/128 and 127"
        )
    floats = {t["index"] for t in interpreter.get_tensor_details() if t["dtype"] == np.float32}
    if floats:
        raise ConversionError(
            f"int8 cannot hold this network: {_float_operations(model, floats)} stay in float"
        )


def _float_operations(model: bytes, floats: set[int]) -> str:
    graph = flatbuffer_utils.read_model_from_bytearray(bytearray(model))
    kinds = {code: name for name, code in vars(schema.BuiltinOperator).items()}
    codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in graph.operatorCodes]
    left = {
        kinds[codes[operator.opcodeIndex]]
        for operator in graph.subgraphs[0].operators
        if floats.intersection(operator.outputs)
    }
    return ", ".join(sorted(left - {"DEQUANTIZE"}) or sorted(left))


def class_maps(model: bytes, inputs: Image, builtin: bool = False) -> NDArray[np.int8]:
    """The int8 maps of inputs, through XNNPACK or, ``builtin``, TFLite's own kernels."""
    kinds = tf.lite.experimental.OpResolverType
    resolver = kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES if builtin else kinds.AUTO
    with warnings.catch_warnings():
        # TensorFlow points to LiteRT, which it is compared with here.
        warnings.simplefilter("ignore", UserWarning)
        interpreter = tf.lite.Interpreter(
            model_content=model, experimental_op_resolver_type=resolver, num_threads=1
        )
    interpreter.allocate_tensors()
    source = interpreter.get_input_details()[0]["index"]
    target = interpreter.get_output_details()[0]["index"]
    maps = []
    for image in inputs:
        interpreter.set_tensor(source, image[None])
        interpreter.invoke()
        maps.append(interpreter.get_tensor(target)[0].copy())
    return np.stack(maps)

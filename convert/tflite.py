"""Keras to full-integer TFLite: uint8 pixels in, an int8 class map out."""

from __future__ import annotations

import os
from collections.abc import Iterator

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from reader.errors import SonoglanceError
from training.fitting import scaled

Image = NDArray[np.uint8]

CONVERTER = f"TensorFlow {tf.__version__}"
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

    def representative() -> Iterator[list[NDArray[np.float32]]]:
        for image in calibration:
            yield [scaled(image[None])]

    converter = tf.lite.TFLiteConverter.from_keras_model(network)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = representative
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = tf.uint8
    converter.inference_output_type = tf.int8
    # Per-channel dense layers crash tflite-runtime 2.14 on ARM; Coral's own models have none.
    converter._experimental_disable_per_channel_quantization_for_dense_layers = True
    model: bytes = converter.convert()
    _check(model)
    return model


def _check(model: bytes) -> None:
    interpreter = tf.lite.Interpreter(model_content=model)
    details = interpreter.get_input_details()[0]
    scale, zero_point = details["quantization"]
    if details["dtype"] != np.uint8 or zero_point != INPUT_ZERO_POINT or scale != INPUT_SCALE:
        raise ConversionError(
            f"the converted input is {details['dtype'].__name__} with scale {scale} and zero point "
            f"{zero_point}, not uint8 with 1/128 and 127"
        )
    floats = [t["name"] for t in interpreter.get_tensor_details() if t["dtype"] == np.float32]
    if floats:
        raise ConversionError(f"the converted graph is not all integer: {floats[0]} is float32")


def class_maps(model: bytes, inputs: Image, builtin: bool = False) -> NDArray[np.int8]:
    """The int8 maps of inputs, through XNNPACK or, ``builtin``, TFLite's own kernels."""
    kinds = tf.lite.experimental.OpResolverType
    resolver = kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES if builtin else kinds.AUTO
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

"""What to do where int8 hurts: keep the worst layers in float, or fine-tune the weights for int8.

``mixed_precision`` quantizes a float graph and leaves named layers in float. It costs size and latency, and
such a graph cannot go to an accelerator that takes integers alone. ``finetune`` moves the weights to where
their rounding does less harm (quantization-aware training with a straight-through gradient, Jacob 2017,
arXiv 1712.05877), with the float network as its own teacher; the graph stays all integer.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from ai_edge_litert.tools.flatbuffer_utils import read_model_from_bytearray
from ai_edge_quantizer.algorithm_manager import AlgorithmName
from ai_edge_quantizer.calibrator import Calibrator
from ai_edge_quantizer.qtyping import (
    ComputePrecision,
    OpQuantizationConfig,
    QuantGranularity,
    TensorDataType,
    TensorQuantizationConfig,
    TFLOperationName,
)
from ai_edge_quantizer.quantizer import Quantizer
from ai_edge_quantizer.recipe_manager import RecipeManager
from ai_edge_quantizer.utils.qsv_utils import min_max_update
from numpy.typing import NDArray

from convert.tflite import ConversionError, Image
from training.augmentation import vary
from training.fitting import scaled

EVERY = TFLOperationName.ALL_SUPPORTED
STEPS = 100
BATCH = 16
LEARNING_RATE = 2e-5
"""Adam moves a weight by at most about this a step: over a fine-tuning by one or two int8 steps of a
usual kernel, enough to round the other way and too little to become another network."""
NARROWEST_RANGE = 1e-6

KERNEL_LAYERS = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)
"""A separable convolution is not among them: the tensor between its halves is out of reach, so that its
rounding could not be learnt."""


def mixed_precision(reference: bytes, calibration: Image, layers: Sequence[str]) -> bytes:
    """Quantize a float32 TFLite graph of batch 1 to int8 and keep some of its layers in float.

    ``calibration``: uint8 [n, size, size, channels], inputs of training patients. ``layers``: names of
    Keras layers (``block0_depthwise_conv``) or of the graph's tensors; the operation that makes such a
    tensor, or that such a layer became, stays in float. The result takes uint8 pixels (1/128, zero point
    127) and gives an int8 map, as ``to_int8``'s does. Raises ConversionError for a layer that is not in
    the graph.
    """
    rules = RecipeManager()
    rules.add_quantization_config(".*", EVERY, _static(TensorDataType.INT))
    ranges = _ranges_of_graph(reference, calibration, rules)
    for tensor in _outputs(reference, layers):
        rules.add_quantization_config(f"^{re.escape(tensor)};", EVERY, None, AlgorithmName.NO_QUANTIZE)
    # Last and for every scope, since the last rule that fits holds: the ends stay 8-bit.
    rules.add_quantization_config("", TFLOperationName.INPUT, _static(TensorDataType.UINT))
    rules.add_quantization_config("", TFLOperationName.OUTPUT, _static(TensorDataType.INT))
    quantizer = Quantizer(reference, rules.get_quantization_recipe())
    return bytes(quantizer.quantize(ranges).quantized_model)


def _static(activations: TensorDataType) -> OpQuantizationConfig:
    return OpQuantizationConfig(
        TensorQuantizationConfig(8, symmetric=False, dtype=activations),
        TensorQuantizationConfig(8, symmetric=True, granularity=QuantGranularity.CHANNELWISE),
        ComputePrecision.INTEGER,
    )


def _ranges_of_graph(reference: bytes, calibration: Image, rules: RecipeManager) -> dict[str, Any]:
    calibration = calibration.copy()
    calibration[0, 0, 0], calibration[0, 0, 1] = 0, 255
    ((signature, ends),) = Interpreter(model_content=reference).get_signature_list().items()
    # By default the extremes of the images are averaged, which cuts off what only some images reach.
    calibrator = Calibrator(reference, num_threads=1, qsv_update_func=min_max_update)
    images = [{ends["inputs"][0]: scaled(image[None])} for image in calibration]
    # It draws a progress bar of its own into whatever is there.
    with contextlib.redirect_stderr(io.StringIO()):
        calibrator.calibrate({signature: images}, rules)
    ranges: dict[str, Any] = calibrator.get_model_qsvs()
    return ranges


def _outputs(reference: bytes, layers: Sequence[str]) -> list[str]:
    """The output tensors of the operations that hold these layers."""
    graph = read_model_from_bytearray(bytearray(reference)).subgraphs[0]
    made = {place for operator in graph.operators for place in operator.outputs}
    names = [tensor.name.decode() for tensor in graph.tensors]
    found = []
    for layer in layers:
        # A converted layer's name has gained a number, and is one part of the path of its tensors.
        part = re.compile(rf"(^|[/;]){re.escape(layer)}(_\d+)?([/;]|$)")
        holding = [
            names[operator.outputs[0]]
            for operator in graph.operators
            # A folded layer may be left in the name of the operation's own constants alone.
            for place in {operator.outputs[0], *operator.inputs[1:2]}
            if (place in operator.outputs or place not in made)
            and (names[place] == layer or part.search(names[place]))
        ]
        if not holding:
            raise ConversionError(f"layer {layer}: not in the converted graph; name another to keep in float")
        found += holding
    return found


def finetune(network: keras.Model, inputs: Image, steps: int = STEPS, seed: int = 1) -> keras.Model:
    """A copy of a network whose weights were tuned so that rounding to int8 changes its maps less.

    ``inputs``: uint8 [n, size, size, channels] of training patients; no labels, since the network itself
    is the teacher. The copy has the same layers, for the ordinary conversion; give a network whose batch
    is free, and copy the weights into one of batch 1. In the forward pass the kernels are
    rounded as they will be (per channel, which is the same before and after batch normalization is folded
    in) and so is every tensor that will be int8, on the ranges that ``inputs`` show; gradients pass as if
    nothing were rounded. Statistics of batch normalization stay. Raises ConversionError for a kind of
    layer that this is not made for; of our networks that refuses scratch.
    """
    kernels = _kernels(network)
    tuned = keras.models.clone_model(network)
    tuned.set_weights(network.get_weights())
    student = _rounding(tuned, _ranges(network, inputs))
    values = student.trainable_variables
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(LEARNING_RATE, steps))
    optimizer.build(values)

    @tf.function  # type: ignore[untyped-decorator]
    def step(pixels: Any) -> Any:
        wanted = network(pixels, training=False)
        with tf.GradientTape() as tape:
            rounded = [_rounded(v, kernels[v.path]) if v.path in kernels else v.value for v in values]
            rest = [v.value for v in student.non_trainable_variables]
            maps, _ = student.stateless_call(rounded, rest, pixels, training=False)
            loss = tf.reduce_mean(tf.square(maps - wanted))
        optimizer.apply(tape.gradient(loss, [v.value for v in values]), values)
        return loss

    for pixels in _varied(inputs, steps, network.input.shape[0] or BATCH, seed):
        step(tf.constant(pixels))
    return tuned


def _kernels(network: keras.Model) -> dict[str, int]:
    """Which variables are quantized per channel, by path, and how many of their last axes are channels."""
    found = {}
    for layer in network.layers:
        for weight in layer.trainable_weights:
            if weight.name.endswith("kernel"):
                if type(layer) not in KERNEL_LAYERS:
                    kind = type(layer).__name__
                    raise ConversionError(f"layer {layer.name}: a {kind} cannot be fine-tuned for int8")
                found[weight.path] = 2 if isinstance(layer, keras.layers.DepthwiseConv2D) else 1
    return found


def _rounded(kernel: Any, channel_axes: int) -> Any:
    """A kernel's values in 255 symmetric steps a channel, with a straight-through gradient."""
    flat = tf.reshape(kernel.value, (-1, math.prod(kernel.shape[-channel_axes:])))
    largest = tf.stop_gradient(tf.reduce_max(tf.abs(flat), axis=0))
    fake = tf.quantization.fake_quant_with_min_max_vars_per_channel(
        flat, -largest, largest, narrow_range=True
    )
    return tf.reshape(fake, kernel.shape)


class Rounding(keras.layers.Layer):  # type: ignore[misc]
    """Rounds a tensor to 256 steps within a range, with a straight-through gradient."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self._range = low, high

    def call(self, x: Any) -> Any:
        """The rounded tensor; float32 of any shape."""
        return tf.quantization.fake_quant_with_min_max_args(x, *self._range)

    def compute_output_spec(self, x: Any) -> Any:
        """As the input: Keras would try the operation on a sparse tensor, which it does not take."""
        return keras.KerasTensor(x.shape, x.dtype)


def _rounding(network: keras.Model, ranges: dict[str, tuple[float, float]]) -> keras.Model:
    """A network of the same layers that rounds every tensor that has a range."""

    def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        x = operation(*args, **kwargs)
        return Rounding(*ranges[operation.name])(x) if operation.name in ranges else x

    return keras.models.clone_model(network, clone_function=lambda layer: layer, call_function=call)


def _ranges(network: keras.Model, inputs: Image) -> dict[str, tuple[float, float]]:
    """The extremes, zero among them, of each tensor that int8 keeps, by the operation that makes it."""
    kept = _kept(network)
    watched = keras.Model(network.input, [operation.output for operation in kept])
    low, high = np.zeros(len(kept)), np.full(len(kept), NARROWEST_RANGE)
    for image in inputs:
        tensors = [np.asarray(tensor) for tensor in watched(scaled(image[None]), training=False)]
        low = np.minimum(low, [tensor.min() for tensor in tensors])
        high = np.maximum(high, [tensor.max() for tensor in tensors])
    return {op.name: (a, b) for op, a, b in zip(kept, low.tolist(), high.tolist(), strict=True)}


def _kept(network: keras.Model) -> list[Any]:
    """Operations whose output is a tensor of the int8 graph: batch normalization and ReLU are done within
    the operation before them."""
    users = defaultdict(list)
    operations = [op for op in network.operations if not isinstance(op, keras.layers.InputLayer)]
    for operation in operations:
        for tensor in keras.tree.flatten(operation.input):
            users[id(tensor)].append(operation)

    def joined(user: Any) -> bool:
        rectifies = getattr(user, "activation", None) in (keras.activations.relu, keras.activations.relu6)
        return rectifies or isinstance(user, keras.layers.ReLU | keras.layers.BatchNormalization)

    return [op for op in operations if not any(joined(user) for user in users[id(op.output)])]


def _varied(inputs: Image, steps: int, batch: int, seed: int) -> Iterator[NDArray[np.float32]]:
    """Batches of randomly drawn and varied inputs, as the network takes them."""
    random = np.random.default_rng(seed)
    for _ in range(steps):
        drawn = [inputs[i] for i in random.integers(len(inputs), size=batch)]
        beams = [np.where(pixels.max(axis=2) > 0, 255, 0).astype(np.uint8) for pixels in drawn]
        yield scaled(np.stack([vary(*both, random)[0] for both in zip(drawn, beams, strict=True)]))

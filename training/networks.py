"""The networks, in Keras 3 for any backend: uint8-range pixels in, a class map out.

EfficientNet-Lite0 (Liu 2020, tensorflow/tpu efficientnet/lite) is EfficientNet-B0 (Tan and Le 2019,
arXiv 1905.11946) with ReLU6 and without squeeze-and-excitation, so that every operation has an int8
kernel. Its classifier is replaced by a 1x1 convolution to one map a class; the average over the
beam belongs to ``reader``, which does it at the bedside as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers
from numpy.typing import NDArray

BATCH_NORM_EPSILON = 1e-3
FEATURES_LAYER = "top_activation"
MAP_LAYER = "class_map"


class Stage(NamedTuple):
    """A run of inverted-residual blocks that share their shape."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


EFFICIENTNET_LITE0 = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


def efficientnet_lite0(
    size: int, map_channels: int, dropout: float = 0.2, batch: int | None = None
) -> keras.Model:
    """EfficientNet-Lite0 with a class-map head.

    Input: float32 [batch, size, size, 3], pixels already scaled as ``(x - 127) / 128``.
    Output: float32 logits [batch, size/32, size/32, map_channels].
    ``batch`` fixes the batch dimension, which conversion needs (no dynamic shapes).
    """
    inputs = keras.Input(batch_shape=(batch, size, size, 3), name="frame")
    x = _normalized(
        layers.Conv2D(32, 3, strides=2, padding="same", use_bias=False, name="stem_conv")(inputs),
        "stem",
    )
    for name, stage, stride in _blocks():
        x = _inverted_residual(x, stage, stride, name)
    x = _normalized(layers.Conv2D(1280, 1, use_bias=False, name="top_conv")(x), "top")
    x = layers.SpatialDropout2D(dropout, name="dropout")(x)
    # Zeros: no class is preferred before the first step, whatever the features' scale.
    outputs = layers.Conv2D(map_channels, 1, kernel_initializer="zeros", name=MAP_LAYER)(x)
    return keras.Model(inputs, outputs, name="efficientnet_lite0")


def _blocks() -> Iterator[tuple[str, Stage, int]]:
    index = 0
    for stage in EFFICIENTNET_LITE0:
        for repeat in range(stage.repeats):
            yield f"block{index}", stage, stage.stride if repeat == 0 else 1
            index += 1


def _normalized(x: Any, name: str, activation: bool = True) -> Any:
    x = layers.BatchNormalization(epsilon=BATCH_NORM_EPSILON, name=f"{name}_bn")(x)
    return layers.ReLU(6.0, name=f"{name}_activation")(x) if activation else x


def _inverted_residual(x: Any, stage: Stage, stride: int, name: str) -> Any:
    shortcut, channels = x, x.shape[-1]
    if stage.expansion != 1:
        x = layers.Conv2D(channels * stage.expansion, 1, use_bias=False, name=f"{name}_expand_conv")(x)
        x = _normalized(x, f"{name}_expand")
    x = layers.DepthwiseConv2D(
        stage.kernel, strides=stride, padding="same", use_bias=False, name=f"{name}_depthwise_conv"
    )(x)
    x = _normalized(x, f"{name}_depthwise")
    x = layers.Conv2D(stage.channels, 1, use_bias=False, name=f"{name}_project_conv")(x)
    x = _normalized(x, f"{name}_project", activation=False)
    if stride == 1 and channels == stage.channels:
        x = layers.Add(name=f"{name}_add")([x, shortcut])
    return x


def load_imagenet(model: keras.Model, weights: dict[str, NDArray[Any]]) -> None:
    """Copy ImageNet weights (PyTorch names and layouts) into the network's backbone.

    The class map has no counterpart and keeps its initial values. Raises KeyError where a tensor is
    missing and ValueError where a shape disagrees.
    """
    for ours, theirs in _layer_names():
        _set_convolution(model.get_layer(f"{ours}_conv"), weights[f"{theirs[0]}.weight"])
        model.get_layer(f"{ours}_bn").set_weights(
            [weights[f"{theirs[1]}.{k}"] for k in ("weight", "bias", "running_mean", "running_var")]
        )


def _layer_names() -> Iterator[tuple[str, tuple[str, str]]]:
    yield "stem", ("_conv_stem", "_bn0")
    for index, (name, stage, _) in enumerate(_blocks()):
        block = f"_blocks.{index}"
        if stage.expansion != 1:
            yield f"{name}_expand", (f"{block}._expand_conv", f"{block}._bn0")
        yield f"{name}_depthwise", (f"{block}._depthwise_conv", f"{block}._bn1")
        yield f"{name}_project", (f"{block}._project_conv", f"{block}._bn2")
    yield "top", ("_conv_head", "_bn1")


def _set_convolution(layer: Any, kernel: NDArray[Any]) -> None:
    depthwise = isinstance(layer, layers.DepthwiseConv2D)
    layer.set_weights([np.transpose(kernel, (2, 3, 0, 1) if depthwise else (2, 3, 1, 0))])

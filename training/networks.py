"""The networks, in Keras 3 for any backend: pixels in, a class map out.

Every network takes float32 [batch, size, size, channels], scaled as ``(x - 127) / 128``, and ends in a
1x1 convolution to one map a class, as logits; the average over the beam belongs to ``reader``, which
does it at the bedside as well.

EfficientNet-Lite0 (Liu 2020, tensorflow/tpu efficientnet/lite) is EfficientNet-B0 (Tan and Le 2019,
arXiv 1905.11946) with ReLU6 and without squeeze-and-excitation, so that every operation has an int8
kernel. MobileNetV2 (Sandler 2018, arXiv 1801.04381), MobileNetV3-small (Howard 2019, arXiv 1905.02244)
and Inception-v3 (Szegedy 2015, arXiv 1512.00567) come from Keras Applications.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers
from numpy.typing import NDArray

from training.weights import WeightsError, imagenet_weights_file, read_legacy_torch

BATCH_NORM_EPSILON = 1e-3
FEATURES_LAYER = "top_activation"
MAP_LAYER = "class_map"
USUAL_LAYER = "usual_map"
SCRATCH_CHANNELS = (16, 32, 64, 96, 128)


@dataclass(frozen=True)
class Network:
    """A kind of network. ``backbone``: float input to features. ``tune_from``: beginning of the name
    of the first layer worth fine-tuning on a small set; empty where everything is trained."""

    backbone: Callable[[Any], Any]
    tune_from: str
    pretrained: bool = True


class UsualMap(keras.layers.Layer):  # type: ignore[misc]
    """Takes from each cell of a map what is usual there, and nothing from the map's mean.

    In whole pictures that are always framed alike, cells outside the body know nothing and sit at even
    odds, above every healthy lung; without this the likeliest cell lies in the background. All zeros
    until ``settle_usual_map``.
    """

    def build(self, shape: tuple[int | None, ...]) -> None:
        """Make the zeros, float32 [1, rows, columns, channels]."""
        self.usual = self.add_weight(
            shape=(1, *shape[1:]), initializer="zeros", trainable=False, name="usual", dtype="float32"
        )

    def call(self, maps: Any) -> Any:
        """Maps [n, rows, columns, channels] less what is usual."""
        return maps - self.usual


def settle_usual_map(network: keras.Model, maps: NDArray[np.float32]) -> None:
    """Learn what is usual from the maps of negative pictures, float32 [n, rows, columns, channels].

    Only differences between cells are taken, so that a picture's mean, its score, stays what it was.
    """
    mean = maps.mean(axis=0, keepdims=True)
    layer = network.get_layer(USUAL_LAYER)
    earlier = keras.ops.convert_to_numpy(layer.usual)
    layer.usual.assign(earlier + mean - mean.mean(axis=(1, 2), keepdims=True))


def build(
    name: str, size: int, map_channels: int, dropout: float, batch: int | None = None, whole: bool = False
) -> keras.Model:
    """A network of the table ``NETWORKS`` with random weights and a zero class map.

    Input: float32 [batch, size, size, 3]. Output: float32 logits [batch, rows, columns, map_channels],
    whatever the policy of mixed precision. ``batch`` fixes the batch dimension, which conversion needs
    (no dynamic shapes). ``whole``: for whole pictures, with a ``UsualMap``. Raises ValueError for an
    unknown name.
    """
    if name not in NETWORKS:
        raise ValueError(f"no network {name!r}; known are {', '.join(NETWORKS)}")
    inputs = keras.Input(batch_shape=(batch, size, size, 3), name="frame")
    x = NETWORKS[name].backbone(inputs)
    x = layers.SpatialDropout2D(dropout, name="dropout")(x)
    # Zeros: no class is preferred before the first step, whatever the features' scale.
    outputs = layers.Conv2D(map_channels, 1, kernel_initializer="zeros", dtype="float32", name=MAP_LAYER)(x)
    if whole:
        outputs = UsualMap(dtype="float32", name=USUAL_LAYER)(outputs)
    return keras.Model(inputs, outputs, name=name.replace("-", "_"))


def load_pretrained(network: keras.Model, name: str, weights: Path | None) -> str:
    """Give a network's backbone its ImageNet start and say where it came from.

    ``weights``: a file of Keras Applications' own format (``.h5``, without top) or, for
    EfficientNet-Lite0, a PyTorch state dictionary; None looks for the installed package or lets Keras
    Applications download. Returns an empty string where the start is random, because the network has
    no pretrained weights or they cannot be reached. Raises WeightsError where ``weights`` does not fit.
    """
    if not NETWORKS[name].pretrained:
        if weights:
            raise WeightsError(f"{weights}: {name} is trained from scratch and takes no weights")
        return ""
    if name == "efficientnet-lite0":
        return _load_lite0(network, weights or imagenet_weights_file())
    if weights is None:
        return _download(network, name)
    try:
        donor = _application(name, network.input.shape[1:], None)
        donor.load_weights(weights)
    except (OSError, ValueError) as error:
        raise WeightsError(f"{weights}: not weights of {name} without top ({error})") from error
    _copy(donor, network)
    return weights.name


def _load_lite0(network: keras.Model, weights: Path) -> str:
    try:
        load_lite0(network, read_legacy_torch(weights))
    except (KeyError, ValueError) as error:
        raise WeightsError(f"{weights}: not weights of EfficientNet-Lite0 ({error})") from error
    return weights.name


def _download(network: keras.Model, name: str) -> str:
    try:
        donor = _application(name, network.input.shape[1:], "imagenet")
    # Keras reports a download that failed as a bare Exception; there is nothing narrower to catch.
    except Exception as error:
        if "URL fetch failure" not in str(error):
            raise
        return ""
    _copy(donor, network)
    return f"keras.applications {keras.__version__}"


def _copy(donor: keras.Model, network: keras.Model) -> None:
    # By place, not by name: Keras numbers unnamed layers anew in every model.
    donors = [layer for layer in donor.layers if layer.weights]
    for layer, ours in zip(donors, [layer for layer in network.layers if layer.weights], strict=False):
        ours.set_weights(layer.get_weights())


def _application(name: str, shape: tuple[int, ...], weights: str | None, tensor: Any = None) -> keras.Model:
    makers = {
        "mobilenet-v2": keras.applications.MobileNetV2,
        "mobilenet-v3-small": keras.applications.MobileNetV3Small,
        "inception-v3": keras.applications.InceptionV3,
    }
    extra = {"include_preprocessing": False} if name == "mobilenet-v3-small" else {}
    return makers[name](include_top=False, weights=weights, input_shape=shape, input_tensor=tensor, **extra)


def _from_applications(name: str) -> Callable[[Any], Any]:
    return lambda inputs: _application(name, inputs.shape[1:], None, inputs).output


def _scratch(x: Any) -> Any:
    """Five strided separable convolutions, as a floor under the pretrained networks."""
    for index, channels in enumerate(SCRATCH_CHANNELS):
        x = layers.SeparableConv2D(
            channels, 3, strides=2, padding="same", use_bias=False, name=f"scratch{index}_conv"
        )(x)
        x = _normalized(x, f"scratch{index}")
    return x


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


def _efficientnet_lite0(inputs: Any) -> Any:
    stem = layers.Conv2D(32, 3, strides=2, padding="same", use_bias=False, name="stem_conv")(inputs)
    x = _normalized(stem, "stem")
    for name, stage, stride in _blocks():
        x = _inverted_residual(x, stage, stride, name)
    return _normalized(layers.Conv2D(1280, 1, use_bias=False, name="top_conv")(x), "top")


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


def load_lite0(model: keras.Model, weights: dict[str, NDArray[Any]]) -> None:
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


NETWORKS = {
    "efficientnet-lite0": Network(_efficientnet_lite0, "block5_"),
    "mobilenet-v2": Network(_from_applications("mobilenet-v2"), "block_6_"),
    "mobilenet-v3-small": Network(_from_applications("mobilenet-v3-small"), "expanded_conv_4_"),
    "inception-v3": Network(_from_applications("inception-v3"), "mixed4"),
    "scratch": Network(_scratch, "", pretrained=False),
}

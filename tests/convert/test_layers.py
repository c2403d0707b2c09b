from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from convert.bundles import golden_inputs
from convert.layers import BROKEN_DB, Blame, Layer, find_blame
from convert.tflite import ConversionError, to_int8
from reader.bundle import Bundle
from tests.convert import spoil

Image = NDArray[np.uint8]
SIZE = 64


def small_network() -> keras.Model:
    """Three inverted-residual blocks, so that every kind of operation of the real networks occurs."""
    keras.utils.set_random_seed(3)
    layers = keras.layers
    inputs = keras.Input(batch_shape=(1, SIZE, SIZE, 3), name="frame")

    def normalized(x: object, name: str, relu: bool = True) -> object:
        x = layers.BatchNormalization(name=f"{name}_bn")(x)
        return layers.ReLU(6.0, name=f"{name}_activation")(x) if relu else x

    x = normalized(
        layers.Conv2D(16, 3, strides=2, padding="same", use_bias=False, name="stem")(inputs), "stem"
    )
    for i in range(3):
        shortcut = x
        x = normalized(layers.Conv2D(48, 1, use_bias=False, name=f"expand{i}")(x), f"expand{i}")
        x = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name=f"depthwise{i}")(x)
        x = normalized(x, f"depthwise{i}")
        x = normalized(layers.Conv2D(16, 1, use_bias=False, name=f"project{i}")(x), f"project{i}", relu=False)
        x = layers.Add(name=f"add{i}")([x, shortcut])
    outputs = layers.Conv2D(2, 1, name="class_map")(layers.MaxPooling2D(4, name="pool")(x))
    return keras.Model(inputs, outputs, name="small")


def settle(network: keras.Model, inputs: Image) -> None:
    """Statistics of BatchNorm from the inputs, so that activations have natural ranges, and biases."""
    values = (inputs.astype(np.float32) - 127) / 128
    noise = np.random.default_rng(4)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            before = keras.Model(network.input, layer.input)
            maps = np.concatenate([before(value[None]) for value in values])
            shift = noise.normal(0.3, 0.3, maps.shape[-1])
            layer.set_weights(
                [
                    noise.uniform(0.8, 1.6, maps.shape[-1]),
                    shift,
                    maps.mean((0, 1, 2)),
                    maps.var((0, 1, 2)) + 1e-3,
                ]
            )


@dataclasses.dataclass(frozen=True)
class Converted:
    int8: bytes
    reference: bytes
    inputs: Image

    def blame(self, model: bytes | None = None, freed: int = 0) -> Blame:
        return find_blame(model or self.int8, self.reference, self.inputs, count=6, freed=freed)


@pytest.fixture(scope="module")
def converted(phantom_bundle: Bundle) -> Converted:
    reads = dataclasses.replace(phantom_bundle.manifest.reads, size=SIZE)
    inputs = golden_inputs(reads)
    network = small_network()
    settle(network, inputs)
    reference = tf.lite.TFLiteConverter.from_keras_model(network).convert()
    return Converted(to_int8(network, inputs), reference, inputs)


@pytest.fixture(scope="module")
def healthy(converted: Converted) -> Blame:
    return converted.blame(freed=3)


def named(blame: Blame, name: str) -> Layer:
    return next(layer for layer in blame.layers if layer.name == name)


def test_healthy_network_blames_nobody(healthy: Blame) -> None:
    assert healthy.layers[0].lost_db < BROKEN_DB
    assert all(layer.scale_expected is None for layer in healthy.layers)
    assert all(layer.saturated < 0.001 and abs(layer.bias_steps) < 0.5 for layer in healthy.layers)


def test_layers_have_the_networks_own_names(healthy: Blame) -> None:
    expected = {"stem", "class_map", "pool", "input"}
    expected |= {f"{kind}{i}" for kind in ("expand", "depthwise", "project", "add") for i in range(3)}
    assert expected <= {layer.name for layer in healthy.layers}


@pytest.mark.parametrize(
    ("planted", "break_it"),
    [
        ("expand1", lambda m, i: spoil.scale_output(m, i, 8)),
        ("expand1", lambda m, i: spoil.scale_output(m, i, 1 / 8)),
        ("expand1", lambda m, i: spoil.scale_output(m, i, 8, naive=True)),
        ("expand1", lambda m, i: spoil.scale_output(m, i, 1 / 8, naive=True)),
        ("project0", lambda m, i: spoil.scale_output(m, i, 8)),
        ("project2", lambda m, i: spoil.scale_output(m, i, 1 / 8)),
        ("add1", lambda m, i: spoil.scale_output(m, i, 8)),
        ("add1", lambda m, i: spoil.scale_output(m, i, 1 / 8)),
        ("stem", lambda m, i: spoil.scale_weights(m, i, 8)),
        ("depthwise1", lambda m, i: spoil.scale_weights(m, i, 8)),
        ("expand2", lambda m, i: spoil.zero_weights(m, i, 0.25)),
        ("depthwise0", lambda m, i: spoil.zero_weights(m, i, 0.25)),
        ("class_map", lambda m, i: spoil.clip_map(m)),
    ],
)
def test_the_broken_layer_comes_first(
    converted: Converted, healthy: Blame, planted: str, break_it: Callable[[bytes, int], bytes]
) -> None:
    spoilt = converted.blame(break_it(converted.int8, named(healthy, planted).index))
    assert spoilt.layers[0].name == planted
    assert spoilt.layers[0].lost_db > BROKEN_DB
    assert spoilt.layers[1].lost_db < BROKEN_DB
    assert spoilt.int8.mean > healthy.int8.mean


def test_parts_tell_weights_from_ranges(converted: Converted, healthy: Blame) -> None:
    place = named(healthy, "expand1").index
    clipped = named(converted.blame(spoil.scale_output(converted.int8, place, 1 / 8)), "expand1")
    assert clipped.saturated > 0.1
    assert clipped.output_rmse_steps > 5 * clipped.weights_rmse_steps
    assert clipped.int8_range[1] < clipped.float_range[1] / 4
    zeroed = named(converted.blame(spoil.zero_weights(converted.int8, place, 0.25)), "expand1")
    assert zeroed.weights_rmse_steps > 5 * zeroed.output_rmse_steps


def test_a_scale_that_was_changed_afterwards_is_told(converted: Converted, healthy: Blame) -> None:
    layer = named(healthy, "expand1")
    spoilt = converted.blame(spoil.scale_output(converted.int8, layer.index, 8, naive=True))
    assert spoilt.layers[0].scale_expected == pytest.approx(layer.scale, rel=1e-3)


def test_emulation_agrees_with_the_graph_itself(healthy: Blame) -> None:
    assert healthy.both.mean == pytest.approx(healthy.int8.mean, rel=0.3)
    assert 0 < healthy.weights_only.mean < 2 * healthy.both.mean
    assert 0 < healthy.activations_only.mean < 2 * healthy.both.mean


def test_freeing_the_broken_layer_pays_most(converted: Converted, healthy: Blame) -> None:
    place = named(healthy, "expand1").index
    spoilt = converted.blame(spoil.zero_weights(converted.int8, place, 0.25), freed=3)
    assert spoilt.map_rmse is not None
    gains = {layer.name: layer.map_rmse_if_float for layer in spoilt.layers if layer.map_rmse_if_float}
    assert min(gains, key=lambda name: gains[name]) == "expand1"
    assert gains["expand1"] < spoilt.map_rmse / 2


def test_histograms_count_every_value(healthy: Blame) -> None:
    for layer in healthy.layers:
        counted = sum(layer.histogram.float_counts), sum(layer.histogram.int8_counts)
        assert counted == (healthy.inputs * int(np.prod(layer.shape)),) * 2


def test_report_is_json(healthy: Blame) -> None:
    text = json.dumps(dataclasses.asdict(healthy), allow_nan=False)
    assert json.loads(text)["layers"][0]["name"] == healthy.layers[0].name


def test_a_wrong_input_range_is_the_inputs_fault(converted: Converted) -> None:
    spoilt = converted.blame(spoil.scale_input(converted.int8, 1 / 2))
    assert spoilt.layers[0].name == "input"
    assert spoilt.layers[0].lost_db > BROKEN_DB
    assert spoilt.layers[1].lost_db < BROKEN_DB


def test_another_network_is_refused(converted: Converted) -> None:
    inputs = keras.Input(batch_shape=(1, SIZE, SIZE, 3))
    other = keras.Model(inputs, keras.layers.Conv2D(2, 3, padding="same", strides=8)(inputs))
    reference = tf.lite.TFLiteConverter.from_keras_model(other).convert()
    with pytest.raises(ConversionError, match="not of one network"):
        find_blame(converted.int8, reference, converted.inputs, count=1)


def test_bytes_that_are_no_model_are_refused(converted: Converted) -> None:
    with pytest.raises(ConversionError, match="the int8 graph: TFLite cannot run it"):
        find_blame(b"not a model", converted.reference, converted.inputs, count=1)


def test_a_float_graph_has_nothing_to_judge(converted: Converted) -> None:
    with pytest.raises(ConversionError, match="nothing in it is quantized"):
        find_blame(converted.reference, converted.reference, converted.inputs, count=1)

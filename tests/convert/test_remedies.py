"""Where int8 hurts: layers kept in float, and weights tuned for it."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from numpy.typing import NDArray

from convert.remedies import finetune, mixed_precision
from convert.tflite import ConversionError, to_int8
from reader.runner import LiteRtRunner
from training import networks
from training.fitting import NetworkMaps

SIZE = 96
WILD = 200.0


def pictures(count: int, seed: int) -> NDArray[np.uint8]:
    """Blurred noise of several brightnesses, as unlike each other as frames are."""
    import cv2

    random = np.random.default_rng(seed)
    drawn = [
        cv2.GaussianBlur(random.normal(random.uniform(40, 200), 90, (SIZE, SIZE, 3)), (0, 0), 2)
        for _ in range(count)
    ]
    return np.clip(np.stack(drawn), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def network() -> keras.Model:
    """The scratch network of batch 1 with random weights and settled statistics, so that its maps vary."""
    keras.utils.set_random_seed(1)
    free = networks.build("scratch", SIZE, 2, 0.0)
    for layer in free.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    free((pictures(32, seed=1).astype(np.float32) - 127) / 128, training=True)
    head = free.get_layer(networks.MAP_LAYER)
    head.set_weights([np.random.default_rng(1).normal(0, 0.3, head.kernel.shape), np.zeros(2)])
    return free


def of_batch_1(network: keras.Model) -> keras.Model:
    fixed = networks.build("scratch", SIZE, 2, 0.0, batch=1)
    fixed.set_weights(network.get_weights())
    return fixed


def float_graph(network: keras.Model) -> bytes:
    import tensorflow as tf

    return tf.lite.TFLiteConverter.from_keras_model(of_batch_1(network)).convert()


def error(model: bytes, network: keras.Model) -> float:
    """Root mean square of what int8 changed in the maps of unseen pictures, against their spread."""
    unseen = pictures(24, seed=9)
    runner = LiteRtRunner(model, 1, "model")
    exact = NetworkMaps(network)(unseen)
    found = np.stack([runner.class_map(picture) for picture in unseen])
    return float(np.sqrt(np.mean((found - exact) ** 2)) / exact.std())


@pytest.fixture(scope="module")
def uneven(network: keras.Model) -> keras.Model:
    """The same function, with one channel inside a layer made small and its weights after it large: no
    step of 8 bits a tensor suits both it and its neighbours."""
    worse = keras.models.clone_model(network)
    worse.set_weights(network.get_weights())
    layer = worse.get_layer("scratch2_conv")
    depthwise, pointwise = layer.get_weights()
    depthwise[:, :, :6] /= WILD
    pointwise[:, :, :6] *= WILD
    layer.set_weights([depthwise, pointwise])
    return worse


def test_a_layer_kept_in_float_gives_the_map_back(uneven: keras.Model) -> None:
    tuned_on = pictures(40, seed=2)
    plain = error(to_int8(of_batch_1(uneven), tuned_on), uneven)
    graph = float_graph(uneven)
    everything = error(mixed_precision(graph, tuned_on, []), uneven)
    kept = error(mixed_precision(graph, tuned_on, ["scratch2_conv"]), uneven)
    other = error(mixed_precision(graph, tuned_on, ["scratch4_conv"]), uneven)
    assert plain > 0.2
    assert everything > 0.2
    assert other > 0.2, "it is this layer that hurts"
    assert kept < plain / 4


def test_what_is_kept_in_float_is_what_was_named(network: keras.Model) -> None:
    from ai_edge_litert.interpreter import Interpreter

    graph = float_graph(network)
    (output,) = Interpreter(model_content=graph).get_output_details()
    for name in (networks.MAP_LAYER, output["name"]):
        mixed = Interpreter(model_content=mixed_precision(graph, pictures(20, seed=2), [name]))
        (source,), (target,) = mixed.get_input_details(), mixed.get_output_details()
        assert (source["dtype"], source["quantization"]) == (np.uint8, (1 / 128, 127))
        assert target["dtype"] == np.int8
        kernels = [t for t in mixed.get_tensor_details() if t["name"].endswith("convolution")]
        floats = [t["name"] for t in kernels if t["dtype"] == np.float32]
        assert len(floats) == 1
        assert networks.MAP_LAYER in floats[0]


def test_a_layer_that_is_not_there_is_one_clear_line(network: keras.Model) -> None:
    with pytest.raises(ConversionError, match=r"^layer scratch9_conv: not in the converted graph; .*$"):
        mixed_precision(float_graph(network), pictures(20, seed=2), ["scratch9_conv"])


def rounding_badly(batch: int | None) -> keras.Model:
    """A small network whose first channel is always dark and has large weights after it: its function
    needs them not, but they make the steps that all other weights are rounded to."""
    keras.utils.set_random_seed(3)
    small = keras.initializers.RandomNormal(0, 0.02, seed=3)
    inputs = x = keras.Input(batch_shape=(batch, SIZE, SIZE, 3))
    for name, channels, stride in (("first", 16, 4), ("second", 24, 2), ("third", 32, 2)):
        x = keras.layers.Conv2D(channels, 1, kernel_initializer=small, name=f"{name}_conv")(x)
        x = keras.layers.BatchNormalization(momentum=0.0, name=f"{name}_bn")(x)
        x = keras.layers.ReLU(6.0)(x)
        x = keras.layers.DepthwiseConv2D(3, strides=stride, padding="same", name=f"{name}_depthwise")(x)
    head = keras.layers.Conv2D(2, 1, kernel_initializer=small, name=networks.MAP_LAYER)
    network = keras.Model(inputs, head(x))
    for name in ("first", "second", "third"):
        layer = network.get_layer(f"{name}_bn")
        layer.beta.assign([-20.0, *[0.0] * (layer.beta.shape[0] - 1)])
    for name in ("second_conv", "third_conv", networks.MAP_LAYER):
        kernel, bias = network.get_layer(name).get_weights()
        kernel[:, :, 0] = 0.7
        network.get_layer(name).set_weights([kernel, bias])
    return network


def test_fine_tuning_brings_int8_nearer_to_float() -> None:
    tuned_on = pictures(60, seed=2)
    network, fixed = rounding_badly(None), rounding_badly(1)
    network((tuned_on.astype(np.float32) - 127) / 128, training=True)
    weights = [weight.copy() for weight in network.get_weights()]
    tuned = finetune(network, tuned_on, steps=200)
    fixed.set_weights(weights)
    before = error(to_int8(fixed, tuned_on), network)
    fixed.set_weights(tuned.get_weights())
    after = error(to_int8(fixed, tuned_on), network)
    assert after < 0.8 * before
    for was, now in zip(weights, network.get_weights(), strict=True):
        np.testing.assert_array_equal(was, now)


def test_a_network_that_cannot_be_tuned_is_refused(network: keras.Model) -> None:
    with pytest.raises(ConversionError, match="layer scratch0_conv: a SeparableConv2D"):
        finetune(network, pictures(2, seed=1), steps=1)

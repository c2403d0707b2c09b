"""Rounding that knows its inputs, against nearest rounding and against every rounding there is."""

from __future__ import annotations

import dataclasses
import itertools
import os
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pytest
from numpy.typing import NDArray

from convert.rounding import STEPS, _rows, round_columns, round_weights
from convert.tflite import class_maps, to_float, to_int8
from reader.bundle import Bundle
from reader.clips import Frame
from reader.phantom import Act, Phantom
from reader.reader import Reader
from tests.convert.test_layers import SIZE, settle, small_network

Image = NDArray[np.uint8]
Floats = NDArray[np.float64]
layers = keras.layers


def nearest(weights: Floats) -> Floats:
    """Weights [groups, i, channels], each on its own nearest step."""
    step = np.abs(weights).max(axis=1, keepdims=True) / STEPS
    step[step == 0] = 1.0
    rounded: Floats = np.round(weights / step) * step
    return rounded


def lost(weights: Floats, rounded: Floats, covariance: Floats) -> Floats:
    """Mean squared error of the output: [groups, channels]."""
    apart = weights - rounded
    return np.einsum("gio,gij,gjo->go", apart, covariance, apart)


def moved_together(inputs: int, seed: int, groups: int = 1) -> Floats:
    """A covariance of inputs that share most of what they do, as neighbours in a picture."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(groups):
        shared, own = random.normal(size=(500, 2)), random.normal(size=(500, inputs))
        seen = shared @ random.normal(size=(2, inputs)) + 0.2 * own
        made.append(np.cov(seen.T))
    return np.stack(made)


def best_of_all(weights: Floats, covariance: Floats) -> float:
    """The least error of one channel [i], of all roundings by up to four steps, its largest weight kept."""
    step = np.abs(weights).max() / STEPS
    whole = [
        [w / step] if abs(w) == np.abs(weights).max() else np.floor(w / step) + np.arange(-3, 5)
        for w in weights
    ]
    tried = np.array(list(itertools.product(*whole)))
    apart = weights - np.clip(tried, -STEPS, STEPS) * step
    return float(np.einsum("ni,ij,nj->n", apart, covariance, apart).min())


def test_rounding_is_nearly_the_best_there_is() -> None:
    """Of a few weights every rounding can be tried. One by one they do not always reach the best."""
    random = np.random.default_rng(1)
    weights, covariance = random.normal(size=(20, 5, 2)), moved_together(5, 1, groups=20)
    best = np.array(
        [[best_of_all(of[:, i], c) for i in range(2)] for of, c in zip(weights, covariance, strict=True)]
    )
    ours = lost(weights, round_columns(weights, covariance), covariance)
    theirs = lost(weights, nearest(weights), covariance)
    assert np.all(ours >= best * (1 - 1e-9)), "better than the best: not on the grid"
    assert np.mean(ours < 1.01 * best) > 2 * np.mean(theirs < 1.01 * best)
    assert ours.sum() < 0.6 * theirs.sum()
    assert ours.sum() < 2.5 * best.sum()


@pytest.mark.parametrize("seed", range(4))
def test_inputs_that_move_together_pay(seed: int) -> None:
    random = np.random.default_rng(seed)
    weights, covariance = random.normal(size=(3, 27, 16)), moved_together(27, seed, groups=3)
    ours, theirs = (
        lost(weights, rounded, covariance)
        for rounded in (round_columns(weights, covariance), nearest(weights))
    )
    assert np.mean(ours < theirs) > 0.9
    assert ours.sum() < 0.2 * theirs.sum()


def test_inputs_of_their_own_leave_nearest_rounding() -> None:
    weights = np.random.default_rng(1).normal(size=(2, 9, 4))
    power = np.random.default_rng(2).uniform(0.1, 3.0, size=(2, 9))
    covariance = power[:, :, None] * np.eye(9)
    np.testing.assert_allclose(round_columns(weights, covariance), nearest(weights), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_weights_lie_on_the_grid_that_the_largest_makes(scale: float) -> None:
    random = np.random.default_rng(3)
    weights, covariance = scale * random.normal(size=(4, 30, 8)), moved_together(30, 3, groups=4)
    rounded = round_columns(weights, covariance)
    step = np.abs(weights).max(axis=1, keepdims=True) / STEPS
    whole = rounded / step
    np.testing.assert_allclose(whole, np.round(whole), atol=1e-9)
    assert np.abs(whole).max() <= STEPS + 1e-9
    at = np.abs(weights).argmax(axis=1)[:, None]
    np.testing.assert_allclose(
        np.take_along_axis(rounded, at, 1), np.take_along_axis(weights, at, 1), rtol=1e-12
    )


def test_the_largest_weight_keeps_its_sign_whatever_the_others_leave_to_it() -> None:
    """Inputs that are all the same leave everything to the last of many small weights."""
    seen = np.random.default_rng(1).normal(size=(500, 1)) * np.linspace(2, 1, 40)
    covariance = np.cov(seen.T)[None] + 1e-9 * np.eye(40)
    weights = np.full((1, 40, 1), 0.0101)
    weights[0, -1] = 0.02
    rounded = round_columns(weights, covariance)
    assert rounded[0, -1, 0] == pytest.approx(0.02)


def test_dead_inputs_and_zero_kernels_do_no_harm() -> None:
    random = np.random.default_rng(4)
    weights, covariance = random.normal(size=(3, 9, 5)), moved_together(9, 4, groups=3)
    covariance[0, 4], covariance[0, :, 4] = 0.0, 0.0
    covariance[1] = 0.0
    weights[2, :, 3] = 0.0
    weights[0, :, 1] = 1e-30
    rounded = round_columns(weights, covariance)
    assert np.isfinite(rounded).all()
    assert not rounded[2, :, 3].any()
    np.testing.assert_allclose(rounded[1], nearest(weights)[1], rtol=1e-9)


LAYERS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "plain": (layers.Conv2D, {"filters": 4, "kernel_size": 1}),
    "same": (layers.Conv2D, {"filters": 4, "kernel_size": 3, "padding": "same"}),
    "valid": (layers.Conv2D, {"filters": 4, "kernel_size": 3, "padding": "valid"}),
    "strided": (layers.Conv2D, {"filters": 4, "kernel_size": 3, "strides": 2, "padding": "same"}),
    "wide": (layers.Conv2D, {"filters": 4, "kernel_size": (5, 2), "strides": (2, 3), "padding": "same"}),
    "dilated": (layers.Conv2D, {"filters": 4, "kernel_size": 3, "dilation_rate": 2, "padding": "same"}),
    "depthwise": (layers.DepthwiseConv2D, {"kernel_size": 3, "padding": "same"}),
    "depthwise strided": (layers.DepthwiseConv2D, {"kernel_size": 5, "strides": 2, "padding": "same"}),
    "depthwise doubled": (
        layers.DepthwiseConv2D, {"kernel_size": 3, "depth_multiplier": 2, "padding": "valid"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("shape", [(8, 8), (9, 7)])
def test_windows_are_those_that_the_layer_sees(name: str, shape: tuple[int, int]) -> None:
    """Kernels laid on the windows give what the layer gives, at every one of its places."""
    keras.utils.set_random_seed(5)
    kind, settings = LAYERS[name]
    layer = kind(use_bias=False, **settings)
    source = keras.Input((*shape, 3))
    network = keras.Model(source, layer(source))
    inputs = np.random.default_rng(6).normal(size=(3, *shape, 3)).astype(np.float32)
    maps = keras.ops.convert_to_numpy(network(inputs))
    rows = _rows(layer, inputs, 1500, np.random.default_rng(7))
    kernel = layer.get_weights()[0].astype(np.float64)
    if kind is layers.DepthwiseConv2D:
        of = kernel.reshape(-1, *kernel.shape[2:]).transpose(1, 0, 2)
        found = np.einsum("gri,gio->rgo", rows, of).reshape(rows.shape[1], -1)
    else:
        found = rows[0] @ kernel.reshape(-1, kernel.shape[-1])
    places = maps.reshape(-1, maps.shape[-1])
    apart = np.abs(found[:, None] - places[None]).max(axis=2)
    assert apart.min(axis=1).max() < 1e-5, "a window that the layer does not see"
    assert set(apart.argmin(axis=1).tolist()) == set(range(len(places))), "places that are never looked at"


@pytest.mark.parametrize("kind", ["conv", "depthwise"])
@pytest.mark.parametrize("after", ["bias", "normalization", "nothing"])
def test_what_follows_takes_up_the_shift_of_the_mean(kind: str, after: str) -> None:
    """Bright inputs of little change: nearest rounding shifts every output, ours none."""
    keras.utils.set_random_seed(8)
    random = np.random.default_rng(9)
    pictures = random.integers(180, 256, (40, 16, 16, 6), np.uint8)
    source = keras.Input(batch_shape=(1, 16, 16, 6))
    settings: dict[str, Any] = {"use_bias": after == "bias", "name": "it"}
    it = (
        layers.Conv2D(5, 3, padding="valid", **settings)
        if kind == "conv"
        else layers.DepthwiseConv2D(3, padding="valid", **settings)
    )
    x = it(source)
    if after == "normalization":
        x = layers.BatchNormalization(name="of_it")(x)
    network = keras.Model(source, x)
    maps = network_maps(network, pictures)
    before = [w.copy() for w in it.get_weights()]
    round_weights(network, pictures, 1)
    shift = np.abs((network_maps(network, pictures) - maps).mean(axis=(0, 1, 2))).max()
    ours = it.get_weights()[0]
    assert not np.array_equal(ours, before[0])
    it.set_weights([nearest_kernel(before[0], kind), *before[1:]])
    if after == "normalization":
        network.get_layer("of_it").moving_mean.assign(np.zeros(maps.shape[-1]))
    plain = np.abs((network_maps(network, pictures) - maps).mean(axis=(0, 1, 2))).max()
    # A depthwise kernel has too few weights to make up for the shift among themselves.
    assert shift < (0.8 if kind == "depthwise" and after == "nothing" else 0.3) * plain


def nearest_kernel(kernel: NDArray[np.float32], kind: str) -> NDArray[np.float32]:
    step = np.abs(kernel).max(axis=(0, 1) if kind == "depthwise" else (0, 1, 2), keepdims=True) / STEPS
    return np.asarray(np.round(kernel / step) * step, np.float32)


def network_maps(network: keras.Model, pictures: Image) -> Floats:
    values = (pictures.astype(np.float32) - 127) / 128
    return np.concatenate([np.asarray(network(value[None])) for value in values]).astype(np.float64)


def test_a_network_of_one_layer_is_rounded_too() -> None:
    keras.utils.set_random_seed(1)
    source = keras.Input(batch_shape=(1, 8, 8, 3))
    network = keras.Model(source, layers.Conv2D(2, 3, name="class_map")(source))
    before = network.get_layer("class_map").get_weights()[0]
    round_weights(network, np.random.default_rng(1).integers(0, 256, (20, 8, 8, 3), np.uint8), 1)
    after = network.get_layer("class_map").get_weights()[0]
    steps = after / (np.abs(before).max(axis=(0, 1, 2)) / STEPS)
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-3)


@pytest.fixture(scope="module")
def pictures(phantom_bundle: Bundle) -> tuple[Image, Image]:
    """Inputs to calibrate on, and others of another phantom."""
    reads = dataclasses.replace(phantom_bundle.manifest.reads, size=SIZE, familiarity=None)
    kinds = []
    for seed in (1, 2):
        phantom = Phantom(tuple(Act(act, 2.0) for act in ("normal", "b-lines", "consolidation")), seed)
        reader = Reader(reads)
        frames = (Frame(phantom.frame(i / 8), i / 8, i) for i in range(48))
        views = [reader.look(frame) for frame in frames]
        kinds.append(np.stack([view.pixels for view in views if view.pixels is not None]))
    return kinds[0], kinds[1]


def test_a_rounded_network_says_more_nearly_the_same_on_inputs_of_others(
    pictures: tuple[Image, Image],
) -> None:
    calibration, others = pictures
    network = small_network()
    settle(network, calibration)
    exact = network_maps(network, others)
    plain = to_int8(network, calibration)
    round_weights(network, calibration, 1)
    rounded = to_int8(network, calibration)
    weights_only = network_maps(network, others) - exact
    errors = {}
    for name, model in (("plain", plain), ("rounded", rounded)):
        errors[name] = float(np.sqrt(((dequantized(model, others) - exact) ** 2).mean()))
    assert errors["rounded"] < 0.9 * errors["plain"], errors
    assert np.sqrt((weights_only**2).mean()) < errors["plain"]
    assert len(to_float(network)) > len(rounded)


def dequantized(model: bytes, inputs: Image) -> Floats:
    import tensorflow as tf

    scale, zero_point = tf.lite.Interpreter(model_content=model).get_output_details()[0]["quantization"]
    return (class_maps(model, inputs, builtin=True).astype(np.float64) - zero_point) * scale


def test_the_converter_finds_the_very_grid(pictures: tuple[Image, Image]) -> None:
    """What was rounded is not rounded again: converted weights are ours to the last step."""
    from ai_edge_litert.interpreter import Interpreter

    calibration, _ = pictures
    network = small_network()
    settle(network, calibration)
    round_weights(network, calibration, 1)
    model = to_int8(network, calibration)
    kernel = network.get_layer("class_map").get_weights()[0]
    interpreter = Interpreter(model_content=model, experimental_preserve_all_tensors=True)
    interpreter.allocate_tensors()
    wanted = np.moveaxis(kernel, -1, 0)
    found = [
        details
        for details in interpreter.get_tensor_details()
        if tuple(details["shape"]) == wanted.shape and details["dtype"] == np.int8
    ]
    assert len(found) == 1
    scales = found[0]["quantization_parameters"]["scales"].reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(
        interpreter.get_tensor(found[0]["index"]) * scales, wanted, atol=scales.max() / 50
    )

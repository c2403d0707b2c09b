"""Rounds a network's weights to int8 so that each layer's output changes least.

Rounding every weight to its nearest step is not the best that the steps can do: what one weight loses,
the others of its output channel can make up for, as far as their inputs move together. The weights of a
channel are rounded one by one, and after each the rest move to where the layer's mean squared error,
over real inputs, is least (Hassibi 1993, optimal brain surgeon, doi 10.1109/ICNN.1993.298572; Frantar
2022, GPTQ, arXiv 2210.17323). The mean of what is left goes into the bias (Nagel 2019, arXiv 1906.04721).
"""

from __future__ import annotations

from dataclasses import dataclass

import keras
import numpy as np
from numpy.typing import NDArray

from training.fitting import scaled

Image = NDArray[np.uint8]
Floats = NDArray[np.float64]

ROWS_A_WEIGHT = 16
"""Places of a layer's input that are looked at, over all images, for each weight of a channel."""
MOST_PLACES, FEWEST_PLACES = 128, 4
"""Of them in one image."""
IMAGES_AT_ONCE = 8
DAMPING = 0.01
"""Share of the mean input power that is added to every input, so that no channel is trusted wholly."""
STEPS = 127
"""Steps of an int8 weight to either side; the converter's scale is the largest weight over this."""


@dataclass
class _Moments:
    """Of a layer's inputs: ``mean`` [groups, i], ``covariance`` [groups, i, i]; a depthwise layer has a
    group a channel, others have one."""

    mean: Floats
    covariance: Floats


def round_weights(network: keras.Model, images: Image, seed: int) -> None:
    """Put every convolution's weights onto their int8 grid, in place: a channel's largest weight keeps
    its value, so that the converter finds the same grid.

    ``images``: uint8 [n, size, size, channels], inputs of training patients.
    """
    layers = [
        layer
        for layer in network.layers
        if isinstance(layer, keras.layers.Conv2D | keras.layers.DepthwiseConv2D)
    ]
    for layer, moments in zip(layers, _moments(network, layers, images, seed), strict=True):
        _round_layer(layer, moments, _normalization_after(network, layer))


def _moments(
    network: keras.Model, layers: list[keras.layers.Layer], images: Image, seed: int
) -> list[_Moments]:
    probe = keras.Model(network.input, [layer.input for layer in layers])
    random = np.random.default_rng(seed)
    sums: list[tuple[Floats, Floats]] = []
    counts = np.zeros(len(layers))
    for start in range(0, len(images), IMAGES_AT_ONCE):
        seen = probe.predict_on_batch(scaled(images[start : start + IMAGES_AT_ONCE]))
        # Keras gives a model's only output bare.
        seen = seen if isinstance(seen, list) else [seen]
        for i, (layer, of) in enumerate(zip(layers, seen, strict=True)):
            rows = _rows(layer, np.asarray(of), _places(layer, len(images)), random)
            first, second = rows.sum(axis=1), rows.transpose(0, 2, 1) @ rows
            if start:
                first, second = first + sums[i][0], second + sums[i][1]
                sums[i] = first, second
            else:
                sums.append((first, second))
            counts[i] += rows.shape[1]
    found = []
    for (first, second), count in zip(sums, counts, strict=True):
        mean = first / count
        found.append(_Moments(mean, second / count - mean[:, :, None] * mean[:, None, :]))
    return found


def _places(layer: keras.layers.Layer, images: int) -> int:
    kernel = layer.get_weights()[0]
    depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
    weights = int(np.prod(kernel.shape[: 2 if depthwise else 3]))
    return int(np.clip(-(-ROWS_A_WEIGHT * weights // images), FEWEST_PLACES, MOST_PLACES))


def _rows(
    layer: keras.layers.Layer, inputs: NDArray[np.float32], places: int, random: np.random.Generator
) -> Floats:
    """What the layer's kernel sees at so many places of each image: float64 [groups, rows, i]."""
    (height, width), strides, dilation = layer.kernel_size, layer.strides, layer.dilation_rate
    _, rows, columns, _ = layer.output.shape
    down, right = dilation[0] * np.arange(height), dilation[1] * np.arange(width)
    if layer.padding == "same":
        down, right = (
            reach - max((count - 1) * stride + reach[-1] + 1 - size, 0) // 2
            for reach, count, stride, size in zip(
                (down, right), (rows, columns), strides, inputs.shape[1:3], strict=True
            )
        )
    some = places * len(inputs)
    image = random.integers(len(inputs), size=some)[:, None, None]
    y = (strides[0] * random.integers(rows, size=some))[:, None, None] + down[:, None]
    x = (strides[1] * random.integers(columns, size=some))[:, None, None] + right
    inside = (y >= 0) & (y < inputs.shape[1]) & (x >= 0) & (x < inputs.shape[2])
    windows = inputs[image, np.clip(y, 0, inputs.shape[1] - 1), np.clip(x, 0, inputs.shape[2] - 1)]
    windows = np.where(inside[:, :, :, None], windows, 0).astype(np.float64)
    if isinstance(layer, keras.layers.DepthwiseConv2D):
        return np.ascontiguousarray(windows.reshape(some, height * width, -1).transpose(2, 0, 1))
    return windows.reshape(1, some, -1)


def _round_layer(
    layer: keras.layers.Layer, moments: _Moments, normalization: keras.layers.Layer | None
) -> None:
    kernel, *bias = layer.get_weights()
    mean, covariance = moments.mean, moments.covariance
    if not bias and normalization is None:
        # Nothing can take up a shift of the mean, so that it counts as error.
        covariance = covariance + mean[:, :, None] * mean[:, None, :]
    # A depthwise kernel is [rows, columns, groups, channels of each]; another has one group.
    depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
    grouped = kernel.reshape(-1, *(kernel.shape[2:] if depthwise else (1, kernel.shape[-1])))
    weights = grouped.transpose(1, 0, 2).astype(np.float64)
    rounded = round_columns(weights, covariance)
    shift = np.einsum("gi,gio->go", mean, weights - rounded).ravel()
    kernel = rounded.transpose(1, 0, 2).reshape(kernel.shape).astype(np.float32)
    layer.set_weights([kernel, *(of + shift for of in bias)])
    if not bias and normalization is not None:
        normalization.moving_mean.assign_sub(shift)


def round_columns(weights: Floats, covariance: Floats) -> Floats:
    """Weights [groups, i, channels] on the grid of each channel, whose step is its largest weight over
    127. ``covariance``: of a group's inputs [groups, i, i].
    """
    steps = np.abs(weights).max(axis=1) / STEPS
    steps[steps == 0] = 1.0
    power = np.diagonal(covariance, axis1=1, axis2=2)
    damping = DAMPING * power.mean(axis=1) + 1e-12
    damped = covariance + np.eye(power.shape[1]) * damping[:, None, None]
    order = np.argsort(-power, axis=1)
    group = np.arange(len(weights))[:, None]
    rest = weights[group, order]
    largest = np.abs(rest).argmax(axis=1)
    signs = np.sign(np.take_along_axis(rest, largest[:, None], axis=1)[:, 0])
    inverse = np.linalg.inv(damped[group[:, :, None], order[:, :, None], order[:, None, :]])
    factor = np.linalg.cholesky(inverse).transpose(0, 2, 1)
    rounded = np.zeros_like(weights)
    for place in range(weights.shape[1]):
        now = rest[:, place]
        whole = np.clip(np.round(now / steps), -STEPS, STEPS)
        # The largest weight makes the grid: what the others left to it must not move it.
        kept = np.where(largest == place, STEPS * signs, whole) * steps
        rounded[group[:, 0], order[:, place]] = kept
        lost = (now - kept) / factor[:, place, place, None]
        rest[:, place + 1 :] -= factor[:, place, place + 1 :, None] * lost[:, None, :]
    nearest = np.round(weights / steps[:, None]) * steps[:, None]
    # One weight at a time is greedy, and now and then it ends up worse.
    better = _error(weights - rounded, covariance) <= _error(weights - nearest, covariance)
    return np.where(better[:, None], rounded, nearest)


def _error(lost: Floats, covariance: Floats) -> Floats:
    """Mean square of what a channel's output loses: float64 [groups, channels]."""
    return np.asarray((lost * (covariance @ lost)).sum(axis=1))


def _normalization_after(network: keras.Model, layer: keras.layers.Layer) -> keras.layers.Layer | None:
    for other in network.layers:
        if isinstance(other, keras.layers.BatchNormalization) and other.input is layer.output:
            return other
    return None

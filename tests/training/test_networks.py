from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from training import networks
from training.weights import WeightsError, imagenet_weights_file, read_legacy_torch


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    return read_legacy_torch(imagenet_weights_file())


def test_the_keras_network_computes_the_originals_logits(weights: dict[str, np.ndarray]) -> None:
    """Ten logits of the PyTorch original (efficientnet_lite_pytorch 0.1.0) for the same noise."""
    import keras

    network = networks.build("efficientnet-lite0", 224, 2, 0.2)
    networks.load_lite0(network, weights)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3)).astype(np.float32)
    features = keras.Model(network.input, network.get_layer(networks.FEATURES_LAYER).output)
    pooled = np.asarray(features.predict_on_batch((pixels - 127) / 128)).mean(axis=(1, 2))
    logits = pooled @ weights["_fc.weight"].T + weights["_fc.bias"]
    original = np.load(Path(__file__).parent / "efficientnet_lite0_logits.npy")
    assert np.abs(logits[0, : original.size] - original).max() < 1e-3


def test_only_tensors_come_out_of_a_weights_file(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return (print, ("owned",))

    path = tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps(Evil(), protocol=2))
    with pytest.raises(WeightsError, match="only tensors"):
        read_legacy_torch(path)


@pytest.mark.parametrize("keep", [0, 100, 40_000, 1_000_000])
def test_a_cut_weights_file_is_refused(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "cut.pth"
    path.write_bytes(imagenet_weights_file().read_bytes()[:keep])
    with pytest.raises(WeightsError):
        read_legacy_torch(path)


def test_what_is_usual_is_taken_from_the_places_and_not_from_the_score() -> None:
    network = networks.build("scratch", 96, 2, 0.0, whole=True)
    pictures = np.random.default_rng(1).normal(0, 1, (12, 96, 96, 3)).astype(np.float32)
    network.get_layer(networks.MAP_LAYER).set_weights(
        [np.random.default_rng(2).normal(0, 1000, (1, 1, 128, 2)), np.zeros(2)]
    )
    before = np.asarray(network.predict_on_batch(pictures))
    networks.settle_usual_map(network, before)
    after = np.asarray(network.predict_on_batch(pictures))
    np.testing.assert_allclose(after.mean(axis=(1, 2)), before.mean(axis=(1, 2)), rtol=1e-3, atol=1e-3)
    places = after.mean(axis=0)
    assert np.ptp(places, axis=(0, 1)).max() < 1e-3
    assert np.ptp(before.mean(axis=0), axis=(0, 1)).min() > 0.1


def test_a_recipe_that_cannot_train_is_refused() -> None:
    from training.datasets import DataError
    from training.fitting import Recipe

    for wrong in ({"epochs": 0}, {"batch": 0}, {"frames_a_clip": -1}, {"seed": -1}):
        with pytest.raises(DataError, match="or more"):
            Recipe.of("scratch", **wrong)
    with pytest.raises(DataError, match="efficientnet-lite0"):
        Recipe.of("resnet")

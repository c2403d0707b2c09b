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

"""The shipped networks compute the same wherever they run, or differ by what their bundles say."""

from __future__ import annotations

import io

import numpy as np
import pytest

from convert.tflite import class_maps
from reader.bundle import DEFAULT_BUNDLE, GOLDEN, MODEL, Bundle, load_bundle
from reader.runner import LiteRtRunner

SHIPPED = sorted(path.name for path in DEFAULT_BUNDLE.parent.iterdir())


@pytest.fixture(scope="module", params=SHIPPED)
def bundle(request: pytest.FixtureRequest) -> Bundle:
    return load_bundle(DEFAULT_BUNDLE.parent / request.param)


def test_tensorflow_and_litert_agree_bit_for_bit_through_xnnpack(bundle: Bundle) -> None:
    with np.load(io.BytesIO(bundle.files[GOLDEN])) as golden:
        inputs = golden["inputs"]
    runner = LiteRtRunner(bundle.files[MODEL], 1, MODEL)
    litert = np.stack([runner.raw_map(pixels) for pixels in inputs])
    assert np.ptp(litert.astype(int)) > 10, "the maps say nothing"
    assert np.array_equal(class_maps(bundle.files[MODEL], inputs), litert)


def test_the_built_in_kernels_differ_by_no_more_than_the_bundle_says(bundle: Bundle) -> None:
    with np.load(io.BytesIO(bundle.files[GOLDEN])) as golden:
        inputs, expected = golden["inputs"], golden["maps_builtin"]
        xnnpack, tolerance = golden["maps_xnnpack"], int(golden["tolerance_builtin"])
    found = class_maps(bundle.files[MODEL], inputs, builtin=True)
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= tolerance
    assert np.abs(found.astype(int) - xnnpack.astype(int)).max() <= tolerance
    assert tolerance <= 12, "kernels that differ by more than that read something else"


def test_every_shipped_network_was_judged_and_holds_on_every_runner_it_has(bundle: Bundle) -> None:
    assert bundle.manifest.gate_outcome in ("PASS", "TOO FEW TO SHOW")
    kinds = ["litert", *(["onnx"] if "model_int8.onnx" in bundle.files else [])]
    for kind in kinds:
        bundle.check_golden(bundle.runner(1, kind))

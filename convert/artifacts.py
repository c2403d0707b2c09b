"""One network in every form that it is shipped or measured in."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import onnx
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from convert.onnx import to_onnx, to_onnx_int8
from convert.remedies import finetune, mixed_precision
from convert.rounding import round_weights
from convert.tflite import ConversionError, FloatRunner, to_float, to_int8
from reader.bundle import MODEL, ONNX, ONNX_INT8
from reader.runner import LiteRtRunner, OnnxRunner, Runner
from training.calibration import Calibration

Image = NDArray[np.uint8]

FLOAT_TFLITE = "model_float.tflite"
ONNX_UINT8 = "model_uint8.onnx"
TITLES = {
    MODEL: "int8 TFLite",
    FLOAT_TFLITE: "float32 TFLite",
    ONNX: "float32 ONNX",
    ONNX_INT8: "int8 ONNX, TensorRT's kind",
    ONNX_UINT8: "int8 ONNX, onnxruntime's kind for processors",
}
INVOKES, WARM_UP = 100, 10
OFFERED = (1, 3)
"""Numbers of layers whose keeping in float is tried."""
OFFER_IMAGES = 60
ROUNDING_IMAGES = 120
"""Images that the weights are rounded on."""


@dataclass(frozen=True)
class Artifact:
    """A network as a file. ``name``: one of ``TITLES``."""

    name: str
    content: bytes

    def runner(self, threads: int) -> Runner:
        """The network, ready to run as it runs at the bedside."""
        if self.name == FLOAT_TFLITE:
            return FloatRunner(self.content, threads)
        if self.name == MODEL:
            return LiteRtRunner(self.content, threads, self.name)
        return OnnxRunner(self.content, threads, self.name, integer=self.name == ONNX_UINT8)


@dataclass(frozen=True)
class Recipe:
    """How the weights come down to int8. ``float_layers``: kept in float in the TFLite graph. ``finetune``:
    steps of fine-tuning before the weights are rounded, 0 for none."""

    seed: int
    float_layers: tuple[str, ...] = ()
    finetune: int = 0


def int8_artifacts(
    build: Callable[[int | None], keras.Model], calibration: Calibration, recipe: Recipe
) -> tuple[dict[str, Artifact], keras.Model]:
    """Convert a network to int8 TFLite and ONNX; also the network of batch 1 whose weights were rounded for
    that. ``build``: the network with the batch that is asked for. Raises ConversionError where a form
    cannot hold it."""
    inputs, rounded = calibration.inputs, build(1)
    if recipe.finetune:
        rounded.set_weights(finetune(build(None), inputs, recipe.finetune, recipe.seed).get_weights())
    step = -(-len(inputs) // ROUNDING_IMAGES)
    round_weights(rounded, inputs[::step], recipe.seed)
    layers = recipe.float_layers
    contents = {
        MODEL: mixed_precision(to_float(rounded), inputs, layers) if layers else to_int8(rounded, inputs),
        ONNX_INT8: to_onnx_int8(to_onnx(rounded), inputs),
    }
    return {name: Artifact(name, content) for name, content in contents.items()}, rounded


def float_artifacts(network: keras.Model) -> dict[str, Artifact]:
    """A network of batch 1 as float32 TFLite and ONNX. Raises ConversionError where these cannot hold it."""
    contents = {FLOAT_TFLITE: to_float(network), ONNX: to_onnx(network)}
    return {name: Artifact(name, content) for name, content in contents.items()}


def offer_mixed(
    rounded: keras.Model, artifacts: Mapping[str, Artifact], calibration: Calibration, worst: Sequence[str]
) -> list[dict[str, Any]]:
    """What keeping the worst layers in float would gain and cost, beside plain int8: a row each, JSON values.

    ``worst``: layers, those first that would gain most. ``map_rmse``: logits, against float TFLite on some
    of the calibration inputs. ``ms``: one thread, in turn picture by picture.
    """
    inputs = calibration.inputs
    reference = to_float(rounded)
    graphs: dict[str, bytes] = {"": artifacts[MODEL].content}
    refused: list[dict[str, Any]] = []
    for count in OFFERED:
        layers = ",".join(worst[:count])
        try:
            graphs[layers] = mixed_precision(reference, inputs, worst[:count])
        except ConversionError as error:
            refused.append({"float_layers": worst[:count], "refused": str(error)})
    some = inputs[:: -(-len(inputs) // OFFER_IMAGES)]
    exact = artifacts[FLOAT_TFLITE].runner(1)
    wanted = [exact.class_map(pixels) for pixels in some]
    runners = {layers: LiteRtRunner(content, 1, layers) for layers, content in graphs.items()}
    taken: dict[str, list[float]] = {layers: [] for layers in runners}
    errors: dict[str, list[float]] = {layers: [] for layers in runners}
    for pixels, expected in zip(some, wanted, strict=True):
        for layers, runner in runners.items():
            began = time.perf_counter()
            found = runner.class_map(pixels)
            taken[layers].append(time.perf_counter() - began)
            errors[layers].append(float(np.square(found - expected).mean()))
    return [
        {
            "float_layers": layers.split(",") if layers else [],
            "map_rmse": round(float(np.sqrt(np.mean(errors[layers]))), 4),
            "ms": round(1e3 * float(np.median(taken[layers])), 3),
            "bytes": len(content),
        }
        for layers, content in graphs.items()
    ] + refused


def measure(artifacts: Mapping[str, Artifact], network: keras.Model, inputs: Image) -> dict[str, Any]:
    """Size, operations, latency and memory of each artifact on this machine, in one run: JSON values.

    Latency: one thread, the artifacts in turn picture by picture, so that all meet the same load.
    """
    runners = {name: of.runner(1) for name, of in artifacts.items()}
    taken: dict[str, list[float]] = {name: [] for name in runners}
    for i in range(INVOKES + WARM_UP):
        pixels = inputs[i % len(inputs)]
        for name, runner in runners.items():
            began = time.perf_counter()
            runner.class_map(pixels)
            taken[name].append(time.perf_counter() - began)
    rows = [
        {
            "name": name,
            "title": TITLES[name],
            "bytes": len(of.content),
            "operations": _operations(of),
            "ms": round(1e3 * float(np.median(taken[name][WARM_UP:])), 3),
            "ms_p95": round(1e3 * float(np.percentile(taken[name][WARM_UP:], 95)), 3),
            "memory_mb": _memory(of),
        }
        for name, of in artifacts.items()
    ]
    fastest = min(taken, key=lambda name: float(np.median(taken[name][WARM_UP:])))
    return {
        "parameters": int(network.count_params()),
        "multiply_accumulates": _multiply_accumulates(network),
        "fastest": fastest,
        "artifacts": rows,
    }


def _operations(of: Artifact) -> int:
    if of.name.endswith(".onnx"):
        return len(onnx.load_from_string(of.content).graph.node)
    return int(schema.Model.GetRootAsModel(of.content, 0).Subgraphs(0).OperatorsLength())


def _multiply_accumulates(network: keras.Model) -> int:
    kinds = (
        keras.layers.Conv2D,
        keras.layers.DepthwiseConv2D,
        keras.layers.SeparableConv2D,
        keras.layers.Dense,
    )
    total = 0
    for layer in network.layers:
        if isinstance(layer, kinds):
            places = int(np.prod(layer.output.shape[1:-1]))
            total += sum(places * int(np.prod(w.shape)) for w in layer.weights if len(w.shape) > 1)
    return total


def _memory(of: Artifact) -> float:
    """Resident megabytes that loading and running the artifact adds to a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / of.name
        path.write_bytes(of.content)
        command = [sys.executable, "-m", "convert.footprint", str(path)]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

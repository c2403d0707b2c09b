from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from convert import onnx as conversion
from convert.onnx import to_onnx, to_onnx_int8
from convert.tflite import ConversionError
from reader.bundle import Bundle, Specification
from reader.clips import Frame
from reader.phantom import Act, Phantom
from reader.reader import Reader
from reader.runner import OnnxRunner, Runner

import keras  # isort: skip  (after convert, which keeps TensorFlow quiet)

from training import networks
from training.fitting import NetworkMaps, scaled

Image = NDArray[np.uint8]
Float = NDArray[np.float32]

SIZE = 64
FRAMES_A_SECOND = 8
INT8_BOUND = 0.03
"""How far int8 may move a map, as a share of the maps' spread."""


@pytest.fixture(scope="module")
def reads(default_bundle: Bundle) -> Specification:
    # The phantom is not lung, and would be refused as such.
    return dataclasses.replace(default_bundle.manifest.reads, size=SIZE, familiarity=None)


def phantom_frames(seconds: float, *acts: str, seed: int) -> Iterator[Frame]:
    """A few frames a second of acts that last so many seconds each."""
    phantom = Phantom(tuple(Act(act, seconds) for act in acts), seed)
    for i in range(round(phantom.duration * FRAMES_A_SECOND)):
        yield Frame(phantom.frame(i / FRAMES_A_SECOND), i / FRAMES_A_SECOND, i)


@pytest.fixture(scope="module")
def pictures(reads: Specification) -> Image:
    """Inputs as the reader makes them, healthy and then not, in halves."""
    kinds = []
    for seed, act in enumerate(("normal", "consolidation")):
        reader = Reader(reads)
        views = [reader.look(frame) for frame in phantom_frames(4.0, act, seed=seed)]
        kinds.append([view.pixels for view in views if view.pixels is not None])
    count = min(len(kind) for kind in kinds)
    return np.stack([picture for kind in kinds for picture in kind[:count]])


@pytest.fixture(scope="module")
def network(reads: Specification, pictures: Image) -> keras.Model:
    """A small network that has really learnt to tell the phantom's acts apart."""
    keras.utils.set_random_seed(1)
    learner = networks.build("scratch", SIZE, len(reads.labels), 0.1)
    for layer in learner.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.7  # its statistics must settle within these few steps
    mean = keras.ops.mean(learner.output, axis=(1, 2))
    trainer = keras.Model(learner.input, mean)
    trainer.compile(keras.optimizers.Adam(3e-3), keras.losses.SparseCategoricalCrossentropy(True))
    negative = reads.labels.index(reads.negative)
    truth = np.repeat([negative, 1 - negative], len(pictures) // 2)
    trainer.fit(scaled(pictures), truth, batch_size=16, epochs=8, verbose=0)
    fixed = networks.build("scratch", SIZE, len(reads.labels), 0.1, batch=1)
    fixed.set_weights(learner.get_weights())
    return fixed


@pytest.fixture(scope="module")
def float_model(network: keras.Model) -> bytes:
    return to_onnx(network)


@pytest.fixture(scope="module")
def int8_model(float_model: bytes, pictures: Image) -> bytes:
    return to_onnx_int8(float_model, pictures)


def maps_of(model: bytes, pictures: Sequence[Image] | Image) -> Float:
    runner = OnnxRunner(model, 1, "model.onnx")
    return np.stack([runner.class_map(picture) for picture in pictures])


def moved(model: bytes, float_model: bytes, pictures: Image) -> float:
    """How far the first model's maps are from the second's: root mean square, as a share of their spread."""
    ours, theirs = maps_of(model, pictures), maps_of(float_model, pictures)
    return float(np.sqrt(np.mean((ours - theirs) ** 2)) / theirs.std())


def test_float_onnx_gives_keras_maps(network: keras.Model, float_model: bytes, pictures: Image) -> None:
    exact = NetworkMaps(network, batch=1)(pictures)
    assert np.ptp(exact) > 1
    np.testing.assert_allclose(maps_of(float_model, pictures), exact, atol=1e-4)


def test_float_onnx_takes_pixels_and_gives_a_map_in_the_agreed_opset(float_model: bytes) -> None:
    model = onnx.load_from_string(float_model)
    ends = [(value.name, value.type.tensor_type) for value in (*model.graph.input, *model.graph.output)]
    kinds = [(name, kind.elem_type, [d.dim_value for d in kind.shape.dim]) for name, kind in ends]
    assert kinds == [
        ("pixels", TensorProto.UINT8, [1, SIZE, SIZE, 3]),
        ("map", TensorProto.FLOAT, [1, 2, 2, 2]),
    ]
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]


def test_a_graph_that_lost_a_weight_is_refused(network: keras.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    convert = conversion.tf2onnx.convert.from_function

    def careless(*arguments: Any, **options: Any) -> Any:
        model, files = convert(*arguments, **options)
        largest = max(model.graph.initializer, key=lambda tensor: np.prod(tensor.dims))
        lost = np.zeros(tuple(largest.dims), np.float32)
        largest.CopyFrom(numpy_helper.from_array(lost, largest.name))
        return model, files

    monkeypatch.setattr(conversion.tf2onnx.convert, "from_function", careless)
    with pytest.raises(ConversionError, match="differs from Keras"):
        to_onnx(network)


def test_a_network_without_a_fixed_batch_is_refused() -> None:
    with pytest.raises(ConversionError, match="batch 1"):
        to_onnx(networks.build("scratch", SIZE, 2, 0.1))


def test_the_same_input_gives_the_same_bytes_and_leaves_no_file(
    network: keras.Model,
    float_model: bytes,
    int8_model: bytes,
    pictures: Image,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert to_onnx(network) == float_model
    assert to_onnx_int8(float_model, pictures) == int8_model
    assert not list(tmp_path.iterdir())


class Graph:
    """A model's nodes, with what makes each tensor."""

    def __init__(self, content: bytes) -> None:
        model = onnx.load_from_string(content)
        self.nodes = list(model.graph.node)
        self.constants = {x.name: numpy_helper.to_array(x) for x in model.graph.initializer}
        self.maker = {tensor: node for node in self.nodes for tensor in node.output}

    def of(self, *kinds: str) -> list[Any]:
        return [node for node in self.nodes if node.op_type in kinds]


def check_convolutions(graph: Graph) -> None:
    """Each reads a quantized tensor and int8 weights with one scale a channel."""
    convolutions = graph.of("Conv")
    assert len(convolutions) == 11
    for node in convolutions:
        data, weights = (graph.maker[tensor] for tensor in node.input[:2])
        assert graph.maker[data.input[0]].op_type == "QuantizeLinear"
        values, scales, zero_points = (graph.constants[tensor] for tensor in weights.input)
        assert [(a.name, a.i) for a in weights.attribute] == [("axis", 0)]
        assert values.dtype == np.int8
        assert scales.shape == zero_points.shape == values.shape[:1]
        assert not zero_points.any()
        assert np.ptp(scales) > 0 or len(scales) == 2  # two opposite classes


def test_the_symmetric_graph_keeps_tensorrts_rules(int8_model: bytes) -> None:
    graph = Graph(int8_model)
    check_convolutions(graph)
    for node in graph.of("QuantizeLinear", "DequantizeLinear"):
        scale, zero_point = (graph.constants[tensor] for tensor in node.input[1:])
        assert zero_point.dtype == np.int8
        assert not zero_point.any()
        assert (scale > 0).all()
        assert node.input[0] in graph.constants or scale.ndim == 0
    used_by_convolutions = {tensor for node in graph.of("Conv") for tensor in node.input}
    assert {x for node in graph.of("DequantizeLinear") for x in node.output} <= used_by_convolutions
    assert {array.dtype.name for array in graph.constants.values()} == {"int8", "float32"}
    biases = [graph.constants[node.input[2]] for node in graph.of("Conv") if len(node.input) == 3]
    assert {bias.dtype.name for bias in biases} == {"float32"}
    tensor, before = graph.of("QuantizeLinear")[0].input[0], []
    while tensor != "pixels":
        before.append(graph.maker[tensor].op_type)
        tensor = graph.maker[tensor].input[0]
    assert before == ["Transpose", "Mul", "Sub", "Cast"]


def test_the_processors_graph_has_uint8_activations(float_model: bytes, pictures: Image) -> None:
    model = to_onnx_int8(float_model, pictures, symmetric=False)
    graph = Graph(model)
    check_convolutions(graph)
    points = [graph.constants[node.input[2]] for node in graph.of("QuantizeLinear")]
    assert {point.dtype.name for point in points} == {"uint8"}
    assert any(point > 0 for point in points)
    assert moved(model, float_model, pictures) < INT8_BOUND


def test_int8_gives_nearly_the_maps_of_float(float_model: bytes, int8_model: bytes, pictures: Image) -> None:
    assert 0 < moved(int8_model, float_model, pictures) < INT8_BOUND


def test_a_spoiled_scale_moves_the_maps(float_model: bytes, int8_model: bytes, pictures: Image) -> None:
    spoiled = onnx.load_from_string(int8_model)
    scale = next(node for node in spoiled.graph.node if node.op_type == "QuantizeLinear").input[1]
    for constant in spoiled.graph.initializer:
        if constant.name == scale:
            constant.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(constant) / 3, scale))
    assert moved(spoiled.SerializeToString(), float_model, pictures) > INT8_BOUND


def test_a_convolution_left_in_float_is_refused(
    float_model: bytes, pictures: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantize, last = conversion.quantize_static, Graph(float_model).of("Conv")[-1].name

    def careless(*arguments: Any, **options: Any) -> None:
        quantize(*arguments, **options, nodes_to_exclude=[last])

    monkeypatch.setattr(conversion, "quantize_static", careless)
    with pytest.raises(ConversionError, match="left in float"):
        to_onnx_int8(float_model, pictures)


def test_calibration_inputs_of_another_kind_are_refused(float_model: bytes, pictures: Image) -> None:
    for wrong in (pictures[:, :32], pictures.astype(np.float32), pictures[:0]):
        with pytest.raises(ConversionError, match="calibration inputs"):
            to_onnx_int8(float_model, wrong)


class KerasRunner:
    """The network itself in a reader."""

    name, input_shape, map_shape = "keras", (SIZE, SIZE, 3), (2, 2, 2)

    def __init__(self, network: keras.Model) -> None:
        self._maps = NetworkMaps(network, batch=1)

    def class_map(self, pixels: Image) -> Float:
        return self._maps(pixels[None])[0]


def test_a_reader_says_the_same_on_keras_float_and_int8(
    reads: Specification, network: keras.Model, float_model: bytes, int8_model: bytes
) -> None:
    def states(runner: Runner) -> list[str]:
        reader = Reader(reads, runner)
        frames = phantom_frames(3.0, "normal", "consolidation", seed=8)
        return [reader.read(frame).state for frame in frames]

    expected = states(KerasRunner(network))
    assert set(reads.labels) <= set(expected)
    assert states(OnnxRunner(float_model, 1, "float")) == expected
    assert states(OnnxRunner(int8_model, 1, "int8")) == expected

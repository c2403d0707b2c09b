"""Graphs that TensorFlow really converted, held against the Edge TPU's constraints; and what becomes of the
compiler's answers. The real ``edgetpu_compiler`` is in no package registry, so that a STAND-IN on PATH plays
it: an executable that takes the same call, writes the same files and prints logs in the format of compiler
16.0 as people have posted them. What the real one makes of these graphs is not tested here.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import flatbuffers
import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema

from convert.edgetpu import NOT_INSTALLED, ON_CHIP_BYTES, check_for_edgetpu, compile_for_edgetpu
from convert.tflite import ConversionError
from reader.bundle import DEFAULT_BUNDLE, MODEL

BUNDLES = sorted(path for path in DEFAULT_BUNDLE.parent.iterdir() if path.is_dir())
INT8 = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
INT8_OR_FLOAT = [*INT8, tf.lite.OpsSet.TFLITE_BUILTINS]

layers = keras.layers


def graph(
    *parts: Callable[[Any], Any],
    batch: int | None = 1,
    shape: tuple[int, ...] = (16, 16, 4),
    allowed: list[Any] = INT8,
    quantized: bool = True,
) -> bytes:
    """A tiny network, converted as ``convert`` does it."""
    source = keras.Input(batch_shape=(batch, *shape))
    output = source
    for part in parts:
        output = part(output)
    random = np.random.default_rng(1)

    def representative() -> Iterator[list[Any]]:
        for _ in range(4):
            yield [random.uniform(-1, 1, (batch or 1, *shape)).astype(np.float32)]

    converter = tf.lite.TFLiteConverter.from_keras_model(keras.Model(source, output))
    if quantized:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = representative
        converter.target_spec.supported_ops = allowed
        converter.inference_input_type = tf.uint8
        converter.inference_output_type = tf.int8
        converter._experimental_disable_per_channel_quantization_for_dense_layers = True
    return bytes(converter.convert())


def convolution(**options: Any) -> Any:
    return layers.Conv2D(8, 3, padding="same", **options)


def function(call: Callable[[Any], Any]) -> Any:
    return layers.Lambda(call)


def edited(model: bytes, edit: Callable[[Any], None]) -> bytes:
    """A graph with something in its flatbuffer changed."""
    content = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(model, 0))
    edit(content)
    builder = flatbuffers.Builder(len(model))
    builder.Finish(content.Pack(builder), b"TFL3")
    return bytes(builder.Output())


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_shipped_graphs_meet_the_published_constraints(bundle: Path) -> None:
    model = (bundle / MODEL).read_bytes()
    check = check_for_edgetpu(model)
    assert check.maps_wholly, check.sentence
    assert [row.operator for row in check.operations].count("CONV_2D") > 30
    assert check.operations[0].shape == (1, 224, 224, 3)
    assert 0.8 * len(model) < check.parameter_bytes < len(model)
    assert "not the compiler's" in check.sentence
    assert "streamed" not in check.sentence
    plain = json.loads(json.dumps(asdict(check)))
    assert plain["operations"][0]["operator"] == "QUANTIZE"
    assert "coral.ai" in plain["source"]


@pytest.mark.parametrize(
    ("model", "operator", "reason"),
    [
        (lambda: graph(convolution(), quantized=False), "CONV_2D", "works on float32"),
        (lambda: graph(function(tf.sin), convolution(), allowed=INT8_OR_FLOAT), "SIN", "not among"),
        (lambda: graph(convolution(activation="hard_swish")), "HARD_SWISH", "not among"),
        (lambda: graph(convolution(activation="gelu")), "GELU", "not among"),
        (lambda: graph(convolution(), batch=None), "CONV_2D", "not known at compile time"),
        (lambda: graph(convolution(), batch=2), "CONV_2D", "dimension over 1: 2x16x16x4"),
        (lambda: graph(convolution(groups=2)), "CONV_2D", "version 6 is newer than 3"),
        (lambda: graph(layers.Conv2D(4, 3, dilation_rate=(1, 2))), "CONV_2D", "dilation differs"),
        (lambda: graph(layers.MaxPooling2D(2), layers.ReLU(6.0)), "MAX_POOL_2D", "fused activation"),
        (lambda: graph(convolution(), layers.Softmax()), "SOFTMAX", "not one-dimensional: 1x16x16x8"),
        (lambda: graph(layers.Softmax(), shape=(16_001,)), "SOFTMAX", "over 16000 elements"),
        (lambda: graph(layers.Dense(5)), "FULLY_CONNECTED", "not one-dimensional: 1x16x16x5"),
        (lambda: graph(convolution(), layers.PReLU()), "PRELU", "slopes are not one-dimensional"),
        (lambda: graph(function(lambda x: x[:, ::2])), "STRIDED_SLICE", "strides are not all 1"),
        (
            lambda: graph(function(lambda x: tf.reduce_mean(x, axis=-1)), shape=(16, 16, 6)),
            "MEAN",
            "6 channels, not a multiple of 4",
        ),
        (lambda: graph(function(lambda x: tf.reduce_max(x, axis=0))), "REDUCE_MAX", "batch dimension"),
        (lambda: graph(function(lambda x: tf.pad(x, [[1, 0], [0, 0], [0, 0], [0, 0]]))), "PAD", "batch"),
        (
            lambda: graph(function(lambda x: tf.concat([x, tf.ones((1, 16, 16, 2))], 3))),
            "CONCATENATION",
            "constant that is not zeros",
        ),
        (
            lambda: graph(function(lambda x: tf.nn.conv2d(x, x[0, :3, :3, :, None] + 1.0, 1, "SAME"))),
            "CONV_2D",
            "weights or biases are not constant",
        ),
    ],
)
def test_what_violates_a_constraint_is_named(model: Callable[[], bytes], operator: str, reason: str) -> None:
    check = check_for_edgetpu(model())
    refused = {row.operator: row.reason for row in check.operations if not row.ok}
    assert reason in refused[operator]
    assert not check.maps_wholly
    assert "should stay on the CPU" in check.sentence


def test_only_the_offending_operations_are_refused() -> None:
    check = check_for_edgetpu(graph(convolution(), function(tf.sin), convolution(), allowed=INT8_OR_FLOAT))
    assert [(row.operator, row.ok) for row in check.operations] == [
        ("QUANTIZE", True),
        ("CONV_2D", True),
        ("DEQUANTIZE", False),
        ("SIN", False),
        ("QUANTIZE", False),
        ("CONV_2D", True),
    ]
    assert "3 of 6 operations" in check.sentence
    assert "number 2, DEQUANTIZE" in check.sentence


@pytest.mark.parametrize(
    "parts",
    [
        (convolution(), layers.GlobalAveragePooling2D(), layers.Dense(5), layers.Softmax()),
        (layers.ZeroPadding2D(1), layers.DepthwiseConv2D(3), layers.MaxPooling2D(2)),
        (layers.Conv2DTranspose(4, 3, strides=2), layers.PReLU(shared_axes=[1, 2])),
        (function(lambda x: tf.concat([x, tf.zeros((1, 16, 16, 2))], 3)), convolution()),
        (function(lambda x: tf.reduce_mean(x, axis=-1, keepdims=True) * x),),
    ],
)
def test_what_keeps_to_the_constraints_passes(parts: tuple[Any, ...]) -> None:
    check = check_for_edgetpu(graph(*parts))
    assert check.maps_wholly, check.sentence


def test_a_limit_that_is_not_published_in_figures_is_told_and_not_decided() -> None:
    check = check_for_edgetpu(graph(layers.UpSampling2D(2, interpolation="bilinear")))
    assert check.maps_wholly
    assert check.operations[-1].reason == "may stay on the CPU where it is large"
    assert "1 may stay on the CPU" in check.sentence


def test_an_operation_newer_than_the_compiler_is_refused() -> None:
    model = (DEFAULT_BUNDLE / MODEL).read_bytes()

    def renew(content: Any) -> None:
        for code in content.operatorCodes:
            if code.builtinCode == schema.BuiltinOperator.QUANTIZE:
                code.version = 3

    check = check_for_edgetpu(edited(model, renew))
    assert [row.operator for row in check.operations if not row.ok] == ["QUANTIZE"]
    assert "version 3 is newer than 1" in check.operations[0].reason


def test_parameters_beyond_the_chip_are_noted_and_not_refused() -> None:
    check = check_for_edgetpu(graph(layers.Dense(3000, kernel_initializer="ones"), shape=(3000,)))
    assert check.parameter_bytes > ON_CHIP_BYTES
    assert check.maps_wholly
    assert "8.6 MiB, more than the roughly 8.0 MiB on the chip" in check.sentence


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a TFLite graph: make it again"),
        (b"no graph at all", "is not a TFLite graph: make it again"),
        (b"\x1c\0\0\0TFL3", "is a damaged TFLite graph: make it again"),
    ],
)
def test_what_is_no_graph_is_refused_in_one_line(content: bytes, message: str) -> None:
    with pytest.raises(ConversionError, match=message) as caught:
        check_for_edgetpu(content)
    assert "\n" not in str(caught.value)


ALL_MAPPED = """Edge TPU Compiler version 16.0.384591198
Started a compilation timeout timer of 180 seconds.

Model compiled successfully in 941 ms.

Input model: model.tflite
Input size: 3.78MiB
Output model: model_edgetpu.tflite
Output size: 4.97MiB
On-chip memory used for caching model parameters: 4.50MiB
On-chip memory remaining for caching model parameters: 3.02MiB
Off-chip memory used for streaming uncached model parameters: 41.75KiB
Number of Edge TPU subgraphs: 1
Total number of operations: 60
Operation log: model_edgetpu.log

Operator                       Count      Status

DEPTHWISE_CONV_2D              16         Mapped to Edge TPU
CONV_2D                        34         Mapped to Edge TPU
ADD                            9          Mapped to Edge TPU
QUANTIZE                       1          Mapped to Edge TPU
Compilation child process completed within timeout period.
Compilation succeeded! 
"""  # noqa: W291 - as the compiler prints it
PARTLY_MAPPED = ALL_MAPPED.replace(
    """
Operator """,
    """
Model successfully compiled but not all operations are supported by the Edge TPU. A percentage of \
the model will instead run on the CPU, which is slower. For details, visit g.co/coral/model-reqs.
Number of operations that will run on Edge TPU: 58
Number of operations that will run on CPU: 2

Operator """,
).replace(
    "CONV_2D                        34         Mapped to Edge TPU",
    """HARD_SWISH                     1          Operation not supported
CONV_2D                        1          More than one subgraph is not supported
CONV_2D                        32         Mapped to Edge TPU""",
)
NOTHING_MAPPED = ALL_MAPPED.replace("Mapped to Edge TPU", "Operation is working on an unsupported data type")
REJECTED = """Edge TPU Compiler version 16.0.384591198
ERROR: Didn't find op for builtin opcode 'CONV_2D' version '6'. An older version of this builtin \
might be supported.

Invalid model: model.tflite
Model could not be parsed
"""
TOO_LARGE = """Edge TPU Compiler version 16.0.384591198
Started a compilation timeout timer of 180 seconds.
Compilation failed: Compilation failed due to large activation tensors in model.
Compilation child process completed within timeout period.
Compilation failed!
"""
WRITE = """
pathlib.Path(f"{model.stem}_edgetpu.tflite").write_bytes((here / "compiled.tflite").read_bytes())
pathlib.Path(f"{model.stem}_edgetpu.log").write_text(log)
"""

StandIn = Callable[..., None]


@pytest.fixture(scope="module")
def model() -> bytes:
    return (DEFAULT_BUNDLE / MODEL).read_bytes()


@pytest.fixture(scope="module")
def compiled(model: bytes) -> bytes:
    """A graph of one Edge TPU operation, which is what the real compiler makes of one that maps wholly."""

    def replace(content: Any) -> None:
        main = content.subgraphs[0]
        code, operator = schema.OperatorCodeT(), schema.OperatorT()
        code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
        code.customCode, code.version = b"edgetpu-custom-op", 1
        operator.inputs, operator.outputs = list(main.inputs), list(main.outputs)
        content.operatorCodes, main.operators = [code], [operator]

    return edited(model, replace)


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: bytes) -> StandIn:
    """Put a stand-in for the compiler on PATH: it prints ``log``, runs ``body`` and exits with ``code``."""

    def install(log: str, body: str = WRITE, code: int = 0, output: bytes = compiled) -> None:
        (tmp_path / "compiled.tflite").write_bytes(output)
        script = tmp_path / "edgetpu_compiler"
        script.write_text(
            f"#!{sys.executable}\nimport os, pathlib, signal, sys\n"
            "here = pathlib.Path(__file__).parent\n"
            "option, model = sys.argv[1], pathlib.Path(sys.argv[2])\n"
            "assert option == '-s' and model.read_bytes()[4:8] == b'TFL3'\n"
            f"log = {log!r}\nprint(log, flush=True)\n{body}\nsys.exit({code})\n"
        )
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return install


def test_without_a_compiler_one_line_says_so(
    model: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = compile_for_edgetpu(model)
    assert result.model is None
    assert result.report is None
    assert result.sentence == NOT_INSTALLED
    assert "\n" not in result.sentence


def test_a_graph_that_maps_wholly_is_returned_with_its_figures(
    model: bytes, compiled: bytes, stand_in: StandIn
) -> None:
    stand_in(ALL_MAPPED)
    result = compile_for_edgetpu(model)
    assert result.model == compiled
    report = json.loads(json.dumps(asdict(result)["report"]))
    operators = report.pop("operators")
    assert report == {
        "compiler": "16.0.384591198",
        "subgraphs": 1,
        "mapped": 60,
        "on_cpu": 0,
        "mapped_share": 1.0,
        "on_chip_bytes": 4_718_592,
        "streamed_bytes": 42_752,
    }
    assert {"operator": "CONV_2D", "count": 34, "status": "Mapped to Edge TPU"} in operators
    assert "60 of 60 operations run on the Edge TPU" in result.sentence


def test_a_graph_left_partly_on_the_cpu_is_refused_by_name_and_reason(
    model: bytes, stand_in: StandIn
) -> None:
    stand_in(PARTLY_MAPPED)
    with pytest.raises(ConversionError, match=r"2 of 60 operations would stay on the CPU") as caught:
        compile_for_edgetpu(model)
    assert "1 HARD_SWISH (Operation not supported)" in str(caught.value)
    assert "1 CONV_2D (More than one subgraph is not supported)" in str(caught.value)
    assert "Mapped" not in str(caught.value)


def test_a_partial_graph_is_taken_where_the_caller_allows_it(
    model: bytes, compiled: bytes, stand_in: StandIn
) -> None:
    stand_in(PARTLY_MAPPED)
    result = compile_for_edgetpu(model, allow_partial=True)
    assert result.model == compiled
    assert result.report is not None
    assert (result.report.mapped, result.report.on_cpu) == (58, 2)
    assert result.report.mapped_share == pytest.approx(58 / 60)
    assert "58 of 60" in result.sentence


def test_a_graph_of_which_nothing_maps_is_refused_even_then(model: bytes, stand_in: StandIn) -> None:
    stand_in(NOTHING_MAPPED)
    with pytest.raises(ConversionError, match="unsupported data type"):
        compile_for_edgetpu(model, allow_partial=True)


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        (
            {"log": REJECTED, "body": "", "code": 1},
            "exit code 1: ERROR: Didn't find op .*'CONV_2D' version '6'",
        ),
        ({"log": TOO_LARGE, "body": "", "code": 1}, "due to large activation tensors in model"),
        ({"log": TOO_LARGE, "body": ""}, "wrote no graph: .*large activation tensors"),
        ({"log": "", "body": "os.kill(os.getpid(), signal.SIGKILL)"}, r"ended by signal 9 \(Killed\)"),
        ({"log": "", "body": "", "code": 3}, "exit code 3: it gave no reason"),
        ({"log": "\x00\ufffd\n??"}, "cannot read the log .*Total number of operations.*"),
        ({"log": ALL_MAPPED.replace("34  ", "33  ")}, "table lists 59 operations, its total is 60"),
        ({"log": ALL_MAPPED.replace("Off-chip", "Chip")}, "it lacks 'Off-chip memory used"),
        ({"log": ALL_MAPPED, "output": b"not a graph"}, "what edgetpu_compiler wrote is not a TFLite graph"),
        (
            {"log": ALL_MAPPED, "output": (DEFAULT_BUNDLE / MODEL).read_bytes()},
            "without an edgetpu-custom-op",
        ),
    ],
)
def test_a_compiler_that_fails_is_told_in_one_line(
    model: bytes, stand_in: StandIn, behaviour: dict[str, Any], message: str
) -> None:
    stand_in(**behaviour)
    with pytest.raises(ConversionError, match=message) as caught:
        compile_for_edgetpu(model)
    assert "\n" not in str(caught.value)


def test_a_compiler_that_cannot_be_started_is_told_in_one_line(
    model: bytes, stand_in: StandIn, tmp_path: Path
) -> None:
    stand_in(ALL_MAPPED)
    (tmp_path / "edgetpu_compiler").write_bytes(b"\x7fELF of another processor")
    with pytest.raises(ConversionError, match="cannot be started"):
        compile_for_edgetpu(model)


def test_a_compiler_that_hangs_is_stopped_with_its_child(
    model: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "edgetpu_compiler"
    script.write_text(f"#!/bin/sh\nsleep 1000 & echo $! > {tmp_path}/child\nwait\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(ConversionError, match="took longer than 3 s"):
        compile_for_edgetpu(model, deadline=3)
    child = int((tmp_path / "child").read_text())
    for _ in range(100):
        if not running(child):
            break
        time.sleep(0.1)
    assert not running(child)


def running(process: int) -> bool:
    """Whether a process is there and no zombie, which nobody may have reaped."""
    try:
        state = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state.rpartition(")")[2].split()[0] != "Z"

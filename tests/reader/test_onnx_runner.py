from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from reader.errors import BundleError
from reader.runner import OnnxRunner
from tests.conftest import ROOT

UINT8, FLOAT = TensorProto.UINT8, TensorProto.FLOAT


def doubling(
    taken: int = UINT8,
    given: int = FLOAT,
    batch: int | str = 1,
    inputs: tuple[str, ...] = ("pixels",),
    rank: int = 4,
) -> bytes:
    """A graph that doubles a picture of 4x5 with 3 channels."""
    shape = [batch, 4, 5, 3][4 - rank :]
    nodes = [
        helper.make_node("Cast", ["pixels"], ["as_float"], to=FLOAT),
        helper.make_node("Add", ["as_float", "as_float"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["map"], to=given),
    ]
    graph = helper.make_graph(
        nodes,
        "doubling",
        [helper.make_tensor_value_info(name, taken, shape) for name in inputs],
        [helper.make_tensor_value_info("map", given, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    content: bytes = model.SerializeToString()
    return content


def test_pixels_go_in_and_a_float_map_comes_out() -> None:
    runner = OnnxRunner(doubling(), 1, "doubling.onnx")
    assert (runner.input_shape, runner.map_shape) == ((4, 5, 3), (4, 5, 3))
    pixels = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    maps = runner.class_map(pixels)
    assert maps.dtype == np.float32
    np.testing.assert_array_equal(maps, 2.0 * pixels)
    assert not runner.badge
    assert runner.name.startswith("onnx ")


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        (b"", "not a network"),
        (b"PK\x03\x04 not a graph at all", "not a network"),
        (doubling()[:-40], "not a network"),
        (doubling(taken=FLOAT), "input is not one picture of uint8"),
        (doubling(batch=2), "input is not one picture of uint8"),
        (doubling(batch="n"), "input is not one picture of uint8"),
        (doubling(rank=3), "input is not one picture of uint8"),
        (doubling(given=UINT8), "output is not a float32 class map"),
        (doubling(inputs=("pixels", "more")), "has 2 inputs"),
    ],
)
def test_what_is_not_our_kind_is_refused_in_one_line(model: bytes, complaint: str) -> None:
    with pytest.raises(BundleError, match=complaint) as raised:
        OnnxRunner(model, 1, "bundle/model.onnx")
    assert str(raised.value).startswith("bundle/model.onnx: ")
    assert "\n" not in str(raised.value)


def test_a_graphics_provider_that_does_not_work_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    offered = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine has one that works")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: offered)
    with pytest.warns(UserWarning, match="not in available provider names"):
        runner = OnnxRunner(doubling(), 1, "doubling.onnx")
    assert (runner.name, runner.badge) == ("onnx CPU", "onnx-fallback TensorRT CPU")
    assert runner.class_map(np.ones((4, 5, 3), np.uint8)).max() == 2


def run(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)


def test_without_onnxruntime_there_is_one_line_that_says_what_to_do() -> None:
    done = run(
        "import sys\n"
        "sys.modules['onnxruntime'] = None\n"
        "from reader.errors import RunnerError\n"
        "from reader.runner import OnnxRunner\n"
        "try:\n"
        "    OnnxRunner(b'', 1, 'model.onnx')\n"
        "except RunnerError as error:\n"
        "    print(error)\n"
    )
    assert done.stdout == "onnxruntime is not installed: pip install 'sonoglance[onnx]'\n", done.stderr


def test_a_network_that_works_is_quiet(tmp_path: Path) -> None:
    (tmp_path / "doubling.onnx").write_bytes(doubling())
    onnx.checker.check_model(tmp_path / "doubling.onnx")
    done = run(
        "import sys, pathlib, numpy\n"
        "from reader.runner import OnnxRunner\n"
        "runner = OnnxRunner(pathlib.Path(sys.argv[1]).read_bytes(), 2, 'doubling.onnx')\n"
        "print(runner.class_map(numpy.ones((4, 5, 3), numpy.uint8)).sum())\n",
        tmp_path / "doubling.onnx",
    )
    assert (done.stdout, done.stderr) == ("120.0\n", "")

"""Runs a network: uint8 pixels in, a dequantized class map out."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from reader.errors import BundleError, RunnerError

Image = NDArray[np.uint8]
Float = NDArray[np.float32]


LITERT, ONNX = "litert", "onnx"
"""Kinds of runners in this process."""


class Runner(Protocol):
    """Anything that turns a tensor into a class map."""

    input_shape: tuple[int, int, int]
    map_shape: tuple[int, int, int]

    @property
    def name(self) -> str:
        """What it runs on."""
        ...

    @property
    def badge(self) -> str:
        """What the user must know of it now: a fall-back is visible on the screen. Else empty."""
        ...

    def class_map(self, pixels: Image) -> Float:
        """uint8 [h, w, channels] to float32 logits [rows, columns, map channels]."""
        ...


class LiteRtRunner:
    """An int8 TFLite network on the processor, through LiteRT or its predecessor.

    ``golden_set``: the kind of kernels, by which golden vectors are chosen; ``unit``: of ``raw_map``.
    """

    def __init__(self, model: bytes, threads: int, where: str) -> None:
        """``model``: the content of a .tflite file; ``where``: its name in error messages.

        Raises RunnerError without a runtime, BundleError where the graph is not of our kind."""
        interpreter_class, self.name = _interpreter_class()
        self.badge = "" if self.name == LITERT else f"slow-runtime {self.name}"
        self.golden_set, self.unit = "xnnpack" if self.name == LITERT else "builtin", "steps"
        try:
            self._interpreter = interpreter_class(model_content=model, num_threads=threads)
            self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise BundleError(f"{where}: not a network that can be run ({error})") from error
        source = _single(self._interpreter.get_input_details(), where, "input")
        target = _single(self._interpreter.get_output_details(), where, "output")
        if source["dtype"] != np.uint8 or len(source["shape"]) != 4 or source["shape"][0] != 1:
            raise BundleError(f"{where}: its input is not one picture of uint8")
        if target["dtype"] not in (np.uint8, np.int8) or len(target["shape"]) != 4:
            raise BundleError(f"{where}: its output is not an 8-bit class map")
        self.input_shape = _shape(source["shape"])
        self.map_shape = _shape(target["shape"])
        self._input, self._output = source["index"], target["index"]
        scale, self._zero_point = target["quantization"]
        self._scale = np.float32(scale)

    def invoke(self, pixels: Image) -> None:
        """Run the network and leave its output where it is: the bare part of ``class_map``."""
        self._interpreter.set_tensor(self._input, pixels[None])
        self._interpreter.invoke()

    def raw_map(self, pixels: Image) -> NDArray[Any]:
        """The class map in its own 8-bit units, which golden vectors are compared in."""
        self.invoke(pixels)
        return np.asarray(self._interpreter.get_tensor(self._output)[0])

    def class_map(self, pixels: Image) -> Float:
        """uint8 [h, w, channels] to float32 logits [rows, columns, map channels]."""
        quantized = self.raw_map(pixels).astype(np.float32)
        return (quantized - np.float32(self._zero_point)) * self._scale


GRAPHICS_PROVIDERS = {"TensorrtExecutionProvider": "TensorRT", "CUDAExecutionProvider": "CUDA"}
PROCESSOR_PROVIDER = "CPUExecutionProvider"
QUANTIZED = b"QuantizeLinear"
ERRORS_ONLY = 3
"""onnxruntime's log severity."""


class OnnxRunner:
    """An ONNX network through onnxruntime: on TensorRT or CUDA where it offers them, else the processor.

    ``name`` says which of them took the network. ``badge``: one line where that is not the first that
    was offered, empty otherwise. ``golden_set``, ``unit``: as of LiteRtRunner. On the processor a quantized
    graph is computed in float, rounding where int8 would: its kernels for signed activations are slower.
    """

    def __init__(self, model: bytes, threads: int, where: str, integer: bool = False) -> None:
        """``model``: the content of a .onnx file; ``where``: its name in error messages. ``integer``:
        compute in integers on the processor too, which pays where activations are unsigned.

        Raises RunnerError without onnxruntime, BundleError where the graph is not of our kind."""
        runtime = _onnxruntime()
        offered = graphics_providers()
        self.golden_set, self.unit = "onnx_int8" if QUANTIZED in model else "onnx", "logits"
        self._session = _onnx_session(runtime, model, threads, where, offered, integer)
        provider = self._session.get_providers()[0]
        taken = GRAPHICS_PROVIDERS.get(provider, "CPU")
        self.name, self.badge = f"onnx {taken}", ""
        if offered and provider != offered[0]:
            self.badge = f"onnx-fallback {GRAPHICS_PROVIDERS[offered[0]]} {taken}"
        source = _single(self._session.get_inputs(), where, "input")
        target = _single(self._session.get_outputs(), where, "output")
        if source.type != "tensor(uint8)" or not _one_picture(source.shape):
            raise BundleError(f"{where}: its input is not one picture of uint8")
        if target.type != "tensor(float)" or not _one_picture(target.shape):
            raise BundleError(f"{where}: its output is not a float32 class map")
        self.input_shape = _shape(source.shape)
        self.map_shape = _shape(target.shape)
        self._input = source.name

    def invoke(self, pixels: Image) -> None:
        """Run the network and leave its output where it is: the bare part of ``class_map``."""
        self._maps: Float = self._session.run(None, {self._input: pixels[None]})[0]

    def raw_map(self, pixels: Image) -> Float:
        """The class map as it comes, which is in logits."""
        self.invoke(pixels)
        return self._maps[0]

    def class_map(self, pixels: Image) -> Float:
        """uint8 [h, w, channels] to float32 logits [rows, columns, map channels]."""
        return self.raw_map(pixels)


def graphics_providers() -> list[str]:
    """Those that onnxruntime offers here, the preferred first. Raises RunnerError without onnxruntime."""
    offered = _onnxruntime().get_available_providers()
    return [name for name in GRAPHICS_PROVIDERS if name in offered]


def _interpreter_class() -> tuple[Any, str]:
    """LiteRT, or the slower tflite-runtime where LiteRT has no wheel; the name says which."""
    for module, name in (
        ("ai_edge_litert.interpreter", LITERT),
        ("tflite_runtime.interpreter", "tflite-runtime"),
    ):
        try:
            return importlib.import_module(module).Interpreter, name
        except ModuleNotFoundError:
            continue
    raise RunnerError("no TFLite runtime is installed: pip install ai-edge-litert")


def _onnxruntime() -> Any:
    try:
        runtime = importlib.import_module("onnxruntime")
    except ModuleNotFoundError as error:
        raise RunnerError("onnxruntime is not installed: pip install 'sonoglance[onnx]'") from error
    runtime.set_default_logger_severity(ERRORS_ONLY)
    return runtime


def _onnx_session(
    runtime: Any, model: bytes, threads: int, where: str, offered: list[str], integer: bool
) -> Any:
    """A session on the first of the offered providers that takes the whole network, at last the
    processor."""
    # TensorRT builds 8-bit nodes only where int8 is allowed.
    settings = {"TensorrtExecutionProvider": {"trt_int8_enable": QUANTIZED in model}}
    # onnxruntime's own errors have no base class.
    kinds = vars(runtime.capi.onnxruntime_pybind11_state).values()
    failures: Any = tuple(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Exception))
    failure = None
    for start in range(len(offered) + 1):
        providers = offered[start:] or [PROCESSOR_PROVIDER]
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = ERRORS_ONLY
        if providers != [PROCESSOR_PROVIDER]:
            # Else it would move what a provider cannot do, be it everything, to the processor silently.
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        elif not integer:
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        try:
            return runtime.InferenceSession(
                model,
                options,
                providers=[(name, settings.get(name, {})) for name in providers],
                enable_fallback=0,
            )
        except (ValueError, RuntimeError, *failures) as error:
            failure = error
    reason = str(failure).partition("\n")[0]
    raise BundleError(f"{where}: not a network that can be run ({reason})") from failure


def _one_picture(shape: list[Any]) -> bool:
    """Whether a shape is [1, rows, columns, channels], all of them known."""
    return len(shape) == 4 and shape[0] == 1 and all(isinstance(n, int) for n in shape)


def _shape(shape: Sequence[Any]) -> tuple[int, int, int]:
    _, rows, columns, channels = (int(n) for n in shape)
    return rows, columns, channels


def _single(details: Sequence[Any], where: str, what: str) -> Any:
    if len(details) != 1:
        raise BundleError(f"{where}: has {len(details)} {what}s where one is expected")
    return details[0]

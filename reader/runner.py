"""Runs a network: uint8 pixels in, a dequantized class map out."""

from __future__ import annotations

import importlib
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from reader.errors import BundleError, RunnerError

Image = NDArray[np.uint8]
Float = NDArray[np.float32]


class Runner(Protocol):
    """Anything that turns a tensor into a class map."""

    name: str
    input_shape: tuple[int, int, int]
    map_shape: tuple[int, int, int]

    def class_map(self, pixels: Image) -> Float:
        """uint8 [h, w, channels] to float32 logits [rows, columns, map channels]."""
        ...


class LiteRtRunner:
    """An int8 TFLite network on the processor, through LiteRT or its predecessor."""

    def __init__(self, model: bytes, threads: int, where: str) -> None:
        """``model``: the content of a .tflite file; ``where``: its name in error messages.

        Raises RunnerError without a runtime, BundleError where the graph is not of our kind."""
        interpreter_class, self.name = _interpreter_class()
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
        self.input_shape = _shape(source)
        self.map_shape = _shape(target)
        self._input, self._output = source["index"], target["index"]
        scale, self._zero_point = target["quantization"]
        self._scale = np.float32(scale)

    def invoke(self, pixels: Image) -> None:
        """Run the network and leave its output where it is: the bare part of ``class_map``."""
        self._interpreter.set_tensor(self._input, pixels[None])
        self._interpreter.invoke()

    def quantized_map(self, pixels: Image) -> NDArray[Any]:
        """The class map in its own 8-bit units, which golden vectors are compared in."""
        self.invoke(pixels)
        return np.asarray(self._interpreter.get_tensor(self._output)[0])

    def class_map(self, pixels: Image) -> Float:
        """uint8 [h, w, channels] to float32 logits [rows, columns, map channels]."""
        quantized = self.quantized_map(pixels).astype(np.float32)
        return (quantized - np.float32(self._zero_point)) * self._scale


def _interpreter_class() -> tuple[Any, str]:
    """LiteRT, or the slower tflite-runtime where LiteRT has no wheel; the name says which."""
    for module, name in (
        ("ai_edge_litert.interpreter", "litert"),
        ("tflite_runtime.interpreter", "tflite-runtime"),
    ):
        try:
            return importlib.import_module(module).Interpreter, name
        except ModuleNotFoundError:
            continue
    raise RunnerError("no TFLite runtime is installed: pip install ai-edge-litert")


def _shape(details: dict[str, Any]) -> tuple[int, int, int]:
    _, rows, columns, channels = (int(n) for n in details["shape"])
    return rows, columns, channels


def _single(details: list[dict[str, Any]], where: str, what: str) -> dict[str, Any]:
    if len(details) != 1:
        raise BundleError(f"{where}: has {len(details)} {what}s where one is expected")
    return details[0]

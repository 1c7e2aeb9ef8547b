"""Weights from files of others: tensors by name, with nothing executed that such a file may hold."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cellvision.errors import DataError, MissingExtraError, explain

_NUMBERS = {*(f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)), "f2", "f4", "f8", "b1"}
_WRAPPERS = ("model", "state_dict", "model_state", "blobs")
"""Under which published files hold their tensors."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, on the CPU.

    Known are files of ``torch.save`` (old and new format), ``.safetensors``, and pickles of numpy arrays (``.pkl``, as
    of detectron2's model zoo). Tensors may lie under "model", "state_dict", "model_state" or "blobs".

    Raises:
        DataError: no such file, unreadable, holding more than tensors and plain data, or no tensors at all.
        MissingExtraError: a ``.safetensors`` file without the package for it.
    """
    content = read_content(path)
    for _ in range(2):  # a checkpoint of a run may hold its net under "model" of "state_dict"
        inner = [content[key] for key in _WRAPPERS if isinstance(content, Mapping) and key in content]
        content = next((each for each in inner if isinstance(each, Mapping)), content)
    given = content if isinstance(content, Mapping) else {}
    weights = {name: value for name, value in given.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if not weights:
        need = f"tensors by name, also under {', '.join(map(repr, _WRAPPERS))}"
        raise DataError(explain(got=f"{path} holds no weights", need=need, hint="another file as model.weights"))
    for name, value in weights.items():
        if value.is_meta or value.is_quantized or value.layout is not torch.strided:
            kind = "meta" if value.is_meta else "quantized" if value.is_quantized else str(value.layout)
            got, need = f"{name} in {path} is a tensor of the kind {kind.removeprefix('torch.')}", "plain numbers"
            raise DataError(explain(got=got, need=need, hint="the file from before it was converted"))
    return weights


def read_content(path: Path) -> Any:
    """All that such a file holds, in the mappings in which it holds it, with tensors in place of arrays.

    Raises:
        DataError, MissingExtraError: as ``read_weights``, but for a file without tensors.
    """
    if not path.is_file():
        raise DataError(explain(got=f"no weights {path}", need="a file", hint="model.weights=FILE"))
    return _read_safetensors(path) if path.suffix == ".safetensors" else _to_tensors(_read_pickled(path))


def _read_safetensors(path: Path) -> Any:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise MissingExtraError("safetensors", extra="train") from error
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


def _read_pickled(path: Path) -> Any:
    """The content of a pickle, in the words of which only tensors, arrays and plain data exist."""
    try:
        if path.suffix == ".pkl" and not zipfile.is_zipfile(path):
            with path.open("rb") as stream:
                return _ArrayUnpickler(stream, encoding="latin1").load()
        with torch.serialization.safe_globals([(part, name) for name, part in _NUMPY.items()]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file can make any of them
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> DataError:
    """PyTorch's own text, several lines long, advises to load the file unsafely; only its reason is repeated here."""
    reason = re.search(r"WeightsUnpickler error: (.+?)(?: was not an allowed|\n|$)", str(error))
    if reason:
        said = reason[1]
    elif isinstance(error, KeyError | EOFError) or "weights_only" in str(error):
        said = "it is none that torch.save or pickle wrote"
    else:
        said = (str(error).splitlines() or [type(error).__name__])[0]
    return DataError(
        explain(
            got=f"{path} cannot be loaded as weights only ({said[:120]})",
            need="tensors or arrays of numbers and plain data, nothing executable",
            hint="load it on a machine you trust and save its tensors with safetensors",
        )
    )


def _to_tensors(value: Any) -> Any:
    """The same with tensors in place of arrays, also of those in mappings."""
    if isinstance(value, Mapping):
        return {key: _to_tensors(each) for key, each in value.items()}
    return torch.from_numpy(value.numbers) if isinstance(value, _Array) else value


class _Dtype:
    """Stands in for ``numpy.dtype``, whose own unpickling trusts what it is given."""

    def __init__(self, code: str, *_: object) -> None:
        if code not in _NUMBERS:
            raise pickle.UnpicklingError(f"an array of {code!r} is not one of numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands in for ``numpy.ndarray``: numbers in native byte order from plain bytes."""

    numbers: np.ndarray

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, raw = state
        self._fill(raw, dtype, shape, "F" if is_fortran else "C")

    def _fill(self, raw: Any, dtype: _Dtype, shape: Any, order: Any) -> None:
        data = raw.encode("latin1") if isinstance(raw, str) else bytes(raw)  # text in pickles of Python 2
        numbers = np.frombuffer(data, dtype.dtype).reshape(shape, order=order)
        self.numbers = numbers.astype(dtype.dtype.newbyteorder("="), order="C")


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _from_buffer(raw: Any, dtype: _Dtype, shape: Any, order: Any) -> _Array:
    array = _Array()
    array._fill(raw, dtype, shape, order)
    return array


def _scalar(dtype: _Dtype, raw: Any) -> Any:
    array = _from_buffer(raw, dtype, (1,), "C")
    return array.numbers[0].item()


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Bytes in pickles that Python 3 wrote for Python 2."""
    return text.encode("latin1" if encoding == "latin1" else "ascii")


def _no_bytes() -> bytes:
    """How the bytes of an array without numbers are written."""
    return b""


_NUMPY: dict[str, Any] = {
    "numpy.dtype": _Dtype,
    "numpy.ndarray": _Array,
    **{f"numpy.{core}.multiarray._reconstruct": _reconstruct for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _from_buffer for core in ("core", "_core")},
    **dict.fromkeys(("builtins.bytes", "__builtin__.bytes"), _no_bytes),
}
"""What a pickled array asks for, and what it gets instead."""

_PLAIN: dict[str, Any] = {"collections.OrderedDict": OrderedDict, "_codecs.encode": _encode}


class _ArrayUnpickler(pickle.Unpickler):
    """Reads plain data and arrays of numbers; any other name in the file ends the reading."""

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a name of the file."""
        found = {**_NUMPY, **_PLAIN}.get(f"{module}.{name}")
        if found is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return found

"""One way through a GPU: a stream, a context and buffers for the largest shapes, made once and used again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cellvision.errors import BundleError, ConfigError, ShapeError, explain
from cellvision.runtime.engines.library import call
from cellvision.runtime.engines.sidecar import ELEMENTS, EngineSidecar, EngineTensor

DTYPES = {name: np.dtype({"float": "float32"}.get(name, name)) for name in ELEMENTS}
"""From what ONNX Runtime calls the kinds of numbers to numpy's."""


class Lane:
    """Runs one set of inputs at a time; several lanes of one engine run side by side.

    Attributes:
        device: number of its GPU.
    """

    def __init__(self, *, engine: Any, cuda: Any, device: int, sidecar: EngineSidecar) -> None:
        """Take a stream, a context and memory on the GPU, which must be the current one of this thread."""
        self.device = device
        self._cuda = cuda
        self._sidecar = sidecar
        self._buffers: dict[str, int] = {}
        self._stream = call(cuda.cudaStreamCreateWithFlags, cuda.cudaStreamNonBlocking)
        try:
            self._context = self._start(engine)
            self._reserve()
        except BaseException:
            self.close()
            raise

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name.

        Raises:
            ShapeError: inputs that the engine does not take; nothing was run.
            BundleError: the engine failed.
        """
        arrays = {tensor.name: self._check(tensor, feeds) for tensor in self._sidecar.inputs}
        call(self._cuda.cudaSetDevice, self.device)  # of the calling thread, which may be another each time
        for name, array in arrays.items():
            if not self._context.set_input_shape(name, array.shape):
                raise BundleError(_failed(f"refused the shape {array.shape} of {name!r}"))
            self._copy(self._buffers[name], array.ctypes.data, array.nbytes, "cudaMemcpyHostToDevice")
        if missing := self._context.infer_shapes():
            raise BundleError(_failed(f"knows no shape of {', '.join(missing)}"))
        results = {tensor.name: self._make_result(tensor) for tensor in self._sidecar.outputs}
        if not self._context.execute_async_v3(int(self._stream)):
            raise BundleError(_failed("could not be run"))
        for name, result in results.items():
            self._copy(result.ctypes.data, self._buffers[name], result.nbytes, "cudaMemcpyDeviceToHost")
        call(self._cuda.cudaStreamSynchronize, self._stream)
        return results

    def close(self) -> None:
        """Give the GPU's memory and the stream back; the lane cannot be used afterwards."""
        self._context = None
        if self._stream is None:
            return
        call(self._cuda.cudaSetDevice, self.device)
        while self._buffers:
            call(self._cuda.cudaFree, self._buffers.popitem()[1])
        call(self._cuda.cudaStreamDestroy, self._stream)
        self._stream = None

    def _start(self, engine: Any) -> Any:
        context = engine.create_execution_context()
        if context is None:
            got = f"an engine that finds no room on GPU {self.device}"
            raise ConfigError(explain(got=got, need="more free GPU memory", hint="fewer streams"))
        if context.active_optimization_profile != 0:
            context.set_optimization_profile_async(0, int(self._stream))
            call(self._cuda.cudaStreamSynchronize, self._stream)
        return context

    def _reserve(self) -> None:
        """Buffers for the largest inputs, and for the outputs that these give."""
        for tensor in self._sidecar.inputs:
            largest = self._sidecar.profile[tensor.name][2]
            if not self._context.set_input_shape(tensor.name, largest):
                raise BundleError(_failed(f"refused the shape {largest} of {tensor.name!r}"))
            self._buffers[tensor.name] = self._allocate(_count_bytes(tensor, largest))
        for tensor in self._sidecar.outputs:
            shape = tuple(self._context.get_tensor_shape(tensor.name))
            if min(shape, default=0) < 0:
                raise BundleError(_failed(f"has {tensor.name!r} of a size known only after a run"))
            self._buffers[tensor.name] = self._allocate(_count_bytes(tensor, shape))
        for name, address in self._buffers.items():
            if not self._context.set_tensor_address(name, address):
                raise BundleError(_failed(f"has no input or output {name!r}"))

    def _allocate(self, size: int) -> int:
        return int(call(self._cuda.cudaMalloc, max(1, size)))

    def _check(self, tensor: EngineTensor, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
        """The array for an input as it lies in memory, if it suits."""
        smallest, _, largest = self._sidecar.profile[tensor.name]
        array = feeds.get(tensor.name)
        shape, dtype = (None, None) if array is None else (array.shape, array.dtype)
        fits = shape is not None and len(shape) == len(smallest) and dtype == DTYPES[tensor.element]
        if array is None or not fits or not all(map(_is_within, smallest, array.shape, largest)):
            sizes = f"{list(smallest)} to {list(largest)}" if smallest != largest else f"{list(smallest)}"
            raise ShapeError(
                explain(
                    got=f"input {tensor.name!r} is {dtype} {None if shape is None else list(shape)}",
                    need=f"{DTYPES[tensor.element]} {sizes}, for which the engine was built",
                    hint="another tile_px, or python export.py +trt=... with other trt.height, trt.width or trt.batch",
                )
            )
        return np.ascontiguousarray(array)

    def _make_result(self, tensor: EngineTensor) -> np.ndarray:
        return np.empty(tuple(self._context.get_tensor_shape(tensor.name)), DTYPES[tensor.element])

    def _copy(self, to: int, source: int, size: int, kind: str) -> None:
        if size:
            way = getattr(self._cuda.cudaMemcpyKind, kind)
            call(self._cuda.cudaMemcpyAsync, to, source, size, way, self._stream)


def _is_within(low: int, size: int, high: int) -> bool:
    return low <= size <= high


def _count_bytes(tensor: EngineTensor, shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64)) * DTYPES[tensor.element].itemsize


def _failed(why: str) -> str:
    return explain(got=f"the engine {why}", need="an engine that runs", hint="build the engine again")

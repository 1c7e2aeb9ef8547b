"""An engine of TensorRT or TensorRT-RTX, opened on one or more GPUs and ready to be run from several threads."""

from __future__ import annotations

import queue
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from cellvision.errors import BundleError, ConfigError, explain
from cellvision.runtime.engines.lane import DTYPES, Lane
from cellvision.runtime.engines.library import call, find_gpu, import_backend, import_cuda
from cellvision.runtime.engines.sidecar import EngineSidecar, EngineTensor, check_engine_sidecar, load_sidecar


class EngineSession:
    """An open engine; a GraphRunner. Make it with `open_engine`.

    Attributes:
        path: of its file.
        sidecar: what it was built from, with and for.
        inputs, outputs: name, element and shape of each.
    """

    def __init__(self, *, path: Path, sidecar: EngineSidecar, lanes: Sequence[Lane], owners: Sequence[Any]) -> None:
        """Hold what `open_engine` has opened."""
        self.path = path
        self.sidecar = sidecar
        self.inputs: tuple[EngineTensor, ...] = sidecar.inputs
        self.outputs: tuple[EngineTensor, ...] = sidecar.outputs
        self._lanes = tuple(lanes)
        self._owners = tuple(owners)  # what the lanes' contexts need alive, while they are
        self._free: queue.SimpleQueue[Lane] = queue.SimpleQueue()
        for lane in self._lanes:
            self._free.put(lane)

    def run(
        self, feeds: Mapping[str, np.ndarray], wanted: Sequence[str] | None = None, held: Collection[str] = ()
    ) -> dict[str, np.ndarray]:
        """Outputs by name, from the first lane that is free; waits for one. Safe from several threads at once.

        Args:
            feeds: inputs by name.
            wanted: names of the outputs to give; None for all. All of them are computed.
            held: without meaning here: every output is copied to the processor's memory, and can be fed from there.

        Raises:
            ShapeError: inputs of a size or kind that the engine was not built for.
            BundleError, ConfigError: the engine or its GPU failed.
        """
        lane = self._free.get()
        try:
            results = lane.run(feeds)
        finally:
            self._free.put(lane)
        return {name: results[name] for name in (results if wanted is None else wanted)}

    def end_profiling(self) -> Path:
        """Engines write no times of operators.

        Raises:
            ConfigError: always.
        """
        need = "a bundle of engine onnx"
        raise ConfigError(explain(got=f"profiling of {self.path}", need=need, hint="nsys profile, around the command"))

    def close(self) -> None:
        """Give all GPU memory back, once the last run is over; the session cannot be used afterwards."""
        for _ in self._lanes:
            self._free.get().close()

    def __enter__(self) -> EngineSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_engine(path: Path | str, *, devices: Sequence[int] = (0,), streams: int = 1) -> EngineSession:
    """An engine ready to run, after checking its sidecar against library and GPUs.

    Args:
        path: of the engine, with its sidecar beside it.
        devices: numbers of the GPUs to run on, each at least once; runs go to whichever is free.
        streams: runs at a time on each GPU, >= 1; each has buffers of its own for the largest sizes.

    Raises:
        MissingExtraError: the library or cuda-bindings is not installed.
        ConfigError: no such GPU, no memory left on it, or streams < 1.
        BundleError: the engine is not for this library, version or GPU, or it does not load.
    """
    path = Path(path)
    if streams < 1 or not devices:
        got = f"streams={streams} on devices={list(devices)}"
        raise ConfigError(explain(got=got, need="at least one of each", hint="streams=1 devices=[0]"))
    sidecar = load_sidecar(path)
    trt, cuda = import_backend(sidecar.library), import_cuda()
    for device in devices:
        check_engine_sidecar(path, library_version=str(trt.__version__), gpu=find_gpu(device))
    with ExitStack() as opened:
        lanes, owners = [], []
        for device in devices:
            call(cuda.cudaSetDevice, device)
            runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
            engine = _load(trt, runtime, path, sidecar)
            owners += [runtime, engine]
            for _ in range(streams):
                lanes.append(Lane(engine=engine, cuda=cuda, device=device, sidecar=sidecar))
                opened.callback(lanes[-1].close)
        opened.pop_all()
    return EngineSession(path=path, sidecar=sidecar, lanes=lanes, owners=owners)


def _load(trt: Any, runtime: Any, path: Path, sidecar: EngineSidecar) -> Any:
    """The engine on the current GPU, if it has the inputs and outputs that its sidecar tells of."""
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise BundleError(_unusable(path, "does not load; the library has said why above"))
    names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
    found = {name: np.dtype(trt.nptype(engine.get_tensor_dtype(name))) for name in names}
    told = {tensor.name: DTYPES[tensor.element] for tensor in (*sidecar.inputs, *sidecar.outputs)}
    if found != told:
        raise BundleError(_unusable(path, f"has {_describe(found)}, and its sidecar tells of {_describe(told)}"))
    return engine


def _describe(ports: Mapping[str, np.dtype]) -> str:
    return ", ".join(f"{name} {dtype}" for name, dtype in sorted(ports.items()))


def _unusable(path: Path, why: str) -> str:
    return explain(got=f"{path} {why}", need="an engine of this machine", hint="build the engine again")

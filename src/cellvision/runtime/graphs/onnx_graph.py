"""One ONNX file, opened with ONNX Runtime on the provider that was asked for."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime

from cellvision.errors import BundleError, ConfigError, explain
from cellvision.runtime.graphs.graph_file import has_external_data
from cellvision.runtime.graphs.providers import SUFFIX, choose_providers, find_device
from cellvision.runtime.run_settings import RunSettings

_QUIET = 3  # errors only; ONNX Runtime otherwise comments on every optimisation it skips


@dataclass(frozen=True, kw_only=True)
class Port:
    """An input or output of a graph.

    Attributes:
        name: of it.
        element: kind of its numbers: "float", "uint8", "uint16", "int64", "bool" ..
        shape: whole numbers, and anything else for sizes that are free.
    """

    name: str
    element: str
    shape: tuple[Any, ...]


class AnyPort(Protocol):
    """What every engine tells of an input or output; see Port."""

    @property
    def name(self) -> str:
        """Of the input or output."""

    @property
    def element(self) -> str:
        """Kind of its numbers."""

    @property
    def shape(self) -> tuple[Any, ...]:
        """Whole numbers, and anything else for sizes that are free."""


class GraphRunner(Protocol):
    """A graph that can be run from several threads at once, whatever engine runs it."""

    @property
    def path(self) -> Path:
        """Of its file."""

    @property
    def inputs(self) -> Sequence[AnyPort]:
        """All of them."""

    @property
    def outputs(self) -> Sequence[AnyPort]:
        """All of them."""

    def run(self, feeds: Mapping[str, Any], wanted: Sequence[str], held: Collection[str] = ()) -> dict[str, Any]:
        """Outputs by name; see `OnnxGraph.run`."""

    def end_profiling(self) -> Path:
        """The file with the times of all operators, complete."""


class OnnxGraph:
    """An open ONNX graph; a GraphRunner. Make it with `open_onnx_graph`.

    Attributes:
        path: of its file.
        inputs, outputs: see Port.
    """

    def __init__(self, *, path: Path, engine: onnxruntime.InferenceSession, settings: RunSettings) -> None:
        """Hold what `open_onnx_graph` has opened."""
        self.path = path
        self.inputs = tuple(_to_port(node) for node in engine.get_inputs())
        self.outputs = tuple(_to_port(node) for node in engine.get_outputs())
        self._engine = engine
        self._settings = settings
        self._device = find_device(settings)

    def run(self, feeds: Mapping[str, Any], wanted: Sequence[str], held: Collection[str] = ()) -> dict[str, Any]:
        """Outputs by name. Safe from several threads at once.

        Args:
            feeds: inputs by name: arrays, or what an earlier run has held.
            wanted: names of the outputs to compute.
            held: those of them that stay in the device's memory, to be fed to another graph: on a GPU nothing is
                copied to the processor and back, and on a processor nothing is copied at all.

        Raises:
            Exception: of ONNX Runtime's own, undocumented kinds.
        """
        how = onnxruntime.RunOptions()
        if self._settings.arena == "shrink":
            places = "cpu:0" if self._device[0] == "cpu" else f"cpu:0;gpu:{self._device[1]}"
            how.add_run_config_entry("memory.enable_memory_arena_shrinkage", places)
        arrays = {n: np.ascontiguousarray(v) if isinstance(v, np.ndarray) else v for n, v in feeds.items()}
        if not held and all(isinstance(value, np.ndarray) for value in arrays.values()):
            return dict(zip(wanted, self._engine.run(list(wanted), arrays, how), strict=True))
        binding = self._engine.io_binding()
        for name, value in arrays.items():
            bind = binding.bind_cpu_input if isinstance(value, np.ndarray) else binding.bind_ortvalue_input
            bind(name, value)
        for name in wanted:
            binding.bind_output(name, *(self._device if name in held else ("cpu", 0)))
        self._engine.run_with_iobinding(binding, how)
        results = dict(zip(wanted, binding.get_outputs(), strict=True))
        return {name: value if name in held else value.numpy() for name, value in results.items()}

    def end_profiling(self) -> Path:
        """The file with the times of all operators, complete."""
        return Path(self._engine.end_profiling())


def open_onnx_graph(path: Path, settings: RunSettings) -> OnnxGraph:
    """An ONNX file ready to run.

    Raises:
        BundleError: it does not load, or keeps weights in other files.
        ConfigError: the provider is not there or does not start.
    """
    providers = choose_providers(settings)
    graph = path.read_bytes()
    if has_external_data(graph):
        need = "one file that holds everything"
        raise BundleError(
            explain(got=f"{path} keeps weights in other files", need=need, hint="export the bundle again")
        )
    try:
        # Without "enable_fallback=0" a provider that fails, now or in a run, would quietly give way to another.
        engine = onnxruntime.InferenceSession(graph, _to_options(settings), providers=providers, enable_fallback=0)
    except Exception as error:  # ONNX Runtime raises its own, undocumented kinds
        raise _refuse(path, settings, error) from error
    full_name = providers[0][0]
    if full_name not in (running := engine.get_providers()):
        raise ConfigError(
            explain(
                got=f"provider {full_name} is installed but did not start; running: {', '.join(running)}",
                need="its driver and libraries",
                hint=f"provider={running[0].removesuffix(SUFFIX).lower()}",
            )
        )
    return OnnxGraph(path=path, engine=engine, settings=settings)


def _refuse(path: Path, settings: RunSettings, error: Exception) -> BundleError | ConfigError:
    if settings.provider == "cpu":
        return BundleError(
            explain(
                got=f"{path} does not load ({first_line(error)})",
                need=f"an ONNX graph that onnxruntime {onnxruntime.__version__} can run",
                hint="pip install -U onnxruntime, or export the bundle again",
            )
        )
    asked = "".join(f", {name}={value}" for name, value in settings.provider_options.items())
    return ConfigError(
        explain(
            got=f"{path} does not load with provider={settings.provider}{asked} ({first_line(error)})",
            need="its driver and libraries, options that it knows, and a graph that it can run",
            hint="provider=cpu, which tells whether it is the graph",
        )
    )


def first_line(error: Exception) -> str:
    """The beginning of an error's text, or its kind where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def _to_options(settings: RunSettings) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _QUIET
    # Between two runs its threads would spin on the cores that the other graph, and splitting, need.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.enable_cpu_mem_arena = settings.arena != "none"
    # Its plan for a size of image lies beside what the first run at that size took: as much again for the same time.
    # Measured: a U-Net of width 32 at 512 x 512 px takes 414 MiB with it and 261 MiB without, both 0.41 s.
    options.enable_mem_pattern = False
    if settings.threads is not None:
        options.intra_op_num_threads = settings.threads
    if settings.profile_prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(settings.profile_prefix)
    return options


def _to_port(node: Any) -> Port:
    element = node.type.removeprefix("tensor(").removesuffix(")")
    return Port(name=node.name, element=element, shape=tuple(node.shape))

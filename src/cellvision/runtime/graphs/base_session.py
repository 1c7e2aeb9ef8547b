"""What open bundles of all kinds have in common."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from cellvision.bundle import Manifest
from cellvision.errors import BundleError, CellvisionError, explain
from cellvision.runtime.graphs.onnx_graph import GraphRunner, first_line
from cellvision.runtime.run_settings import RunSettings

Result = TypeVar("Result")
"""What a session finds in one window."""


class BaseSession(ABC, Generic[Result]):
    """One open bundle. Make it with `open_session`.

    A session may be used from several threads at once. A pickled one opens its bundle again where it arrives.

    Attributes:
        folder: of the bundle.
        manifest: see cellvision.bundle.Manifest.
        settings: how its graphs are run.
    """

    def __init__(
        self, *, folder: Path, manifest: Manifest, settings: RunSettings, graphs: Mapping[str, GraphRunner]
    ) -> None:
        """Hold what `open_session` has opened; ``graphs`` by role."""
        self.folder = folder
        self.manifest = manifest
        self.settings = settings
        self._graphs = dict(graphs)

    @property
    def provider(self) -> str:
        """Short name of the provider that runs the graphs, e.g. "cpu"."""
        return self.settings.provider

    def run(self, image: np.ndarray) -> Result:
        """What the net finds in one window.

        Args:
            image: (C, H, W) of the manifest's input_dtype, channels in the manifest's order.

        Raises:
            BundleError: a graph failed, or its results are not of the promised sizes or not finite.
        """
        return self.run_batch(image[None])[0]

    @abstractmethod
    def run_batch(self, images: np.ndarray | Sequence[np.ndarray]) -> list[Result]:
        """What the net finds in each of B windows of one size, (C, H, W) each; see `run`."""

    def probe(self, edge_px: int) -> None:
        """Run all graphs on a black image of this edge: to warm up, or to see what it takes.

        The first run at a size takes memory and, on a GPU, compiles kernels; it takes many times as long as the next.
        """
        self.run(np.zeros((len(self.manifest.channels), edge_px, edge_px), self.manifest.input_dtype))

    def end_profiling(self) -> Path:
        """The file with the times of all operators: JSON as Chrome's tracing view reads it.

        The events of a parted bundle's graphs lie in one file; "args" of each names its graph.

        Raises:
            BundleError: the bundle was not opened with a profile_prefix.
        """
        prefix = self.settings.profile_prefix
        if prefix is None:
            raise BundleError(
                explain(got="no profile", need="a session that takes one", hint="open_session(.., profile_prefix=..)")
            )
        files = {role: graph.end_profiling() for role, graph in self._graphs.items()}
        if len(files) == 1:
            return next(iter(files.values()))
        events = []
        for role, file in files.items():
            for event in json.loads(file.read_text(encoding="utf-8")):
                events.append(event | {"args": event.get("args", {}) | {"graph": role}})
            file.unlink()
        path = Path(f"{prefix}.json")
        path.write_text(json.dumps(events), encoding="utf-8")
        return path

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_again, (self.folder.absolute(), replace(self.settings, profile_prefix=None))

    def _run(
        self, role: str, feeds: Mapping[str, Any], wanted: Sequence[str], held: Collection[str] = ()
    ) -> dict[str, Any]:
        """Outputs of the graph of a role, by name.

        Raises:
            BundleError: the graph failed.
        """
        try:
            return self._graphs[role].run(feeds, wanted, held)
        except CellvisionError:  # an engine says itself what it cannot do
            raise
        except Exception as error:  # ONNX Runtime raises its own, undocumented kinds
            image = feeds.get("image")
            size = f"{len(feeds['boxes'])} cells" if image is None else f"{image.shape[2]}x{image.shape[3]} px"
            raise BundleError(
                explain(
                    got=f"{self._name(role)} failed on {size} ({first_line(error)})",
                    need="a graph that runs at any size within the memory at hand",
                    hint="a smaller tile_px, or export the bundle again",
                )
            ) from error

    def _check_result(self, role: str, name: str, result: np.ndarray, shape: tuple[int, ...]) -> None:
        """Raise BundleError unless a result has this shape and its numbers are finite."""
        if result.shape != shape:
            raise BundleError(
                explain(
                    got=f"{self._name(role)}: output {name!r} has shape {result.shape}",
                    need=f"{shape}",
                    hint="export the bundle again",
                )
            )
        if not np.isfinite(result).all():
            raise BundleError(
                explain(
                    got=f"{self._name(role)}: output {name!r} holds NaN or infinite values",
                    need="finite numbers",
                    hint="check the image for extreme values, or export the bundle again",
                )
            )

    def _name(self, role: str) -> str:
        return self.manifest.find_graph(role).file


def _open_again(folder: Path, settings: RunSettings) -> BaseSession[Any]:
    from cellvision.runtime.session import open_bundle  # that module makes the classes derived from this one

    return open_bundle(folder, settings)

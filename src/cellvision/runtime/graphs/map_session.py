"""Bundles whose graph says of each pixel what it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cellvision.runtime.graphs.base_session import BaseSession


@dataclass(frozen=True, kw_only=True, eq=False)
class Maps:
    """What the graph says about one window of an image.

    Attributes:
        probabilities: (K, H, W) float32 in 0..1, background first.
        distance: (H, W) float32 in 0..1, or None for a graph without that output.
    """

    probabilities: np.ndarray
    distance: np.ndarray | None


class MapSession(BaseSession[Maps]):
    """An open bundle of kind semantic or viability."""

    def run_batch(self, images: np.ndarray | Sequence[np.ndarray]) -> list[Maps]:
        """The maps of each of B windows of one size, in one run of the graph; see `run`."""
        batch = np.asarray(images)
        named = self._run("whole", {"image": batch}, self.manifest.outputs)
        for name, result in named.items():
            planes = len(self.manifest.classes) if name == "probabilities" else 1
            self._check_result("whole", name, result, (len(batch), planes, *batch.shape[2:]))
        distance = named.get("distance")
        return [
            Maps(probabilities=named["probabilities"][at], distance=None if distance is None else distance[at, 0])
            for at in range(len(batch))
        ]

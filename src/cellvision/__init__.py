"""Cell segmentation from images to a deployed bundle.

A Batch from the data module goes through a Net; a Task trains it; Steps compress it and write a Recipe; a Target turns
it into a Bundle; a Predictor runs the bundle and returns Cells.

    from cellvision import Predictor

    cells = Predictor("bundle")(image)
    cells.viability()

Names below are imported when they are first used: ``import cellvision`` costs nothing, and never needs torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cellvision.bundle import Manifest, load_manifest
    from cellvision.data.images import read_image
    from cellvision.errors import CellvisionError
    from cellvision.models.build import build_model, list_models
    from cellvision.runtime.cells import Cells
    from cellvision.runtime.predictor import Predictor
    from cellvision.runtime.viability import Viability, compute_viability

_HOMES = {
    "CellvisionError": "cellvision.errors",
    "Cells": "cellvision.runtime.cells",
    "Manifest": "cellvision.bundle",
    "Predictor": "cellvision.runtime.predictor",
    "Viability": "cellvision.runtime.viability",
    "build_model": "cellvision.models.build",
    "compute_viability": "cellvision.runtime.viability",
    "list_models": "cellvision.models.build",
    "load_manifest": "cellvision.bundle",
    "read_image": "cellvision.data.images",
}

__all__ = [
    "Cells",
    "CellvisionError",
    "Manifest",
    "Predictor",
    "Viability",
    "__version__",
    "build_model",
    "compute_viability",
    "list_models",
    "load_manifest",
    "read_image",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("cellvision")
    if name not in _HOMES:
        raise AttributeError(f"module 'cellvision' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__

"""What the files of one image are called, and the picture among them."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from cellvision.runtime.cells import Cells
from cellvision.runtime.files.writers import StagedFiles
from cellvision.runtime.pictures.overlay import Overview


def name_labels(target: Path) -> str:
    """File name of the label image of results whose names begin with ``target``.

    Example:
        >>> name_labels(Path("out/field1"))
        'field1_labels.tif'
    """
    return f"{target.name}_labels.tif"


def write_overview(overview: Overview, cells: Cells, staged: StagedFiles, target: Path) -> None:
    """Write ``<target>_overlay.png``."""
    picture = Image.fromarray(overview.render(cells))
    picture.save(staged.path(f"{target.name}_overlay.png"), format="PNG")

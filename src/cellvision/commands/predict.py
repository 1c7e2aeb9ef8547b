"""``cellvision predict``: many images through one bundle, each done or not done, never half."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from cellvision.bundle import Manifest
from cellvision.commands.lines import to_line
from cellvision.commands.progress import show_progress
from cellvision.data.images import image_stem, list_images
from cellvision.errors import CellvisionError, ConfigError, DataError, explain
from cellvision.runtime.cells import Cells
from cellvision.runtime.files.writers import ResultTables, check_out_folder
from cellvision.runtime.pictures.overlay import format_viability
from cellvision.runtime.predictor import Predictor


def collect_images(paths: Sequence[Path], *, out_dir: Path) -> dict[str, Path]:
    """The image files under ``paths`` by the name that their results will have.

    The name is the file name without its ending; of files that share it (field1.tif of two plates) the folder's name
    and an underscore come in front.

    Args:
        paths: image files, and folders of which all images are taken.
        out_dir: where results go.

    Raises:
        DataError: a path does not exist, or a folder has no image.
        ConfigError: a file is given twice, names cannot be told apart, or results would go to a folder of inputs.
    """
    files = [file for path in paths for file in (list_images(path) if path.is_dir() else [path])]
    if missing := [str(file) for file in files if not file.is_file()]:
        raise DataError(explain(got=f"{', '.join(missing)}: no such file", need="image files", hint="check the path"))
    check_out_folder(files, out_dir)
    # File systems that do not tell cases apart would let one result overwrite another.
    shared = Counter(image_stem(file).casefold() for file in files)
    names = [
        image_stem(file)
        if shared[image_stem(file).casefold()] == 1
        else f"{file.resolve().parent.name}_{image_stem(file)}"
        for file in files
    ]
    again = Counter(name.casefold() for name in names)
    if twice := [str(file) for file, name in zip(files, names, strict=True) if again[name.casefold()] > 1]:
        raise ConfigError(
            explain(
                got=f"{', '.join(twice)} would have results of one name",
                need="names that differ within a run",
                hint="give each file once, or one run with its own --out for each",
            )
        )
    return dict(zip(names, files, strict=True))


def predict_images(
    predictor: Predictor,
    images: Mapping[str, Path],
    out_dir: Path,
    *,
    channel_names: tuple[str, ...] | None = None,
    pixel_size_um: float | None = None,
    intensity_scale: float | None = None,
    overlay: bool = True,
) -> dict[str, Exception]:
    """Write the results of all images that can be done, say on stdout what was found, and return the other's errors.

    Args:
        predictor: an open bundle.
        images: files by the name of their results, from `collect_images`.
        out_dir: made if need be; gets labels and overlays as images are done, and both tables at the end.
        channel_names: of the files' channels; None for those in the files.
        pixel_size_um: None for that in each file.
        intensity_scale: factor from the files' counts to the training counts.
        overlay: False leaves the pictures out.
    """
    failed: dict[str, Exception] = {}
    with ResultTables(out_dir, manifest=predictor.manifest) as tables:
        for name, path in images.items():
            try:
                with show_progress(to_line(name)) as progress:
                    cells = predictor.predict_to_folder(
                        path,
                        out_dir,
                        name=name,
                        channel_names=channel_names,
                        pixel_size_um=pixel_size_um,
                        intensity_scale=intensity_scale,
                        overlay=overlay,
                        progress=progress,
                    )
            except (CellvisionError, OSError, MemoryError) as error:
                failed[name] = error
                print(f"{to_line(name)}: failed", file=sys.stderr)
                continue
            tables.add(name, cells)
            print(f"{to_line(name)}: {_describe(cells)}", flush=True)
            for note in (*_list_doubts(cells, predictor.manifest), *cells.notes):
                print(f"{to_line(name)}: note: {note}", file=sys.stderr)
    return failed


def _describe(cells: Cells) -> str:
    found = f"{len(cells)} cells"
    return f"{found}, {format_viability(cells)}" if cells.has_viability else found


def _list_doubts(cells: Cells, manifest: Manifest) -> list[str]:
    """What makes a result less sure than the bundle's measured accuracy."""
    doubts = []
    trained, found = manifest.pixel_size_um, cells.pixel_size_um
    if trained and found and not 0.8 <= found / trained <= 1.25:
        doubts.append(f"a pixel is {found:g} um, the bundle was trained at {trained:g} um")
    if cells.tiles > 1 and not manifest.provenance.get("tiling", {}).get("exact", True):
        doubts.append(
            "this net looks at the whole image, and was shown tiles; cells of doubtful score may differ untiled"
        )
    return doubts

"""Which image file each entry of a COCO file means, and what its field is called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from cellvision.data.coco.file import CocoFile, raise_faults
from cellvision.data.dataset import list_faults
from cellvision.data.images import IMAGE_SUFFIXES, ImageInfo, image_stem, read_info
from cellvision.errors import DataError, explain


def check_images(file: CocoFile, folder: Path, *, search_subfolders: bool) -> list[ImageInfo]:
    """Headers of the images of a COCO file, with their paths.

    Args:
        file: the COCO file.
        folder: that its file names start from.
        search_subfolders: look for a file that is not there by its name in all folders below.

    Raises:
        DataError: lists images that are missing, damaged, of another size than the JSON says, or in several folders.
    """
    below = _list_below(folder) if search_subfolders else {}
    infos, faults = [], []
    for entry in file.images:
        path = folder / entry["file_name"]
        if not path.is_file():
            found = below.get(PurePosixPath(entry["file_name"].replace("\\", "/")).name, [])
            if len(found) != 1:
                faults.append(f"{path} is missing" if not found else f"{path} may be {' or '.join(map(str, found))}")
                continue
            path = found[0]
        try:
            info = read_info(path)
        except DataError as error:
            faults.append(str(error))
            continue
        if info.shape[1:] != (entry["height"], entry["width"]):
            found_size, said = info.shape[1:], (entry["height"], entry["width"])
            faults.append(f"{path} is {found_size[0]}x{found_size[1]} px, the JSON says {said[0]}x{said[1]}")
        infos.append(info)
    raise_faults(file.path, faults)
    return infos


def name_images(entries: Sequence[dict[str, Any]], *, path: Path) -> tuple[str, ...]:
    """File stems, with their folders where stems alone are not unique, and with the id from a file's second time on.

    Raises:
        DataError: two files of one name, e.g. a.tif and a.tiff; ``path`` is the COCO file that the text names.
    """
    paths = [PurePosixPath(entry["file_name"].replace("\\", "/")) for entry in entries]
    names = [image_stem(file.name) for file in paths]
    if len(set(names)) < len(set(paths)):
        names = ["_".join((*file.parent.parts, stem)) for file, stem in zip(paths, names, strict=True)]
    seen: set[PurePosixPath] = set()
    for at, file in enumerate(paths):
        if file in seen:
            names[at] += f"_{entries[at]['id']}"
        seen.add(file)
    if twice := [f"{name} is the name of {count} images" for name, count in Counter(names).items() if count > 1]:
        raise DataError(
            explain(got=f"{path}: {list_faults(twice)}", need="one file stem per image", hint="rename the files")
        )
    return tuple(names)


def _list_below(folder: Path) -> dict[str, list[Path]]:
    """All image files in the folders below, by name."""
    files: Iterable[Path] = sorted(path for path in folder.glob("*/**/*") if path.suffix.lower() in IMAGE_SUFFIXES)
    found: dict[str, list[Path]] = {}
    for path in files:
        found.setdefault(path.name, []).append(path)
    return found

"""Which image file each entry of a COCO file means, and what its field is called."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from cellvision.data.coco.file import CocoFile
from cellvision.data.coco.tables import raise_faults, to_path
from cellvision.data.dataset import list_faults
from cellvision.data.images import IMAGE_SUFFIXES, ImageInfo, image_stem, read_info
from cellvision.errors import DataError, explain


def check_images(file: CocoFile, folder: Path, *, search_subfolders: bool) -> list[ImageInfo]:
    """Headers of the images of a COCO file, with their paths.

    Args:
        file: the COCO file.
        folder: that its file names start from.
        search_subfolders: look for a file that is not there by its name in all folders below.

    Letters with accents have two spellings, and archives of a Mac hold the other one: both are tried.

    Raises:
        DataError: lists images that are missing, damaged, of another size than the JSON says, or in several folders.
    """
    below = _list_below(folder) if search_subfolders else {}
    infos, faults = [], []
    for entry in file.images:
        found = _find_file(folder, to_path(entry["file_name"]), below)
        if isinstance(found, str):
            faults.append(found)
            continue
        try:
            info = read_info(found)
        except DataError as error:
            faults.append(str(error).partition("; need ")[0])  # the list of faults has advice of its own
            continue
        if info.shape[1:] != (entry["height"], entry["width"]):
            size, said = info.shape[1:], (entry["height"], entry["width"])
            faults.append(f"{found} is {size[0]}x{size[1]} px, the JSON says {said[0]}x{said[1]}")
        infos.append(info)
    hint = f"check that {folder} has the images of this file (data.root), or copy them again"
    raise_faults(file.path, faults, hint=hint)
    return infos


def name_images(entries: Sequence[dict[str, Any]], *, path: Path) -> tuple[str, ...]:
    """File stems, with their folders where stems alone are not unique, and with the id from a file's second time on.

    Raises:
        DataError: two files of one name, e.g. a.tif and a.tiff; ``path`` is the COCO file that the text names.
    """
    paths = [to_path(entry["file_name"]) for entry in entries]
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


def _find_file(folder: Path, name: PurePosixPath, below: Mapping[str, list[Path]]) -> Path | str:
    """The image file of that name, or what is wrong with it."""
    for path in (folder / spelling for spelling in (str(name), *_spell(str(name)))):
        try:
            if path.is_file():
                return path
        except OSError as error:
            return f"{str(path)[:100]} .. cannot be opened ({error.strerror})"
    found = below.get(_spell(name.name)[0], [])
    if len(found) == 1:
        return found[0]
    path = folder / name
    return f"{path} may be {' or '.join(map(str, found))}" if found else f"{path} is missing"


def _spell(name: str) -> tuple[str, str]:
    """A name with each accented letter as one character, and as letter and accent."""
    return unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)


def _list_below(folder: Path) -> dict[str, list[Path]]:
    """All image files in the folders below, by name, accented letters as one character."""
    files: Iterable[Path] = sorted(path for path in folder.glob("*/**/*") if path.suffix.lower() in IMAGE_SUFFIXES)
    found: dict[str, list[Path]] = {}
    for path in files:
        found.setdefault(_spell(path.name)[0], []).append(path)
    return found

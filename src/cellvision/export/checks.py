"""What must be true before a bundle is made; each check says what to change."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from cellvision.bundle import FORMAT, MANIFEST_NAME, Channel, Splitting
from cellvision.errors import ConfigError, ExportError, check_choice, explain
from cellvision.models.base import SegNet
from cellvision.types import IMAGE_DTYPES, Sample

GRAPH_NAME = "graph.onnx"
_ENGINES = [f"{name}.engine{more}" for name in ("graph", "trunk", "masks") for more in ("", ".json")]
_PICTURES = [f"sensitivity_{role}.png" for role in ("whole", "trunk", "masks")]
BUNDLE_FILES = {
    MANIFEST_NAME, GRAPH_NAME, "trunk.onnx", "masks.onnx", *_ENGINES, *_PICTURES,
}  # fmt: skip
"""What export writes; a folder with any other file is not ours to replace."""


def check_folder(folder: Path, *, overwrite: bool, another: str = "bundle=ANOTHER_FOLDER") -> None:
    """Raise ConfigError unless ``folder`` can be made, and is new, empty, or a bundle that may be replaced.

    Args:
        folder: of the bundle.
        overwrite: whether a bundle may be replaced.
        another: how another one is chosen, for the message.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        if not _is_bundle(folder):
            got = f"{folder} exists and is not a bundle only"
            raise ConfigError(explain(got=got, need="a new folder", hint=another))
        if not overwrite:
            raise ConfigError(explain(got=f"{folder} holds a bundle", need="a new folder", hint="overwrite=true"))
    _check_writable(folder, another)


def _check_writable(folder: Path, another: str) -> None:
    """Raise ConfigError unless something can be made beside a folder, or where the first of its parents would be."""
    place = next(path for path in folder.resolve().parents if path.exists())
    try:
        with TemporaryDirectory(prefix=".", dir=place):
            return
    except OSError as error:
        got = f"{folder} in {place}, which cannot be written ({error.strerror})"
        raise ConfigError(explain(got=got, need="a place for a new folder", hint=another)) from error


def _is_bundle(folder: Path) -> bool:
    """Whether a folder holds a bundle and nothing else: replacing it deletes it, and any stranger's file with it."""
    if not folder.is_dir() or not {path.name for path in folder.iterdir()} <= BUNDLE_FILES:
        return False
    try:
        record = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and record.get("format") == FORMAT


def check_fit(
    net: SegNet, samples: Sequence[Sample], *, channels: Sequence[Channel], splitting: Splitting, live_threshold: float
) -> None:
    """Raise ConfigError (or ExportError without samples) unless everything suits the net."""
    if not samples:
        raise ExportError(explain(got="no sample", need="at least one real field", hint="samples=4"))
    number = net.spec.in_channels
    for what, found in [("the channel list", len(channels)), *((s.name, len(s.image)) for s in samples)]:
        if found != number:
            raise ConfigError(
                explain(
                    got=f"{what} has {found} channels", need=f"{number} as the net", hint="data.channels as in training"
                )
            )
    if splitting.method == "distance" and "distance" not in net.spec.outputs:
        raise ConfigError(
            explain(
                got=f"splitting.method=distance for a {net.spec.kind} net",
                need="a net with a distance output",
                hint="splitting.method=components",
            )
        )
    if not 0.0 < live_threshold < 1.0:
        raise ConfigError(
            explain(got=f"live_threshold={live_threshold}", need="a number between 0 and 1", hint="live_threshold=0.5")
        )


def select_dtypes(image_dtypes: Sequence[str], input_dtype: str) -> tuple[str, ...]:
    """Those image dtypes that ``input_dtype`` holds without loss; ConfigError where there is none.

    Example:
        >>> select_dtypes(["float32", "uint8"], "uint16")
        ('uint8',)
    """
    for dtype in (*image_dtypes, input_dtype):
        check_choice("image dtype", dtype, IMAGE_DTYPES)
    kept = tuple(dtype for dtype in image_dtypes if np.can_cast(dtype, input_dtype, casting="safe"))
    if not kept:
        raise ConfigError(
            explain(
                got=f"input_dtype={input_dtype} for images of {', '.join(image_dtypes) or 'no dtype'}",
                need="an input that holds their counts without loss",
                hint="input_dtype=float32",
            )
        )
    return kept

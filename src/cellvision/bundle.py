"""The bundle: a folder with the graph and ``manifest.json``, the only contract between training, Python and C++.

Standard library only: export writes it, the runtime and the C++ runner read it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from cellvision.errors import BundleError, explain

MANIFEST_NAME = "manifest.json"
FORMAT = "cellvision-bundle"
FORMAT_VERSION = 1
SPLITTING_METHODS = ("distance", "components")


@dataclass(frozen=True, kw_only=True)
class Channel:
    """One image channel: its name, and its role where the library needs one ("nuclear", "live", "dead", or "")."""

    name: str
    role: str = ""


@dataclass(frozen=True, kw_only=True)
class Splitting:
    """How probability maps become separate cells.

    Attributes:
        method: "distance" floods from the peaks of the distance map; "components" takes connected foreground.
        foreground_threshold: a pixel is foreground where 1 - P(background) reaches it, in (0, 1).
        seed_threshold: a cell's core is where the distance map reaches it, in (0, 1).
        min_area_px: smaller cells are dropped; >= 1.
        min_seed_px: smaller cores start no cell of their own; >= 1.
    """

    method: str = "distance"
    foreground_threshold: float = 0.5
    seed_threshold: float = 0.5
    min_area_px: int = 20
    min_seed_px: int = 3

    def __post_init__(self) -> None:
        if self.method not in SPLITTING_METHODS:
            raise BundleError(
                explain(
                    got=f"splitting.method={self.method!r}",
                    need=f"one of {', '.join(SPLITTING_METHODS)}",
                    hint="splitting.method=distance",
                )
            )
        for name in ("foreground_threshold", "seed_threshold"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise BundleError(
                    explain(
                        got=f"splitting.{name}={getattr(self, name)}",
                        need="a number between 0 and 1",
                        hint=f"splitting.{name}=0.5",
                    )
                )
        for name in ("min_area_px", "min_seed_px"):
            if getattr(self, name) < 1:
                raise BundleError(
                    explain(
                        got=f"splitting.{name}={getattr(self, name)}",
                        need="a whole number from 1 up",
                        hint=f"splitting.{name}=1",
                    )
                )


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything a runner needs to know; nobody repeats any of it on a command line.

    Attributes:
        model: registry name of the net, e.g. "unet".
        kind: "semantic" or "viability".
        graph_file: file name inside the bundle folder, never a path.
        graph_sha256: of that file; checked when the bundle is opened.
        input_dtype: dtype of the graph's input "image" (B, C, H, W).
        image_dtypes: dtypes of images whose counts mean what the training counts meant.
        channels: in the graph's order.
        pixel_size_um: of the training images, or None where unknown.
        classes: background first.
        outputs: names of the graph's outputs in order: "probabilities" (B, K, H, W) and, for viability,
            "distance" (B, 1, H, W); both float32 in 0..1 and of the input's height and width.
        stride: tile origins are multiples of it, so that tiled and untiled results agree.
        splitting: see Splitting.
        live_threshold: a cell is live where P(live) reaches it.
        tile_px, overlap_px: edge of a tile's core, and the margin read around it.
        recipe: compression records, oldest first; empty where uncompressed.
        parity: measured differences from PyTorch.
        accuracy: measured scores, with the data they were measured on.
        latency: measured times, with the machine they were measured on.
        provenance: checkpoint hash, data fingerprint, git state, settings.
        versions: of the packages that made the bundle.
    """

    model: str
    kind: str
    graph_file: str
    graph_sha256: str
    input_dtype: str
    image_dtypes: tuple[str, ...]
    channels: tuple[Channel, ...]
    pixel_size_um: float | None
    classes: tuple[str, ...]
    outputs: tuple[str, ...]
    stride: int
    splitting: Splitting
    live_threshold: float = 0.5
    tile_px: int = 512
    overlap_px: int = 96
    recipe: tuple[dict[str, Any], ...] = ()
    parity: dict[str, Any] = field(default_factory=dict)
    accuracy: dict[str, Any] = field(default_factory=dict)
    latency: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


def compute_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def write_manifest(manifest: Manifest, folder: Path) -> Path:
    """Write ``manifest.json`` into an existing folder and return its path."""
    path = folder / MANIFEST_NAME
    record = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(manifest)}
    path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def load_manifest(folder: Path) -> Manifest:
    """The manifest of a bundle folder, after checking format, keys, graph file and graph hash.

    Raises:
        BundleError: no bundle, wrong format or version, a key missing or unknown, or a changed graph.
    """
    record = _read_record(folder)
    names = {f.name for f in fields(Manifest)}
    required = {f.name for f in fields(Manifest) if f.name not in _OPTIONAL}
    if missing := sorted(required - record.keys()):
        raise BundleError(_unusable(folder, f"lacks the keys {', '.join(missing)}"))
    if unknown := sorted(record.keys() - names):
        raise BundleError(_unusable(folder, f"has the unknown keys {', '.join(unknown)}"))
    try:
        manifest = _from_record(record)
    except (TypeError, ValueError, KeyError) as error:
        raise BundleError(_unusable(folder, f"cannot be read ({error})")) from error
    _check_graph(folder, manifest)
    return manifest


_OPTIONAL = {
    "live_threshold", "tile_px", "overlap_px", "recipe", "parity", "accuracy", "latency", "provenance", "versions",
}  # fmt: skip


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise BundleError(
            explain(
                got=f"{folder} has no {MANIFEST_NAME}",
                need="a bundle folder",
                hint="python export.py ckpt=... bundle=DIR",
            )
        )
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BundleError(_unusable(folder, f"is not JSON ({error})")) from error
    if not isinstance(record, dict) or record.pop("format", None) != FORMAT:
        raise BundleError(_unusable(folder, f"is not of format {FORMAT!r}"))
    if (version := record.pop("format_version", None)) != FORMAT_VERSION:
        raise BundleError(_unusable(folder, f"has format version {version}, this release reads {FORMAT_VERSION}"))
    return record


def _from_record(record: dict[str, Any]) -> Manifest:
    plain = dict(record)
    plain["channels"] = tuple(Channel(**c) for c in record["channels"])
    plain["splitting"] = Splitting(**record["splitting"])
    for name in ("image_dtypes", "classes", "outputs", "recipe"):
        plain[name] = tuple(record.get(name, ()))
    return Manifest(**plain)


def _check_graph(folder: Path, manifest: Manifest) -> None:
    if Path(manifest.graph_file).name != manifest.graph_file:
        raise BundleError(_unusable(folder, f"names the graph {manifest.graph_file!r}, which is not a plain file name"))
    graph = folder / manifest.graph_file
    if not graph.is_file() or graph.is_symlink():
        raise BundleError(_unusable(folder, f"names the graph {manifest.graph_file!r}, which is no file beside it"))
    if (found := compute_sha256(graph)) != manifest.graph_sha256:
        raise BundleError(
            _unusable(folder, f"expects SHA-256 {manifest.graph_sha256[:12]}.. of the graph, found {found[:12]}..")
        )


def _unusable(folder: Path, why: str) -> str:
    return explain(got=f"{folder / MANIFEST_NAME} {why}", need="an unaltered bundle", hint="export the bundle again")

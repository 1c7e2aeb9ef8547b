"""The bundle: a folder with the graph and ``manifest.json``, the only contract between training, Python and C++.

Standard library only: export writes it, the runtime and the C++ runner read it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from cellvision.errors import BundleError, explain

MANIFEST_NAME = "manifest.json"
FORMAT = "cellvision-bundle"
FORMAT_VERSION = 1
KINDS = ("semantic", "viability")
DTYPES = ("uint8", "uint16", "float32")
SPLITTING_METHODS = ("distance", "components", "instances")


@dataclass(frozen=True, kw_only=True)
class Channel:
    """One image channel: its name, and its role where the library needs one ("nuclear", "live", "dead", or "")."""

    name: str
    role: str = ""


@dataclass(frozen=True, kw_only=True)
class Splitting:
    """How a net's outputs become separate cells.

    Attributes:
        method: "distance" floods from the distance map's peaks; "components" takes connected foreground; "instances"
            takes the cells that the net itself found.
        foreground_threshold: a pixel is foreground where 1 - P(background) reaches it, or the cell's mask; in (0, 1).
        seed_threshold: a cell's core is where the distance map reaches it, in (0, 1).
        score_threshold, min_visible: "instances": a cell with a lower score is dropped, and one of which better cells
            leave a smaller share; in (0, 1).
        min_area_px: smaller cells are dropped; >= 1.
        min_seed_px: smaller cores start no cell of their own; >= 1.
    """

    method: str = "distance"
    foreground_threshold: float = 0.5
    seed_threshold: float = 0.5
    score_threshold: float = 0.5
    min_visible: float = 0.5
    min_area_px: int = 20
    min_seed_px: int = 3

    def __post_init__(self) -> None:
        methods = ", ".join(SPLITTING_METHODS)
        _check(self.method in SPLITTING_METHODS, "splitting.method", self.method, f"one of {methods}", "distance")
        for name in ("foreground_threshold", "seed_threshold", "score_threshold", "min_visible"):
            value = getattr(self, name)
            _check(_is_between(value, 0, 1), f"splitting.{name}", value, "a number between 0 and 1", 0.5)
        for name in ("min_area_px", "min_seed_px"):
            value = getattr(self, name)
            _check(_is_whole(value, least=1), f"splitting.{name}", value, "a whole number from 1 up", 1)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything a runner needs to know; nobody repeats any of it on a command line.

    Attributes:
        model: registry name of the net, e.g. "unet".
        kind: "semantic" or "viability".
        graph_file: file name inside the bundle folder, never a path.
        graph_sha256: of that file, 64 lowercase hex digits; checked when the bundle is opened.
        input_dtype: dtype of the graph's input "image" (B, C, H, W).
        image_dtypes: dtypes of images whose counts mean what the training counts meant.
        channels: in the graph's order.
        pixel_size_um: of the training images, or None where unknown.
        classes: background first.
        outputs: names of the graph's outputs in order: "probabilities" (B, K, H, W) and, for viability,
            "distance" (B, 1, H, W); both float32 in 0..1 and of the input's height and width.
        stride: tile origins are multiples of it, so that tiled and untiled results agree.
        splitting: see Splitting.
        live_threshold: a cell is live where P(live) reaches it, in (0, 1).
        tile_px, overlap_px: edge of a tile's core, and the margin read around it; multiples of the stride.
        nucleus_margin_px: px from a nucleus to the annotated outline, told to the Otsu baseline when the bundle is
            evaluated; >= 0.
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
    nucleus_margin_px: int = 0
    recipe: tuple[dict[str, Any], ...] = ()
    parity: dict[str, Any] = field(default_factory=dict)
    accuracy: dict[str, Any] = field(default_factory=dict)
    latency: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_graph_facts(self)
        _check_channels(self.channels)
        _check_meaning(self)
        _check_tiles(self)
        _check_records(self)


def _check_graph_facts(found: Manifest) -> None:
    for key, usual in (("model", "unet"), ("graph_file", "graph.onnx")):
        _check(_is_name(getattr(found, key)), key, getattr(found, key), "a name", usual)
    digest = found.graph_sha256
    is_digest = _is_name(digest) and len(digest) == 64 and set(digest) <= set("0123456789abcdef")
    _check(is_digest, "graph_sha256", digest, "64 lowercase hex digits", "what sha256sum prints for the graph")
    known = ", ".join(DTYPES)
    _check(found.input_dtype in DTYPES, "input_dtype", found.input_dtype, f"one of {known}", "float32")
    dtypes = found.image_dtypes
    is_known = _are_names(dtypes, least=1) and set(dtypes) <= set(DTYPES)
    _check(is_known, "image_dtypes", dtypes, f"different ones of {known}", "uint8, uint16")


def _check_channels(channels: Any) -> None:
    is_right = isinstance(channels, tuple) and all(isinstance(c, Channel) for c in channels)
    _check(is_right, "channels", channels, "a list of channels", '[{"name": "DAPI", "role": "nuclear"}]')
    names = tuple(channel.name for channel in channels)
    _check(_are_names(names, least=1), "channels.name", names, "at least one name, all different", "DAPI, PI")
    roles = tuple(channel.role for channel in channels)
    _check(all(isinstance(role, str) for role in roles), "channels.role", roles, 'nuclear, live, dead or ""', "nuclear")


def _check_meaning(found: Manifest) -> None:
    """Classes, outputs and thresholds: what the graph's numbers mean."""
    _check(found.kind in KINDS, "kind", found.kind, f"one of {', '.join(KINDS)}", "semantic")
    names, outputs = found.classes, found.outputs
    is_right = _are_names(names, least=2)
    _check(is_right, "classes", names, "at least two different names, background first", "background, cell")
    is_right = found.kind != "viability" or {"live", "dead"} <= set(names[1:])
    _check(is_right, "classes", names, "live and dead after the background, for viability", "background, live, dead")
    is_right = _are_names(outputs, least=1) and outputs[0] == "probabilities"
    _check(is_right, "outputs", outputs, "different names, probabilities first", "probabilities, distance")
    is_right = isinstance(found.splitting, Splitting)
    _check(is_right, "splitting", found.splitting, "method, thresholds and sizes", '{"method": "components"}')
    is_right = found.splitting.method != "distance" or "distance" in outputs
    _check(is_right, "outputs", outputs, "distance too for splitting.method=distance", "probabilities, distance")
    is_right = _is_between(found.live_threshold, 0, 1)
    _check(is_right, "live_threshold", found.live_threshold, "a number between 0 and 1", 0.5)
    is_right = found.pixel_size_um is None or _is_between(found.pixel_size_um, 0, float("inf"))
    _check(is_right, "pixel_size_um", found.pixel_size_um, "a number above 0, or null where unknown", 0.5)


def _check_tiles(found: Manifest) -> None:
    for key, usual in (("stride", 16), ("tile_px", 512), ("overlap_px", 96), ("nucleus_margin_px", 0)):
        value, least = getattr(found, key), int(key in ("stride", "tile_px"))
        _check(_is_whole(value, least=least), key, value, f"a whole number from {least} up", usual)
    for key in ("tile_px", "overlap_px"):
        value, stride = getattr(found, key), found.stride
        _check(value % stride == 0, key, value, f"a multiple of stride={stride}", -(-value // stride) * stride)


def _check_records(found: Manifest) -> None:
    is_right = isinstance(found.recipe, tuple) and all(isinstance(step, dict) for step in found.recipe)
    _check(is_right, "recipe", found.recipe, "a list of records", "[]")
    for key in ("parity", "accuracy", "latency", "provenance", "versions"):
        _check(isinstance(getattr(found, key), dict), key, getattr(found, key), "names with values", "{}")
    tiling = found.provenance.get("tiling", {})
    _check(isinstance(tiling, dict), "provenance.tiling", tiling, "names with values", "{}")


def _check(is_right: bool, key: str, value: object, need: str, example: object) -> None:
    if not is_right:
        shown = repr(value) if len(repr(value)) <= 100 else f"{repr(value)[:100]}.."
        raise BundleError(explain(got=f"{key}={shown}", need=need, hint=f"{key}={example}"))


def _is_whole(value: object, *, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_between(value: object, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low < value < high


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _are_names(values: object, *, least: int) -> bool:
    return isinstance(values, tuple) and all(map(_is_name, values)) and len(values) == len(set(values)) >= least


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
    """The manifest of a bundle folder, after checking format, keys, values, graph file and graph hash.

    Raises:
        BundleError: no bundle, wrong format or version, a key or value it cannot have, or a changed graph.
    """
    record = _read_record(folder)
    try:
        manifest = _from_record(record)
    except BundleError as error:
        raise BundleError(f"{folder / MANIFEST_NAME}: {error}") from error
    _check_graph(folder, manifest)
    return manifest


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
    except (ValueError, RecursionError) as error:  # RecursionError: brackets without end
        raise BundleError(_unusable(folder, f"is not JSON ({error})")) from error
    if not isinstance(record, dict) or record.pop("format", None) != FORMAT:
        raise BundleError(_unusable(folder, f"is not of format {FORMAT!r}"))
    version = record.pop("format_version", None)
    if not _is_whole(version, least=1) or version != FORMAT_VERSION:
        raise BundleError(_unusable(folder, f"has format version {version}, this release reads {FORMAT_VERSION}"))
    return record


def _from_record(record: dict[str, Any]) -> Manifest:
    _check_keys(Manifest, record, "")
    plain = dict(record)
    for name in ("channels", "image_dtypes", "classes", "outputs", "recipe"):
        _check(isinstance(record.get(name, []), list), name, record.get(name), "a list", "[..]")
        plain[name] = tuple(record.get(name, ()))
    plain["channels"] = tuple(Channel(**_check_keys(Channel, c, "channels: ")) for c in plain["channels"])
    plain["splitting"] = Splitting(**_check_keys(Splitting, record["splitting"], "splitting: "))
    return Manifest(**plain)


def _check_keys(kind: type, record: Any, place: str) -> dict[str, Any]:
    """``record`` itself, if it has the keys of a dataclass: all that have no default, and no others."""
    known = {f.name for f in fields(kind)}
    need = f"the keys {', '.join(sorted(known))}" if place else "the keys of this release"
    _check(isinstance(record, dict), place.rstrip(": "), record, need, "{..}")
    required = {f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING}
    for what, names in (("lacks", required - record.keys()), ("unknown", record.keys() - known)):
        if names:
            got = f"{place}{what} {', '.join(sorted(names))}"
            raise BundleError(explain(got=got, need=need, hint="export the bundle again"))
    return record


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

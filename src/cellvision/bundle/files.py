"""Bundles on disk: ``manifest.json`` written and read, files and hashes checked."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

from cellvision.bundle.checks import check, is_whole
from cellvision.bundle.manifest import Channel, Detecting, Graph, Manifest, Splitting
from cellvision.errors import BundleError, explain

MANIFEST_NAME = "manifest.json"
FORMAT = "cellvision-bundle"
FORMAT_VERSION = 2


def compute_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def write_manifest(manifest: Manifest, folder: Path) -> Path:
    """Write ``manifest.json`` into an existing folder and return its path; scores that are no number become null.

    An older one stays as it is until the new one is whole.
    """
    path = folder / MANIFEST_NAME
    part = folder / f".{MANIFEST_NAME}.part"
    record = _without_nan({"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(manifest)})
    try:
        part.write_text(json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def _without_nan(value: Any) -> Any:
    """JSON knows no NaN and no infinity, and readers in other languages refuse them."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
    for graph in manifest.graphs:
        _check_graph(folder, graph)
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
    if not is_whole(version, least=1) or version != FORMAT_VERSION:
        raise BundleError(_unusable(folder, f"has format version {version}, this release reads {FORMAT_VERSION}"))
    return record


def _from_record(record: dict[str, Any]) -> Manifest:
    _check_keys(Manifest, record, "")
    plain = dict(record)
    for name in ("channels", "image_dtypes", "classes", "outputs", "graphs", "recipe"):
        check(isinstance(record.get(name, []), list), name, record.get(name), "a list", "[..]")
        plain[name] = tuple(record.get(name, ()))
    plain["channels"] = tuple(Channel(**_check_keys(Channel, c, "channels: ")) for c in plain["channels"])
    plain["graphs"] = tuple(Graph(**_check_keys(Graph, g, "graphs: ")) for g in plain["graphs"])
    if record.get("detecting") is not None:
        plain["detecting"] = Detecting(**_check_keys(Detecting, record["detecting"], "detecting: "))
    plain["splitting"] = Splitting(**_check_keys(Splitting, record["splitting"], "splitting: "))
    return Manifest(**plain)


def _check_keys(kind: type, record: Any, place: str) -> dict[str, Any]:
    """``record`` itself, if it has the keys of a dataclass: all that have no default, and no others."""
    known = {f.name for f in fields(kind)}
    need = f"the keys {', '.join(sorted(known))}" if place else "the keys of this release"
    check(isinstance(record, dict), place.rstrip(": "), record, need, "{..}")
    required = {f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING}
    for what, names in (("lacks", required - record.keys()), ("unknown", record.keys() - known)):
        if names:
            got = f"{place}{what} {', '.join(sorted(names))}"
            raise BundleError(explain(got=got, need=need, hint="export the bundle again"))
    return record


def _check_graph(folder: Path, graph: Graph) -> None:
    if Path(graph.file).name != graph.file:
        raise BundleError(_unusable(folder, f"names the graph {graph.file!r}, which is not a plain file name"))
    path = folder / graph.file
    if not path.is_file() or path.is_symlink():
        raise BundleError(_unusable(folder, f"names the graph {graph.file!r}, which is no file beside it"))
    if (found := compute_sha256(path)) != graph.sha256:
        raise BundleError(
            _unusable(folder, f"expects SHA-256 {graph.sha256[:12]}.. of {graph.file}, found {found[:12]}..")
        )


def _unusable(folder: Path, why: str) -> str:
    return explain(got=f"{folder / MANIFEST_NAME} {why}", need="an unaltered bundle", hint="export the bundle again")

"""What a version of a bundle will say: what the bundle tells of itself, its scores, its gate, and tags of its user."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from cellvision.bundle import Manifest, compute_sha256, load_manifest
from cellvision.errors import ConfigError, explain
from cellvision.git_state import format_git
from cellvision.release.gate import Bar, GateError, pass_gate
from cellvision.release.record import ModelVersion, Scores, check_record

_BUNDLE_TAGS = ("model", "kind", "precision", "graphs", "recipe", "training_data", "checkpoint", "git", "cellvision")
OWN_TAGS = frozenset((*_BUNDLE_TAGS, "created", "files", "fields", "images", "scored"))
"""Tags that a registry sets itself, here or on Azure; beside those that begin with one of OWN_PREFIXES."""

OWN_PREFIXES = ("score.", "gate.")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def draft_version(
    bundle: Path,
    name: str,
    *,
    scores: Scores | None,
    bar: Bar | None,
    production: ModelVersion | None,
    production_scores: Scores | None,
    tags: Mapping[str, str] | None,
) -> ModelVersion:
    """What a version of a bundle will say, once it has got past the gate; its number is 0, its folder the bundle's.

    Args:
        bundle: folder.
        name: of the model.
        scores: of the bundle.
        bar: what is asked of it, or None.
        production: version in production, or None.
        production_scores: of that one on the same fields, or None.
        tags: beside those that the bundle itself tells.

    Raises:
        BundleError, ConfigError, GateError: see `ModelRegistry.register`.
    """
    manifest = load_manifest(bundle)
    _check_request(bundle, manifest, name, scores, bar)
    check_tags(tags or {})
    gate = None
    if bar is not None and scores is not None:
        gate = pass_gate(scores, bar, production=production, production_scores=production_scores)
    draft = ModelVersion(
        name=name,
        version=0,
        folder=bundle.parent,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        files=hash_files(bundle),
        scores=scores,
        gate=gate,
        tags=describe_manifest(manifest) | dict(tags or {}),
    )
    check_record(draft)
    return draft


def check_tags(names: Iterable[str]) -> None:
    """Raise ConfigError for a tag that would hide what a registry says itself: deploying goes by that.

    Example:
        >>> check_tags(["plate"])
    """
    if own := sorted(name for name in names if name in OWN_TAGS or name.startswith(OWN_PREFIXES)):
        got = f"tag {own[0]}, which the registry sets itself"
        raise ConfigError(explain(got=got, need="a name of your own", hint=f"my_{own[0].replace('.', '_')}"))


def check_name(name: str) -> None:
    """Raise ConfigError for what cannot be the name of a model."""
    if not _NAME.fullmatch(name):
        got, need = f"name {name!r}", "letters, digits, _ and -, 64 at most"
        raise ConfigError(explain(got=got, need=need, hint="livedead"))


def _check_request(bundle: Path, manifest: Manifest, name: str, scores: Scores | None, bar: Bar | None) -> None:
    """Raise unless a bundle may have this name, and the scores are its own."""
    check_name(name)
    if bar is not None and scores is None:
        raise ConfigError(explain(got="a metric without scores", need="both", hint="--scores FILE"))
    if scores is not None and scores.graph_sha256 != manifest.graphs[0].sha256:
        hint = f"cellvision evaluate --bundle {bundle} .. --json FILE"
        raise GateError(explain(got="scores of another bundle", need=f"those of {bundle}", hint=hint))


def describe_manifest(manifest: Manifest) -> dict[str, str]:
    """Tags that a bundle tells of itself: recipe, hashes of its graphs, training data, checkpoint, git state."""
    made = manifest.provenance
    git = made.get("git")
    found = {
        "model": manifest.model,
        "kind": manifest.kind,
        "precision": ",".join(dict.fromkeys(graph.precision for graph in manifest.graphs)),
        "graphs": ",".join(graph.sha256 for graph in manifest.graphs),
        "recipe": ",".join(str(step.get("step", "")) for step in manifest.recipe),
        "training_data": str(made.get("data_fingerprint", "")),
        "checkpoint": str(made.get("checkpoint_sha256", "")),
        "git": format_git(git) if isinstance(git, dict) else "",
        "cellvision": str(manifest.versions.get("cellvision", "")),
    }
    return {key: value for key, value in found.items() if value}


def hash_files(folder: Path) -> dict[str, str]:
    """SHA-256 of each file in a folder, by its path in it."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): compute_sha256(path) for path in paths}

"""Models in a folder: versions that never change, and for each name which of them is in production.

- models/NAME/3/version.json: record with scores, gate, tags and hashes.
- models/NAME/3/bundle/: copy of the bundle.
- models/NAME/production.json: version in production, and those that were there before, the last one last.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cellvision.bundle import Manifest, compute_sha256, load_manifest
from cellvision.errors import BundleError, ConfigError, explain, unknown_name
from cellvision.git_state import format_git
from cellvision.release.gate import Bar, GateError, pass_gate
from cellvision.release.record import (
    BUNDLE_NAME,
    RECORD_NAME,
    ModelVersion,
    Scores,
    load_json,
    load_record,
    refuse,
    write_json,
    write_record,
)

PRODUCTION_NAME = "production.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class ModelRegistry:
    """A registry in a folder that may be shared by several processes.

    Attributes:
        folder: of the registry; made when something is registered.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def register(
        self,
        bundle: Path,
        name: str,
        *,
        scores: Scores | None = None,
        bar: Bar | None = None,
        production_scores: Scores | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> ModelVersion:
        """Copy a bundle into the registry as the next version; one that is the newest already is not copied again.

        A version appears whole or not at all; of two processes each gets its own.

        Args:
            bundle: folder.
            name: of the model: letters, digits, _ and -.
            scores: of the bundle.
            bar: what is asked of it; None asks nothing.
            production_scores: see `pass_gate`.
            tags: beside those that the bundle itself tells: recipe, graphs, training data, git state.

        Raises:
            BundleError: the folder is no bundle.
            ConfigError: a name that cannot be that of a folder, or a bar without scores.
            GateError: it is not good enough, or the scores are of another bundle.
        """
        production = None if bar is None else self.find_production(name)
        given: dict[str, Any] = {"scores": scores, "bar": bar, "production": production}
        draft = draft_version(bundle, name, tags=tags, production_scores=production_scores, **given)
        home = self.folder / name
        home.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=".part-", dir=home))
        try:
            shutil.copytree(bundle, staged / BUNDLE_NAME)
            version = replace(draft, folder=staged, files=_hash_files(staged / BUNDLE_NAME))
            return self._find_same(version) or self._claim_number(version)
        finally:
            shutil.rmtree(staged, ignore_errors=True)

    def list_names(self) -> list[str]:
        """Names of all models, sorted."""
        return sorted(path.name for path in self.folder.glob("*") if self._list_numbers(path.name))

    def list_versions(self, name: str) -> list[ModelVersion]:
        """All versions of a model, oldest first; their files are not looked at.

        Raises:
            ConfigError: there is no model of this name.
        """
        self._check_name(name)
        return [load_record(self.folder / name / str(number)) for number in self._list_numbers(name)]

    def get(self, name: str, version: int | None = None) -> ModelVersion:
        """A version whose files are what they were when it was registered.

        Args:
            name: of the model.
            version: None for the newest.

        Raises:
            ConfigError: there is no such model or version.
            BundleError: a file is missing, has changed, or is one too many.
        """
        self._check_name(name)
        numbers = self._list_numbers(name)
        number = numbers[-1] if version is None else version
        if number not in numbers:
            known = ", ".join(map(str, numbers))
            raise ConfigError(explain(got=f"{name} version {version}", need=f"one of {known}", hint=f"{numbers[-1]}"))
        found = load_record(self.folder / name / str(number))
        now = _hash_files(found.bundle) if found.bundle.is_dir() else {}
        if changed := sorted(path for path in {*found.files, *now} if found.files.get(path) != now.get(path)):
            got = f"{found.title}: {', '.join(changed[:5])} changed since it was registered"
            raise BundleError(explain(got=got, need="an unaltered bundle", hint="register it again"))
        return found

    def find_production(self, name: str) -> ModelVersion | None:
        """The version in production, or None; see `get`."""
        history = self._list_production(name)
        return self.get(name, history[-1]) if history else None

    def find_previous(self, name: str) -> ModelVersion:
        """The version that was in production before.

        Raises:
            ConfigError: there was none.
        """
        return self.get(name, choose_previous(name, self._list_production(name)[:-1]))

    def set_production(self, name: str, version: int) -> None:
        """Say that a version is in production; going back to the one before takes it off the list of earlier ones."""
        before = list_before(self._list_production(name), version)
        write_json(self.folder / name / PRODUCTION_NAME, {"version": version, "before": before})

    def _list_production(self, name: str) -> list[int]:
        """The versions that were in production before, and the one that is now; nothing where none is."""
        path = self.folder / name / PRODUCTION_NAME
        if not path.is_file():
            return []
        plain = load_json(path)
        try:
            history = [*plain["before"], plain["version"]]
            if any(type(number) is not int for number in history):
                raise TypeError("versions that are no whole numbers")
        except (KeyError, TypeError) as error:
            raise refuse(
                path, f"does not say what is in production ({error})", "remove it, and deploy again"
            ) from error
        return history

    def _check_name(self, name: str) -> None:
        if not self._list_numbers(name):
            raise ConfigError(unknown_name("model", name, self.list_names()))

    def _list_numbers(self, name: str) -> list[int]:
        home = self.folder / name
        numbers = (path.name for path in home.glob("*") if path.name.isdecimal() and (path / RECORD_NAME).is_file())
        return sorted(map(int, numbers))

    def _find_same(self, version: ModelVersion) -> ModelVersion | None:
        """The newest version, if it has these files and these scores and got past the same gate."""
        if not (numbers := self._list_numbers(version.name)):
            return None
        newest = load_record(self.folder / version.name / str(numbers[-1]))
        is_same = newest.files == version.files and newest.scores == version.scores
        return newest if is_same and (version.gate is None) == (newest.gate is None) else None

    def _claim_number(self, version: ModelVersion) -> ModelVersion:
        """Give a staged version the first free number: a folder can be renamed to a name only once."""
        home, number = self.folder / version.name, 1 + max(self._list_numbers(version.name), default=0)
        while True:
            plain = {**vars(version), "version": number, "folder": home / str(number)}
            write_record(ModelVersion(**plain), version.folder)
            try:
                os.rename(version.folder, home / str(number))  # noqa: PTH104 - Path.rename promises less
            except OSError:
                if not (home / str(number)).exists():
                    raise
                number += 1
                continue
            return load_record(home / str(number))


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
    gate = None
    if bar is not None and scores is not None:
        gate = pass_gate(scores, bar, production=production, production_scores=production_scores)
    return ModelVersion(
        name=name,
        version=0,
        folder=bundle.parent,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        files=_hash_files(bundle),
        scores=scores,
        gate=gate,
        tags=describe_manifest(manifest) | dict(tags or {}),
    )


def list_before(before: Sequence[int], version: int) -> list[int]:
    """The versions that were in production before this one; going back to one takes it and later ones off the list.

    Example:
        >>> list_before([1, 2, 3], 2)
        [1]
    """
    return list(before[: before.index(version)] if version in before else before)


def choose_previous(name: str, before: Sequence[int]) -> int:
    """The last of the versions that were in production before; ConfigError where there was none."""
    if not before:
        got = f"{name} had no version in production before"
        raise ConfigError(explain(got=got, need="one to go back to", hint="cellvision deploy NAME --version N"))
    return int(before[-1])


def _check_request(bundle: Path, manifest: Manifest, name: str, scores: Scores | None, bar: Bar | None) -> None:
    """Raise unless a bundle may have this name, and the scores are its own."""
    if not _NAME.fullmatch(name):
        got, need = f"name {name!r}", "letters, digits, _ and -, 64 at most"
        raise ConfigError(explain(got=got, need=need, hint="livedead"))
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


def _hash_files(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): compute_sha256(path) for path in paths}

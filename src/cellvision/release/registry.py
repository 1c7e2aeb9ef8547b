"""Models in a folder: versions that never change, and for each name which of them is in production.

- models/NAME/3/version.json: record with scores, gate, tags and hashes.
- models/NAME/3/bundle/: copy of the bundle.
- models/NAME/production.json: version in production, and those that were there before, the last one last.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from cellvision.errors import BundleError, ConfigError, DataError, explain, unknown_name
from cellvision.release.draft import draft_version, hash_files
from cellvision.release.gate import Bar, is_compared_anew
from cellvision.release.record import (
    BUNDLE_NAME,
    RECORD_NAME,
    Gate,
    ModelVersion,
    Scores,
    load_json,
    load_record,
    refuse,
    write_json,
    write_record,
)

PRODUCTION_NAME = "production.json"


class ModelRegistry:
    """A registry in a folder that may be shared by several processes.

    Attributes:
        folder: of the registry; made when something is registered.

    Raises:
        ConfigError: it is a file, or would lie in one.
    """

    def __init__(self, folder: Path) -> None:
        there = next((path for path in (folder, *folder.parents) if path.exists()), folder)
        if there.exists() and not there.is_dir():
            got = f"{there}, which is a file, for a registry"
            raise ConfigError(explain(got=got, need="a folder", hint="models"))
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
        """Copy a bundle into the registry as the next version.

        It is not copied again where the newest has its files, its scores and these tags, and got past the same bar.
        A version appears whole or not at all; of two processes each gets its own.

        Args:
            bundle: folder.
            name: of the model: letters, digits, _ and -.
            scores: of the bundle.
            bar: what is asked of it; None asks nothing.
            production_scores: see `pass_gate`.
            tags: beside those that the bundle itself tells: recipe, graphs, training data, git state; see `check_tags`.

        Raises:
            BundleError: the folder is no bundle.
            ConfigError: a name that cannot be that of a folder, a bar without scores, a tag of the registry's own, or a
                folder that cannot be written.
            DataError: what the version in production was registered with cannot be read.
            GateError: it is not good enough, or the scores are of another bundle.
        """
        production = None if bar is None else self.find_production(name)
        given: dict[str, Any] = {"scores": scores, "bar": bar, "production": production}
        draft = draft_version(bundle, name, tags=tags, production_scores=production_scores, **given)
        home = self.folder / name
        with _staging(home) as staged:
            shutil.copytree(bundle, staged / BUNDLE_NAME)
            version = replace(draft, folder=staged, files=hash_files(staged / BUNDLE_NAME))
            return self._find_same(version) or self._claim_number(version)

    def list_names(self) -> list[str]:
        """Names of all models, sorted."""
        return sorted(path.name for path in self.folder.glob("*") if self._list_numbers(path.name))

    def list_versions(self, name: str) -> list[ModelVersion]:
        """All versions of a model whose record can be read, oldest first; their files are not looked at.

        Raises:
            ConfigError: there is no model of this name.
        """
        return [found for found in self._read_all(name) if isinstance(found, ModelVersion)]

    def list_damage(self, name: str) -> list[str]:
        """What is wrong with the records of a model that cannot be read, a sentence each; see `list_versions`."""
        return [str(found) for found in self._read_all(name) if isinstance(found, DataError)]

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
        now = _hash_bundle(found)
        if changed := sorted(path for path in {*found.files, *now} if found.files.get(path) != now.get(path)):
            got = f"{found.title}: {', '.join(changed[:5])} changed since it was registered"
            hint = f"cellvision deploy {name} --version N, another one, or register the bundle again as a new version"
            raise BundleError(explain(got=got, need="an unaltered bundle", hint=hint))
        return found

    def find_production(self, name: str) -> ModelVersion | None:
        """What the version in production was registered with, or None; its files are not looked at: `get` does that.

        Raises:
            DataError: its record cannot be read, or nothing can that says which it is.
        """
        number = self.find_production_number(name)
        if number is None:
            return None
        try:
            return load_record(self.folder / name / str(number))
        except DataError as error:
            got = f"{name} version {number}, which is in production, and whose {RECORD_NAME} cannot be read"
            hint = f"cellvision deploy {name} --rollback, or remove {self.folder / name / PRODUCTION_NAME}"
            raise DataError(explain(got=got, need="its scores, to compare with", hint=hint)) from error

    def find_production_number(self, name: str) -> int | None:
        """The number of the version in production, or None; its record may be damaged."""
        history = self._list_production(name)
        return history[-1] if history else None

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

    def check_folder(self) -> None:
        """Raise ConfigError where there is no such folder: it may be another that was meant."""
        if not self.folder.is_dir():
            got, hint = f"no folder {self.folder}", f"cellvision register BUNDLE --name NAME --models {self.folder}"
            raise ConfigError(explain(got=got, need="that of a registry", hint=hint))

    def _check_name(self, name: str) -> None:
        if not self._list_numbers(name):
            self.check_folder()
            raise refuse_name(name, self.list_names())

    def _read_all(self, name: str) -> Iterator[ModelVersion | DataError]:
        self._check_name(name)
        for number in self._list_numbers(name):
            try:
                yield load_record(self.folder / name / str(number))
            except DataError as error:
                yield error

    def _list_numbers(self, name: str) -> list[int]:
        home = self.folder / name
        numbers = (path.name for path in home.glob("*") if path.name.isdecimal() and (path / RECORD_NAME).is_file())
        return sorted(map(int, numbers))

    def _find_same(self, version: ModelVersion) -> ModelVersion | None:
        """The newest version, if it has these files, unaltered, these scores and tags, and got past the same bar."""
        if not (numbers := self._list_numbers(version.name)):
            return None
        try:
            newest = load_record(self.folder / version.name / str(numbers[-1]))
        except DataError:
            return None
        is_same = newest.files == version.files == _hash_bundle(newest) and newest.scores == version.scores
        is_same &= version.tags.items() <= newest.tags.items()
        is_same &= not is_compared_anew(version.gate, newest)
        return newest if is_same and _choose_bar(version.gate) == _choose_bar(newest.gate) else None

    def _claim_number(self, version: ModelVersion) -> ModelVersion:
        """Give a staged version the first free number: a folder can be renamed to a name only once."""
        home, number = self.folder / version.name, 1 + max(self._list_numbers(version.name), default=0)
        while True:
            plain = {**vars(version), "version": number, "folder": home / str(number)}
            write_record(ModelVersion(**plain), version.folder)
            written = load_record(version.folder)  # one that cannot be read again must not get its name
            try:
                os.rename(version.folder, home / str(number))  # noqa: PTH104 - Path.rename promises less
            except OSError:
                if not (home / str(number)).exists():
                    raise
                number += 1
                continue
            return replace(written, folder=home / str(number))


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


def refuse_name(name: str, known: Iterable[str]) -> ConfigError:
    """The error for a model that is not in a registry."""
    if names := list(known):
        return ConfigError(unknown_name("model", name, names))
    got, hint = f"model {name!r} of a registry that has none", f"cellvision register BUNDLE --name {name}"
    return ConfigError(explain(got=got, need="one that is registered", hint=hint))


@contextmanager
def _staging(home: Path) -> Iterator[Path]:
    """A folder in that of a model, which is made; removed at the end unless it has got another name."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        staged = home / f".part-{uuid.uuid4().hex}"
        staged.mkdir()  # as readable as others: mkdtemp's would be its user's alone
    except OSError as error:
        got = f"{home}, which cannot be written ({error.strerror})"
        raise ConfigError(explain(got=got, need="a folder for versions", hint="another --models or --name")) from error
    try:
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _choose_bar(gate: Gate | None) -> tuple[str, float | None] | None:
    return None if gate is None else (gate.metric, gate.at_least)


def _hash_bundle(version: ModelVersion) -> dict[str, str]:
    return hash_files(version.bundle) if version.bundle.is_dir() else {}

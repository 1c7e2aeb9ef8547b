"""What is known of a registered bundle, as plain records that JSON can hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cellvision.errors import ConfigError, DataError, explain, is_finite_number

AZURE = Path("azureml")
"""In the place of a registry's folder: that of an Azure ML workspace, see ``cellvision.cloud.registry``."""

RECORD_NAME = "version.json"
BUNDLE_NAME = "bundle"


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What ``cellvision evaluate --bundle .. --json`` says of a bundle.

    Attributes:
        values: by name, e.g. "cell/f1".
        data_fingerprint: of the fields that were scored.
        images: how many these are.
        graph_sha256: of the graph that was scored, the bundle's first.
    """

    values: Mapping[str, float]
    data_fingerprint: str
    images: int
    graph_sha256: str


@dataclass(frozen=True, kw_only=True)
class Gate:
    """How a version got past the gate.

    Attributes:
        metric, value: the score that decided.
        at_least: its least value, or None.
        production, production_value: version that was in production then, and its score on the same fields; or None.
    """

    metric: str
    value: float
    at_least: float | None = None
    production: int | None = None
    production_value: float | None = None

    def describe(self) -> str:
        """In words, e.g. "cell/f1 0.812 (at least 0.5; version 2 in production has 0.801)"."""
        why = [] if self.at_least is None else [f"at least {self.at_least:g}"]
        if self.production is not None:
            why.append(f"version {self.production} in production has {self.production_value:.4g}")
        return f"{self.metric} {self.value:.4g}" + (f" ({'; '.join(why)})" if why else "")


@dataclass(frozen=True, kw_only=True)
class ModelVersion:
    """One version of a model in a registry.

    Attributes:
        name, version: of the model; versions are counted from 1.
        folder: of the version, with its record and its bundle.
        created: when it was registered, UTC, ISO 8601 to the second.
        files: SHA-256 of each file of the bundle, by its path in it.
        scores: None where it was registered without.
        gate: None where nothing was asked of it.
        tags: recipe, training data, git state and such.
    """

    name: str
    version: int
    folder: Path
    created: str
    files: Mapping[str, str]
    scores: Scores | None = None
    gate: Gate | None = None
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Name and version."""
        return f"{self.name} version {self.version}"

    @property
    def bundle(self) -> Path:
        """Folder of the bundle."""
        return self.folder / BUNDLE_NAME

    @property
    def recipe(self) -> str:
        """Steps of compression in order, or "" for none."""
        return self.tags.get("recipe", "")


def write_record(version: ModelVersion, folder: Path) -> None:
    """Write a version's record into a folder."""
    write_json(folder / RECORD_NAME, _to_plain(version))


def check_record(version: ModelVersion) -> None:
    """Raise ConfigError for a version whose record, once written, could not be read again."""
    try:
        text = json.dumps(_to_plain(version), ensure_ascii=False, default=dict).encode().decode()
        _read_plain(json.loads(text), version.folder)
    except _FAULTS as error:
        got = f"a record of {version.name} that could not be read again ({error})"
        need = "text, and scores that are finite numbers"
        raise ConfigError(explain(got=got, need=need, hint="another --tag, or cellvision evaluate again")) from error


def _to_plain(version: ModelVersion) -> dict[str, Any]:
    return {key: value for key, value in asdict(version).items() if key != "folder"}


def load_record(folder: Path) -> ModelVersion:
    """The record in a version's folder.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    plain = load_json(folder / RECORD_NAME)
    try:
        found = _read_plain(plain, folder)
        if folder.name.isdecimal() and found.version != int(folder.name):
            raise ValueError(f"that of version {found.version}")
        return found
    except _FAULTS as error:
        raise refuse(folder / RECORD_NAME, f"is damaged ({error})", "register the bundle again") from error


_FAULTS = (KeyError, TypeError, ValueError, AttributeError)


def _read_plain(plain: dict[str, Any], folder: Path) -> ModelVersion:
    scores, gate = plain.pop("scores"), plain.pop("gate")
    found = ModelVersion(
        folder=folder,
        scores=None if scores is None else Scores(**scores),
        gate=None if gate is None else Gate(**gate),
        **plain,
    )
    _check_kinds(found)
    return found


def _check_kinds(version: ModelVersion) -> None:
    """Raise TypeError for a value of another kind than it is written with."""
    texts = {"name": version.name, "created": version.created} | dict(version.files) | dict(version.tags)
    numbers: dict[str, Any] = {}
    wholes: dict[str, Any] = {"version": version.version}
    if (scores := version.scores) is not None:
        texts |= {"data_fingerprint": scores.data_fingerprint, "graph_sha256": scores.graph_sha256}
        numbers |= scores.values
        wholes["images"] = scores.images
    if (gate := version.gate) is not None:
        texts["metric"] = gate.metric
        numbers["value"] = gate.value
        if gate.at_least is not None:
            numbers["at_least"] = gate.at_least
        if (gate.production, gate.production_value) != (None, None):
            wholes["production"], numbers["production_value"] = gate.production, gate.production_value
    wrong = [key for key, text in texts.items() if not isinstance(text, str)]
    wrong += [key for key, number in numbers.items() if not is_finite_number(number)]
    wrong += [key for key, whole in wholes.items() if type(whole) is not int]
    if wrong:
        raise TypeError(f"{wrong[0]} of another kind")


def load_scores(path: Path) -> Scores:
    """The scores in a file of ``cellvision evaluate --bundle BUNDLE .. --json FILE``.

    Raises:
        DataError: it cannot be read, or is of something else.
    """
    plain = load_json(path)
    try:
        found = Scores(
            values={name: value for name, value in plain["scores"].items() if is_finite_number(value)},
            data_fingerprint=str(plain["data"]["fingerprint"]),
            images=int(plain["data"]["images"]),
            graph_sha256=str(plain["graph_sha256"]),
        )
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise refuse(path, "is no scores of a bundle", f"cellvision evaluate --bundle DIR .. --json {path}") from error
    return found


def load_registered(path: Path, name: str) -> int:
    """The number of the version in a file of ``cellvision register .. --json FILE``.

    Raises:
        DataError: it cannot be read, or is something else.
        ConfigError: it is of another model than ``name``.
    """
    plain = load_json(path)
    if not isinstance(plain.get("name"), str) or type(plain.get("version")) is not int:
        raise refuse(path, "does not say what was registered", f"cellvision register BUNDLE .. --json {path}")
    if plain["name"] != name:
        got, need = f"--registered {path}, which names a version of {plain['name']}", f"one of {name}"
        raise ConfigError(explain(got=got, need=need, hint=f"cellvision deploy {plain['name']} .."))
    return int(plain["version"])


def load_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; DataError where there is none."""
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no JSON"
        raise refuse(path, f"cannot be read ({why})", "check the path") from error
    if not isinstance(plain, dict):
        raise refuse(path, "is no JSON object", "check the path")
    return plain


def write_json(path: Path, plain: Mapping[str, Any]) -> None:
    """Write a JSON file; whoever reads meanwhile sees the old one or the new one, never half of it."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(plain, indent=2, ensure_ascii=False, default=dict) + "\n", encoding="utf-8")
    part.replace(path)


def refuse(path: Path, what: str, hint: str) -> DataError:
    """The error for a file that says something else than it should."""
    return DataError(explain(got=f"{path} {what}", need="a file written by cellvision", hint=hint))

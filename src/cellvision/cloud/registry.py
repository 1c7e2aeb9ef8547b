"""The model registry of an Azure ML workspace, as ``release/registry.py`` is one in a folder; the same gate decides."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellvision.cloud.endpoint import Live, find_live
from cellvision.cloud.faults import explained
from cellvision.errors import ConfigError, explain
from cellvision.release.draft import draft_version
from cellvision.release.gate import Bar, is_compared_anew
from cellvision.release.record import Gate, ModelVersion, Scores
from cellvision.release.registry import choose_previous, refuse_name

if TYPE_CHECKING:
    from azure.ai.ml import MLClient
    from azure.ai.ml.entities import Model

LONGEST_TAG = 256
"""Characters of a tag's value, an estimate; of a tag that is longer the beginning is kept."""


class AzureRegistry:
    """A registry whose versions are models of the workspace; in production is what its endpoint sends requests to.

    What is known of a version stands in the tags of its model, where everybody sees it in the portal.
    """

    def __init__(self, client: MLClient) -> None:
        self.client = client

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
        """Upload a bundle as the next version; arguments and errors are those of ``ModelRegistry.register``.

        Raises:
            CloudError: Azure refuses or does not answer.
        """
        from azure.ai.ml.entities import Model

        production = None if bar is None else self.find_production(name)
        given: dict[str, Any] = {"scores": scores, "bar": bar, "production": production}
        draft = draft_version(bundle, name, tags=tags, production_scores=production_scores, **given)
        known, content = self._list(name), to_tags(draft)
        if known and _is_same(known[-1].tags or {}, content) and not is_compared_anew(draft.gate, _read(known[-1])):
            return _read(known[-1])
        taken = self._list(name, archived=True)
        number = 1 + max((int(str(model.version)) for model in taken), default=0)
        model = Model(name=name, version=str(number), path=str(bundle), type="custom_model", tags=content)
        with explained(f"registering {name} version {number}", otherwise=""):
            self.client.models.create_or_update(model)
        return replace(draft, version=number, folder=_locate(name, number))

    def list_names(self) -> list[str]:
        """Names of all models, sorted."""
        with explained("listing models", otherwise=""):
            return sorted(str(model.name) for model in self.client.models.list())

    def list_versions(self, name: str, *, archived: bool = False) -> list[ModelVersion]:
        """The versions of a model, oldest first, with or without archived ones; ConfigError where there is no model."""
        known = self._list(name, archived=archived)
        if not known and (archived or not self._list(name, archived=True)):
            raise refuse_name(name, self.list_names())
        return [_read(model) for model in known]

    def get(self, name: str, version: int | None = None) -> ModelVersion:
        """A version, which may be archived, or None for the newest that is not; ConfigError where there is none."""
        known = {found.version: found for found in self.list_versions(name, archived=version is not None)}
        if not known:
            got, need = f"{name}, of which all versions are archived", "one that is not"
            raise ConfigError(explain(got=got, need=need, hint=f"cellvision deploy {name} --version N"))
        number = max(known) if version is None else version
        if number not in known:
            need = f"one of {', '.join(map(str, known))}"
            raise ConfigError(explain(got=f"{name} version {version}", need=need, hint=f"{max(known)}"))
        return known[number]

    def find_live(self, name: str) -> Live | None:
        """Where the version in production answers, or None."""
        return find_live(self.client, name)

    def find_production(self, name: str) -> ModelVersion | None:
        """The version that the endpoint sends requests to, or None."""
        live = self.find_live(name)
        return None if live is None else self.get(name, live.version)

    def find_previous(self, name: str) -> ModelVersion:
        """The version that was in production before; ConfigError where there was none."""
        live = self.find_live(name)
        return self.get(name, choose_previous(name, () if live is None else live.before))

    def _list(self, name: str, *, archived: bool = False) -> list[Model]:
        from azure.ai.ml.constants import ListViewType
        from azure.core.exceptions import ResourceNotFoundError

        with explained(f"looking for {name}", otherwise=""):
            view = ListViewType.ALL if archived else ListViewType.ACTIVE_ONLY
            try:
                models = self.client.models.list(name=name, list_view_type=view)
                found = [model for model in models if str(model.version).isdecimal()]
            except ResourceNotFoundError as error:
                if "workspace" in str(error).lower().partition("models")[0]:
                    raise
                return []
        return sorted(found, key=lambda model: int(model.version))


def to_tags(version: ModelVersion) -> dict[str, str]:
    """What a version's model is tagged with: text, by names of letters, digits, _ and dots.

    Example:
        ``{"recipe": "prune", "training_data": "..", "score.cell.f1": "0.81", "gate.metric": "cell/f1", ..}``
    """
    found = {**version.tags, "created": version.created, "files": _digest(version.files)}
    if version.scores is not None:
        scores = version.scores
        found |= {"fields": scores.data_fingerprint, "images": str(scores.images), "scored": scores.graph_sha256}
        found |= {f"score.{_to_key(name)}": str(value) for name, value in scores.values.items()}
    if version.gate is not None:
        found |= {f"gate.{name}": str(value) for name, value in vars(version.gate).items() if value is not None}
    return {key: value[:LONGEST_TAG] for key, value in found.items()}


def from_tags(name: str, number: int, tags: Mapping[str, Any]) -> ModelVersion:
    """The version that a model's tags describe; anybody may have changed them, as in the portal.

    What is damaged counts as absent: a score that is no number, all scores without what they were made from, and the
    gate with any value that is none. One that was registered by other means has no scores and no gate.
    """
    texts = {key: str(value) for key, value in tags.items() if value is not None}
    return ModelVersion(
        name=name,
        version=number,
        folder=_locate(name, number),
        created=texts.get("created", ""),
        files={},
        scores=_read_scores(texts),
        gate=_read_gate(texts),
        tags=texts,
    )


def _to_key(score: str) -> str:
    """A score's name without slashes: ``a/b`` as ``a.b``, a point of it as ``~``, and that twice."""
    return score.replace("~", "~~").replace(".", "~").replace("/", ".")


def _from_key(key: str) -> str:
    return re.sub(r"~~|~|\.", lambda found: {"~~": "~", "~": ".", ".": "/"}[found[0]], key)


def _read_scores(tags: Mapping[str, str]) -> Scores | None:
    fields, images, graph = tags.get("fields"), tags.get("images", ""), tags.get("scored")
    found = {_from_key(key[6:]): _to_number(tags[key]) for key in tags if key.startswith("score.")}
    values = {key: value for key, value in found.items() if value is not None}
    if not (fields and graph and values and _is_whole(images)):
        return None
    return Scores(values=values, data_fingerprint=fields, images=int(images), graph_sha256=graph)


def _read_gate(tags: Mapping[str, str]) -> Gate | None:
    numbers = {key: _to_number(tags[f"gate.{key}"]) for key in _GATE_NUMBERS if f"gate.{key}" in tags}
    found = {key: value for key, value in numbers.items() if value is not None}
    production, metric = tags.get("gate.production"), tags.get("gate.metric")
    is_whole = production is None or _is_whole(production)
    is_paired = (production is None) == ("production_value" not in found)
    if not (metric and "value" in found and found.keys() == numbers.keys() and is_whole and is_paired):
        return None
    return Gate(metric=metric, production=None if production is None else int(production), **found)


_GATE_NUMBERS = ("value", "at_least", "production_value")


def _to_number(text: str) -> float | None:
    """The number in a tag, or None where it is none that can be compared."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _is_whole(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10


def _read(model: Model) -> ModelVersion:
    return from_tags(str(model.name), int(str(model.version)), model.tags or {})


def _locate(name: str, number: int) -> Path:
    return Path(f"azureml:{name}:{number}")


def _digest(files: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(dict(files), sort_keys=True).encode()).hexdigest()


def _is_same(known: Mapping[str, str], content: Mapping[str, str]) -> bool:
    """Whether a model has these files, scores and tags, and got past the same bar or was asked nothing as this one."""

    def choose(tags: Mapping[str, str]) -> dict[str, str]:
        bar = ("files", "fields", "gate.metric", "gate.at_least")
        return {key: value for key, value in tags.items() if key in bar or key.startswith("score.")}

    beside = {key: value for key, value in content.items() if key != "created" and not key.startswith("gate.")}
    return choose(known) == choose(content) and beside.items() <= known.items()

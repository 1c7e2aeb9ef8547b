"""The model registry of an Azure ML workspace, as ``release/registry.py`` is one in a folder; the same gate decides."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellvision.cloud.endpoint import Live, find_live
from cellvision.cloud.faults import explained
from cellvision.errors import ConfigError, explain, unknown_name
from cellvision.release.gate import Bar
from cellvision.release.record import Gate, ModelVersion, Scores
from cellvision.release.registry import choose_previous, draft_version

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
        if known and _is_same(known[-1].tags, content):
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
        """The versions of a model, oldest first, with those that are archived or without; ConfigError where none is."""
        if not (known := self._list(name, archived=archived)):
            raise ConfigError(unknown_name("model", name, self.list_names()))
        return [_read(model) for model in known]

    def get(self, name: str, version: int | None = None) -> ModelVersion:
        """A version, which may be archived, or None for the newest that is not; ConfigError where there is none."""
        known = {found.version: found for found in self.list_versions(name, archived=version is not None)}
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
        found |= {f"score.{name.replace('/', '.')}": str(value) for name, value in scores.values.items()}
    if version.gate is not None:
        found |= {f"gate.{name}": str(value) for name, value in vars(version.gate).items() if value is not None}
    return {key: value[:LONGEST_TAG] for key, value in found.items()}


def from_tags(name: str, number: int, tags: Mapping[str, str]) -> ModelVersion:
    """The version that a model's tags describe; one that was registered by other means has no scores and no gate."""
    scores = gate = None
    if "fields" in tags:
        values = {key[6:].replace(".", "/"): float(value) for key, value in tags.items() if key.startswith("score.")}
        scores = Scores(
            values=values,
            data_fingerprint=tags["fields"],
            images=int(tags["images"]),
            graph_sha256=tags["scored"],
        )
    if "gate.metric" in tags:
        numbers = {key: float(tags[f"gate.{key}"]) for key in _GATE_NUMBERS if f"gate.{key}" in tags}
        before = int(tags["gate.production"]) if "gate.production" in tags else None
        gate = Gate(metric=tags["gate.metric"], production=before, **numbers)
    return ModelVersion(
        name=name,
        version=number,
        folder=_locate(name, number),
        created=tags.get("created", ""),
        files={},
        scores=scores,
        gate=gate,
        tags=dict(tags),
    )


_GATE_NUMBERS = ("value", "at_least", "production_value")


def _read(model: Model) -> ModelVersion:
    return from_tags(str(model.name), int(str(model.version)), model.tags or {})


def _locate(name: str, number: int) -> Path:
    return Path(f"azureml:{name}:{number}")


def _digest(files: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(dict(files), sort_keys=True).encode()).hexdigest()


def _is_same(known: Mapping[str, str] | None, content: Mapping[str, str]) -> bool:
    """Whether a model has these files and these scores, and got past a gate or was asked nothing as this one was."""

    def choose(tags: Mapping[str, str]) -> dict[str, str]:
        return {key: tags[key] for key in tags if key in ("files", "fields") or key.startswith(("score.", "gate.m"))}

    return choose(known or {}) == choose(content)

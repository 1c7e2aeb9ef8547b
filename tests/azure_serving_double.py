"""The same workspace with models and online endpoints; requests to an endpoint go to the real scoring script."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from azure_double import AzureDouble, _describe
from cellvision.serve import score

SCORING = ".westeurope.inference.ml.azure.com"
ENDPOINT = r"onlineEndpoints/[^/]+"


@dataclass
class ServingDouble(AzureDouble):
    """It refuses what Azure refuses: to send requests to what is not there, and to delete what gets some.

    Attributes:
        folder: where the models of deployments lie.
        scored: deployments that were asked, in order.
    """

    folder: Path = Path()
    scored: list[str] = field(default_factory=list)

    def clear(self) -> None:
        """A workspace with code alone: it is large, and the same for all deployments."""
        kept = {path: body for path, body in self.resources.items() if path.startswith("codes/")}
        blobs = dict(self.blobs)
        super().clear()
        self.resources |= kept
        self.blobs |= blobs
        self.scored.clear()

    @property
    def models(self) -> dict[str, Any]:
        """Properties of all model versions, by "name/number"."""
        found = {p: body for p, body in self.resources.items() if re.fullmatch(r"models/[^/]+/versions/\d+", p)}
        return {
            path.removeprefix("models/").replace("versions/", ""): body["properties"] for path, body in found.items()
        }

    @property
    def endpoints(self) -> list[str]:
        """Paths of all endpoints."""
        return [path for path in self.resources if re.fullmatch(ENDPOINT, path)]

    @property
    def deployments(self) -> dict[str, str]:
        """Model version of each deployment of the only endpoint, or of none, by its colour."""
        (endpoint,) = self.endpoints or [""]
        return self.list_deployments(endpoint)

    @property
    def traffic(self) -> dict[str, int]:
        """Of the only endpoint."""
        (endpoint,) = self.endpoints
        return self.resources[endpoint]["properties"]["traffic"]

    def list_deployments(self, endpoint: str) -> dict[str, str]:
        """Model version of each deployment of an endpoint, by its colour."""
        found = {p: body for p, body in self.resources.items() if re.fullmatch(rf"{endpoint}/deployments/\w+", p)}
        return {p.split("/")[-1]: body["properties"]["model"].split("/")[-1] for p, body in found.items()}

    def read_component(self, job: str, step: str) -> dict[str, Any]:
        """What the component of a pipeline's step says."""
        path = self.jobs[job]["jobs"][step]["componentId"].partition("/workspaces/lab/")[2]
        return dict(self.resources[path]["properties"]["componentSpec"])

    def find_code(self, job: str) -> str:
        """The id of a pipeline's snapshot, which is that of each step."""
        (code,) = {self.read_component(job, step)["code"] for step in self.jobs[job]["jobs"]}
        return code

    def unpack_model(self, name: str, folder: Path) -> Path:
        """Write a model version ("name/number") as it lies where a deployment looks for it."""
        prefix = "/default/" + self.models[name]["modelUri"].partition("/paths/")[2].rstrip("/") + "/"
        for path, content in self.blobs.items():
            if path.startswith(prefix):
                target = folder / path.removeprefix(prefix)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
        return folder

    def _answer(self, method: str, path: str, url: Any, body: Any) -> tuple[int, Any]:
        if path == "":
            return 200, {"id": url.path, "name": "lab", "location": "westeurope", "properties": {}}
        if method == "GET" and path.startswith("computes/"):  # which is asked for before a pipeline is submitted
            properties = {"computeType": "AmlCompute", "provisioningState": "Succeeded", "properties": {}}
            return 200, {"id": url.path, "name": path.split("/")[1], "location": "westeurope", "properties": properties}
        if method == "GET" and path == "models":
            names = sorted({key.split("/")[1] for key in self.resources if key.startswith("models/")})
            return 200, {"value": [{"id": url.path, "name": name, "properties": {}} for name in names]}
        if method == "GET" and re.fullmatch(rf"models/[^/]+/versions|{ENDPOINT}/deployments", path):
            found = [body for key, body in self.resources.items() if key.rpartition("/")[0] == path]
            is_all = "listViewType=All" in url.query
            shown = [body for body in found if is_all or not body["properties"].get("isArchived")]
            return (200, {"value": shown}) if found else (404, _describe(404))
        if method == "POST" and path.endswith("/listKeys"):
            return 200, {"primaryKey": "key", "secondaryKey": "key"}
        if method == "DELETE":
            return self._delete(path)
        return super()._answer(method, path, url, body)

    def _delete(self, path: str) -> tuple[int, Any]:
        if path not in self.resources:
            return 404, _describe(404)
        endpoint, _, colour = path.partition("/deployments/")
        if self.resources[endpoint]["properties"]["traffic"].get(colour):
            return 400, _describe(400)
        del self.resources[path]
        return 200, None

    def _put(self, path: str, url: Any, body: Any) -> tuple[int, Any]:
        if path.startswith("models/") and path in self.resources:
            return 409, _describe(409)
        if path.startswith("models/"):
            body["properties"] |= {"flavors": {}}
        if re.fullmatch(ENDPOINT, path):
            traffic = body["properties"].setdefault("traffic", {})
            if not {colour for colour, share in traffic.items() if share} <= set(self.list_deployments(path)):
                return 400, _describe(400)
            body["properties"] |= {"scoringUri": f"https://{path.split('/')[1]}{SCORING}/score"}
        if "/deployments/" in path:
            body["properties"].setdefault("scaleSettings", None)
            body["properties"]["scaleSettings"] = body["properties"]["scaleSettings"] or {"scaleType": "Default"}
        if path.startswith("onlineEndpoints/"):
            body["properties"] |= {"provisioningState": "Succeeded"}
        return super()._put(path, url, body)

    def _answer_elsewhere(self, request: Any, path: str) -> tuple[int, Any]:
        assert (request.method, path) == ("POST", "/score"), request.url
        colour = request.headers["azureml-model-deployment"]
        self.scored.append(colour)
        endpoint = f"onlineEndpoints/{request.url.partition('://')[2].partition(SCORING)[0]}"
        model = self.resources[f"{endpoint}/deployments/{colour}"]["properties"]["model"]
        name, _, number = model.split("/models/")[1].partition("/versions/")
        place = self.folder / f"{len(self.scored)}_{name}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AZUREML_MODEL_DIR", str(self.unpack_model(f"{name}/{number}", place)))
            score.init()
            return 200, json.loads(json.dumps(score.run(request.body)))

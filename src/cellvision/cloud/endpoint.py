"""A registered version goes live behind a managed online endpoint: tried beside the old one, then switched to."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cellvision.cloud.faults import CloudError, explained
from cellvision.cloud.serving import EndpointOptions, build_deployment
from cellvision.errors import ConfigError, explain
from cellvision.release.gate import check_still_passes
from cellvision.release.process import DeployError
from cellvision.release.record import ModelVersion
from cellvision.release.registry import list_before

if TYPE_CHECKING:
    from azure.ai.ml import MLClient
    from azure.ai.ml.entities import OnlineEndpoint

    from cellvision.cloud.registry import AzureRegistry

LARGEST_REQUEST = 1_500_000
"""Bytes that Azure takes, from memory: see docs/azure.md."""

_SERVED = re.compile(r"(?:azureml:|/models/)([^/:]+)(?::|/versions/)(\d+)$")
"""Name and version of a model, in the two ways that Azure has of saying it."""

BEFORE = "cellvision.before"
"""Tag of an endpoint: versions that were in production before, the last one last."""


@dataclass(frozen=True, kw_only=True)
class Live:
    """What an endpoint sends requests to.

    Attributes:
        endpoint: its name.
        colour: name of the deployment.
        version: of the model.
        url: where it answers.
        before: versions that were in production before, the last one last.
    """

    endpoint: str
    colour: str
    version: int
    url: str
    before: tuple[int, ...] = ()


def name_endpoint(client: MLClient, name: str) -> str:
    """The name of a model's endpoint, which nobody else in the region may have, nor another model of the workspace.

    It ends in six digits of both, as an endpoint's name is shorter and has fewer letters than a model's can have.
    """
    place = f"{client.subscription_id}/{client.resource_group_name}/{client.workspace_name}".lower()
    start = name.lower().replace("_", "-")
    start = (start if start[0].isalpha() else f"m{start}")[:24].rstrip("-")
    return f"{start}-{hashlib.sha256(f'{place}/{name}'.encode()).hexdigest()[:6]}"


def find_live(client: MLClient, name: str) -> Live | None:
    """What a model's endpoint sends requests to, or None where it sends none.

    Raises:
        CloudError: no answer.
    """
    with explained(f"looking for the endpoint of {name}", otherwise=""):
        endpoint = _find_endpoint(client, name)
        if endpoint is None or not any((endpoint.traffic or {}).values()):
            return None
        colour = max(endpoint.traffic, key=endpoint.traffic.__getitem__)
        deployment = client.online_deployments.get(name=colour, endpoint_name=str(endpoint.name))
    served = _SERVED.search(str(deployment.model))
    if served is None or served[1] != name:
        got, need = f"{endpoint.name}/{colour} serves {deployment.model}", f"a registered version of {name}"
        raise CloudError(explain(got=got, need=need, hint=f"az ml online-endpoint delete --name {endpoint.name}"))
    before = tuple(map(int, filter(None, (endpoint.tags or {}).get(BEFORE, "").split(","))))
    url = str(endpoint.scoring_uri)
    return Live(endpoint=str(endpoint.name), colour=colour, version=int(served[2]), url=url, before=before)


def deploy(
    registry: AzureRegistry,
    name: str,
    *,
    samples: Sequence[Path],
    version: int | None = None,
    rollback: bool = False,
    options: EndpointOptions | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Live:
    """Take a version into production.

    Its deployment is made beside the live one and must find cells in the samples; then all requests go to it, and the
    old one is deleted. Any fault before that, Ctrl-C included, deletes the new one and leaves the requests where they
    were.

    Args:
        registry: where the version is.
        name: of the model.
        samples: image files for the smoke test, in one of which at least there are cells.
        version: None for the newest.
        rollback: take the version that was in production before; then nothing is compared.
        options: how it is served.
        tell: called with a line for each step.

    Raises:
        GateError: the version was registered without a gate, or is worse than what is in production by now.
        DeployError: the new deployment does not pass.
        CloudError: Azure refuses or does not answer.
        ConfigError: there is no such version, no sample, or one that is too large for a request.
    """
    _check_samples(name, samples)
    client = registry.client
    wanted = registry.find_previous(name) if rollback else registry.get(name, version)
    if not rollback:
        check_still_passes(wanted, registry.find_production(name))
    old, endpoint = find_live(client, name), _make_endpoint(client, name)
    colour = "green" if old is not None and old.colour == "blue" else "blue"
    with _going_back(client, endpoint, colour, old, tell):
        tell(f"starting  {wanted.title} as {endpoint}/{colour}")
        with (
            explained(f"deploying {wanted.title}", otherwise=""),
            build_deployment(
                wanted, endpoint=endpoint, colour=colour, options=options or EndpointOptions()
            ) as deployment,
        ):
            client.online_deployments.begin_create_or_update(deployment).result()
        tell(f"testing   {_check(client, endpoint, colour, wanted, samples)}")
        before = [] if old is None else list_before([*old.before, old.version], wanted.version)
        _route(client, endpoint, {colour: 100}, before)
    live = find_live(client, name)
    assert live is not None, "requests were sent to it a moment ago"
    tell(f"live      {wanted.title} on {live.url}")
    if old is not None:
        _remove(client, endpoint, old.colour, tell)
        tell(f"ended     version {old.version} as {endpoint}/{old.colour}")
    return live


def _check_samples(name: str, samples: Sequence[Path]) -> None:
    if not samples or not all(sample.is_file() for sample in samples):
        got = f"no image to try {name} on" if not samples else "a sample that is no file"
        raise ConfigError(explain(got=got, need="one with cells", hint="--sample IMAGE, or a folder of them"))
    if large := [sample for sample in samples if not fits_request(sample)]:
        got = f"{large[0].name}, of which a request has {_count_bytes(large[0])} bytes"
        raise ConfigError(explain(got=got, need=f"at most {LARGEST_REQUEST}", hint="--sample IMAGE, a smaller one"))


def fits_request(sample: Path) -> bool:
    """Whether an image file is small enough for a request to an endpoint."""
    return _count_bytes(sample) <= LARGEST_REQUEST


def _count_bytes(sample: Path) -> int:
    """Size of the request with an image file, which is in base64, and its name."""
    return len(_write_request(b"", sample.name)) + 4 * -(-sample.stat().st_size // 3)


def _write_request(image: bytes, name: str) -> str:
    return json.dumps({"image": base64.b64encode(image).decode("ascii"), "name": name})


def _find_endpoint(client: MLClient, name: str) -> OnlineEndpoint | None:
    from azure.core.exceptions import ResourceNotFoundError

    try:
        return client.online_endpoints.get(name_endpoint(client, name))
    except ResourceNotFoundError as error:
        if "workspace" in str(error).lower().partition("endpoint")[0]:
            raise
        return None


def _make_endpoint(client: MLClient, name: str) -> str:
    """The name of a model's endpoint, which is there then."""
    from azure.ai.ml.entities import ManagedOnlineEndpoint

    with explained(f"making an endpoint for {name}", otherwise=""):
        if _find_endpoint(client, name) is None:
            endpoint = ManagedOnlineEndpoint(name=name_endpoint(client, name), auth_mode="key")
            client.online_endpoints.begin_create_or_update(endpoint).result()
    return name_endpoint(client, name)


def _check(client: MLClient, endpoint: str, colour: str, version: ModelVersion, samples: Sequence[Path]) -> str:
    """Ask the deployment for the cells of the samples, past all others; what it found, in words."""
    cells = 0
    for sample in samples:
        with tempfile.TemporaryDirectory(prefix="cellvision-") as folder:
            request = Path(folder) / "request.json"
            request.write_text(_write_request(sample.read_bytes(), sample.name), encoding="utf-8")
            with explained(f"asking {endpoint}/{colour} for the cells of {sample.name}", otherwise=""):
                text = client.online_endpoints.invoke(endpoint, request_file=str(request), deployment_name=colour)
        try:
            answer = json.loads(text)
            cells += int(answer["count"])
        except (ValueError, KeyError, TypeError) as error:
            why = answer["error"] if isinstance(answer, dict) and "error" in answer else text[:300]
            raise DeployError(f"{endpoint}/{colour} answers to {sample.name}: {why}") from error
    names = ", ".join(sample.name for sample in samples)
    if cells < 1:
        got = f"{version.title} finds no cell in {names}"
        raise DeployError(explain(got=got, need="at least one", hint="samples with cells, or a better bundle"))
    return f"{cells} cells in {names}"


def _route(client: MLClient, endpoint: str, traffic: dict[str, int], before: Sequence[int]) -> None:
    with explained(f"sending requests of {endpoint} to {', '.join(traffic) or 'nothing'}", otherwise=""):
        found = client.online_endpoints.get(endpoint)
        found.traffic, found.tags = traffic, {**(found.tags or {}), BEFORE: ",".join(map(str, before))}
        client.online_endpoints.begin_create_or_update(found).result()


@contextmanager
def _going_back(
    client: MLClient, endpoint: str, colour: str, old: Live | None, tell: Callable[[str], None]
) -> Iterator[None]:
    """On any fault within it requests go to the old deployment, as before, and the new one is deleted."""
    try:
        yield
    except BaseException:
        tell(f"going back {f'to version {old.version}' if old else 'to nothing'}: {endpoint}/{colour} is deleted")
        with suppress(CloudError):  # what went wrong first is what will be said
            with explained(f"looking for the requests of {endpoint}", otherwise=""):
                is_switched = bool((client.online_endpoints.get(endpoint).traffic or {}).get(colour))
            if is_switched:
                _route(client, endpoint, {old.colour: 100} if old else {}, old.before if old else ())
        _remove(client, endpoint, colour, tell)
        raise


def _remove(client: MLClient, endpoint: str, colour: str, tell: Callable[[str], None]) -> None:
    """Delete a deployment; where that fails it is said, as it costs until it is gone."""
    from azure.core.exceptions import ResourceNotFoundError

    try:
        with explained(f"deleting {endpoint}/{colour}", otherwise=""), suppress(ResourceNotFoundError):
            client.online_deployments.begin_delete(name=colour, endpoint_name=endpoint).result()
    except CloudError as error:
        tell(f"left      {error}; az ml online-deployment delete --name {colour} --endpoint-name {endpoint}")

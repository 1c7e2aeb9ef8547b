"""Azure as its SDK sees it: an ARM service and a blob store in memory, behind ``requests``; nothing gets out.

What the SDK sends is kept and can be looked at; what it asks for again is answered from that. Faults are planted by the
path they hit. It knows only the calls that submitting jobs makes; another one is an error of the test.
"""

from __future__ import annotations

import base64
import io
import json
import re
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import requests
from azure.core.credentials import AccessToken

WORKSPACE = {"subscription_id": "00000000-0000-0000-0000-000000000001", "resource_group": "cells", "workspace": "lab"}
ARM = "management.azure.com"
BLOBS = "cells.blob.core.windows.net"
# Three parts in base64, as the SDK reads what is in the token of one who submits a pipeline.
PARTS = (b'{"alg": "none"}', b'{"aud": "https://ml.azure.com", "tid": "t", "oid": "o"}', b"signed")
TOKEN = ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in PARTS)
BLOB_HEADERS = {"ETag": '"1"', "Last-Modified": "Sun, 01 Nov 2026 07:00:00 GMT"}


class Credential:
    """What signs in, without a directory."""

    def __init__(self, **_: Any) -> None:
        pass

    def get_token(self, *_: Any, **__: Any) -> AccessToken:
        """A token that lasts."""
        return AccessToken(TOKEN, 9_999_999_999)


@dataclass
class Fault:
    """How requests whose method and path match are answered: with a status, or not at all; some pass first."""

    pattern: str
    status: int | None
    spared: int = 0


@dataclass
class AzureDouble:
    """One workspace and its storage.

    Attributes:
        resources: bodies of what was put, by path below the workspace.
        blobs: uploaded files, by path in the store.
        metadata: of them.
        calls: method and path of every request.
        faults: planted ones.
    """

    resources: dict[str, Any] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    metadata: dict[str, dict[str, str]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def install(self, patch: Any) -> None:
        """Put it where the network is, with ``pytest.MonkeyPatch``."""
        patch.setattr(requests.adapters.HTTPAdapter, "send", lambda _, request, **__: self._send(request))
        patch.setattr("azure.identity.DefaultAzureCredential", Credential)
        patch.setattr("time.sleep", lambda _: None)  # between tries

    def clear(self) -> None:
        """An empty workspace."""
        for kept in (self.resources, self.blobs, self.metadata, self.calls, self.faults):
            kept.clear()

    def fail(self, pattern: str, status: int | None, *, spared: int = 0) -> None:
        """Answer requests such as ``PUT jobs/`` with a status, or with None drop the connection."""
        self.faults.append(Fault(pattern, status, spared))

    def add_data(self, name: str, *, versions: int, kind: str = "uri_folder") -> None:
        """Register a data asset with versions 1, 2, ..."""
        self.resources[f"data/{name}"] = {"properties": {"dataType": kind, "latestVersion": str(versions)}}
        for version in range(1, versions + 1):
            uri = f"azureml://datastores/workspaceblobstore/paths/{name}/{version}"
            self.resources[f"data/{name}/versions/{version}"] = {"properties": {"dataType": kind, "dataUri": uri}}

    def set_status(self, name: str, status: str) -> None:
        """Let a job be in another state."""
        self.resources[f"jobs/{name}"]["properties"]["status"] = status

    @property
    def jobs(self) -> dict[str, Any]:
        """Properties of all jobs, by name, in the order in which they were submitted."""
        found = {path: body for path, body in self.resources.items() if path.startswith("jobs/")}
        return {path.removeprefix("jobs/"): body["properties"] for path, body in found.items()}

    def count(self, pattern: str) -> int:
        """How many requests match."""
        return sum(re.search(pattern, call) is not None for call in self.calls)

    def list_code(self, job: str) -> dict[str, bytes]:
        """The uploaded files of a job's snapshot, by path relative to its root."""
        code = self.resources["codes/" + self.find_code(job).split("/codes/")[1]]
        prefix = urlsplit(code["properties"]["codeUri"]).path + "/"
        return {path.removeprefix(prefix): body for path, body in self.blobs.items() if path.startswith(prefix)}

    def find_code(self, job: str) -> str:
        """The id of a job's snapshot."""
        return self.jobs[job]["codeId"]

    def unpack(self, job: str, folder: Path) -> None:
        """Write that snapshot as it lies on the node."""
        for name, content in self.list_code(job).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)

    def _send(self, request: requests.PreparedRequest) -> requests.Response:
        url = urlsplit(str(request.url))
        inside = url.path.partition(f"/workspaces/{WORKSPACE['workspace']}")
        path = inside[2].lstrip("/") if inside[1] else url.path
        assert request.headers.get("Authorization", "").startswith(("Bearer ", "SharedKey ")) or "sig=" in url.query
        with self.lock:
            call = f"{request.method} {path}{'?metadata' if 'comp=metadata' in url.query else ''}"
            self.calls.append(call)
            for fault in self.faults:
                if re.search(fault.pattern, call):
                    fault.spared -= 1
                    if fault.spared < 0 and fault.status is None:
                        raise requests.exceptions.ConnectionError("Connection aborted: Remote end closed connection")
                    if fault.spared < 0:
                        return _reply(request, fault.status, _describe(fault.status))
            if url.netloc == BLOBS:
                return self._answer_blob(request, path, url.query)
            if url.netloc != ARM:
                return _reply(request, *self._answer_elsewhere(request, path))
            return _reply(request, *self._answer(str(request.method), path, url, request.body))

    def _answer_elsewhere(self, request: requests.PreparedRequest, path: str) -> tuple[int, Any]:
        raise AssertionError(f"the SDK makes a call that this double does not know: {request.url} {path}")

    def _answer_blob(self, request: requests.PreparedRequest, path: str, query: str) -> requests.Response:
        if request.method == "HEAD" and path not in self.blobs:
            return _reply(request, 404, None, **{"x-ms-error-code": "BlobNotFound"})
        if "comp=metadata" in query:  # which says that a whole folder has come
            self.metadata[path] = {key: v for key, v in request.headers.items() if key.startswith("x-ms-meta-")}
        elif request.method == "PUT":
            body = request.body
            self.blobs[path] = body.read() if hasattr(body, "read") else (body or b"")
            return _reply(request, 201, None, **BLOB_HEADERS)
        return _reply(request, 200, None, **BLOB_HEADERS, **self.metadata.get(path, {}))

    def _answer(self, method: str, path: str, url: Any, body: Any) -> tuple[int, Any]:
        if method == "GET" and re.fullmatch(r"codes/[^/]+/versions", path):
            wanted = parse_qs(url.query)["hash"][0]
            codes = [body for name, body in self.resources.items() if name.startswith("codes/")]
            return 200, {"value": [c for c in codes if c["properties"]["properties"]["hash_sha256"] == wanted]}
        if method == "POST" and path.endswith("/startPendingUpload"):
            uri = f"https://{BLOBS}/{path.split('/')[1]}"
            credential = {"credentialType": "SAS", "sasUri": f"{uri}?sv=1&sig=s"}
            reference = {"blobUri": uri, "storageAccountArmId": "cells", "credential": credential}
            return 200, {"blobReferenceForConsumption": reference, "pendingUploadType": "TemporaryBlobReference"}
        if path == "datastores/workspaceblobstore":
            properties = {"datastoreType": "AzureBlob", "accountName": "cells", "containerName": "default"}
            properties |= {"endpoint": "core.windows.net", "protocol": "https", "isDefault": True}
            properties |= {"credentials": {"credentialsType": "AccountKey"}}
            return 200, {"id": url.path, "name": "workspaceblobstore", "properties": properties}
        if method == "POST" and path == "datastores/workspaceblobstore/listSecrets":
            return 200, {"secretsType": "AccountKey", "key": "a2V5"}
        if method == "GET":
            found = self.resources.get(path)
            return (200, {"id": url.path, "name": path.split("/")[-1], **found}) if found else (404, _describe(404))
        assert method == "PUT", f"the SDK makes a call that this double does not know: {method} {path}"
        return self._put(path, url, json.loads(body))

    def _put(self, path: str, url: Any, body: Any) -> tuple[int, Any]:
        if path.startswith("jobs/"):
            if path in self.resources:  # whatever it is, a job is not changed into another
                return 409, _describe(409)
            page = f"https://ml.azure.com/runs/{path.removeprefix('jobs/')}"
            services = {"Studio": {"jobServiceType": "Studio", "endpoint": page}}
            body["properties"] |= {"status": "Queued", "services": services}
        self.resources[path] = {"id": url.path, "name": path.split("/")[-1], **body}
        return 201, self.resources[path]


def _describe(status: int | None) -> Any:
    return {"error": {"code": f"Code{status}", "message": f"what Azure says with {status}"}}


def _reply(request: requests.PreparedRequest, status: int | None, body: Any, **headers: str) -> requests.Response:
    response = requests.Response()
    response.status_code, response.reason, response.url, response.request = status or 0, "", str(request.url), request
    response.headers.update({"Content-Type": "application/json", **headers})
    response._content = b"" if body is None else json.dumps(body).encode()
    response.raw = io.BytesIO(response._content)
    return response

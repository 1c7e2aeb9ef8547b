"""Scoring script of an Azure managed online endpoint: ``init()`` once, then ``run(raw)`` for each request.

A request is JSON, ``{"image": "<base64 of the file>"}`` and any of the parameters of POST /predict beside it: the same
runtime gives the same cells. What comes back is the JSON of "cells" or "coco"; a file ("labels", "overlay") is
``{"file_name": .., "content": "<base64>"}``. The environment needs cellvision without extras.

Environment variables: AZUREML_MODEL_DIR (set by the endpoint) is a folder with a bundle somewhere in it,
CELLVISION_THREADS and CELLVISION_MEMORY_MIB are as in ``cellvision predict``.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import os
import tempfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from cellvision.bundle import MANIFEST_NAME
from cellvision.errors import BundleError, ConfigError, DataError, explain
from cellvision.runtime.predictor import Predictor
from cellvision.serve.answers import answer_image
from cellvision.serve.asked import Asked, read_asked
from cellvision.serve.limits import Limits, check_image
from cellvision.serve.refusal import to_refusal

_log = logging.getLogger("cellvision.serve")
_opened: list[Predictor] = []


def init() -> None:
    """Open the bundle below AZUREML_MODEL_DIR.

    Raises:
        BundleError: there is none, or more than one.
        ConfigError: a variable that is no number.
    """
    folder = Path(os.environ.get("AZUREML_MODEL_DIR", ""))
    bundles = [path.parent for path in sorted(folder.rglob(MANIFEST_NAME))]
    if len(bundles) != 1:
        got = f"{len(bundles)} bundles below AZUREML_MODEL_DIR={folder}"
        raise BundleError(explain(got=got, need="one", hint="register the bundle folder itself as the model"))
    threads = _read_number("CELLVISION_THREADS")
    memory_mib = _read_number("CELLVISION_MEMORY_MIB") or 1024
    _opened[:] = [Predictor(bundles[0], threads=threads, memory_mib=memory_mib, warm_up=True)]


def run(raw: str | bytes) -> Any:
    """The answer to one request as plain data; a refused one is ``{"error": sentence}``, with its status where the
    endpoint's own package is there to say it.

    Args:
        raw: JSON, see above.
    """  # noqa: D205 - one sentence
    with tempfile.TemporaryDirectory(prefix="cellvision-") as folder:
        path = Path(folder) / "cellvision-upload"
        name = "the image"
        try:
            asked = _receive(raw, path)
            name = asked.name or name
            check_image(path, limits=Limits())
            answer = answer_image(_opened[0], path, asked)
        except Exception as error:  # whatever it is, the endpoint must get an answer that names no path
            refusal = to_refusal(error, path=path, name=name)
            if refusal.status == 500:
                _log.exception("fault while working on an image")
            return _refuse(str(refusal), refusal.status)
    if answer.media_type == "application/json":
        return json.loads(answer.content)
    return {"file_name": answer.file_name, "content": base64.b64encode(answer.content).decode("ascii")}


def _receive(raw: str | bytes, path: Path) -> Asked:
    """Write the image of a request to ``path``; what is asked of it."""
    try:
        record = json.loads(raw)
        image = base64.b64decode(record.pop("image"), validate=True)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, binascii.Error):
        hint = '{"image": "<base64 of the file>", "answer": "cells"}'
        raise DataError(explain(got="a request that is no such JSON", need="an image in base64", hint=hint)) from None
    path.write_bytes(image)
    return read_asked(_to_parameters(record))


def _to_parameters(record: Mapping[str, Any]) -> dict[str, str]:
    """JSON values as a query would hold them; those that are null are left out."""
    given = {key: value for key, value in record.items() if value is not None}
    return {k: ",".join(map(str, v)) if isinstance(v, list) else str(v) for k, v in given.items()}


def _refuse(sentence: str, status: int) -> Any:
    try:
        response = import_module("azureml.contrib.services.aml_response").AMLResponse
    except ImportError:
        return {"error": sentence}
    return response(json.dumps({"error": sentence}), status)


def _read_number(variable: str) -> int | None:
    text = os.environ.get(variable)
    if text and not text.isdecimal():
        raise ConfigError(explain(got=f"{variable}={text!r}", need="a whole number", hint=f"{variable}=2"))
    return int(text) if text else None

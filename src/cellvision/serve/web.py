"""The HTTP interface of a bundle. Needs the extra "serve"; `cellvision.serve.server` imports it when it serves."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cellvision.errors import CellvisionError, explain
from cellvision.runtime.predictor import Predictor
from cellvision.serve.answers import Answer, answer_image, describe_bundle
from cellvision.serve.asked import ANSWERS, Asked, read_asked
from cellvision.serve.desk import Desk
from cellvision.serve.limits import Limits, check_image
from cellvision.serve.meter import Meter
from cellvision.serve.refusal import Refusal, to_refusal
from cellvision.serve.upload import drain, receive_image

UPLOAD_NAME = "cellvision-upload"
"""Of the file that an image is received into; sentences get the name that its sender has for it."""

PATHS = ("/", "/predict", "/health", "/info", "/metrics", "/openapi.json")
_log = logging.getLogger("cellvision.serve")
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
_ABOUT_PREDICT = {
    "requestBody": {
        "description": "the image file itself, or a form with one file; TIFF, PNG or JPEG",
        "required": True,
        "content": {
            kind: {"schema": {"type": "string", "format": "binary"}}
            for kind in ("application/octet-stream", "multipart/form-data")
        },
    },
    "parameters": [
        {"in": "query", "name": name, "schema": {"type": kind} | more}
        for name, kind, more in (
            ("answer", "string", {"enum": list(ANSWERS), "default": "cells"}),
            ("overlay", "boolean", {"default": False}),
            ("channels", "string", {}),
            ("pixel_size_um", "number", {}),
            ("intensity_scale", "number", {}),
            ("name", "string", {}),
        )
    ],
}


def build_app(predictor: Predictor, *, limits: Limits | None = None) -> FastAPI:
    """The web application of a bundle; ``app.state.desk`` is to be closed after its last request.

    Args:
        predictor: the open bundle.
        limits: None for the usual ones.
    """
    limits = limits or Limits()
    desk, meter = Desk(limits), Meter()
    app = FastAPI(title="cellvision", docs_url=None, redoc_url=None)
    app.state.desk = desk
    service = _Service(predictor, limits, desk, meter)
    app.add_api_route("/", _show_page, include_in_schema=False)
    app.add_api_route("/predict", service.predict, methods=["POST"], openapi_extra=_ABOUT_PREDICT)
    app.add_api_route("/health", service.tell_health)
    app.add_api_route("/info", service.tell_info)
    app.add_api_route("/metrics", service.tell_metrics)
    app.add_exception_handler(HTTPException, _explain_http)
    app.add_exception_handler(Exception, _explain_fault)
    app.add_middleware(_Measure, meter=meter)
    return app


class _Service:
    """The routes that need the bundle."""

    def __init__(self, predictor: Predictor, limits: Limits, desk: Desk, meter: Meter) -> None:
        self._predictor, self._limits, self._desk, self._meter = predictor, limits, desk, meter

    async def predict(self, request: Request) -> Response:
        """The cells of an image: JSON, label TIFF, overlay PNG or COCO JSON."""
        try:
            asked = read_asked(request.query_params)
            with self._desk.take_place():
                answer = await self._answer(request, asked)
        except CellvisionError as error:
            await drain(request)
            return _refuse(error if isinstance(error, Refusal) else Refusal(400, str(error)))
        disposition = f"inline; filename*=utf-8''{quote(answer.file_name)}"
        return Response(answer.content, media_type=answer.media_type, headers={"content-disposition": disposition})

    async def _answer(self, request: Request, asked: Asked) -> Answer:
        with tempfile.TemporaryDirectory(prefix="cellvision-") as folder:
            path = Path(folder) / UPLOAD_NAME
            name = await receive_image(request, path, limits=self._limits)
            asked = replace(asked, name=asked.name or name)
            return await self._desk.run(lambda: self._work(path, asked))

    def _work(self, path: Path, asked: Asked) -> Answer:
        """Runs in a thread."""
        began = time.monotonic()
        try:
            check_image(path, limits=self._limits)
            answer = answer_image(self._predictor, path, asked)
        except Exception as error:
            refusal = to_refusal(error, path=path, name=asked.name or "the image")
            if refusal.status == 500:
                _log.exception("fault while working on an image")
            raise refusal from error
        self._meter.add_image(answer.cells, time.monotonic() - began)
        return answer

    async def tell_health(self) -> dict[str, Any]:
        """That the bundle is open, in which process, and how many of the places are taken."""
        return {
            "status": "ok",
            "process": os.getpid(),
            "taken": self._desk.taken,
            "places": self._limits.workers + self._limits.queue,
        }

    async def tell_info(self) -> dict[str, Any]:
        """What the bundle is, and what this server takes on."""
        limits = {"max_mib": self._limits.max_mib, "max_megapixels": self._limits.max_megapixels}
        return describe_bundle(self._predictor.manifest) | {"limits": limits}

    async def tell_metrics(self) -> Response:
        """Counts and seconds, for Prometheus."""
        text = self._meter.render(taken=self._desk.taken)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")


async def _show_page() -> Response:
    """The page that an image can be dropped on."""
    text = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    return HTMLResponse(text, headers={"content-security-policy": _POLICY})


def _refuse(refusal: Refusal) -> Response:
    wait = {} if refusal.retry_after is None else {"retry-after": str(refusal.retry_after)}
    return JSONResponse({"error": str(refusal)}, refusal.status, wait)


async def _explain_http(request: Request, error: Exception) -> Response:
    """An address or a method that there is not."""
    assert isinstance(error, HTTPException)
    await drain(request)
    need = "POST" if request.url.path == "/predict" else f"one of {', '.join(PATHS)}"
    got = f"{request.method} {request.url.path[:80]}"
    hint = "curl --data-binary @field.tif .../predict"
    return JSONResponse({"error": explain(got=got, need=need, hint=hint)}, error.status_code, error.headers)


async def _explain_fault(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "the server made a mistake; its log says which"}, 500)


class _Measure:
    """Counts requests by path and status."""

    def __init__(self, app: ASGIApp, *, meter: Meter) -> None:
        self._app, self._meter = app, meter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 500

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, note)
        finally:
            path = scope["path"] if scope["path"] in PATHS else "other"  # anybody can ask for anything
            self._meter.add_request(path, status, time.monotonic() - began)

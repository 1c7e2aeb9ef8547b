"""The image of a request, received into a file: the body itself, or the one file of a form."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from pathlib import Path

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from cellvision.errors import explain
from cellvision.serve.asked import to_name
from cellvision.serve.limits import Limits
from cellvision.serve.refusal import Refusal

_FORM_BYTES = 2**16  # what a form adds to its file: boundaries, headers, other fields
_PIECE = 2**20
_DRAIN_SECONDS = 10.0


async def receive_image(request: Request, path: Path, *, limits: Limits) -> str:
    """Write the image of a request to ``path``; gives the name that a form has for it, or "".

    Raises:
        Refusal: 413 for too many bytes, 400 for a form without exactly one file or a connection that broke off, 408
            for an upload that takes too long.
    """
    is_form = request.headers.get("content-type", "").startswith("multipart/")
    most = limits.max_bytes + (_FORM_BYTES if is_form else 0)
    if int(request.headers.get("content-length") or 0) > most:
        raise _refuse_bytes(limits)
    pieces = _count(request.stream(), most, limits)
    try:
        async with asyncio.timeout(limits.upload_seconds):
            return await (_receive_form(request, pieces, path) if is_form else _receive_body(pieces, path))
    except TimeoutError:
        got = f"an upload of more than {limits.upload_seconds} s"
        hint = "a faster line, or a server with more --upload-seconds"
        raise Refusal(408, explain(got=got, need="one that ends in time", hint=hint)) from None
    except ClientDisconnect:
        got = "a connection that broke off"
        raise Refusal(400, explain(got=got, need="a whole upload", hint="the same again")) from None


async def drain(request: Request) -> None:
    """Read what is left of a refused request's body: most clients look at the answer only after they have sent all."""
    with suppress(ClientDisconnect, TimeoutError, RuntimeError):  # RuntimeError: nothing is left
        async with asyncio.timeout(_DRAIN_SECONDS):
            async for _ in request.stream():
                pass


async def _count(stream: AsyncIterator[bytes], most: int, limits: Limits) -> AsyncGenerator[bytes, None]:
    seen = 0
    async for piece in stream:
        seen += len(piece)
        if seen > most:
            raise _refuse_bytes(limits)
        yield piece


def _refuse_bytes(limits: Limits) -> Refusal:
    need = f"at most {limits.max_mib} MiB"
    hint = "a compressed TIFF, or a server with more --max-mib"
    return Refusal(413, explain(got="an upload of too many bytes", need=need, hint=hint))


async def _receive_body(pieces: AsyncGenerator[bytes, None], path: Path) -> str:
    with path.open("wb") as stream:
        async for piece in pieces:
            stream.write(piece)
    return ""


async def _receive_form(request: Request, pieces: AsyncGenerator[bytes, None], path: Path) -> str:
    need, hint = "a form with one file", "curl -F image=@field.tif"
    try:
        form = await MultiPartParser(request.headers, pieces, max_files=1, max_fields=8).parse()
    except (MultiPartException, KeyError) as error:  # KeyError: no boundary
        raise Refusal(400, explain(got=f"a form that cannot be read ({error})", need=need, hint=hint)) from None
    try:
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        if not files:
            raise Refusal(400, explain(got="a form without a file", need=need, hint=hint))
        with path.open("wb") as stream:
            while piece := await files[0].read(_PIECE):
                stream.write(piece)
        return to_name(files[0].filename or "")
    finally:
        await form.close()

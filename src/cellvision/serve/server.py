"""A server process: from an open bundle to an address, until it is told to end."""

from __future__ import annotations

import signal
import socket
from importlib.util import find_spec

from cellvision.errors import ConfigError, MissingExtraError, explain
from cellvision.runtime.predictor import Predictor
from cellvision.serve.limits import Limits


def check_extra() -> None:
    """Raise MissingExtraError unless what serving needs is installed."""
    for package, module in (("fastapi", "fastapi"), ("uvicorn", "uvicorn"), ("python-multipart", "python_multipart")):
        if find_spec(module) is None:
            raise MissingExtraError(package, extra="serve")


def open_socket(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes any that is free.

    Raises:
        ConfigError: the address is taken or not of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(128)
    except (OSError, OverflowError) as error:
        listening.close()
        got = f"cannot listen on {host}, port {port} ({getattr(error, 'strerror', None) or error})"
        hint = "--port 0 for any that is free"
        raise ConfigError(explain(got=got, need="a free address of this machine", hint=hint)) from error
    return listening


def serve(predictor: Predictor, listening: socket.socket, *, limits: Limits) -> None:
    """Answer requests until SIGTERM or Ctrl-C; then none are taken any more, and those that are there are finished.

    Args:
        predictor: the open bundle.
        listening: from `open_socket`; closed at the end.
        limits: what is taken on.

    Raises:
        KeyboardInterrupt: after Ctrl-C, once all is finished.
    """
    import uvicorn

    from cellvision.serve.web import build_app

    app = build_app(predictor, limits=limits)
    config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", server_header=False)
    # Once it has ended well, uvicorn raises the signal again for who was there before it.
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        signal.signal(signal.SIGTERM, before)
        app.state.desk.close()
        listening.close()

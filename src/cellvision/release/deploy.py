"""A version goes live on this machine: started beside the old one, tried, switched to; the old one stays on any fault.

``models/NAME/deployment.json`` says where the live server answers; who reads it before each batch of images never meets
one that has ended.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cellvision.errors import ConfigError, explain
from cellvision.release.gate import check_still_passes
from cellvision.release.lock import hold
from cellvision.release.process import (
    USUAL_PORT,
    DeployError,
    ServerOptions,
    ServerProcess,
    ask,
    find_free_port,
    start_server,
)
from cellvision.release.record import ModelVersion, load_json, refuse, write_json
from cellvision.release.registry import PRODUCTION_NAME, ModelRegistry

DEPLOYMENT_NAME = "deployment.json"
_LOCK_NAME = ".deployment.lock"
_STARTING_NAME = "starting.json"
"""Says which server is started but not live yet; where it is left, the command that started it was killed."""


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """The live server of a model.

    Attributes:
        name, version: what it serves.
        url: where.
        port: of the two that take turns.
        pid, started: its process; see ServerProcess.
        first_port: of the two; None where a file of an earlier cellvision does not tell.
    """

    name: str
    version: int
    url: str
    port: int
    pid: int
    started: float
    first_port: int | None = None

    @property
    def process(self) -> ServerProcess:
        """Its process."""
        return ServerProcess(pid=self.pid, started=self.started, url=self.url)


def find_live(registry: ModelRegistry, name: str) -> Deployment | None:
    """The live server of a model, or None where none is at work."""
    path = registry.folder / name / DEPLOYMENT_NAME
    if not path.is_file():
        return None
    found = _load_deployment(path)
    return found if found.process.find() else None


def _load_deployment(path: Path) -> Deployment:
    plain = load_json(path)
    try:
        kinds = {"name": str, "version": int, "url": str, "port": int, "pid": int, "started": float}
        is_first = type(plain.get("first_port")) in (int, type(None))
        if not is_first or any(type(plain[key]) is not kind for key, kind in kinds.items()) or plain["pid"] < 1:
            raise TypeError("a value of another kind")
        return Deployment(**plain)
    except (KeyError, TypeError) as error:
        raise refuse(path, f"does not say where the server is ({error})", "remove it, and deploy again") from error


def stop(registry: ModelRegistry, name: str, *, seconds: float = 120.0) -> Deployment | None:
    """End the live server of a model once its last images are done; what is in production does not change.

    Returns:
        What was ended, or None.
    """
    with _hold(registry, name):
        _end_left(registry, name)
        live = find_live(registry, name)
        if live is not None:
            live.process.end(seconds=seconds)
        (registry.folder / name / DEPLOYMENT_NAME).unlink(missing_ok=True)
    return live


def deploy(
    registry: ModelRegistry,
    name: str,
    *,
    samples: Sequence[Path] = (),
    version: int | None = None,
    rollback: bool = False,
    options: ServerOptions | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Deployment:
    """Take a version into production.

    Its server is started beside the live one and must find cells in the samples. Then both files, which say what is
    live and what is in production, are switched, and the old server ends when its last images are done. Until the
    switch nothing of the old changes, and any fault, Ctrl-C included, ends the new server.

    Args:
        registry: where the version is.
        name: of the model.
        samples: image files for the smoke test, in one of which at least there are cells.
        version: None for the newest.
        rollback: take the version that was in production before; then nothing is compared.
        options: how the server is started.
        tell: called with a line for each step.

    Returns:
        The live server.

    Raises:
        GateError: the version was registered without a gate, or is worse than what is in production by now.
        DeployError: the server does not start, or does not pass.
        ConfigError: there is no such version, or another process deploys this model.
        BundleError: the bundle was altered.
    """
    options = options or ServerOptions()
    if missing := [str(sample) for sample in samples if not sample.is_file()]:
        raise ConfigError(
            explain(got=f"--sample {missing[0]}, which is no file", need="an image", hint="check the path")
        )
    with _hold(registry, name):
        wanted = registry.find_previous(name) if rollback else registry.get(name, version)
        if not rollback:
            check_still_passes(wanted, registry.find_production(name))
        _end_left(registry, name)
        old = find_live(registry, name)
        first, port = _choose_ports(options, old)
        tell(f"starting  {wanted.title} on port {port}")
        live = _bring_up(registry, wanted, samples, ports=(first, port), options=options, tell=tell)
        tell(f"live      {wanted.title} on {live.url}")
        if old is not None:
            tell(_end_old(old, seconds=options.stop_seconds))
        return live


def _end_old(old: Deployment, *, seconds: float) -> str:
    """End a server behind the switch, from where nothing goes back; what became of it, in words."""
    try:
        in_time = old.process.end(seconds=seconds)
    except DeployError as error:
        return f"left      {error}; it gets no more requests, but holds its port and memory"
    return f"ended     version {old.version} on {old.url}{'' if in_time else ', by force: it took too long'}"


def _bring_up(
    registry: ModelRegistry,
    wanted: ModelVersion,
    samples: Sequence[Path],
    *,
    ports: tuple[int, int],
    options: ServerOptions,
    tell: Callable[[str], None],
) -> Deployment:
    """Start the server of a version on the second of these ports, try it, and switch to it; else it is gone."""
    home = registry.folder / wanted.name
    starting = home / _STARTING_NAME
    first_port, port = ports

    def describe(server: ServerProcess) -> Deployment:
        where: dict[str, Any] = {"url": server.url, "port": port, "pid": server.pid, "started": server.started}
        return Deployment(name=wanted.name, version=wanted.version, first_port=first_port, **where)

    def note(server: ServerProcess) -> None:
        write_json(starting, asdict(describe(server)))

    try:
        log = home / f"server_{port}.log"
        server = start_server(wanted.bundle, port=port, options=options, log=log, note=note)
        try:
            tell(f"testing   {check_server(server.url, wanted, samples)}")
            _switch(registry, describe(server))
        except BaseException:
            server.end(seconds=options.stop_seconds)
            raise
    finally:
        starting.unlink(missing_ok=True)
    return describe(server)


def _end_left(registry: ModelRegistry, name: str) -> None:
    """End the server that a killed command has left behind."""
    path = registry.folder / name / _STARTING_NAME
    if path.is_file():
        left, live = _load_deployment(path), find_live(registry, name)
        if live is None or live.pid != left.pid:  # else it was killed behind the switch
            left.process.end(seconds=ServerOptions().stop_seconds)
        path.unlink()


def _choose_ports(options: ServerOptions, old: Deployment | None) -> tuple[int, int]:
    """The first of the two ports, and that of them which is to be used."""
    if options.port == 0:
        free = find_free_port(options.host)
        return free, free
    first = options.port
    if first is None:
        first = USUAL_PORT if old is None else old.port if old.first_port is None else old.first_port
    return first, first + 1 if old is not None and old.port == first else first


def check_server(url: str, version: ModelVersion, samples: Sequence[Path]) -> str:
    """Try a server: it has the graphs of this version, and finds cells in the samples. What it found, in words.

    Raises:
        DeployError: it has not, or does not.
    """
    graphs = ",".join(str(graph.get("sha256")) for graph in ask(url, "/info").get("graphs", []))
    if graphs != version.tags.get("graphs"):
        got, need = f"{url} serves another bundle", f"that of {version.title}"
        raise DeployError(explain(got=got, need=need, hint="another --port"))
    if not samples:
        return "the server answers (no --sample to try it on)"
    cells = sum(int(ask(url, "/predict", body=sample.read_bytes())["count"]) for sample in samples)
    names = ", ".join(sample.name for sample in samples)
    if cells < 1:
        got = f"{version.title} finds no cell in {names}"
        raise DeployError(explain(got=got, need="at least one", hint="samples with cells, or a better bundle"))
    return f"{cells} cells in {names}"


def _switch(registry: ModelRegistry, live: Deployment) -> None:
    """Write both files, or neither."""
    home = registry.folder / live.name
    paths = (home / PRODUCTION_NAME, home / DEPLOYMENT_NAME)
    before = {path: path.read_bytes() if path.is_file() else None for path in paths}
    try:
        registry.set_production(live.name, live.version)
        write_json(home / DEPLOYMENT_NAME, asdict(live))
    except BaseException:
        for path, content in before.items():
            if content is None:
                path.unlink(missing_ok=True)
            else:
                part = path.with_name(f".{path.name}.before")
                part.write_bytes(content)
                os.replace(part, path)  # noqa: PTH105 - as elsewhere, in one move
        raise


def _hold(registry: ModelRegistry, name: str) -> AbstractContextManager[object]:
    registry.list_versions(name)  # there is such a model
    return hold(registry.folder / name / _LOCK_NAME, work=f"deploying {name}")

"""Server processes of this machine: started, asked, ended."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from cellvision.errors import CellvisionError, ConfigError, explain

USUAL_PORT = 8000
_SAME_START_SECONDS = 1.0
_ASK_SECONDS = 5.0
_started: list[subprocess.Popen[bytes]] = []  # they may outlive this process, which Python would warn of


class DeployError(CellvisionError):
    """A server does not start, or does not do what it should; what was there before is there still."""


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """How a server is started.

    Attributes:
        host: address to listen on.
        port: it and the one above take turns: while the old server answers on one, the new one starts on the other;
            0 takes one that is free; None those of the live server, else USUAL_PORT.
        threads: processor threads of an image, or None for all cores.
        memory_mib: most memory of an image.
        start_seconds: how long it may take until it answers.
        stop_seconds: how long its last images may take, once it is told to end.

    Raises:
        ConfigError: a number out of range.
    """

    host: str = "127.0.0.1"
    port: int | None = None
    threads: int | None = None
    memory_mib: int = 1024
    start_seconds: float = 120.0
    stop_seconds: float = 120.0

    def __post_init__(self) -> None:
        for name, least, most in (("port", 0, 65534), ("threads", 1, 1024), ("memory_mib", 1, 10**9)):
            number = getattr(self, name)
            if number is not None and not least <= number <= most:
                option = f"--{name.replace('_', '-')}"
                need = f"a whole number from {least} to {most}"
                raise ConfigError(explain(got=f"{option} {number}", need=need, hint=f"leave {option} out"))


@dataclass(frozen=True, kw_only=True)
class ServerProcess:
    """A server that was started.

    Attributes:
        pid, started: its number, and when the system says that it began; a later process can have the same number.
        url: where it answers.
    """

    pid: int
    started: float
    url: str

    def find(self) -> psutil.Process | None:
        """The process, or None if it has ended."""
        with suppress(psutil.Error):
            process = psutil.Process(self.pid)
            is_same = abs(process.create_time() - self.started) < _SAME_START_SECONDS
            if is_same and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None

    def end(self, *, seconds: float) -> bool:
        """Tell it to end, which it does when its last images are done; whether it did so within these seconds.

        If it did not, it is killed.

        Raises:
            DeployError: it is another user's; it goes on.
        """
        process, in_time = self.find(), True
        if process is not None:
            with suppress(psutil.NoSuchProcess):
                in_time = self._end(process, seconds)
        _started[:] = [each for each in _started if each.poll() is None]
        return in_time

    def _end(self, process: psutil.Process, seconds: float) -> bool:
        try:
            process.terminate()
            try:
                process.wait(seconds)
            except psutil.TimeoutExpired:
                process.kill()
                process.wait(seconds)
                return False
        except psutil.AccessDenied as error:
            owner = process.username()
            got, need = f"the server at {self.url}, process {self.pid}, which belongs to {owner}", "one of your own"
            raise DeployError(explain(got=got, need=need, hint=f"the same as {owner}")) from error
        return True


def find_free_port(host: str) -> int:
    """A port that nobody listens on now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as trial:
        trial.bind((host, 0))
        return int(trial.getsockname()[1])


def start_server(
    bundle: Path, *, port: int, options: ServerOptions, log: Path, note: Callable[[ServerProcess], None]
) -> ServerProcess:
    """Start ``cellvision serve`` as a process that outlives this one, and wait until it answers.

    Args:
        bundle: folder.
        port: to listen on.
        options: see ServerOptions.
        log: file for what it prints; an earlier one is replaced.
        note: called as soon as there is a process, which would be nobody's if this one were killed now.

    Raises:
        DeployError: it ended, or does not answer in time; it is gone then.
    """
    words = [sys.executable, "-m", "cellvision", "serve", str(bundle), "--host", options.host, "--port", str(port)]
    words += ["--memory-mib", str(options.memory_mib)]
    words += [] if options.threads is None else ["--threads", str(options.threads)]
    with log.open("wb") as stream:
        started = subprocess.Popen(  # noqa: S603 - our own program
            words, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
    _started.append(started)
    url = f"http://{_to_reachable(options.host)}:{port}"
    server = ServerProcess(pid=started.pid, started=psutil.Process(started.pid).create_time(), url=url)
    try:
        note(server)
        _wait_until_ready(started, server, seconds=options.start_seconds, log=log)
    except BaseException:
        server.end(seconds=options.stop_seconds)
        raise
    return server


def _wait_until_ready(started: subprocess.Popen[bytes], server: ServerProcess, *, seconds: float, log: Path) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if started.poll() is not None:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            why = lines[-1].removeprefix("cellvision: ") if lines else f"exit status {started.returncode}"
            raise DeployError(f"the new server ended at once: {why}")
        with suppress(DeployError):
            if ask(server.url, "/health", seconds=_ASK_SECONDS).get("process") == started.pid:  # who else has the port?
                return
        time.sleep(0.1)
    got, need = f"no answer from {server.url} within {seconds:g} s", "a server that starts"
    raise DeployError(explain(got=got, need=need, hint=f"look at {log}"))


def ask(url: str, path: str, *, body: bytes | None = None, seconds: float = 120.0) -> dict[str, Any]:
    """The JSON that a server answers with; POST where there is a body.

    Raises:
        DeployError: no answer, another status than 200, or no JSON.
    """
    kind = {"content-type": "application/octet-stream"}
    request = urllib.request.Request(f"{url}{path}", data=body, headers=kind)  # noqa: S310 - http, by start_server
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy knows nothing of this machine
    try:
        with opener.open(request, timeout=seconds) as reply:
            return dict(json.loads(reply.read()))
    except urllib.error.HTTPError as error:
        with suppress(ValueError, KeyError, TypeError):
            raise DeployError(f"{url}{path} answers {error.code}: {json.loads(error.read())['error']}") from error
        raise DeployError(f"{url}{path} answers {error.code}") from error
    except (OSError, ValueError, TypeError, http.client.HTTPException) as error:
        raise DeployError(f"{url}{path} does not answer as it should ({error})") from error


def _to_reachable(host: str) -> str:
    """The address at which a server that listens on ``host`` is reached from this machine."""
    if host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host

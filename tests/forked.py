"""Processes that start at once: forked from one that has imported torch, Lightning and the library already.

To import them takes longer than most of what such a process is started for. Each is a process like any other in what
can be seen of it: it has its own signals and its own exit status, and it may be killed. Only the seed of Python's
hashes is that of its parent, so a run that must not depend on it is compared with one of ``subprocess``.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import pickle
import pkgutil
import runpy
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from datetime import timedelta
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, Self
from unittest import mock

import torch
from torch import distributed

import cellvision

ROOT = Path(__file__).parents[1]
IMPORTED = ("lightning.pytorch", "torch.onnx", "torch.export", "torch._dynamo", "onnxscript", "onnxruntime", "timm")


class Script:
    """A script of the repository at work, with arguments as on the command line, one thread; ends with the ``with``."""

    def __init__(self, *command: object, environment: Mapping[str, object] | None = None) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.command = list(map(str, command))
        told = {name: str(value) for name, value in (environment or {}).items()}
        self.process = _open_server().Process(target=_run_script, args=(self.command, self.folder.name, told))
        self.process.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.join()
        self.folder.cleanup()

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended yet."""
        return self.process.is_alive()

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def finish(self, *, timeout: float = 290) -> subprocess.CompletedProcess[str]:
        """Wait for its end; what it printed on each stream, and its exit status."""
        self.process.join(timeout)
        assert self.process.exitcode is not None, f"{' '.join(self.command)} takes more than {timeout} s"
        printed = [(Path(self.folder.name) / name).read_text(encoding="utf-8") for name in ("stdout", "stderr")]
        return subprocess.CompletedProcess(self.command, self.process.exitcode, *printed)


def call(*command: object, timeout: float = 290) -> subprocess.CompletedProcess[str]:
    """A script from its start to its end: ``call("train.py", "seed=1")``, or with ``-m`` and a module."""
    with Script(*command) as script:
        return script.finish(timeout=timeout)


def start_two(*command: object) -> tuple[Script, Script]:
    """A script in two processes that train together, as ``torchrun`` starts them; nobody watches over them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 0}
    shared["TORCHELASTIC_RUN_ID"] = "two"  # by which Lightning knows that it need not start the second
    first, second = (Script(*command, environment={**shared, "RANK": rank, "LOCAL_RANK": rank}) for rank in range(2))
    return first, second


def run_two(function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What ``function(rank, *arguments)``, a function of a module, gives in each of two processes of one group."""
    with tempfile.TemporaryDirectory() as folder:
        given = [(Path(folder), function, rank, *arguments) for rank in range(2)]
        processes = [_open_server().Process(target=_run_in_group, args=each) for each in given]
        for process in processes:
            process.start()
        for process in processes:
            process.join(240)
            process.kill()
        assert [process.exitcode for process in processes] == [0, 0]
        return [pickle.loads((Path(folder) / str(rank)).read_bytes()) for rank in range(2)]


@functools.cache
def _open_server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    own = [module.name for module in pkgutil.walk_packages(cellvision.__path__, "cellvision.")]
    context.set_forkserver_preload([*IMPORTED, *(name for name in own if name != "cellvision.__main__")])
    with mock.patch.dict(os.environ, OMP_NUM_THREADS="1"):
        forkserver.ensure_running()
    return context


def _run_script(command: list[str], folder: str, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    for number, name in ((1, "stdout"), (2, "stderr")):
        target = os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT)
        os.dup2(target, number)
        os.close(target)
    multiprocessing.set_start_method(None, force=True)  # back to the usual one, for processes of its own
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    if command[0] == "-m":
        sys.argv = command[1:]
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = command
        runpy.run_path(command[0], run_name="__main__")


def _run_in_group(folder: Path, function: Callable[..., Any], rank: int, *arguments: Any) -> None:
    torch.set_num_threads(1)
    waiting = {"timeout": timedelta(seconds=200)}
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, **waiting)
    try:
        (folder / str(rank)).write_bytes(pickle.dumps(function(rank, *arguments)))
        distributed.barrier()
    finally:
        distributed.destroy_process_group()

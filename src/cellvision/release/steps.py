"""Work in steps that are plain data, each done once: what is there already, from the same inputs, is left as it is."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import cellvision
from cellvision.bundle import compute_sha256
from cellvision.errors import CellvisionError, ConfigError, explain
from cellvision.release.inputs import hash_folder
from cellvision.release.lock import hold
from cellvision.release.record import load_json, write_json

STATE_NAME = "pipeline.json"
EARLIER = "earlier"
"""Folder, inside that of a chain, of what long steps made with other settings."""

LOCK_NAME = ".pipeline.lock"
_GRACE_SECONDS = 10.0


class StepError(CellvisionError):
    """A step has failed; what it printed says why."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One command of a chain.

    Attributes:
        name: of the step.
        command: words; "python SCRIPT.py .." is a script of the repository, "cellvision .." the command of that name.
        inputs: files and folders that decide what comes out, beside the command itself.
        outputs: files and folders that it makes, inside the folder of the chain; a step without any is never skipped.
        resumes: whether it takes long: its command goes on from what it left behind when it was broken off, and what it
            made with other settings is set aside. Of other steps both are removed.
    """

    name: str
    command: tuple[str, ...]
    inputs: tuple[Path, ...] = ()
    outputs: tuple[Path, ...] = ()
    resumes: bool = False


def run_steps(
    steps: Sequence[Step],
    folder: Path,
    *,
    scripts: Path,
    keys: Mapping[str, str] = MappingProxyType({}),
    tell: Callable[[str], None] = print,
) -> None:
    """Run a chain of steps, and go on from where an earlier one has ended.

    A step is skipped where its outputs are there and its command, the contents of its inputs and the version of the
    library are those that they were made with. Else its outputs are removed first, unless it was broken off and can
    go on. Those of a long step are set aside in EARLIER, of each step the last that were finished and the last that
    were not, and come back once they are asked for. What a command prints comes through.

    Args:
        steps: in order.
        folder: of the chain, which notes in STATE_NAME what is done.
        scripts: where the scripts are.
        keys: of `compute_key`, by step, where they are known already.
        tell: called with a line at the beginning and the end of each step.

    Raises:
        StepError: a command ended with another status than 0, or without its outputs.
        ConfigError: an input is missing, another process works in the folder, such as a step whose pipeline was killed,
            or what a step would make is there, and not by such a step.
    """
    make_folder(folder)
    with hold(folder / LOCK_NAME, work="work there", left="a step of a killed pipeline") as lock:
        state = folder / STATE_NAME
        done = load_json(state) if state.is_file() else {}
        new = [path for step in steps if step.name not in done for path in step.outputs]
        _check_own(new if done else [*new, folder / EARLIER])
        for number, step in enumerate(steps, start=1):
            assert all(output.is_relative_to(folder) for output in step.outputs), "would remove what is not its own"
            title = f"{number}/{len(steps)} {step.name}"
            key = keys.get(step.name) or compute_key(step, folder)
            there = done.get(step.name, {})
            if step.resumes and there.get("key", key) != key:
                if _set_aside(step, folder / EARLIER, there, wanted=key):
                    tell(f"[{title}] what it made with other settings is in {folder / EARLIER}")
                write_json(state, done | {step.name: {"key": key, "done": False}})  # so that nothing has a wrong key
                there = _put_back(step, folder / EARLIER, key)
                write_json(state, done := done | {step.name: there})
            if step.outputs and _is_made(step, there, key):
                tell(f"[{title}] is there already")
                continue
            goes_on = step.resumes and there == {"key": key, "done": False}
            write_json(state, done := done | {step.name: {"key": key, "done": False}})
            if not goes_on:
                _remove(step.outputs)
            tell(f"[{title}] {' '.join(step.command)}")
            began = time.monotonic()
            _run(step, scripts, lock)
            write_json(state, done := done | {step.name: {"key": key, "done": True}})
            tell(f"[{title}] took {time.monotonic() - began:.0f} s")


def _set_aside(step: Step, earlier: Path, there: Mapping[str, Any], *, wanted: str) -> bool:
    """Move the outputs of a step into a folder named by their key; whether there were any.

    Older ones that were as far as these are removed, but for those with the key that is ``wanted``.
    """
    found = [path for path in step.outputs if path.exists()]
    if not found:
        return False
    aside = _name_aside(step, earlier, there["key"], is_done=there["done"])
    for older in earlier.glob(f"{step.name}-*"):
        if older.suffix == aside.suffix and older != _name_aside(step, earlier, wanted, is_done=there["done"]):
            _discard(older)
    aside.mkdir(parents=True)
    for path in found:
        path.rename(aside / path.name)
    return True


def _put_back(step: Step, earlier: Path, key: str) -> dict[str, Any]:
    """Move back what was set aside with a key, and say how far it was; "done" is false too where there is nothing."""
    for is_done in (True, False):
        if (aside := _name_aside(step, earlier, key, is_done=is_done)).is_dir():
            for path in step.outputs:
                if (aside / path.name).exists():
                    (aside / path.name).rename(path)
            _discard(aside)
            return {"key": key, "done": is_done}
    return {"key": key, "done": False}


def _discard(folder: Path) -> None:
    """Remove a folder, which has another name as soon as something in it is gone."""
    going = folder.with_name(f".{folder.name}")
    if going.exists():  # of one that was killed at it
        shutil.rmtree(going)
    shutil.rmtree(folder.rename(going))


def _name_aside(step: Step, earlier: Path, key: str, *, is_done: bool) -> Path:
    return earlier / f"{step.name}-{key[:16]}{'' if is_done else '.unfinished'}"


def _run(step: Step, scripts: Path, lock: tuple[int, ...]) -> None:
    """Run a command, which holds the lock, too: it may outlive this process."""
    program, first, *rest = step.command
    words = [first, *rest] if program == "cellvision" else [str(scripts / first), *rest]
    words = [sys.executable, *(["-m", "cellvision"] if program == "cellvision" else []), *words]
    with subprocess.Popen(words, pass_fds=lock) as process:  # noqa: S603 - commands of this project
        try:
            status = process.wait()
        except BaseException:
            with suppress(subprocess.TimeoutExpired):  # Ctrl-C has reached it, too
                process.wait(_GRACE_SECONDS)
            process.terminate()
            raise
    if status != 0:
        got, need = f"step {step.name} ended with status {status}", "0"
        raise StepError(explain(got=got, need=need, hint="see above; then the same command goes on from this step"))
    if missing := [str(path) for path in step.outputs if not path.exists()]:
        got, need = f"step {step.name} did not write {', '.join(missing)}", "all of its outputs"
        raise StepError(explain(got=got, need=need, hint="see above"))


def make_folder(folder: Path) -> None:
    """Make the folder of a chain, if there is none.

    Raises:
        ConfigError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        got, need = f"folder={folder}, which cannot be made ({error.strerror})", "a folder that can be written to"
        raise ConfigError(explain(got=got, need=need, hint="folder=runs/another")) from error


def is_there(step: Step, folder: Path, key: str) -> bool:
    """Whether a step's outputs are in the folder of its chain, made with this key."""
    state = folder / STATE_NAME
    done = load_json(state) if state.is_file() else {}
    return _is_made(step, done.get(step.name, {}), key)


def _is_made(step: Step, there: Mapping[str, Any], key: str) -> bool:
    return there == {"key": key, "done": True} and all(map(Path.exists, step.outputs))


def compute_key(step: Step, folder: Path) -> str:
    """SHA-256 over all that decides what comes out.

    Raises:
        ConfigError: an input is missing.
    """
    inputs = {str(path): _hash(step, path, folder) for path in step.inputs}
    text = json.dumps([cellvision.__version__, step.command, inputs])
    return hashlib.sha256(text.encode()).hexdigest()


def _hash(step: Step, path: Path, folder: Path) -> str | list[list[str]]:
    if path.is_file():
        return compute_sha256(path)
    if not path.is_dir():
        got, need = f"{path}, which step {step.name} reads, is not there", "a file or a folder"
        raise ConfigError(explain(got=got, need=need, hint="check the path"))
    return hash_folder(path, without=folder)


def _check_own(outputs: Sequence[Path]) -> None:
    """Raise ConfigError for what is there and nobody has noted: somebody's files are not removed."""
    for path in outputs:
        if path.is_file() or path.is_symlink() or (path.is_dir() and any(path.iterdir())):
            got, need = f"{path} is there, and was not made by a pipeline in that folder", "a folder of its own"
            raise ConfigError(explain(got=got, need=need, hint="folder=runs/another"))


def _remove(outputs: Sequence[Path]) -> None:
    for path in outputs:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

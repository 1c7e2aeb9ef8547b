"""One point of a sweep, and the command that trains it on another machine."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cellvision.cloud.options import KEY, LaunchOptions
from cellvision.errors import ConfigError, explain
from cellvision.release.inputs import is_path, list_texts

OUTPUT = "run"
"""Name of the job's output, which is the run folder."""

_OURS = {
    "trainer": f"{KEY}.gpus",
    "trainer.devices": f"{KEY}.gpus",
    "trainer.num_nodes": f"{KEY}.nodes",
    "trainer.strategy": f"{KEY}.gpus and {KEY}.nodes",
}


@dataclass(frozen=True, kw_only=True)
class Word:
    """One override of the command line.

    Attributes:
        key: the setting, such as ``optim.lr``.
        text: all of it, as Hydra reads it.
        asset: the data asset that the value names, or None.
    """

    key: str
    text: str
    asset: str | None = None

    @property
    def left(self) -> str:
        """What comes before the ``=``, with the signs that add a setting."""
        return self.text.partition("=")[0]

    @property
    def value(self) -> str:
        """What comes after it, as Hydra writes it."""
        return self.text.partition("=")[2]


@dataclass(frozen=True, kw_only=True)
class Point:
    """What one job is to do.

    Attributes:
        index: its place in the sweep.
        script: ``train.py``, or another one of the same folder.
        model: name for the job.
        words: the overrides that the job gets, without those that only say where it runs.
        logger: choice of the group ``logger`` for it, or None to leave that alone.
        monitor, goal: the score that a native sweep compares, or None; maximize | minimize.
        paths: files and folders of this machine that its settings name, see `find_paths`.
    """

    index: int
    script: str
    model: str
    words: tuple[Word, ...]
    logger: str | None = None
    monitor: str | None = None
    goal: str = "maximize"
    paths: Mapping[str, str] = field(default_factory=dict)

    @property
    def assets(self) -> dict[str, str]:
        """Data assets by the setting that each stands in."""
        return {word.key: word.asset for word in self.words if word.asset is not None}


def drop_local(words: tuple[Word, ...]) -> tuple[Word, ...]:
    """The overrides that a job needs: not those of Hydra itself, of the trainer's choice and of the run folder.

    Raises:
        ConfigError: one that the launcher decides, one that cannot be said in one line of a shell, or one in which
            Azure would put something else.
    """
    kept = []
    for word in words:
        if word.key.startswith(("hydra.", "hydra/")) or word.key == "run_dir" or word.text == "trainer=azure":
            continue
        if word.key in _OURS:
            need = f"{_OURS[word.key]} to say it, for the machines and for Lightning alike"
            raise ConfigError(explain(got=f"{word.text} for a job on Azure", need=need, hint=f"leave {word.key} out"))
        if word.key == "resume" and word.value not in ("auto", "null"):
            got, need = f"{word.text} for a job on Azure", "none, as a job continues by itself what it began"
            raise ConfigError(explain(got=got, need=need, hint="the same command as before, which finds that folder"))
        if "${{" in word.text:
            got, need = f"{word.text}, where Azure would replace ${{{{...}}}}", "a value without it"
            raise ConfigError(explain(got=got, need=need, hint="${...} for a reference to another setting"))
        if re.search(r"[\x00-\x1f\x7f]", word.text):
            got, need = f"{word.text!r}, of several lines", "one line"
            raise ConfigError(explain(got=got, need=need, hint="a file of conf/ for a long value"))
        if word.key != "resume":
            kept.append(word)
    return tuple(kept)


def find_paths(plain: Any) -> dict[str, str]:
    """What settings name that is there on this machine, by setting: a checkpoint of a teacher, a folder of pictures.

    Args:
        plain: settings, resolved.

    Example:
        ``{"compress.distill.teacher": "runs/teacher/best.ckpt"}``
    """
    texts = list_texts(plain).items()
    return {key: text for key, text in texts if is_path(key, text) and _is_there(text)}


def _is_there(text: str) -> bool:
    try:
        return Path(text).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long, a character that no name has, nobody's home
        return False


def check_paths(paths: Iterable[tuple[str, str]], files: Collection[str]) -> None:
    """Raise ConfigError for a setting that names what a job does not see: neither data in Azure nor a file of the code.

    Args:
        paths: pairs of a setting and a path of this machine.
        files: of the code, relative to its folder, in which a job runs.
    """
    for key, path in paths:
        place = Path(path).as_posix()
        if not any(name == place or name.startswith(f"{place}/") for name in files):
            raise refuse_path(key, path)


def refuse_path(key: str, path: str) -> ConfigError:
    """The error for a setting that names something of this machine."""
    if path.startswith("azureml:"):
        got, need = f"{key}={path} without a version", "a data asset with one"
        return ConfigError(explain(got=got, need=need, hint=f"{key}={path}:1, or :latest"))
    kind = "uri_file" if key == "ckpt" or Path(path).is_file() else "uri_folder"
    hint = f"az ml data create --name NAME --version 1 --type {kind} --path {path}, then {key}=azureml:NAME:1"
    got = f"{key}={path}, a path of this machine, for a job on Azure"
    return ConfigError(explain(got=got, need="a data asset", hint=hint))


def name_input(setting: str) -> str:
    """The name of a setting as an input of a job, where only letters, digits and underscores may be.

    Example:
        >>> name_input("data.root")
        'data__root'
    """
    return re.sub(r"[^A-Za-z0-9]", "_", setting.replace(".", "__"))


def list_own_words(options: LaunchOptions, logger: str | None = None) -> list[str]:
    """The overrides that make a job one plain run, with Lightning told of the processes that Azure starts.

    Example:
        >>> list_own_words(LaunchOptions(nodes=2, gpus=4))[:3]
        ['trainer=ddp', 'trainer.devices=4', '++trainer.num_nodes=2']
    """
    return [*list_trainer_words(options, logger), "hydra/launcher=basic", "hydra.mode=RUN", "resume=auto"]


def list_trainer_words(options: LaunchOptions, logger: str | None) -> list[str]:
    """The overrides that choose the trainer and the loggers for the machines of a job."""
    trainer = ["trainer=cpu" if options.gpus == 0 else "trainer=gpu"]
    if options.nodes * options.gpus > 1:
        trainer = ["trainer=ddp", f"trainer.devices={options.gpus}", f"++trainer.num_nodes={options.nodes}"]
    return [*trainer, *([] if logger is None else [f"logger={logger}"])]


def write_command(point: Point, options: LaunchOptions, *, searched: tuple[str, ...] = ()) -> str:
    """The line that a job runs, every word quoted for a shell; Azure puts folders in for ``${{...}}``.

    Args:
        point: what to train.
        options: on what.
        searched: settings that a native sweep gives.
    """
    words = ["python", point.script]
    for word in point.words:
        if word.asset is not None or word.key in searched:
            words.append(f"{word.left}=${{{{inputs.{name_input(word.key)}}}}}")
        else:
            words.append(shlex.quote(word.text))
    words += [shlex.quote(word) for word in list_own_words(options, point.logger)]
    return " ".join([*words, f"run_dir=${{{{outputs.{OUTPUT}}}}}"])

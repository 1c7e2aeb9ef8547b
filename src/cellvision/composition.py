"""Settings as Hydra composes them, checked, and the objects that they describe."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import hydra.errors
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from cellvision.checks import check_count, check_text
from cellvision.errors import CellvisionError, ConfigError, check_choice, explain, read_first_line, unknown_name
from cellvision.settings import check_arguments, check_targets

if TYPE_CHECKING:
    from cellvision.data.datamodule import CellDataModule


GROUPS = ("model", "optim", "trainer", "splitting", "mixing", "callbacks", "logger", "compress")
"""Settings of classes, which `check_groups` can check without data."""


def check_settings(cfg: DictConfig) -> None:
    """Raise ConfigError listing every mandatory setting without a value; or for one at the top of another kind."""
    if missing := sorted(key for key, value in _walk(cfg, "") if value == "???"):
        got = f"no value for {', '.join(missing)}"
        raise ConfigError(explain(got=got, need="all of them", hint=" ".join(f"{key}=..." for key in missing)))
    best, last = "runs/latest/checkpoints/best.ckpt", "RUN/checkpoints/last.ckpt"
    if "ckpt" in cfg:
        check_text("ckpt", cfg.ckpt, example=best)
    if "resume" in cfg:
        check_text("resume", cfg.resume, or_none=True, example=f"auto, or {last}")
    if "monitor" in cfg:
        check_text("monitor", cfg.monitor, or_none=True, example="val/loss monitor_mode=min")
        check_choice("monitor_mode", cfg.monitor_mode, ("max", "min"))
    if "seed" in cfg:
        check_count("seed", cfg.seed, low=0, high=2**32 - 1, example=0)


def check_groups(plain: dict[str, Any], groups: Sequence[str]) -> None:
    """Raise ConfigError for a setting of these groups that its class does not take; nothing is built, nothing read.

    Args:
        plain: all settings, resolved.
        groups: keys of ``plain``; one can be None, or missing.
    """
    for group in groups:
        check_targets(plain.get(group), group)
        check_arguments(plain.get(group), group)


def choose_steps(cfg: DictConfig, words: Sequence[str], *, say: Callable[[str], object] = print) -> None:
    """Leave the settings of steps of compression out that were not chosen, as an experiment may have them, and say so.

    So are rows of the report that are rounded versions of what these steps, or a net from scratch, would have made.

    Args:
        cfg: its "compress" and "report" are changed.
        words: of the command line.
        say: what is called with each line.

    Raises:
        ConfigError: a step that is chosen twice, of which Hydra makes one; a setting of the command line that is of a
            step that was not chosen.
    """
    _check_twice(words)
    for name, node in dict(cfg.get("compress") or {}).items():
        if node is not None and not isinstance(node, DictConfig):
            got, need = f"compress.{name}={node}", "settings of a step, or null, which leaves it out"
            raise ConfigError(explain(got=got, need=need, hint=f"compress.{name}=null"))
        if node is not None and "_target_" not in node:
            say(_leave_out(cfg, str(name), words))
    _leave_rows_out(cfg, words, say)


def _check_twice(words: Sequence[str]) -> None:
    chosen = next((word for word in reversed(words) if word.startswith("compress=")), "")
    names = re.findall(r"\w+", chosen)[1:]
    for name in names:
        if names.count(name) > 1:
            got, need = f"{chosen}, with {name} twice in one run", "each step once"
            hint = f"one {name} of more epochs, or another run after it"
            raise ConfigError(explain(got=got, need=need, hint=hint))


def _leave_out(cfg: DictConfig, name: str, words: Sequence[str]) -> str:
    """Take the settings of a step away that was not chosen; a line on them."""
    if own := [word for word in words if word.lstrip("+").startswith(f"compress.{name}.")]:
        known = [str(each) for each, step in cfg.compress.items() if step is not None and "_target_" in step]
        need = f"settings of {', '.join(known)}, which were chosen" if known else "no settings, as no step was chosen"
        hint = "that step chosen as well, or its right name"
        raise ConfigError(explain(got=f"{own[-1]} without the step {name}", need=need, hint=hint))
    node = cfg.compress[name]
    with open_dict(cfg):
        cfg.compress[name] = None
    given = ", ".join(f"{key}={node[key]}" for key in map(str, node))
    return f"compress  {name} was not chosen, and its settings are left out: {given}"


def _leave_rows_out(cfg: DictConfig, words: Sequence[str], say: Callable[[str], object]) -> None:
    """Take rows out of ``report.ptq`` whose nets this run does not make, unless the command line asks for them."""
    names = (cfg.get("report") or {}).get("ptq")
    if not isinstance(names, ListConfig) or any(word.lstrip("+").startswith("report.ptq=") for word in words):
        return
    made = {str(name) for name, node in (cfg.get("compress") or {}).items() if node is not None}
    unmade = {"prune", "distill", *([] if cfg.report.scratch else ["scratch"])} - made
    if gone := [name for name in names if name in unmade]:
        cfg.report.ptq = [name for name in names if name not in unmade]
        say(f"report    no {' and no '.join(gone)} in this run, and so no such row rounded without training")


def check_compression(cfg: DictConfig, words: Sequence[str], *, say: Callable[[str], object] = print) -> None:
    """Raise ConfigError for a compression without steps, or with a number of epochs besides theirs; see `choose_steps`.

    Args:
        cfg: its "compress" and "report" are changed.
        words: of the command line.
        say: what is called with each line.
    """
    if cfg.get("model") is not None:
        got, need = "a model that was chosen", "that of ckpt, whose settings are in it"
        raise ConfigError(
            explain(got=got, need=need, hint="train.py model=... first, then ckpt=RUN/checkpoints/best.ckpt")
        )
    choose_steps(cfg, words, say=say)
    if not any((cfg.get("compress") or {}).values()):
        got, need = "compress=[], no step of compression", "one or more"
        raise ConfigError(explain(got=got, need=need, hint="compress=[prune,distill,qat]"))
    if given := [word for word in words if word.lstrip("+").startswith("trainer.max_epochs=")]:
        need = "epochs of each step, of which a compression consists"
        raise ConfigError(explain(got=given[-1], need=need, hint="compress.prune.epochs=4 compress.distill.epochs=4"))


def build(cfg: Any, key: str, **arguments: Any) -> Any:
    """The object that settings describe; its own errors come out as they were raised.

    Raises:
        ConfigError: a target that is not allowed or does not exist, or arguments that it does not take.
    """
    plain = OmegaConf.to_container(cfg, resolve=True) if OmegaConf.is_config(cfg) else cfg
    check_targets(plain, key)
    check_arguments(plain, key)
    if not isinstance(plain, dict) or "_target_" not in plain:
        need = "settings with a _target_, their class"
        raise ConfigError(explain(got=f"{key}={plain}", need=need, hint=f"{key}=null, or a _target_ as in conf"))
    try:
        return instantiate(plain, _convert_="all", **arguments)
    except hydra.errors.InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, CellvisionError):
            raise cause from None
        first = read_first_line(cause or error)
        need = "settings that its class takes"
        raise ConfigError(explain(got=f"{key}: {first}", need=need, hint=f"see conf/{key.split('.')[0]}")) from error


def build_data(node: DictConfig) -> CellDataModule:
    """The data module that a data group describes.

    Settings that the module does not take, such as ``data.root``, are those that others refer to as ``${data.root}``.

    Raises:
        ConfigError: a setting that nothing uses, or one that its class does not take.
    """
    from cellvision.data.datamodule import CellDataModule

    known = [name for name in inspect.signature(CellDataModule.__init__).parameters if name != "self"]
    text = OmegaConf.to_yaml(node, resolve=False)
    variables = [key for key in map(str, node) if key not in known and key != "_target_"]
    for key in variables:
        if f"${{data.{key}}}" not in text:
            raise ConfigError(unknown_name("setting", f"data.{key}", [f"data.{name}" for name in known]))
    plain = OmegaConf.to_container(node, resolve=True)
    assert isinstance(plain, dict)
    return build({key: value for key, value in plain.items() if key not in variables}, "data")


def resolve(cfg: DictConfig) -> dict[str, Any]:
    """The settings as plain dicts and lists, with every reference to another setting replaced by its value."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _walk(node: Any, path: str) -> list[tuple[str, Any]]:
    """(dotted key, value as written) of every leaf; interpolations are not resolved."""
    if isinstance(node, DictConfig) and isinstance(node._value(), dict):
        keys = [str(key) for key in node]
        return [leaf for key in keys for leaf in _walk(node._get_node(key), f"{path}.{key}".lstrip("."))]
    if isinstance(node, ListConfig) and isinstance(node._value(), list):
        return [leaf for at in range(len(node)) for leaf in _walk(node._get_node(at), f"{path}[{at}]")]
    return [(path, node._value())]

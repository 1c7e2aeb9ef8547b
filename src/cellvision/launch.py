"""Commands made with Hydra, whose own errors are answered as those of the library are: in one sentence."""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from hydra import compose
from hydra._internal import utils
from hydra.errors import CompactHydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationResolutionError,
    OmegaConfBaseException,
    ValidationError,
)

from cellvision.errors import CellvisionError, ConfigError, explain, read_first_line, to_sentence, unknown_name

OPEN_GROUPS = {"compress": ("data",), "export": ("data",)}
"""By script, groups that are null unless asked for; a setting of theirs is accepted all the same, and the script knows
what it is laid over."""

STEPS = ("prune", "distill", "qat")
"""Of compression, in the order that they are done in."""

ADDED_GROUPS = {"compress": ("model",), "export": ("trt",)}
"""By script, groups that are there once they are added, with a plus or without; compress.py tells why it takes no
model."""

OPEN_SETTINGS = ("compress.distill.weights", "hydra.launcher.environment_variables")
"""Settings that hold others of any name, which their class looks at."""


def launch(command: Callable[[], Any]) -> None:
    """Run the command of a script; settings that do not compose are one sentence on stderr and exit status 2.

    So is a folder that Hydra cannot make. HYDRA_FULL_ERROR=1 shows the whole error.

    Args:
        command: decorated with ``hydra.main``.
    """
    sys.argv[1:] = open_words(Path(sys.argv[0]).stem, sys.argv[1:])
    # Hydra takes no setting before -m together with one after it.
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda word: word not in ("-m", "--multirun"))
    # Hydra prints its errors in its own words and leaves; nothing public keeps it from that for a whole sweep.
    utils.run_and_report = lambda func: func()
    threading.excepthook = _tell_of_thread
    try:
        _check_trainer(sys.argv[1:])
        _check_added(Path(sys.argv[0]).stem, sys.argv[1:])
        command()
    except CellvisionError as error:  # of a launcher, which runs no job here
        _leave(error, str(error))
    except (CompactHydraException, OmegaConfBaseException) as error:
        _leave(error, explain_composition(error))
    except ValueError as error:
        if not str(error).startswith("Config group override must be"):
            raise
        words = [word.lstrip("+") for word in sys.argv[1:]]
        groups = [word for word in words if word.endswith("=null") and (_find_conf() / word[:-5]).is_dir()]
        got, need = f"{', '.join(groups) or 'a group'} that is no choice", "the name of one, or a list of names"
        _leave(error, explain(got=got, need=need, hint="--help for the choices; compress=[] for no step"))
    except OSError as error:  # of Hydra, which makes the run folder before a command begins
        got, need = f"cannot make {error.filename} ({error.strerror})", "a run_dir that can be written to"
        _leave(error, explain(got=got, need=need, hint="run_dir=runs/another"))


def open_words(script: str, words: Sequence[str]) -> list[str]:
    """Overrides as Hydra takes them, where what is open is set, whether it is there or not.

    Example:
        >>> open_words("export", ["data.root=PATH", "samples=8"])
        ['++data.root=PATH', 'samples=8']
        >>> open_words("export", ["trt=fp16"])
        ['+trt=fp16']
    """
    groups = OPEN_GROUPS.get(script, ())

    def is_open(key: str) -> bool:
        group, dot, _ = key.partition(".")  # without a dot it chooses one
        return bool(dot and group in groups) or any(f"{key}.".startswith(f"{open_}.") for open_ in OPEN_SETTINGS)

    def open_word(word: str) -> str:
        key, is_setting, _ = word.partition("=")
        plus = "++" if is_open(key) else "+" if key in ADDED_GROUPS.get(script, ()) else ""
        return f"{plus}{word}" if is_setting else word

    return [open_word(word) for word in words]


def compose_script(script: str, words: Sequence[str]) -> DictConfig:
    """The settings that a script would get of these overrides; only inside of a command of `launch`.

    Raises:
        ConfigError: they do not compose.
    """
    try:
        return compose(config_name=script, overrides=open_words(script, words))
    except (CompactHydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain_composition(error)) from error


def _find_conf() -> Path:
    """Folder of the settings of the script that runs."""
    return Path(sys.argv[0]).resolve().parent / "conf"


def _check_trainer(words: Sequence[str]) -> None:
    """Raise ConfigError for Azure's trainer in a sweep over several, or with a launcher that is not Azure's.

    Hydra chooses the launcher before it looks at what is swept, so that all of them would train here.
    """
    launchers = [word for word in words if word.startswith("hydra/launcher=") and word != "hydra/launcher=azureml"]
    if launchers and "trainer=azure" in words:
        got, need = f"trainer=azure with {launchers[0]}", "the launcher that submits a job"
        raise ConfigError(explain(got=got, need=need, hint=f"trainer=azure alone, or trainer=gpu {launchers[0]}"))
    for word in words:
        key, _, value = word.partition("=")
        choices = re.findall(r"[\w-]+", value)
        if key.lstrip("+") == "trainer" and "azure" in choices and len(choices) > 1:
            need = "trainer=azure alone, as where jobs run is chosen once for a sweep"
            raise ConfigError(explain(got=word, need=need, hint="two commands, of which one has trainer=azure"))


def _check_added(script: str, words: Sequence[str]) -> None:
    """Raise ConfigError for a setting that is added where nothing would ever read it: at the top, or of the report.

    Hydra takes any name behind a plus; what a class is made from is looked at where it is made.
    """
    conf = _find_conf()
    if not (conf / f"{script}.yaml").is_file():
        return
    settings = OmegaConf.load(conf / f"{script}.yaml")
    choices = [str(next(iter(each))) for each in settings.defaults if OmegaConf.is_dict(each)]
    top = {str(key) for key in settings if key != "defaults"} | {name for name in choices if " " not in name}
    top |= set(ADDED_GROUPS.get(script, ()))
    report = {f"report.{key!s}" for key in OmegaConf.load(conf / "report" / "default.yaml")}
    for word in words:
        key = word.lstrip("+").partition("=")[0]
        if "=" not in word or not word.startswith("+") or not re.fullmatch(r"[\w.]+", key):
            continue
        first, _, second = key.partition(".")
        if first not in top:
            raise ConfigError(unknown_name("setting", first, top))
        if first == "report" and second and key not in report:
            raise ConfigError(unknown_name("setting", key, report))


def _tell_of_thread(failed: threading.ExceptHookArgs) -> None:
    """One line for what a thread beside the command could not write, such as a log; its other errors in full."""
    if isinstance(failed.exc_value, OSError) and os.environ.get("HYDRA_FULL_ERROR") != "1":
        print(f"warning: {to_sentence(failed.exc_value)}", file=sys.stderr)
    else:
        threading.__excepthook__(failed)


def _leave(error: Exception, explained: str) -> NoReturn:
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        raise error
    print(f"error: {explained}", file=sys.stderr)
    sys.exit(2)


def explain_composition(error: Exception) -> str:
    """One sentence for what keeps settings from being composed: an unknown key or choice with all that there are."""
    cause = error.__cause__ or error
    if isinstance(error, OverrideParseException):
        got = f"{error.override}, which cannot be read ({read_first_line(error)})"
        return explain(got=got, need="key=value", hint="quotes around it all: 'model.widths=[16,32]'")
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        # Hydra lists the choices of groups of one alone.
        options = error.options or [path.stem for path in sorted((_find_conf() / group).glob("*.yaml"))]
        if group and options:
            return unknown_name(group, name, options)
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and isinstance(cause.parent_node, DictConfig):
        if unchosen := _explain_unchosen(str(cause.full_key)):
            return unchosen
        group = str(cause.full_key).removesuffix(str(cause.key))
        known = [f"{group}{key}" for key in map(str, cause.parent_node) if key != "_target_"] or [
            "none in this command"
        ]
        more = " (++ before it sets one that only its class knows); try: " if group else "; try: "
        return unknown_name("setting", cause.full_key, known).replace("; try: ", more)
    if isinstance(cause, ValidationError | InterpolationResolutionError) and cause.full_key:
        got = f"{cause.full_key}, where {read_first_line(cause)}"
        return explain(got=got, need="a value of its kind", hint="--help for the usual ones")
    if found := re.match(r"Ambiguous value for argument '(\S+)=(\d+),(\d+)'", str(error)):
        key, whole, rest = found.groups()
        bare = key.lstrip("+")
        if any(open_words(script, [f"{bare}=1"]) == [f"{key}=1"] for script in OPEN_GROUPS):  # a plus nobody typed
            key = bare
        got, need = f"{key}={whole},{rest}, which are two values", "one, or -m before it to try both"
        return explain(got=got, need=need, hint=f"{key}={whole}.{rest}, if that was meant")
    got = ", ".join(line.strip().rstrip(".") for line in str(error).splitlines() if line.strip())
    return explain(got=got, need="settings that fit together", hint="--help for the choices")


def _explain_unchosen(key: str) -> str:
    """A sentence for a setting of a group, or of a choice of it, that there is but that was not chosen; else ""."""
    place = _find_conf().joinpath(*key.split("."))
    if place.is_dir():
        names = ", ".join(sorted(path.stem for path in place.glob("*.yaml") if not path.stem.startswith("_")))
        got, need = f"a setting of {key}, of which nothing was chosen", f"{key}= with one or more of {names}"
        return explain(got=got, need=need, hint="--help for the form")
    group = key.rpartition(".")[0]
    if group and place.with_suffix(".yaml").is_file():
        chosen = next((word for word in reversed(sys.argv[1:]) if word.startswith(f"{group}=")), "")
        wanted = {*re.findall(r"\w+", chosen.partition("=")[2]), place.name}
        steps = ",".join(name for name in STEPS if name in wanted)
        choice = f"[{steps}]" if group == "compress" else place.name  # of others there is one
        got, need = f"a setting of {key}, which was not chosen", f"{place.name} among the choices of {group}="
        return explain(got=got, need=need, hint=f"{group}={choice}")
    return ""

"""The options of ``cellvision deploy``, which a pipeline on Azure reads before anything is submitted."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from cellvision.errors import ConfigError, explain
from cellvision.release.record import AZURE

MODELS = Path("models")


def add_models_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that names a registry."""
    parser.add_argument(
        "--models", type=Path, default=MODELS, metavar="DIR", help=f"registry: a folder ({MODELS}), or {AZURE}"
    )


def add_deploy(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    parser.add_argument("name", help="of the model")
    add_models_option(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--version", type=int, metavar="N", help="default: the newest")
    what.add_argument(
        "--registered",
        type=Path,
        metavar="FILE",
        help="of cellvision register .. --json FILE: its version",
    )
    what.add_argument("--rollback", action="store_true", help="the version that was in production before")
    what.add_argument("--stop", action="store_true", help="only end the server; production stays what it is")
    parser.add_argument(
        "--sample",
        type=Path,
        metavar="IMAGE",
        help="in which a new server must find cells, else it only has to answer; of a folder three are taken",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="processor threads of an image (default: all cores)")
    parser.add_argument("--memory-mib", type=int, metavar="N", help="most memory of an image (1024)")
    here = parser.add_argument_group("on this machine")
    here.add_argument("--host", metavar="ADDRESS", help="default 127.0.0.1")
    here.add_argument(
        "--port", type=int, metavar="N", help="and the one above take turns (those of the live server, else 8000)"
    )
    here.add_argument("--stop-after", action="store_true", default=None, help="end the server once it has passed")
    azure = parser.add_argument_group(f"with --models {AZURE}")
    azure.add_argument("--instance-type", metavar="SIZE", help="machine (Standard_DS3_v2)")
    azure.add_argument("--instances", type=int, metavar="N", help="how many of them (1)")


def check_deploy(chosen: argparse.Namespace) -> None:
    """Raise ConfigError for an option that makes no sense with the registry that was chosen, or out of range."""
    foreign = {"host", "port", "stop_after", "stop"} if chosen.models == AZURE else {"instance_type", "instances"}
    if given := sorted(name for name in foreign if getattr(chosen, name) not in (None, False)):
        option = f"--{given[0].replace('_', '-')}"
        got, need = f"{option} with --models {chosen.models}", "no such option there"
        raise ConfigError(explain(got=got, need=need, hint=f"leave {option} out, or cellvision deploy --help"))
    if chosen.instances is not None and chosen.instances < 1:
        got, need = f"--instances {chosen.instances}", "a whole number from 1 up"
        raise ConfigError(explain(got=got, need=need, hint="leave --instances out"))
    from cellvision.release.process import ServerOptions

    given_here = {name: getattr(chosen, name) for name in ("host", "port", "threads", "memory_mib")}
    ServerOptions(**{name: value for name, value in given_here.items() if value is not None})


def parse_deploy(words: Sequence[str]) -> argparse.Namespace:
    """The options in the words behind ``cellvision deploy``.

    Raises:
        ConfigError: words that it would refuse.
    """
    parser = _Parser(add_help=False)
    add_deploy(parser)
    parser.add_argument("--debug", action="store_true")
    chosen = parser.parse_args(words)
    check_deploy(chosen)
    return chosen


class _Parser(argparse.ArgumentParser):
    """One that does not leave the process."""

    def error(self, message: str) -> NoReturn:
        need, hint = "options of cellvision deploy", "cellvision deploy --help"
        raise ConfigError(explain(got=message, need=need, hint=hint))

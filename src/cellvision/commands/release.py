"""``cellvision register``, ``models`` and ``deploy``: from a bundle to what is in production, here or on Azure.

What they do is loaded when they run.
"""

from __future__ import annotations

import argparse
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from cellvision.errors import ConfigError, explain
from cellvision.release.record import AZURE

if TYPE_CHECKING:
    from cellvision.cloud.endpoint import Live
    from cellvision.cloud.registry import AzureRegistry
    from cellvision.release.deploy import Deployment
    from cellvision.release.record import ModelVersion
    from cellvision.release.registry import ModelRegistry

MODELS = Path("models")
SAMPLES = 3


def add_register(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    parser.add_argument("bundle", type=Path, help="bundle folder; it is copied")
    parser.add_argument("--name", required=True, help="of the model; versions are counted per name")
    _add_models(parser)
    parser.add_argument("--scores", type=Path, metavar="FILE", help="of cellvision evaluate --bundle .. --json FILE")
    parser.add_argument("--metric", metavar="NAME", help="score that decides, e.g. cell/f1; without it nothing decides")
    parser.add_argument("--at-least", type=float, metavar="X", help="least value of that score")
    parser.add_argument(
        "--production-scores",
        type=Path,
        metavar="FILE",
        help="of the version in production, on the same fields, where it was scored on others",
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="file for the name and the number of the version")
    parser.add_argument("--tag", type=_split_tag, action="append", metavar="KEY=VALUE", help="may be repeated")


def run_register(chosen: argparse.Namespace) -> int:
    """Copy a bundle into a registry as a new version, with its scores, its recipe and the data it was trained on.

    With --metric, only if that score is high enough and not below that of the version in production.
    """
    from cellvision.release.gate import Bar
    from cellvision.release.record import load_scores, write_json

    scores = load_scores(chosen.scores) if chosen.scores else None
    beside = load_scores(chosen.production_scores) if chosen.production_scores else None
    with _open_registry(chosen.models, "registering a model") as registry:
        version = registry.register(
            chosen.bundle,
            chosen.name,
            scores=scores,
            bar=Bar(metric=chosen.metric, at_least=chosen.at_least) if chosen.metric else None,
            production_scores=beside,
            tags=dict(chosen.tag or ()),
        )
    if chosen.json:
        write_json(chosen.json, {"name": version.name, "version": version.version, "bundle": str(version.bundle)})
    passed = f": {version.gate.describe()}" if version.gate else ", without a gate"
    print(f"registered {version.title}{passed}")
    return 0


def add_models(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    parser.add_argument("name", nargs="?", help="of one model (default: all)")
    _add_models(parser)


def run_models(chosen: argparse.Namespace) -> int:
    """List the versions of a registry, which of them is in production, and where that answers."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from cellvision.commands.lines import to_line

    table = Table("model", "version", "registered", "score", "recipe", "", box=SIMPLE_HEAD)
    lines: list[str] = []
    with _open_registry(chosen.models, "listing models") as registry:
        for name in [chosen.name] if chosen.name else registry.list_names():
            production, live = registry.find_production(name), _find_live(registry, name)
            for version in registry.list_versions(name):
                is_it = production is not None and production.version == version.version
                when, where = version.created[:16].replace("T", " "), "production" if is_it else ""
                row = (name, str(version.version), when, _describe_score(version), version.recipe, where)
                table.add_row(*(Text(to_line(cell)) for cell in row))
            if live is not None:
                lines.append(f"{name} version {live.version} answers on {live.url}")
    Console().print(table)
    for line in lines:
        print(line)
    return 0


def add_deploy(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    parser.add_argument("name", help="of the model")
    _add_models(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--version", type=int, metavar="N", help="default: the newest")
    what.add_argument("--rollback", action="store_true", help="the version that was in production before")
    what.add_argument("--stop", action="store_true", help="only end the server; production stays what it is")
    parser.add_argument(
        "--sample",
        type=Path,
        metavar="IMAGE",
        help="in which a new server must find cells; of a folder three are taken",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="processor threads of an image (default: all cores)")
    parser.add_argument("--memory-mib", type=int, metavar="N", help="most memory of an image (1024)")
    here = parser.add_argument_group("on this machine")
    here.add_argument("--host", metavar="ADDRESS", help="default 127.0.0.1")
    here.add_argument("--port", type=int, metavar="N", help="and the one above take turns (8000)")
    here.add_argument("--stop-after", action="store_true", default=None, help="end the server once it has passed")
    azure = parser.add_argument_group(f"with --models {AZURE}")
    azure.add_argument("--instance-type", metavar="SIZE", help="machine (Standard_DS3_v2)")
    azure.add_argument("--instances", type=int, metavar="N", help="how many of them (1)")


def run_deploy(chosen: argparse.Namespace) -> int:
    """Start a server of a registered version beside the one that answers, try it on a sample, and then switch over.

    If anything goes wrong before the switch, the old server stays. It is ended after the switch, its last images done.
    """
    foreign = {"host", "port", "stop_after", "stop"} if chosen.models == AZURE else {"instance_type", "instances"}
    if given := sorted(name for name in foreign if getattr(chosen, name) not in (None, False)):
        option = f"--{given[0].replace('_', '-')}"
        got, need = f"{option} with --models {chosen.models}", "no such option there"
        raise ConfigError(explain(got=got, need=need, hint=f"leave {option} out, or cellvision deploy --help"))
    return _deploy_there(chosen) if chosen.models == AZURE else _deploy_here(chosen)


def _deploy_here(chosen: argparse.Namespace) -> int:
    from cellvision.release.deploy import deploy, stop
    from cellvision.release.process import ServerOptions
    from cellvision.release.registry import ModelRegistry
    from cellvision.serve.server import check_extra

    registry = ModelRegistry(chosen.models)
    if chosen.stop:
        ended = stop(registry, chosen.name)
        print(f"stopped {ended.url}" if ended else f"no server of {chosen.name} is at work")
        return 0
    check_extra()
    options = ServerOptions(**_choose(chosen, "host", "port", "threads", "memory_mib"))
    with _leaving():
        live = deploy(registry, chosen.name, options=options, **_describe_deployment(chosen))
    if chosen.stop_after:
        stop(registry, chosen.name)
    print(_describe_live(live, stopped=bool(chosen.stop_after)))
    return 0


def _deploy_there(chosen: argparse.Namespace) -> int:
    from cellvision.cloud.endpoint import deploy
    from cellvision.cloud.registry import AzureRegistry
    from cellvision.cloud.sdk import open_workspace
    from cellvision.cloud.serving import EndpointOptions

    options = EndpointOptions(**_choose(chosen, "instance_type", "instances", "threads", "memory_mib"))
    with _leaving(), open_workspace("deploying a model") as client:
        live = deploy(AzureRegistry(client), chosen.name, options=options, **_describe_deployment(chosen))
    print(f"{chosen.name} version {live.version} is in production on {live.url}")
    return 0


def _describe_deployment(chosen: argparse.Namespace) -> dict[str, Any]:
    return {
        "version": chosen.version,
        "rollback": chosen.rollback,
        "samples": _list_samples(chosen.sample),
        "tell": lambda line: print(line, flush=True),
    }


def _choose(chosen: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The options that were given; the others have defaults of their own."""
    return {name: value for name in names if (value := getattr(chosen, name)) is not None}


@contextmanager
def _open_registry(models: Path, doing: str) -> Iterator[ModelRegistry | AzureRegistry]:
    if models == AZURE:
        from cellvision.cloud.registry import AzureRegistry
        from cellvision.cloud.sdk import open_workspace

        with open_workspace(doing) as client:
            yield AzureRegistry(client)
    else:
        from cellvision.release.registry import ModelRegistry

        yield ModelRegistry(models)


def _find_live(registry: ModelRegistry | AzureRegistry, name: str) -> Deployment | Live | None:
    from cellvision.release.deploy import find_live
    from cellvision.release.registry import ModelRegistry

    return find_live(registry, name) if isinstance(registry, ModelRegistry) else registry.find_live(name)


@contextmanager
def _leaving() -> Iterator[None]:
    """Within it SIGTERM is an error like others: a deployment that is told to end takes its new server with it."""

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _list_samples(path: Path | None) -> list[Path]:
    from cellvision.data.images import list_images

    return [] if path is None else list_images(path)[:SAMPLES] if path.is_dir() else [path]


def _describe_live(live: Deployment, *, stopped: bool) -> str:
    what = f"{live.name} version {live.version} is in production"
    return f"{what}; its server was stopped" if stopped else f"{what} on {live.url}"


def _describe_score(version: ModelVersion) -> str:
    return f"{version.gate.metric} {version.gate.value:.3f}" if version.gate else "no gate"


def _add_models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--models", type=Path, default=MODELS, metavar="DIR", help=f"registry: a folder ({MODELS}), or {AZURE}"
    )


def _split_tag(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is no KEY=VALUE like plate=A1")
    return key, value

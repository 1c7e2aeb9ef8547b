"""``cellvision register``, ``models`` and ``deploy``: from a bundle to what is in production, here or on Azure.

What they do is loaded when they run.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from cellvision.errors import ConfigError, DataError, explain
from cellvision.release.options import add_deploy as add_deploy
from cellvision.release.options import add_models_option, check_deploy
from cellvision.release.record import AZURE

if TYPE_CHECKING:
    from cellvision.cloud.endpoint import Live
    from cellvision.cloud.registry import AzureRegistry
    from cellvision.release.deploy import Deployment
    from cellvision.release.gate import Bar
    from cellvision.release.record import ModelVersion
    from cellvision.release.registry import ModelRegistry

SAMPLES = 3


def add_register(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    parser.add_argument("bundle", type=Path, help="bundle folder; it is copied")
    parser.add_argument("--name", required=True, help="of the model; versions are counted per name")
    add_models_option(parser)
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
    from cellvision.release.record import load_scores, write_json
    from cellvision.runtime.files.writers import StagedFiles

    bar = _read_bar(chosen)
    scores = load_scores(chosen.scores) if chosen.scores else None
    beside = load_scores(chosen.production_scores) if chosen.production_scores else None
    # Staged before the work: what is registered stays, also where nobody could be told its number.
    if chosen.json and chosen.json.exists() and not (chosen.json.is_file() or chosen.json.is_dir()):
        got, need = f"--json {chosen.json}, a device or such", "a file"
        raise ConfigError(explain(got=got, need=need, hint="--json registered.json"))
    with StagedFiles(chosen.json.parent) if chosen.json else nullcontext() as staged:
        part = staged.path(chosen.json.name) if staged else None
        with _open_registry(chosen.models, "registering a model") as registry:
            version = registry.register(
                chosen.bundle,
                chosen.name,
                scores=scores,
                bar=bar,
                production_scores=beside,
                tags=dict(chosen.tag or ()),
            )
        if part:
            told = {"name": version.name, "version": version.version, "created": version.created}
            write_json(part, told | {"bundle": str(version.bundle)})
    passed = f": {version.gate.describe()}" if version.gate else ", without a gate"
    print(f"registered {version.title}{passed}")
    return 0


def _read_bar(chosen: argparse.Namespace) -> Bar | None:
    """What is asked of a bundle; ConfigError for a bound that no score would be compared with."""
    from cellvision.release.gate import Bar

    if chosen.metric is not None:
        return Bar(metric=chosen.metric, at_least=chosen.at_least)
    for option, value in (("--at-least", chosen.at_least), ("--production-scores", chosen.production_scores)):
        if value is not None:
            got, need = f"{option} {value} without --metric", "the score that is to decide"
            raise ConfigError(explain(got=got, need=need, hint="--metric cell/f1"))
    return None


def add_models(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    parser.add_argument("name", nargs="?", help="of one model (default: all)")
    add_models_option(parser)


def run_models(chosen: argparse.Namespace) -> int:
    """List the versions of a registry, which of them is in production, and where that answers.

    The files of their bundles are not looked at. What cannot be read is said beside it; then the exit code is 1.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from cellvision.commands.lines import to_line

    table = Table("model", "version", "registered", "score", "recipe", "", box=SIMPLE_HEAD)
    lines: list[str] = []
    damage: list[str] = []
    with _open_registry(chosen.models, "listing models") as registry:
        names = _list_names(registry, chosen.name)
        for name in names:
            rows, live = _list_rows(registry, name, damage)
            for row in rows:
                table.add_row(*(Text(to_line(cell)) for cell in row))
            if live is not None:
                lines.append(f"{name} version {live.version} answers on {live.url}")
    if names:
        Console().print(table)
    for line in lines if names else [f"nothing is registered in {chosen.models}"]:
        print(line)
    for sentence in damage:
        print(f"cellvision: {to_line(sentence)}", file=sys.stderr)
    return 1 if damage else 0


def _list_names(registry: ModelRegistry | AzureRegistry, name: str | None) -> list[str]:
    from cellvision.release.registry import ModelRegistry

    if isinstance(registry, ModelRegistry):
        registry.check_folder()
    return [name] if name else registry.list_names()


def _list_rows(
    registry: ModelRegistry | AzureRegistry, name: str, damage: list[str]
) -> tuple[list[tuple[str, ...]], Deployment | Live | None]:
    """The rows of a model's versions, and where it answers; what cannot be read is added to ``damage``."""
    from cellvision.release.registry import ModelRegistry

    production: int | None = None
    live: Deployment | Live | None = None
    with _noting(damage):
        live = _find_live(registry, name)
    if isinstance(registry, ModelRegistry):
        with _noting(damage):
            production = registry.find_production_number(name)
        damage += registry.list_damage(name)
    elif live is not None:
        production = live.version
    rows: list[tuple[str, ...]] = []
    for version in registry.list_versions(name):
        where = "production" if production == version.version else ""
        when = version.created[:16].replace("T", " ")
        rows.append((name, str(version.version), when, _describe_score(version), version.recipe, where))
    return rows, live


@contextmanager
def _noting(damage: list[str]) -> Iterator[None]:
    """Within it a file that cannot be read is noted, and what else there is can be listed."""
    try:
        yield
    except DataError as error:
        damage.append(str(error))


def run_deploy(chosen: argparse.Namespace) -> int:
    """Start a server of a registered version beside the one that answers, try it on a sample, and then switch over.

    If anything goes wrong before the switch, the old server stays. It is ended after the switch, its last images done.
    """
    check_deploy(chosen)
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
    from cellvision.cloud.endpoint import deploy, fits_request
    from cellvision.cloud.registry import AzureRegistry
    from cellvision.cloud.sdk import open_workspace
    from cellvision.cloud.serving import EndpointOptions

    options = EndpointOptions(**_choose(chosen, "instance_type", "instances", "threads", "memory_mib"))
    with _leaving(), open_workspace("deploying a model") as client:
        given = _describe_deployment(chosen, usable=fits_request)
        live = deploy(AzureRegistry(client), chosen.name, options=options, **given)
    print(f"{chosen.name} version {live.version} is in production on {live.url}")
    return 0


def _describe_deployment(chosen: argparse.Namespace, usable: Callable[[Path], bool] | None = None) -> dict[str, Any]:
    from cellvision.release.record import load_registered

    return {
        "version": load_registered(chosen.registered, chosen.name) if chosen.registered else chosen.version,
        "rollback": chosen.rollback,
        "samples": _list_samples(chosen.sample, usable),
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


def _list_samples(path: Path | None, usable: Callable[[Path], bool] | None) -> list[Path]:
    """The image, or of a folder the first few that are usable; where none is, the first few."""
    from cellvision.data.images import list_images

    if path is None or not path.is_dir():
        return [] if path is None else [path]
    images = list_images(path)
    return (list(filter(usable, images)) or images)[:SAMPLES]


def _describe_live(live: Deployment, *, stopped: bool) -> str:
    what = f"{live.name} version {live.version} is in production"
    return f"{what}; its server was stopped" if stopped else f"{what} on {live.url}"


def _describe_score(version: ModelVersion) -> str:
    return f"{version.gate.metric} {version.gate.value:.3f}" if version.gate else "no gate"


def _split_tag(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is no KEY=VALUE like plate=A1")
    return key, value

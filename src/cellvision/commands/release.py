"""``cellvision register``, ``models`` and ``deploy``: from a bundle to what is in production on this machine.

What they do is loaded when they run.
"""

from __future__ import annotations

import argparse
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cellvision.release.deploy import Deployment
    from cellvision.release.record import ModelVersion

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
    from cellvision.release.registry import ModelRegistry

    scores = load_scores(chosen.scores) if chosen.scores else None
    beside = load_scores(chosen.production_scores) if chosen.production_scores else None
    version = ModelRegistry(chosen.models).register(
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
    from cellvision.release.deploy import find_live
    from cellvision.release.registry import ModelRegistry

    registry = ModelRegistry(chosen.models)
    table = Table("model", "version", "registered", "score", "recipe", "", box=SIMPLE_HEAD)
    lines: list[str] = []
    for name in [chosen.name] if chosen.name else registry.list_names():
        production, live = registry.find_production(name), find_live(registry, name)
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
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="default 127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="and the one above take turns (8000)")
    parser.add_argument("--threads", type=int, metavar="N", help="processor threads of an image (default: all cores)")
    parser.add_argument("--memory-mib", type=int, default=1024, metavar="N", help="most memory of an image (1024)")
    parser.add_argument("--stop-after", action="store_true", help="end the server once it has passed")


def run_deploy(chosen: argparse.Namespace) -> int:
    """Start a server of a registered version beside the one that answers, try it on a sample, and then switch over.

    If anything goes wrong before the switch, the old server stays. It is ended after the switch, its last images done.
    """
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
    options = ServerOptions(host=chosen.host, port=chosen.port, threads=chosen.threads, memory_mib=chosen.memory_mib)
    with _leaving():
        live = deploy(
            registry,
            chosen.name,
            version=chosen.version,
            rollback=chosen.rollback,
            samples=_list_samples(chosen.sample),
            options=options,
            tell=lambda line: print(line, flush=True),
        )
    if chosen.stop_after:
        stop(registry, chosen.name)
    print(_describe_live(live, stopped=chosen.stop_after))
    return 0


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
    parser.add_argument("--models", type=Path, default=MODELS, metavar="DIR", help=f"registry folder ({MODELS})")


def _split_tag(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is no KEY=VALUE like plate=A1")
    return key, value

"""The options that say what a bundle runs on, the same in all verbs that predict."""

from __future__ import annotations

import argparse
from pathlib import Path

import cellvision


def add_engine(parser: argparse._ActionsContainer, *, required: bool = True) -> None:
    """Add ``--bundle``, which can be ``required``, and how it is run."""
    parser.add_argument("--bundle", type=Path, required=required, metavar="DIR", help="bundle folder")
    parser.add_argument(
        "--provider", default="cpu", metavar="NAME", help="cpu (default), cuda ..; there is no fallback"
    )
    parser.add_argument(
        "--provider-option",
        type=_split_option,
        action="append",
        metavar="KEY=VALUE",
        help="passed on to the provider, e.g. device_id=1; may be repeated",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="processor threads (default: all cores)")
    parser.add_argument("--memory-mib", type=int, default=1024, metavar="N", help="most working memory (default 1024)")
    parser.add_argument("--tile-px", type=int, metavar="N", help="tile size (default: the bundle's, or what fits)")
    parser.add_argument("--overlap-px", type=int, metavar="N", help="margin around tiles (default: the bundle's)")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="tiles that go through the net at once (1)")
    parser.add_argument(
        "--arena", default="keep", metavar="KIND", help="the net's memory after a run: keep (default), shrink, none"
    )


def open_predictor(chosen: argparse.Namespace) -> cellvision.Predictor:
    """The bundle as the options of `add_engine` say; raises what `Predictor` raises."""
    return cellvision.Predictor(
        chosen.bundle,
        provider=chosen.provider,
        provider_options=dict(chosen.provider_option or ()),
        threads=chosen.threads,
        memory_mib=chosen.memory_mib,
        tile_px=chosen.tile_px,
        overlap_px=chosen.overlap_px,
        batch=chosen.batch,
        arena=chosen.arena,
    )


def _split_option(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is no KEY=VALUE like device_id=1")
    return key, value

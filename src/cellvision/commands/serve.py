"""``cellvision serve``: a bundle over HTTP. What it does is loaded when it runs."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

LIMITS = {
    "max_mib": "largest upload",
    "max_megapixels": "largest image in millions of pixels",
    "workers": "images worked on at once",
    "queue": "images that wait beside those, before others are refused",
    "upload_seconds": "longest upload",
}


def add_serve(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    parser.add_argument("bundle", type=Path, help="bundle folder")
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="0.0.0.0 for all who reach this machine")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="0 for any that is free (default 8000)")
    parser.add_argument("--provider", default="cpu", metavar="NAME", help="cpu (default), cuda ..; no fallback")
    parser.add_argument("--threads", type=int, metavar="N", help="processor threads of an image (default: all cores)")
    parser.add_argument("--memory-mib", type=int, default=1024, metavar="N", help="most memory of an image (1024)")
    for name, meaning in LIMITS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N", help=meaning)


def run_serve(chosen: argparse.Namespace) -> int:
    """Answer POST /predict with the cells that ``predict`` finds, and show a page to drop images on.

    Ends with Ctrl-C or SIGTERM, after the images that it has taken on are done.
    """
    from cellvision.runtime.predictor import Predictor
    from cellvision.serve.limits import Limits
    from cellvision.serve.server import check_extra, open_socket, serve

    check_extra()
    given = {field.name: getattr(chosen, field.name) for field in dataclasses.fields(Limits)}
    limits = Limits(**{name: value for name, value in given.items() if value is not None})
    listening = open_socket(chosen.host, chosen.port)  # before a bundle is read and measured in vain
    with listening:
        predictor = Predictor(
            chosen.bundle,
            provider=chosen.provider,
            threads=chosen.threads,
            memory_mib=chosen.memory_mib,
            warm_up=True,
        )
        host, port = listening.getsockname()[:2]
        print(f"serving {predictor.manifest.model} on http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
        serve(predictor, listening, limits=limits)
    return 0

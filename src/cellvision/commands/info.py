"""``cellvision info``: what a bundle is, on one screen, or its whole manifest."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cellvision.bundle import Channel, Manifest
from cellvision.commands.lines import to_line

_SCORES = (
    "mask/ap", "mask/ap50", "mask/ap75", "box/ap", "instance/aji", "instance/pq", "pixel/miou", "cell/f1", "cell/iou",
    "cell/live_dead_f1", "field/viability_error_pp",
)  # fmt: skip


def print_summary(manifest: Manifest, folder: Path) -> None:
    """Print what a user of a bundle wants to know, on one screen.

    Args:
        manifest: of the bundle.
        folder: of the bundle, for the sizes of its graphs.
    """
    rows = {
        "net": f"{manifest.model}, kind {manifest.kind}",
        "classes": ", ".join(manifest.classes),
        "channels": _join_channels(manifest.channels),
        "images": _describe_images(manifest),
        "tiles": f"{manifest.tile_px} px, {manifest.overlap_px} px of margin, multiples of {manifest.stride}",
        "cells": _describe_cells(manifest),
        "graphs": [
            f"{graph.role}: {graph.file} ({graph.engine}, {graph.precision}), "
            f"{(folder / graph.file).stat().st_size / 2**20:.1f} MiB"
            for graph in manifest.graphs
        ],
        "accuracy": _describe_accuracy(manifest.accuracy),
        "parity": _describe_parity(manifest),
        "latency": _describe_latency(manifest.latency),
        "gate": _describe_gate(manifest.gate),
        "versions": _join(manifest.versions, ("cellvision", "torch", "onnxruntime")),
        "": "--all shows everything else",
    }
    _print({name: found for name, found in rows.items() if found})


def print_manifest(manifest: Manifest) -> None:
    """Print every entry of a manifest, one per row."""
    # Of nets that find no cells themselves there is nothing to say of detecting.
    entries = {name: value for name, value in asdict(manifest).items() if name != "detecting" or value is not None}
    _print({name: _to_text(name, value) for name, value in entries.items()})


def _print(rows: Mapping[str, str | Sequence[str]]) -> None:
    """Print a table of names with one line or several; nothing that a bundle says makes a line or colour of its own."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(overflow="fold")  # a hash must not lose its end
    for name, found in rows.items():
        lines = [found] if isinstance(found, str) else found
        table.add_row(Text(name, style="bold"), Text("\n".join(map(to_line, lines))))
    Console().print(table)


def _join_channels(channels: Iterable[Channel]) -> str:
    return ", ".join(f"{channel.name} ({channel.role})" if channel.role else channel.name for channel in channels)


def _describe_images(manifest: Manifest) -> str:
    size = "unknown size" if manifest.pixel_size_um is None else f"{manifest.pixel_size_um:g} um"
    return f"{' or '.join(manifest.image_dtypes)}, pixels of {size}"


def _describe_cells(manifest: Manifest) -> str:
    splitting = manifest.splitting
    text = f"method {splitting.method}, from {splitting.min_area_px} px up"
    if manifest.detecting is not None:
        text += f", score from {splitting.score_threshold:.3g} up, at most {manifest.detecting.max_cells} in a tile"
    return f"{text}, live from {manifest.live_threshold:g} up" if "live" in manifest.classes else text


def _describe_accuracy(accuracy: Mapping[str, Any]) -> str:
    return _join(accuracy, [name for name in accuracy if name.partition("/")[2] in _SCORES or name in _SCORES])


def _describe_parity(manifest: Manifest) -> str:
    """How far the graphs are from the net; a tolerance is of those in fp32 alone."""
    rounded = sorted({graph.precision for graph in manifest.graphs} - {"fp32"})
    tolerance = () if rounded else ("tolerance",)
    text = _join(manifest.parity, ("max_difference", *tolerance, "cells_net", "cells_graph"))
    return f"{text}, in {' and '.join(rounded)}" if text and rounded else text


def _describe_latency(latency: Mapping[str, Any]) -> str:
    medians = {
        f"{name}_ms": way["median"]
        for name in ("onnxruntime", "pytorch")
        if isinstance(way := latency.get(f"{name}_ms"), dict) and "median" in way
    }
    return _join({**latency, **medians}, ("size", "threads", *medians))


def _describe_gate(gate: Mapping[str, Any]) -> list[str]:
    forms, name = gate.get("forms"), gate.get("form")
    if not isinstance(forms, dict) or not isinstance(form := forms.get(name), dict):
        return []
    shares = {
        what: form.get(key) for what, key in (("time", "ratio"), ("size", "size_ratio"), ("memory", "memory_ratio"))
    }
    text = f"{name} {'passed' if form.get('passed') else 'did not pass'}; of fp32: {_join(shares, shares)}"
    if isinstance(lost := form.get("lost_points"), dict):
        text += f"; points lost: {_join(lost, lost)}"
    return [text, str(gate["sentence"])] if gate.get("sentence") else [text]


def _join(values: Mapping[str, Any], names: Iterable[str]) -> str:
    """Those of the values that there are, as name=value."""
    given = [(name, values[name]) for name in names if values.get(name) is not None]
    return ", ".join(f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}" for name, value in given)


def _to_text(name: str, value: Any) -> str | list[str]:
    if value is None:
        return "unknown"
    if name == "channels":
        return _join_channels(Channel(**channel) for channel in value)
    if name == "graphs":
        return [_describe_graph(**graph) for graph in value]
    if isinstance(value, tuple | list) and all(isinstance(entry, str) for entry in value):
        return ", ".join(value)
    if isinstance(value, dict) and not any(isinstance(entry, dict | list) for entry in value.values()):
        return ", ".join(f"{key}={entry}" for key, entry in value.items())
    if isinstance(value, dict | list | tuple):
        return json.dumps(value, indent=1, ensure_ascii=False).split("\n")  # whose texts have no line ends of their own
    return str(value)


def _describe_graph(*, role: str, file: str, sha256: str, engine: str, precision: str) -> str:
    return f"{role}: {file} ({engine}, {precision}), SHA-256 {sha256}"

"""``cellvision info``: the manifest as a table."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cellvision.bundle import Manifest


def print_manifest(manifest: Manifest) -> None:
    """Print every entry of a manifest, one per row."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(overflow="fold")  # a hash must not lose its end
    for name, value in asdict(manifest).items():
        if name != "detecting" or value is not None:  # of nets that find no cells themselves there is nothing to say
            table.add_row(Text(name, style="bold"), Text(_to_text(name, value)))
    Console().print(table)


def _to_text(name: str, value: Any) -> str:
    if value is None:
        return "unknown"
    if name == "channels":
        return ", ".join(f"{c['name']} ({c['role']})" if c["role"] else c["name"] for c in value)
    if name == "graphs":
        return "\n".join(_describe_graph(**graph) for graph in value)
    if isinstance(value, tuple | list) and all(isinstance(entry, str) for entry in value):
        return ", ".join(value)
    if isinstance(value, dict) and not any(isinstance(entry, dict | list) for entry in value.values()):
        return ", ".join(f"{key}={entry}" for key, entry in value.items())
    return json.dumps(value, indent=1, ensure_ascii=False) if isinstance(value, dict | list | tuple) else str(value)


def _describe_graph(*, role: str, file: str, sha256: str, engine: str, precision: str) -> str:
    return f"{role}: {file} ({engine}, {precision}), SHA-256 {sha256}"

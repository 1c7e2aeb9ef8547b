"""What a run was: settings, versions, code state and data, in one file beside its results."""

from __future__ import annotations

import json
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cellvision.data.datamodule import CellDataModule
from cellvision.models.base import SegNet

PACKAGES = (
    "cellvision",
    "torch",
    "torchvision",
    "lightning",
    "torchmetrics",
    "timm",
    "hydra-core",
    "numpy",
    "onnx",
    "onnxruntime",
)


def write_run_record(folder: Path, *, settings: Any, data: CellDataModule, net: SegNet) -> Path:
    """Write ``run.json``: resolved settings, package versions, git state, data fingerprint, size of the net."""
    record = {
        "settings": settings,
        "versions": collect_versions(),
        "git": describe_git(),
        "data": {
            "fingerprint": data.fingerprint(),
            "fields": {split: len(view) for split, view in data.views.items()},
            "classes": data.classes,
            "channels": [channel.name for channel in data.channels],
        },
        "net": {"config": net.config, "parameters": sum(p.numel() for p in net.parameters())},
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "run.json"
    path.write_text(json.dumps(record, indent=2, default=str) + "\n", encoding="utf-8")
    return path


def collect_versions() -> dict[str, str]:
    """Installed versions of the packages that shape a result, and of Python."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def describe_git() -> dict[str, Any]:
    """Commit of the working folder and whether it was changed since; empty outside a git checkout."""
    try:
        commit = _git("rev-parse", "HEAD")
        return {"commit": commit, "changed": bool(_git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return {}


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], capture_output=True, text=True, check=True, timeout=10).stdout.strip()  # noqa: S603, S607

"""Which commit the code is of, also where a job runs on a copy of it that has no history."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

VARIABLE = "CELLVISION_GIT"
"""Of the environment: what `format_git` gave where a job was submitted from."""

_CHANGED = " with changes"


def describe_git(folder: Path | None = None) -> dict[str, Any]:
    """The commit of a folder (default: the working folder) and whether it was changed since; empty where nobody knows.

    In a job, whose code is a copy without history, it is the state that the job was submitted from.

    Example:
        ``{"commit": "1f0c9a...", "changed": False}``
    """
    try:
        commit = _git("rev-parse", "HEAD", folder=folder)
        return {"commit": commit, "changed": bool(_git("status", "--porcelain", folder=folder))}
    except (OSError, subprocess.SubprocessError):
        known = os.environ.get(VARIABLE, "") if folder is None else ""
        return {"commit": known.removesuffix(_CHANGED), "changed": known.endswith(_CHANGED)} if known else {}


def format_git(state: dict[str, Any]) -> str:
    """A state in words, "" where nobody knows.

    Example:
        >>> format_git({"commit": "1f0c9a", "changed": True})
        '1f0c9a with changes'
    """
    return f"{state['commit']}{_CHANGED if state.get('changed') else ''}" if state.get("commit") else ""


def _git(*words: str, folder: Path | None) -> str:
    command = ["git", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=10)  # noqa: S603
    return done.stdout.strip()

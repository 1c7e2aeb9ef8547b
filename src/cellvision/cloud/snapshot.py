"""The code that a job gets: which files, how large, and whether they are what was committed."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellvision.cloud.options import KEY
from cellvision.errors import ConfigError, MissingExtraError, explain

if TYPE_CHECKING:
    from pathspec import PathSpec

IGNORE_FILES = (".amlignore", ".gitignore")
"""The first that is there counts, alone, as it does for Azure's SDK; those of subfolders do not."""


MARK = ".copy-of-cellvision"
"""A file that a copy has beside the code, so that nothing else is taken for one."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Files of a folder, as they were when they were read.

    Attributes:
        root: the folder.
        files: paths relative to it, with slashes, in order.
        size_mib: of all of them.
        sha256: of their names and contents.
    """

    root: Path
    files: tuple[str, ...]
    size_mib: float
    sha256: str


def read_snapshot(root: Path, *, max_mib: float) -> Snapshot:
    """What the SDK would upload of a folder.

    Raises:
        ConfigError: it is larger than ``max_mib``.
        MissingExtraError: the package that reads ignore rules is not installed.
    """
    files = list_files(root)
    sizes = {name: (root / name).stat().st_size for name in files}
    size_mib = sum(sizes.values()) / 2**20
    if size_mib > max_mib:
        largest = ", ".join(
            f"{name} {sizes[name] / 2**20:.1f}" for name in sorted(files, key=sizes.__getitem__)[:-4:-1]
        )
        got = f"{size_mib:.1f} MiB of code in {root} (the largest, in MiB: {largest})"
        hint = f"a line in .amlignore for what no run needs, or {KEY}.max_snapshot_mib={size_mib * 1.2:.0f}"
        raise ConfigError(explain(got=got, need=f"at most {max_mib:g} MiB, as each change is uploaded", hint=hint))
    digest = hashlib.sha256()
    for name in files:
        content = hashlib.sha256((root / name).read_bytes()).hexdigest()
        digest.update(f"{name}\0{content}\n".encode())
    return Snapshot(root=root, files=tuple(files), size_mib=size_mib, sha256=digest.hexdigest())


def copy_snapshot(snapshot: Snapshot, folder: Path) -> Snapshot:
    """The same files in a folder of their own, which replaces an earlier copy.

    For a pipeline, each of whose steps the SDK takes for code of its own: it would go through the whole tree for each,
    and through all that is left out, such as a virtual environment.

    Raises:
        ConfigError: something else is there, or the copy would become part of the code.
    """
    check_copy(folder, snapshot.root)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / MARK).touch()
    for name in snapshot.files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(snapshot.root / name, folder / name)
    return replace(snapshot, root=folder)


def check_copy(folder: Path, root: Path, *beside: Path) -> None:
    """Look whether a copy of the code in ``root`` can be in a place, and what goes with it ``beside``.

    Raises:
        ConfigError: something else than an earlier copy is there, or the copy would become part of the code.
    """
    _check_left_out(folder, root)
    if (folder / MARK).is_file():
        return
    for path in (folder, *beside):
        if path.is_file() or path.is_symlink() or (path.is_dir() and any(path.iterdir())):
            got, need = f"{path}, which no pipeline has written", "a folder of the pipeline's own"
            raise ConfigError(explain(got=got, need=need, hint="folder=runs/pipeline_azure"))


def _check_left_out(folder: Path, root: Path) -> None:
    """Raise ConfigError where a folder lies in the code and no rule leaves it out."""
    if not folder.resolve().is_relative_to(root.resolve()):
        return
    inside = folder.resolve().relative_to(root.resolve())
    rules = _read_rules(_find_rules(root))
    if not any(rules.match_file(f"{place.as_posix()}/") for place in (inside, *inside.parents)):
        got, need = f"{folder}, which would go with the code of {root}", "a folder that is ignored, or elsewhere"
        raise ConfigError(explain(got=got, need=need, hint="folder=runs/pipeline_azure"))


def _find_rules(root: Path) -> Path | None:
    return next((root / name for name in IGNORE_FILES if (root / name).is_file()), None)


def list_files(root: Path) -> list[str]:
    """Paths, relative and with slashes, of the files that no rule of the ignore file excludes.

    Rules are read as Git reads them: the last that fits decides, ``!`` takes a file back in, and unlike in Git also
    one in an excluded folder. Links to folders are followed.
    """
    rules = _read_rules(_find_rules(root))
    takes_back = any(pattern.include is False for pattern in rules.patterns)
    found = []
    for folder, folders, names in os.walk(root, followlinks=True):
        place = Path(folder).relative_to(root)
        if not takes_back:
            folders[:] = [name for name in folders if not rules.match_file(f"{(place / name).as_posix()}/")]
        kept = [path for name in names if not rules.match_file(path := (place / name).as_posix())]
        found += [path for path in kept if (root / path).is_file()]  # no broken link, and nothing that would not end
    return sorted(found)


def _read_rules(path: Path | None) -> PathSpec[Any]:
    try:
        from pathspec import PathSpec
    except ImportError as error:
        raise MissingExtraError("pathspec", extra="azure") from error
    with warnings.catch_warnings():
        # The SDK reads its files with this class too, whatever newer ones there are.
        warnings.filterwarnings("ignore", message="GitWildMatchPattern", category=DeprecationWarning)
        return PathSpec.from_lines("gitwildmatch", [] if path is None else path.read_text("utf-8").splitlines())


def describe_changes(root: Path) -> str | None:
    """The first files that differ from the last commit, and how many more; None for none, and without Git."""
    command = ["git", "status", "--porcelain", "--", "."]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    lines = [line[3:] for line in done.stdout.splitlines()]
    if not lines:
        return None
    more = f" and {len(lines) - 3} more" if len(lines) > 3 else ""
    return f"{', '.join(lines[:3])}{more}"


def check_clean(root: Path) -> None:
    """Raise ConfigError where the tree is not what was committed, as nobody could say later what was trained."""
    if changes := describe_changes(root):
        got, need = f"not committed: {changes}", "a commit, so that it can be said later what was trained"
        raise ConfigError(explain(got=got, need=need, hint=f"git commit, or {KEY}.allow_dirty=true"))

"""Checkpoints: written atomically, read as weights only, rebuilt from their own record."""

from __future__ import annotations

import errno
import os
import pickle
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO

from cellvision.bundle import compute_sha256
from cellvision.errors import BundleError, CellvisionError, ConfigError, DataError, explain, read_first_line
from cellvision.models.base import SegNet
from cellvision.models.build import build_model
from cellvision.models.structure.restore import restore_structure
from cellvision.training.net_record import RECORD_KEY, NetRecord

NET_PREFIX = "net."
_DAMAGE = (
    pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError, TypeError, IndexError, AttributeError,
    NotImplementedError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What damaged files are answered with, beside the error of a place that a file does not have."""
_RESUMED = {
    "state_dict": dict, "loops": dict, "callbacks": dict, "optimizer_states": list, "lr_schedulers": list,
    "pytorch-lightning_version": str,
}  # fmt: skip
"""What Lightning goes on from, and of which kind."""
BEST, LAST, PREVIOUS = "best.ckpt", "last.ckpt", "previous.ckpt"


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's checkpoint files, never half written and never unpickled.

    Each save goes to a temporary file in the same folder, is flushed to disk and takes the final name in one step:
    a process killed at any moment leaves the previous checkpoint or the new one, nothing else.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write ``checkpoint`` to ``path``; the previous file survives any failure."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            with draft.open("wb") as stream:
                torch.save(checkpoint, stream)
                stream.flush()
                os.fsync(stream.fileno())
            draft.replace(target)
        except (OSError, RuntimeError) as error:
            cause = _find_os_error(error)
            if cause is None:
                raise
            raise DataError(
                explain(
                    got=f"cannot write {target} ({cause.strerror})",
                    need="a writable folder with free space",
                    hint="another run_dir; the previous checkpoint is untouched",
                )
            ) from error
        finally:
            draft.unlink(missing_ok=True)
        _sync_folder(target.parent)

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The checkpoint as tensors and plain data, always weights only and on the CPU first."""
        return load_plain_checkpoint(Path(path))

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Delete a checkpoint file; one already gone is no error."""
        Path(path).unlink(missing_ok=True)


def check_start(before: dict[str, Any], checkpoint: Path) -> None:
    """Raise ConfigError where a checkpoint is not the one that a run began with; a file only moved is the same.

    Args:
        before: settings of the run; without "ckpt_sha256" nothing is known of its start.
        checkpoint: as it is now.
    """
    known = before.get("ckpt_sha256")
    sha256 = compute_sha256(checkpoint) if checkpoint.is_file() else None
    if known in (None, sha256):
        return
    found = ", which is no file" if sha256 is None else f" with SHA-256 {sha256[:12]}.."
    need = f"{before['ckpt']} with SHA-256 {known[:12]}.., which the run began with"
    same = "the same file again" if before["ckpt"] == str(checkpoint) else f"ckpt={before['ckpt']}"
    raise ConfigError(explain(got=f"ckpt={checkpoint}{found}", need=need, hint=f"{same}, or a new run_dir"))


def check_script(before: dict[str, Any], resume: str, *, is_compression: bool) -> None:
    """Raise ConfigError where the run to be resumed is of the other script.

    Args:
        before: settings of that run; {} where they are not known.
        resume: its checkpoint.
        is_compression: whether this is a run of compress.py, whose settings hold what it begins with.
    """
    if before and ("ckpt_sha256" in before) != is_compression:
        this, other = ("compress.py", "train.py") if is_compression else ("train.py", "compress.py")
        got = f"resume={resume}, which is of a run of {other}"
        best, run = Path(resume).with_name(BEST), Path(resume).parent.parent
        again = f"python {other} run_dir={run} resume=auto"
        hint = f"ckpt={best} and a new run_dir, to compress it" if is_compression else again
        raise ConfigError(explain(got=got, need=f"one of {this}", hint=hint))


def remove_drafts(folder: Path) -> None:
    """Delete the temporary files that killed runs left in a checkpoint folder."""
    for draft in folder.glob(".*.ckpt.*.tmp"):
        draft.unlink(missing_ok=True)


def is_archive(path: Path) -> bool:
    """Whether a file can be a checkpoint at all: a ZIP archive, as torch writes; OSError where it cannot be read."""
    with path.open("rb") as stream:
        try:
            return zipfile.is_zipfile(stream)
        except zipfile.BadZipFile:
            return False


def load_plain_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's tensors and plain data, loaded on the CPU with nothing executed.

    Raises:
        DataError: no such file, truncated, or holding anything but weights and plain data.
        OSError: the system does not let it be read.
    """
    if not path.is_file():
        raise DataError(explain(got=f"no checkpoint {path}", need="a file", hint="runs/latest/checkpoints/best.ckpt"))
    if not is_archive(path):
        raise DataError(
            explain(got=f"{path} is truncated or no checkpoint", need="one of train.py", hint="best.ckpt of the run")
        )
    try:
        with zipfile.ZipFile(path) as parts:
            if broken := parts.testzip():  # torch takes what is there, and does not look at sums
                raise zipfile.BadZipFile(f"{broken} has changed since it was written")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (*_DAMAGE, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise DataError(
            explain(
                got=f"{path} cannot be loaded as weights only ({read_first_line(error)[:120]})",
                need="tensors and plain data, nothing executable",
                hint="a checkpoint of train.py; convert others on a machine you trust",
            )
        ) from error
    if not isinstance(checkpoint, dict):
        got = f"{path} holds a {type(checkpoint).__name__}"
        raise DataError(explain(got=got, need="a checkpoint of train.py", hint="best.ckpt of the run"))
    return checkpoint


def load_net(path: Path) -> tuple[SegNet, NetRecord]:
    """The trained net of a checkpoint in evaluation mode on the CPU, with its record.

    Raises:
        DataError: unreadable, or not written by this library, or weights that do not fit the recorded structure or are
            not finite.
    """
    checkpoint = load_plain_checkpoint(path)
    if RECORD_KEY not in checkpoint or "state_dict" not in checkpoint:
        raise DataError(
            explain(got=f"{path} has no {RECORD_KEY!r} record", need="one of train.py", hint="best.ckpt of the run")
        )
    return _rebuild(checkpoint, path)


def _rebuild(checkpoint: dict[str, Any], path: Path) -> tuple[SegNet, NetRecord]:
    """What `load_net` gives of a checkpoint that was read from a path."""
    try:
        record = NetRecord.from_plain(checkpoint[RECORD_KEY])
        net = build_model(**record.net)
        restore_structure(net, record.recipe)
        state = checkpoint["state_dict"]
        weights = {k.removeprefix(NET_PREFIX): v for k, v in state.items() if k.startswith(NET_PREFIX)}
        net.load_state_dict(weights)
    except BundleError as error:
        raise DataError(f"the record of {path} has {error}") from error
    except (CellvisionError, RuntimeError, AttributeError, TypeError, ValueError, KeyError) as error:
        why, _, _ = read_first_line(error).partition("; need ")
        raise DataError(
            explain(
                got=f"{path} does not fit its own record ({why})",
                need="weights and structure of one net",
                hint="the release that wrote it, or train again",
            )
        ) from error
    if broken := [name for name, value in weights.items() if not value.isfinite().all()]:
        got = f"{path} with {broken[0]} that is not finite"
        raise DataError(
            explain(got=got, need="the weights of a net that learned", hint="an earlier checkpoint of the run")
        )
    return net.eval(), record


def replace_in_record(path: Path, **changes: Any) -> None:
    """Give some entries of a checkpoint's record new plain values; the file is replaced in one step."""
    checkpoint = load_plain_checkpoint(path)
    checkpoint[RECORD_KEY] = {**checkpoint[RECORD_KEY], **changes}
    AtomicCheckpointIO().save_checkpoint(checkpoint, path)


def _find_os_error(error: BaseException | None) -> OSError | None:
    """An error of the system, or the one behind another: torch's writer tells of a full disk in words of its own."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error


def _sync_folder(folder: Path) -> None:
    """Make the new name itself durable, where the system allows opening a folder."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def find_newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a run that can be read, or None before the first; a damaged newer one is named.

    Example:
        >>> find_newest_checkpoint(Path("no/such/run/checkpoints"))
    """
    for name in (LAST, PREVIOUS):
        path = folder / name
        if not path.exists():
            continue
        try:
            load_plain_checkpoint(path)
        except DataError as error:
            print(f"warning: passing over a damaged checkpoint: {error}", file=sys.stderr)
            continue
        return path
    return None


def choose_resume(resume: str | None, folder: Path) -> str | None:
    """The checkpoint that a run continues from, or None to begin.

    Args:
        resume: None, "auto" for the newest usable checkpoint of ``folder``, or a checkpoint file.
        folder: checkpoint folder of the run.

    Raises:
        ConfigError: the folder holds a run that is not to be resumed, or the file is no checkpoint of a run.
        DataError: the file cannot be read.
    """
    if resume is None:
        if folder.exists():
            got = f"{folder.parent} holds a run"
            raise ConfigError(explain(got=got, need="a new folder", hint="resume=auto to continue that run"))
        return None
    chosen = find_newest_checkpoint(folder) if resume == "auto" else Path(resume)
    if chosen is None and any((folder / name).exists() for name in (LAST, PREVIOUS)):
        others = sorted(path.name for path in folder.glob("*.ckpt") if path.name not in (LAST, PREVIOUS))
        got = f"{folder} with no {LAST} or {PREVIOUS} that can be read"
        need = f"one of them, as a run begun anew would overwrite {', '.join(others) or 'them'}"
        raise DataError(explain(got=got, need=need, hint="a copy of one, or a new run_dir"))
    print(f"resume: {chosen or 'no checkpoint yet, starting from the beginning'}")
    if chosen is None:
        return None
    checkpoint = load_plain_checkpoint(chosen)
    if RECORD_KEY not in checkpoint:
        raise ConfigError(explain(got=f"resume={chosen}", need="a checkpoint of train.py", hint="resume=auto"))
    if missing := _find_missing(checkpoint):
        got, need = f"resume={chosen} without its {missing}", "a checkpoint as train.py wrote it"
        raise DataError(explain(got=got, need=need, hint="another checkpoint of the run, or a new run_dir"))
    _rebuild(checkpoint, chosen)
    return str(chosen)


def _find_missing(checkpoint: dict[str, Any]) -> str:
    """What a run cannot go on without and a checkpoint does not have, or not as Lightning wrote it; "" where whole."""
    for key, kind in _RESUMED.items():
        if not isinstance(checkpoint.get(key), kind) or not (checkpoint[key] or key == "callbacks"):
            return key
    states = [(key, state) for key, state in checkpoint["callbacks"].items()]
    states += [(key, state) for key in ("optimizer_states", "lr_schedulers") for state in checkpoint[key]]
    states.append(("loops", checkpoint["loops"].get("fit_loop")))
    return next((key for key, state in states if not (isinstance(state, dict) and state)), "")

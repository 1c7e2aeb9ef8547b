"""Rules for resolved settings, plain dicts and lists by now: what may be run, and what a resumed run may not change."""

from __future__ import annotations

import inspect
from contextlib import suppress
from importlib import import_module
from typing import Any

from cellvision.errors import ConfigError, explain, unknown_name

ALLOWED_MODULES = (
    "cellvision.bundle", "cellvision.compression", "cellvision.data", "cellvision.export.tensorrt.options",
    "cellvision.models.build", "cellvision.training.averaging", "cellvision.training.callbacks",
    "cellvision.training.distributed", "cellvision.training.history", "cellvision.training.optim",
    "cellvision.training.pictures", "cellvision.training.tracking",
    "lightning.pytorch.callbacks", "lightning.pytorch.loggers",
)  # fmt: skip
"""Where a ``_target_`` may come from: settings beside a checkpoint must not run other code. Classes and ``build_``
functions only, and Lightning's Trainer."""

FIXED = (
    "model", "optim", "mixing", "splitting", "seed", "live_threshold", "monitor", "monitor_mode", "ckpt_sha256",
    "compress",
)  # fmt: skip
FIXED_DATA = (
    "augment", "normalization", "percentiles", "count_range", "batch_size", "draws_per_epoch", "balanced",
    "fractions", "group_by_aspect", "overlap",
)  # fmt: skip
FIXED_TRAINER = ("precision", "gradient_clip_val", "accumulate_grad_batches", "deterministic")


def check_targets(plain: Any, path: str) -> None:
    """Raise ConfigError for any ``_target_`` in resolved settings that is not ours to run."""
    if isinstance(plain, dict):
        for key, value in plain.items():
            check_targets(value, f"{path}.{key}")
    elif isinstance(plain, list | tuple):
        for at, value in enumerate(plain):
            check_targets(value, f"{path}[{at}]")
    elif path.endswith("._target_") and not _is_allowed(str(plain)):
        need = f"a class of {', '.join(ALLOWED_MODULES)}"
        raise ConfigError(explain(got=f"{path}={plain}", need=need, hint="write a small class there"))


def check_arguments(plain: Any, path: str) -> None:
    """Raise ConfigError, with the closest name, for a setting that the class of its ``_target_`` does not take."""
    if isinstance(plain, list | tuple):
        for at, value in enumerate(plain):
            check_arguments(value, f"{path}[{at}]")
    elif isinstance(plain, dict):
        known = [f"{path}.{name}" for name in _list_arguments(str(plain.get("_target_", "")))]
        for key, value in plain.items():
            if known and not str(key).startswith("_") and f"{path}.{key}" not in known:
                raise ConfigError(unknown_name("setting", f"{path}.{key}", known))
            check_arguments(value, f"{path}.{key}")


def _list_arguments(target: str) -> list[str]:
    """Names that a target takes; none where it takes any, or does not exist, which is found when it is built."""
    module, _, name = target.rpartition(".")
    found = None
    with suppress(ImportError, ValueError):
        found = getattr(import_module(module), name, None)
    parameters = inspect.signature(found).parameters.values() if found else ()
    return [] if any(p.kind is p.VAR_KEYWORD for p in parameters) else [p.name for p in parameters]


def _is_allowed(target: str) -> bool:
    module, _, name = target.rpartition(".")
    known = any(module == allowed or module.startswith(f"{allowed}.") for allowed in ALLOWED_MODULES)
    return target == "lightning.pytorch.Trainer" or (known and (name[:1].isupper() or name.startswith("build_")))


def collect_fixed(plain: dict[str, Any]) -> dict[str, Any]:
    """Those of all settings that a resumed run must have in common with its beginning."""
    kept = {key: plain[key] for key in FIXED if key in plain}
    kept["data"] = {key: plain["data"].get(key) for key in FIXED_DATA}
    kept["trainer"] = {key: plain["trainer"].get(key) for key in FIXED_TRAINER}
    return kept

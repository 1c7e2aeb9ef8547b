"""Rules for resolved settings, plain dicts and lists by now: what may be run, and what a resumed run may not change."""

from __future__ import annotations

from typing import Any

from cellvision.errors import ConfigError, explain

ALLOWED_MODULES = (
    "cellvision.bundle", "cellvision.data", "cellvision.models.build", "cellvision.training.callbacks",
    "cellvision.training.history", "cellvision.training.optim", "cellvision.training.pictures",
    "lightning.pytorch.callbacks", "lightning.pytorch.loggers",
)  # fmt: skip
"""Where a ``_target_`` may come from: settings beside a checkpoint must not run other code. Classes and ``build_``
functions only, and Lightning's Trainer."""

FIXED = ("model", "optim", "mixing", "splitting", "seed", "live_threshold", "monitor", "monitor_mode")
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


def _is_allowed(target: str) -> bool:
    module, _, name = target.rpartition(".")
    known = any(module == allowed or module.startswith(f"{allowed}.") for allowed in ALLOWED_MODULES)
    return target == "lightning.pytorch.Trainer" or (known and (name[:1].isupper() or name.startswith("build_")))


def collect_fixed(plain: dict[str, Any]) -> dict[str, Any]:
    """Those of all settings that a resumed run must have in common with its beginning."""
    kept = {key: plain[key] for key in FIXED}
    kept["data"] = {key: plain["data"].get(key) for key in FIXED_DATA}
    kept["trainer"] = {key: plain["trainer"].get(key) for key in FIXED_TRAINER}
    return kept

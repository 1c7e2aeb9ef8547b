"""What a resumed run may not have changed since it began."""

from __future__ import annotations

from typing import Any

from cellvision.errors import ConfigError, explain

PER_STEP = "images_per_step"
"""Among a run's settings: images per optimizer step, of all its processes together."""


def check_drift(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise ConfigError, with all that changed, where a run cannot go on from a record with what it has now."""
    if drift := find_drift(before, now):
        need, hint = "the settings the run began with", "a new run_dir"
        if any(change.startswith(PER_STEP) for change in drift):
            hint = f"other data.batch_size or trainer.accumulate_grad_batches, or {hint}"
        raise ConfigError(explain(got="; ".join(drift), need=need, hint=hint))


def find_drift(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What changed between two records of ``NetRecord.to_plain``, in words: net, settings, training data.

    A run may go on with other processes than before, as long as all of them together have as many images in each step.
    """
    settings = _without_shares(before.get("settings", {}), now["settings"])
    pairs = (("model.", [before.get("net", {}), now["net"]]), ("", settings))
    changes = [
        f"{name}: {old!r} became {new!r}" for prefix, both in pairs for name, old, new in _compare(*both, path=prefix)
    ]
    return changes + (["the training data changed"] if before["fingerprint"] != now["fingerprint"] else [])


def _without_shares(*both: dict[str, Any]) -> list[dict[str, Any]]:
    """Settings before and now, without how the images of a step are shared out; a run of old did not note their sum."""
    if not all(PER_STEP in settings for settings in both):
        return [{key: value for key, value in settings.items() if key != PER_STEP} for settings in both]
    shares = {"data": "batch_size", "trainer": "accumulate_grad_batches"}
    return [
        {
            key: {name: value for name, value in part.items() if name != shares[key]} if key in shares else part
            for key, part in settings.items()
        }
        for settings in both
    ]


def _compare(before: Any, now: Any, *, path: str) -> list[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted(before.keys() | now.keys())
        return [found for key in keys for found in _compare(before.get(key), now.get(key), path=f"{path}{key}.")]
    return [] if before == now else [(path.rstrip("."), before, now)]

"""Which steps can follow each other, and the phases of a run that they make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cellvision.compression.step import Step
from cellvision.errors import ConfigError, explain
from cellvision.training.phases import BASE, Phase

ORDER = ("prune", "distill", "quantize")

_WHY_NOT = {
    ("prune", "distill"): "channels would go that have just learned from the teacher",
    ("prune", "quantize"): "what was learned of rounding does not hold for a net that loses channels",
    ("distill", "quantize"): "a net that rounds has only small steps left to learn in",
    ("quantize", "quantize"): "it rounds already",
}


def check_order(steps: Sequence[Step], before: Sequence[Mapping[str, Any]] = ()) -> None:
    """Raise ConfigError where a step cannot follow those before it.

    Args:
        steps: of a run, in order.
        before: records of the steps that its net has behind it.
    """
    names = [step.name for step in steps]
    if not names:
        hint = "compress=[prune,distill,qat]"
        raise ConfigError(explain(got="no step of compression", need="one or more", hint=hint))
    for name in names:
        if names.count(name) > 1:
            got, need = f"{name} twice in one run", "each step once"
            raise ConfigError(explain(got=got, need=need, hint=f"one {name} of more epochs, or another run after it"))
    last = max((ORDER.index(record["step"]) for record in before if record["step"] == "quantize"), default=-1)
    behind = "the checkpoint's net was quantised already" if last >= 0 else ""
    for name in names:
        at = ORDER.index(name)
        if at <= last:
            why = _WHY_NOT[name, ORDER[last]]
            keys = ",".join(step.key for step in sorted(steps, key=lambda step: ORDER.index(step.name)))
            hint = "a checkpoint from before that" if behind else f"compress=[{keys}]"
            got = f"{name} after {ORDER[last]}: {behind or why}"
            raise ConfigError(explain(got=got, need=" < ".join(ORDER), hint=hint))
        last = at


def plan_phases(steps: Sequence[Step], *, base_epochs: int = 0) -> tuple[Phase, ...]:
    """The phases of a run: training before compression, if there is any, then each step."""
    base = [Phase(name=BASE, epochs=base_epochs)] if base_epochs else []
    return (*base, *(Phase(name=step.name, epochs=step.epochs, lr=step.lr) for step in steps))

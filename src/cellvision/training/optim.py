"""Optimizer and learning-rate schedule from a few plain numbers."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LinearLR, ReduceLROnPlateau

from cellvision.errors import ConfigError, check_choice, explain
from cellvision.training.phases import Phase

OPTIMIZERS = ("adamw", "sgd")
Mode = Literal["min", "max"]
SCHEDULES = ("constant", "cosine", "warm_restarts", "cyclic", "polynomial", "steps", "plateau")


@dataclass(frozen=True, kw_only=True)
class Optim:
    """Optimizer and schedule.

    Attributes:
        name: one of OPTIMIZERS.
        lr: peak learning rate, for a batch of ``reference_batch`` where that is given.
        reference_batch: images per step that ``lr`` was chosen for; the rate is multiplied by the run's images per
            step over all devices / ``reference_batch`` (linear scaling, Goyal et al. 2017, arXiv 1706.02677). None
            takes ``lr`` as it is.
        weight_decay: on weights of two or more dimensions; norms and biases are spared.
        momentum: of SGD (Nesterov).
        schedule: one of SCHEDULES. cosine: Loshchilov and Hutter 2017, arXiv 1608.03983, without restarts;
            warm_restarts: the same with ``cycles`` of equal length; cyclic: triangles, Smith 2017, arXiv 1506.01186;
            polynomial: DeepLab's, arXiv 1606.00915; steps: times ``factor`` at each of ``milestones``; plateau: times
            ``factor`` when the monitored score stalls.
        warmup: share of all steps with a linear rise from ``lr / 100``, in [0, 1).
        milestones: of steps: shares of the run, rising, each in (0, 1).
        floor: lowest learning rate as a share of ``lr``, in [0, 1].
        power: exponent of the polynomial schedule.
        cycles: number of cycles of warm_restarts and cyclic.
        factor, patience: plateau: multiply by ``factor`` after ``patience`` validations without a better metric.

    Raises:
        ConfigError: unknown name or a number out of range.
    """

    name: str = "adamw"
    lr: float = 1e-3
    reference_batch: int | None = None
    weight_decay: float = 1e-4
    momentum: float = 0.9
    schedule: str = "cosine"
    warmup: float = 0.05
    floor: float = 0.0
    power: float = 0.9
    cycles: int = 4
    milestones: tuple[float, ...] = (0.67, 0.89)
    factor: float = 0.5
    patience: int = 5

    def __post_init__(self) -> None:
        check_choice("optim.name", self.name, OPTIMIZERS)
        check_choice("optim.schedule", self.schedule, SCHEDULES)
        for key in ("lr", "weight_decay", "momentum", "warmup", "floor", "power", "factor"):
            if isinstance(getattr(self, key), str):
                got = f"optim.{key}={getattr(self, key)}"
                raise ConfigError(explain(got=got, need="a number", hint=f"optim.{key}={getattr(Optim, key):g}"))
        ranges = {
            "lr": (self.lr > 0, "a number above 0", 1e-3),
            "weight_decay": (self.weight_decay >= 0, "a number from 0 up", 1e-4),
            "warmup": (0 <= self.warmup < 1, "a share in [0, 1)", 0.05),
            "floor": (0 <= self.floor <= 1, "a share in [0, 1]", 0.0),
            "momentum": (0 <= self.momentum < 1, "a share in [0, 1)", 0.9),
            "power": (self.power > 0, "a number above 0", 0.9),
            "patience": (self.patience >= 0, "a whole number from 0 up", 5),
            "cycles": (self.cycles >= 1, "a whole number from 1 up", 4),
            "factor": (0 < self.factor < 1, "a share in (0, 1)", 0.5),
            "reference_batch": (self.reference_batch is None or self.reference_batch >= 1, "a number from 1 up", 16),
            "milestones": (_is_rising((0.0, *self.milestones, 1.0)), "rising shares in (0, 1)", "[0.67,0.89]"),
        }
        for key, (fine, need, example) in ranges.items():
            if not fine:
                got = f"optim.{key}={getattr(self, key)}"
                raise ConfigError(explain(got=got, need=need, hint=f"optim.{key}={example}"))

    def with_lr(self, lr: float) -> Optim:
        """The same settings with another peak learning rate, to be taken as it is."""
        return replace(self, lr=lr, reference_batch=None)

    def scale_lr(self, images_per_step: int) -> Optim:
        """The same settings with the learning rate for so many images per step over all devices.

        Example:
            >>> Optim(lr=0.01, reference_batch=16).scale_lr(4).lr
            0.0025
        """
        if self.reference_batch is None:
            return self
        return replace(self, lr=self.lr * images_per_step / self.reference_batch, reference_batch=None)

    def build_optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        """The optimizer over a module's trainable parameters, in two groups: with and without weight decay."""
        groups = _split_decay(module.parameters(), self.weight_decay)
        if self.name == "sgd":
            return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=self.momentum > 0)
        return torch.optim.AdamW(groups, lr=self.lr)

    def refit(self, optimizer: torch.optim.Optimizer, module: nn.Module) -> None:
        """Let an optimizer of ``build_optimizer`` train the parameters that the module has by now, and no others.

        What it remembers of parameters that stay is kept; learning rates and schedules are untouched.
        """
        groups = _split_decay(module.parameters(), self.weight_decay)
        for old, new in zip(optimizer.param_groups, groups, strict=True):
            old["params"] = new["params"]
        stays = {parameter for group in groups for parameter in group["params"]}
        for parameter in [known for known in optimizer.state if known not in stays]:
            del optimizer.state[parameter]

    def build_schedules(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        total_steps: int,
        monitor: str,
        mode: Mode,
        phases: Sequence[Phase] = (),
    ) -> list[dict[str, Any]]:
        """Lightning's scheduler records for ``total_steps`` optimizer steps, in each of the phases from its beginning.

        ``plateau`` watches ``monitor`` and is stepped by the task itself, see ``SegmentationTask``.

        Raises:
            ConfigError: plateau in a run of several phases.
        """
        if phases and self.schedule == "plateau":
            got, need = "optim.schedule=plateau in a run of several phases", "a schedule that knows its length"
            raise ConfigError(explain(got=got, need=need, hint="optim.schedule=cosine"))
        if self.schedule != "plateau":
            factor = PhasedFactor(self, phases or [Phase(name="", epochs=1)], total_steps)
            # A lambda, because of other callables LambdaLR would put the attributes into checkpoints.
            shape = LambdaLR(optimizer, lambda step: factor(step))
            return [{"scheduler": shape, "interval": "step"}]
        warm_steps = round(self.warmup * total_steps)
        plateau = ReduceLROnPlateau(optimizer, mode=mode, factor=self.factor, patience=self.patience)
        records: list[dict[str, Any]] = [
            {"scheduler": plateau, "interval": "epoch", "monitor": monitor, "strict": False}
        ]
        if warm_steps > 1:
            rise = LinearLR(optimizer, start_factor=0.01, total_iters=warm_steps)
            records.insert(0, {"scheduler": rise, "interval": "step"})
        return records


class PhasedFactor:
    """Learning rate at a step as a share of the peak: in each phase the whole schedule, times the phase's share.

    Args:
        optim: the schedule.
        phases: in order.
        total_steps: optimizer steps of all of them together.

    Example:
        >>> phases = [Phase(name="train", epochs=2), Phase(name="prune", epochs=2, lr=0.1)]
        >>> factor = PhasedFactor(Optim(schedule="cosine", warmup=0.0), phases, total_steps=4)
        >>> [round(factor(step), 3) for step in range(4)]
        [1.0, 0.5, 0.1, 0.05]
    """

    def __init__(self, optim: Optim, phases: Sequence[Phase], total_steps: int) -> None:
        self.optim, self.phases = optim, phases
        epochs = list(accumulate((phase.epochs for phase in phases), initial=0))
        self.begins = [round(total_steps * done / epochs[-1]) for done in epochs]

    def __call__(self, step: int) -> float:
        """The share at an optimizer step, from 0 up."""
        at = min(bisect_right(self.begins, step) - 1, len(self.phases) - 1)
        first, length = self.begins[at], self.begins[at + 1] - self.begins[at]
        warm_steps = round(self.optim.warmup * length)
        return self.phases[at].lr * compute_lr_factor(self.optim, step - first, warm_steps, length)


def compute_lr_factor(optim: Optim, step: int, warm_steps: int, total_steps: int) -> float:
    """Learning rate at a step as a share of the peak, in [floor, 1].

    Args:
        optim: schedule, floor, power, cycles.
        step: 0 is the first optimizer step.
        warm_steps: steps of linear rise from 0.01 to 1.
        total_steps: steps of the whole run, warm-up included.

    Example:
        >>> [round(compute_lr_factor(Optim(schedule="cosine"), s, 0, 4), 3) for s in range(5)]
        [1.0, 0.854, 0.5, 0.146, 0.0]
    """
    if step < warm_steps:
        return 0.01 + 0.99 * step / warm_steps
    # Milestones are shares of the whole run, as published recipes give them; the other shapes begin after the rise.
    begin = 0 if optim.schedule == "steps" else warm_steps
    done = min(1.0, (step - begin) / max(1, total_steps - begin))
    return optim.floor + (1 - optim.floor) * _falling(optim, done)


def _falling(optim: Optim, done: float) -> float:
    """The schedule's own shape, from 1 to 0, over the share of the run that is done."""
    within_cycle = 1.0 if done >= 1.0 else (done * optim.cycles) % 1.0
    match optim.schedule:
        case "cosine":
            return (1 + math.cos(math.pi * done)) / 2
        case "warm_restarts":
            return (1 + math.cos(math.pi * within_cycle)) / 2
        case "cyclic":
            return abs(1 - 2 * within_cycle) if done < 1.0 else 1.0
        case "polynomial":
            return (1 - done) ** optim.power
        case "steps":
            return optim.factor ** sum(done >= milestone for milestone in optim.milestones)
        case _:
            return 1.0


def _is_rising(values: Sequence[float]) -> bool:
    return all(low < high for low, high in pairwise(values))


def _split_decay(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    trainable = [p for p in parameters if p.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]

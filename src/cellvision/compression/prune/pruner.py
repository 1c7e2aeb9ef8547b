"""Pruning a net to a target in one or more steps."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cellvision.compression.prune.choice import Chooser
from cellvision.compression.prune.cost import Cost, count_positions, weigh
from cellvision.compression.prune.cut import Cut, build_cut, count_numbers
from cellvision.compression.prune.gradients import GRADIENTS
from cellvision.compression.prune.options import PruneOptions
from cellvision.compression.prune.parts import Part, list_parts
from cellvision.compression.prune.runs import run_layers
from cellvision.errors import ConfigError, explain, read_first_line
from cellvision.models.base import SegNet, keep_modes

_HALVINGS = 20
"""A ratio is found to a millionth, finer than any channel of any net."""


@dataclass(frozen=True, kw_only=True)
class PruneStep:
    """What one step did.

    Attributes:
        step: its number, from 1.
        of: steps planned.
        cost: of the net behind it.
        macs, parameters: shares that are left of the net before the first step.
        widths: {layer: (channels before this step, channels left)} of the layers that lost some.
        replaced: parameters that are no longer in the net, for ``Cut.carry_optimizer``.
        cut: what was done, for averages and optimizers.
    """

    step: int
    of: int
    cost: Cost
    macs: float
    parameters: float
    widths: dict[str, tuple[int, int]]
    replaced: dict[nn.Parameter, tuple[str, nn.Parameter]]
    cut: Cut


class Pruner:
    """Takes channels from a net until a target is met.

    The net stays the same object with the same results' shapes; parameters that lose channels are new ones, so an
    optimizer has to be told (``Cut.carry_optimizer``), an average of weights to be cut as well (``Cut.apply``), and
    DistributedDataParallel to be made anew.

    Attributes:
        net: being pruned.
        done: steps done.
        cost: of the net before the first step.

    Example:
        >>> from cellvision.models.build import build_model
        >>> net = build_model(name="unet", in_channels=1, classes=("background", "cell"), widths=(8, 16))
        >>> pruner = Pruner(net, torch.zeros(1, 1, 32, 32), PruneOptions(macs=0.5))
        >>> round(pruner.step().macs, 1)
        0.5
    """

    def __init__(
        self,
        net: SegNet,
        image: Tensor,
        options: PruneOptions,
        *,
        counted: Tensor | None = None,
        state: dict[str, Any] | None = None,
    ) -> None:
        """Trace the net and look whether the target can be met.

        Args:
            net: to prune.
            image: (1, C, H, W) raw counts, on the net's device; large enough that no map shrinks to 1 px.
            options: see PruneOptions.
            counted: such an image, for which multiplications are counted; None for ``image``. Where masks are drawn
                for each cell, the share that they take of all is another one in a larger image.
            state: of ``state``, to go on after the steps it knows of with a net that has them behind it.

        Raises:
            ConfigError: nothing can be pruned, or not so much.
        """
        options.check_target()
        self.net, self.image, self.options = net, image, options
        self.positions = count_positions(net, image if counted is None else counted)
        self._parts = self._list_parts()
        if state is None:
            self.done, self.cost = 0, weigh(net, self.positions, {})
            self._widths = {part.name: part.width for part in self._parts}
        else:
            self.done, self.cost = int(state["done"]), Cost(**state["cost"])
            self._widths = dict(state["widths"])
        if state is None and options.importance not in GRADIENTS:  # those have no gradients yet
            self._check_target(self._build_chooser())

    @property
    def state(self) -> dict[str, Any]:
        """Plain data from which a pruner of the same options goes on."""
        return {"done": self.done, "cost": asdict(self.cost), "widths": dict(self._widths)}

    @property
    def is_done(self) -> bool:
        """Whether all steps are done."""
        return self.done >= self.options.steps

    @property
    def layers(self) -> set[str]:
        """Names that patterns of ``protected`` can fit: of all that makes channels."""
        return {each.name for part in self._parts for each in part.slices if each.is_out}

    def step(self) -> PruneStep:
        """The next step; see ``plan`` and ``apply``."""
        return self.apply(self.plan())

    def check_ratio(self) -> None:
        """Raise ConfigError for a ratio so small that no channel goes."""
        if self.options.ratio is not None and not self._build_chooser().choose(self.options.ratio):
            given = f"scope={self.options.scope} and round_to={self.options.round_to}"
            got = f"compress.prune.ratio={self.options.ratio}, by which no channel goes with {given}"
            hint = "a larger compress.prune.ratio, or compress.prune.round_to=1"
            raise ConfigError(explain(got=got, need="a ratio that takes some", hint=hint))

    def plan(self) -> Cut:
        """The cut of the next step, the same for the same weights and gradients.

        Raises:
            ConfigError: the last step cannot meet the target; gradients are missing; all steps are done; or the net
                does not run when it is cut as its layers seem to hang together.
        """
        if self.is_done:
            got = f"step {self.done + 1} of compress.prune.steps={self.options.steps}"
            raise ConfigError(
                explain(got=got, need="a step that was planned", hint=f"compress.prune.steps={self.done + 1}")
            )
        chooser = self._build_chooser()
        removed = chooser.choose(self._find_ratio(chooser))
        cut = build_cut(removed)
        self._check_runs(cut)
        return cut

    def apply(self, cut: Cut) -> PruneStep:
        """Make a cut of ``plan``, this net's or that of a process with an equal net."""
        before = {part.name: part.width for part in self._parts}
        replaced = cut.apply(self.net)
        self.done += 1
        self._parts = self._list_parts()
        cost = weigh(self.net, self.positions, {})
        widths = {part.name: (before[part.name], part.width) for part in self._parts}
        return PruneStep(
            step=self.done,
            of=self.options.steps,
            cost=cost,
            macs=cost.macs / self.cost.macs,
            parameters=cost.parameters / self.cost.parameters,
            widths={name: pair for name, pair in widths.items() if pair[0] != pair[1]},
            replaced=replaced,
            cut=cut,
        )

    def _list_parts(self) -> list[Part]:
        return list_parts(self.net, self.image, protected=self.options.protected)

    def _build_chooser(self) -> Chooser:
        return Chooser(self._parts, self.options, widths=self._widths)

    def _find_ratio(self, chooser: Chooser) -> float:
        """The smallest ratio of channels whose removal takes the net to where this step has to be."""
        share = self.options.share_done(self.done + 1)
        if self.options.ratio is not None:
            return self.options.ratio * share
        self._check_target(chooser)
        wanted = 1 - (1 - self._target[1]) * share
        ratio = find_ratio(lambda each: self._weigh(chooser, each) <= wanted)
        if self.done + 1 == self.options.steps:
            self._check_reached(self._weigh(chooser, ratio))
        return ratio

    @property
    def _target(self) -> tuple[str, float]:
        """What is to be reached: "macs" or "parameters", and the share to keep."""
        key = "macs" if self.options.macs is not None else "parameters"
        return key, getattr(self.options, key)

    def _weigh(self, chooser: Chooser, ratio: float) -> float:
        """Share of the first cost that a ratio would leave."""
        key, _ = self._target
        cost = weigh(self.net, self.positions, count_numbers(chooser.choose(ratio)))
        return getattr(cost, key) / getattr(self.cost, key)

    def _check_target(self, chooser: Chooser) -> None:
        if self.options.ratio is not None:
            return
        key, wanted = self._target
        lowest = self._weigh(chooser, 1.0)
        if lowest > wanted:
            got = f"compress.prune.{key}={wanted}, and {lowest:.2f} is left at the least ({self._tell_limits(chooser)})"
            hints = [f"compress.prune.{key}={lowest + 0.01:.2f}"] if lowest < 0.99 else []
            hints += ["compress.prune.round_to=1"] if self.options.round_to > 1 else []
            hints += [] if hints else ["fewer protected layers, or a larger compress.prune.max_ratio"]
            need = f"at least {lowest:.2f}" if lowest < 0.99 else "channels that may go"
            raise ConfigError(explain(got=got, need=need, hint=", or ".join(hints)))

    def _check_reached(self, found: float) -> None:
        key, wanted = self._target
        if wanted - found > self.options.tolerance:
            got = f"compress.prune.{key}={wanted}, and the widths there are leave {found:.3f} or too much"
            need = f"{wanted} within compress.prune.tolerance={self.options.tolerance}"
            enough = math.ceil(100 * (wanted - found)) / 100
            hint = (
                f"compress.prune.tolerance={enough}, a smaller compress.prune.round_to, or compress.prune.scope=global"
            )
            raise ConfigError(explain(got=got, need=need, hint=hint))

    def _tell_limits(self, chooser: Chooser) -> str:
        """What holds most of the cost that cannot be pruned away."""
        whole = sum(self._widths.values())
        closed = {part.name: part.kept_because for part in self._parts if part.kept_because}
        named = [name for name, why in closed.items() if why != "is a result of the net, or a gate"]
        kept = f"{len(closed)} of {len(self._parts)} layers keep their channels"
        which = f", besides results and gates {', '.join(named[:5])}" if named else ""
        lowest = sum(chooser.lowest.values())
        by = f"compress.prune.max_ratio={self.options.max_ratio} and compress.prune.round_to={self.options.round_to}"
        return f"{kept}{which}; of {whole} channels the others keep {lowest} by {by}"

    def _check_runs(self, cut: Cut) -> None:
        """Try the cut on a copy: nothing may be wrong with the net when it is found out."""
        before = _run(self.net, self.image)
        if not all(bool(each.isfinite().all()) for each in before):
            got = f"{self.net.spec.name}, which gives numbers that are not finite before it is cut"
            raise ConfigError(explain(got=got, need="a net that was trained well", hint="another ckpt"))
        trial = copy.deepcopy(self.net)
        cut.apply(trial)
        try:
            pairs = zip(before, _run(trial, self.image), strict=True)
            is_sound = all(a.shape == b.shape and bool(b.isfinite().all()) for a, b in pairs)
            why = "gives results of other shapes, or numbers that are not finite"
        except RuntimeError as error:
            is_sound, why = False, f"does not run ({read_first_line(error)})"
        if not is_sound:
            got = f"{self.net.spec.name} {why} when its layers are cut as the trace shows them"
            raise ConfigError(
                explain(got=got, need="layers that can be followed", hint="compress.prune.protected=[PATTERN]")
            )


@torch.no_grad()
def _run(net: SegNet, image: Tensor) -> tuple[Tensor, ...]:
    with keep_modes(net):
        return run_layers(net.eval(), image)


def find_ratio(is_enough: Callable[[float], bool], *, halvings: int = _HALVINGS) -> float:
    """The smallest ratio in 0..1 that is enough, from below to within 2**-halvings; 1 must be.

    Example:
        >>> round(find_ratio(lambda ratio: ratio >= 0.3), 5)
        0.3
    """
    low, high = 0.0, 1.0
    for _ in range(halvings):
        middle = (low + high) / 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high

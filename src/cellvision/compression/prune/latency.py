"""The ratio of channels to remove until a net is fast enough on this machine."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from cellvision.compression.prune.cost import count_cost
from cellvision.compression.prune.options import PruneOptions
from cellvision.compression.prune.pruner import Pruner
from cellvision.errors import ConfigError, explain
from cellvision.models.base import SegNet


@dataclass(frozen=True, kw_only=True)
class LatencyTrial:
    """A net that was tried.

    Attributes:
        ratio: share of the prunable channels that was removed.
        macs: share of the multiplications left.
        latency_ms: measured.
    """

    ratio: float
    macs: float
    latency_ms: float


@dataclass(frozen=True, kw_only=True)
class LatencySearch:
    """What a search found.

    Attributes:
        best: of those tried that met the target the one with the smallest ratio; set that as ``PruneOptions.ratio``.
        trials: every net tried, in order; the first is the net as it is.
    """

    best: LatencyTrial
    trials: tuple[LatencyTrial, ...]


def search_latency(
    net: SegNet,
    image: Tensor,
    measure: Callable[[SegNet], float],
    *,
    target_ms: float,
    options: PruneOptions,
    counted: Tensor | None = None,
    state: Mapping[str, Any] | None = None,
    gone: float = 0.0,
    trials: int = 7,
) -> LatencySearch:
    """The smallest ratio by which a net meets a latency, found by halving.

    Nets are pruned in one step from the weights there are, so that the net itself, pruned so before it is trained on,
    has the widths that were timed. Time falls by jumps where kernels prefer some widths, so the result is the best of
    what was tried and not of all there is.

    Args:
        net: stays as it is; copies are pruned, by its gradients where the importance looks at those.
        image: (1, C, H, W) raw counts, for tracing.
        measure: latency in ms of a net in evaluation mode, as it will be used: exported and run, or as it is.
        target_ms: at most so long.
        options: all but the target count; ``steps`` does not.
        counted: (1, C, H, W) raw counts that multiplications are counted on; None for ``image``.
        state: of a `Pruner` that took channels from the net before.
        gone: ratio that it took.
        trials: nets to measure besides the whole one and the smallest.

    Raises:
        ConfigError: the smallest net is too slow as well.
    """

    def attempt(ratio: float) -> LatencyTrial:
        trial = _copy_with_gradients(net)
        chosen = replace(options, ratio=ratio, macs=None, parameters=None, steps=1)
        pruner = Pruner(trial, image, chosen, counted=counted, state=None if state is None else {**state, "done": 0})
        return LatencyTrial(ratio=ratio, macs=pruner.step().macs, latency_ms=time(trial.eval()))

    def time(trial: SegNet) -> float:
        """What two of three times agree on: a neighbour's work makes one longer, and luck one shorter."""
        first, second = measure(trial), measure(trial)
        if (first <= target_ms) == (second <= target_ms):
            return max(first, second)
        return sorted((first, second, measure(trial)))[1]

    shown = image if counted is None else counted
    left = 1.0 if state is None else count_cost(net, shown).macs / state["cost"]["macs"]
    tried = [LatencyTrial(ratio=gone, macs=left, latency_ms=time(copy.deepcopy(net).eval()))]
    if tried[0].latency_ms > target_ms:
        tried.append(attempt(options.max_ratio))
        if tried[-1].latency_ms > target_ms:
            _refuse(target_ms, tried[0], tried[-1])
        low, high = gone, options.max_ratio
        for _ in range(trials):
            tried.append(attempt((low + high) / 2))
            low, high = (low, tried[-1].ratio) if tried[-1].latency_ms <= target_ms else (tried[-1].ratio, high)
    met = [trial for trial in tried if trial.latency_ms <= target_ms]
    return LatencySearch(best=min(met, key=lambda trial: trial.ratio), trials=tuple(tried))


def _copy_with_gradients(net: SegNet) -> SegNet:
    copied = copy.deepcopy(net)
    for own, theirs in zip(copied.parameters(), net.parameters(), strict=True):
        own.grad = theirs.grad
    return copied


def _refuse(target_ms: float, whole: LatencyTrial, smallest: LatencyTrial) -> None:
    times = f"{smallest.latency_ms:.4g} ms of {whole.latency_ms:.4g}"
    got = f"compress.prune.latency_ms={target_ms}, and with {smallest.macs:.0%} of the multiplications it is {times}"
    need = f"more than {smallest.latency_ms:.4g} ms, which is as fast as it became here"
    # Halfway, as less would leave no net to speak of; and a twentieth more at least, for times vary.
    enough = max((smallest.latency_ms + whole.latency_ms) / 2, 1.05 * smallest.latency_ms)
    hint = f"compress.prune.latency_ms={enough:.4g}, on a machine without other work"
    raise ConfigError(explain(got=got, need=need, hint=hint))

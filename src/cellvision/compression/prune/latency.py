"""The ratio of channels to remove until a net is fast enough on this machine."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

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
        ratio: the smallest ratio tried that met the target; set it as ``PruneOptions.ratio``.
        target_ms: asked for.
        trials: every net tried, in order; the first is the whole one, with ratio 0.
    """

    ratio: float
    target_ms: float
    trials: tuple[LatencyTrial, ...]


def search_latency(
    net: SegNet,
    image: Tensor,
    measure: Callable[[SegNet], float],
    *,
    target_ms: float,
    options: PruneOptions,
    trials: int = 7,
) -> LatencySearch:
    """The smallest ratio by which a net meets a latency, found by halving.

    Nets are pruned in one step from the weights there are, and only their time is looked at: it depends on widths, and
    hardly on which channels went. Time falls by jumps where kernels prefer some widths, so the result is the best of
    what was tried and not of all there is.

    Args:
        net: stays as it is; copies are pruned.
        image: (1, C, H, W) raw counts, for tracing.
        measure: latency in ms of a net in evaluation mode, as it will be used: exported and run, or as it is.
        target_ms: at most so long.
        options: all but the target count; ``steps`` does not.
        trials: nets to measure besides the whole one and the smallest.

    Raises:
        ConfigError: the smallest net is too slow as well.
    """

    def attempt(ratio: float) -> LatencyTrial:
        trial = copy.deepcopy(net)
        chosen = replace(options, ratio=ratio, macs=None, parameters=None, steps=1)
        macs = Pruner(trial, image, chosen).step().macs
        return LatencyTrial(ratio=ratio, macs=macs, latency_ms=measure(trial.eval()))

    tried = [LatencyTrial(ratio=0.0, macs=1.0, latency_ms=measure(copy.deepcopy(net).eval()))]
    if tried[0].latency_ms <= target_ms:
        return LatencySearch(ratio=0.0, target_ms=target_ms, trials=tuple(tried))
    low, high = 0.0, options.max_ratio
    tried.append(attempt(high))
    if (lowest := tried[-1]).latency_ms > target_ms:
        got = f"prune.latency_ms={target_ms}, and with {lowest.macs:.0%} of the multiplications it is "
        raise ConfigError(
            explain(
                got=f"{got}{lowest.latency_ms:.4g} ms of {tried[0].latency_ms:.4g}",
                need=f"at least {lowest.latency_ms:.4g} ms, which layers that cannot be pruned take",
                hint="a smaller net, smaller tiles, or a larger prune.max_ratio",
            )
        )
    for _ in range(trials):
        tried.append(attempt((low + high) / 2))
        low, high = (low, tried[-1].ratio) if tried[-1].latency_ms <= target_ms else (tried[-1].ratio, high)
    return LatencySearch(ratio=high, target_ms=target_ms, trials=tuple(tried))

"""Mixed precision: which layers stay float, by measurement, so that neither too much accuracy nor time is lost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from cellvision.errors import ConfigError, explain

SENSITIVITIES = ("alone", "others")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What rounding may cost at most; None is no limit.

    Attributes:
        points: of the score, before any training.
        latency_ms: time of the rounded net. It is never exceeded; points are where not enough layers can stay float.
    """

    points: float | None = None
    latency_ms: float | None = None

    def is_enough(self, one: Trial) -> bool:
        """Whether no more layers have to stay float; never where only the time is limited."""
        return self.points is not None and one.points <= self.points

    def is_fast(self, one: Trial) -> bool:
        """Whether a net is within the time."""
        return self.latency_ms is None or (one.latency_ms is not None and one.latency_ms <= self.latency_ms)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A number of the costliest layers kept float.

    Attributes:
        count: that number.
        points: of the score that are lost by rounding the others, without training.
        latency_ms: measured of that net; None where no time was asked for.
    """

    count: int
    points: float
    latency_ms: float | None = None

    def to_words(self) -> str:
        """What was measured."""
        return f"{self.points:.2f} points lost" + ("" if self.latency_ms is None else f", {self.latency_ms:.4g} ms")


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """What rounding one layer costs.

    Attributes:
        layer: its name.
        points: of the score that are lost by it.
        macs: its share of the multiplications of all layers that can round.
        kept: whether it stays float.
    """

    layer: str
    points: float
    macs: float
    kept: bool = False


@dataclass(frozen=True, kw_only=True)
class Mixed:
    """How the layers that stay float were found.

    Attributes:
        layers: most costly first; empty where all could be rounded.
        kept: names of those that stay float.
        chosen: what was measured with these.
        budget: what it was to cost at most.
        met: whether the points lost are within the budget, if one is set; the time always is.
        tried: each try, in order.
        float_macs: share of the multiplications that stay float. It says where time may be lost, not how much: between
            float and rounded layers all values are converted.
        sensitivity: how the cost of a layer was measured.
    """

    layers: tuple[LayerCost, ...]
    kept: tuple[str, ...]
    chosen: Trial
    budget: Budget
    met: bool
    tried: tuple[Trial, ...]
    float_macs: float
    sensitivity: str

    def to_record(self) -> dict[str, Any]:
        """Plain data for a checkpoint; a number of points that is none is None."""
        plain = {"layers": [_plain(one) for one in self.layers], "tried": [_plain(one) for one in self.tried]}
        return asdict(self) | plain | {"kept": list(self.kept), "chosen": _plain(self.chosen)}

    def to_words(self) -> str:
        """What stays float and what that costs, of how much; a budget that is missed is named first."""
        points, time, one = self.budget.points, self.budget.latency_ms, self.chosen
        words = f"{one.count} layers stay float: {one.points:.2f} points lost"
        if points is not None:
            words += f" of {points:g} allowed"
        if one.latency_ms is not None:
            words += f", {one.latency_ms:.4g} ms of {time:g} allowed"
        if self.met:
            return words
        is_short = not all(self.budget.is_fast(one) for one in self.tried)
        within = f" within compress.qat.budget_ms={time:g}" if is_short else ""
        return f"compress.qat.budget_points={points:g} is missed{within}: {words}"


def choose_float(
    lose: Callable[[Sequence[str]], float],
    layers: Sequence[str],
    macs: Mapping[str, int],
    *,
    budget: Budget,
    time: Callable[[Sequence[str]], float] | None = None,
    sensitivity: str = "alone",
    tell: Callable[[str], None] | None = None,
) -> Mixed:
    """Which of the costliest layers stay float.

    The fewest with which no more points are lost than may be; where no number of points is given, as many of those that
    cost any as the time allows. If what may be lost cannot be kept to within the time, that of the tries within the
    time is taken that loses least.

    Every layer is measured once, if rounding all is too much; then the number of layers to keep is halved in, each time
    by rounding all others. That finds the fewest where the loss falls with each layer more that stays float; where it
    does not, a number that is enough.

    Args:
        lose: points lost when all layers round but those of these names.
        layers: that can round.
        macs: multiplications by layer.
        budget: at most so many points, so long, or both.
        time: latency in ms when all layers round but those of these names; needed where the time is limited.
        sensitivity: one of SENSITIVITIES.
        tell: called with a line on the progress.

    Raises:
        ConfigError: the time is exceeded with all layers rounded.
    """
    say = tell or (lambda line: None)

    def attempt(names: Sequence[str]) -> Trial:
        latency_ms = None if time is None or budget.latency_ms is None else time(names)
        if latency_ms is not None and not names:
            _check_time(latency_ms, budget)
        one = Trial(count=len(names), points=lose(names), latency_ms=latency_ms)
        say(f"{f'{one.count} layers kept float' if names else f'all {len(layers)} layers rounded'}: {one.to_words()}")
        return one

    tried, ranked = [attempt([])], list[LayerCost]()
    if not budget.is_enough(tried[0]):
        ranked = _rank(lose, layers, macs, lost=tried[0].points, sensitivity=sensitivity, tell=say)
        low, high = 0, _count_most(ranked, budget)
        while high - low > 1:
            count = (low + high) // 2
            tried.append(attempt([one.layer for one in ranked[:count]]))
            fewer = budget.is_enough(tried[-1]) or not budget.is_fast(tried[-1])
            low, high = (low, count) if fewer else (count, high)
    return _conclude(ranked, tried, budget, sensitivity)


def _check_time(latency_ms: float, budget: Budget) -> None:
    """Raise ConfigError where the fastest net, with all layers rounded, is too slow."""
    assert budget.latency_ms is not None
    if latency_ms > budget.latency_ms:
        got = f"compress.qat.budget_ms={budget.latency_ms:g}, and with all layers rounded it is {latency_ms:.4g} ms"
        need = f"at least {latency_ms:.4g} ms, or a smaller net"
        enough = math.ceil(11 * latency_ms) / 10  # a tenth more, for times vary
        raise ConfigError(explain(got=got, need=need, hint=f"compress.qat.budget_ms={enough:g}"))


def _count_most(ranked: Sequence[LayerCost], budget: Budget) -> int:
    """One more than may stay float: something has to round, and time is not spent on layers that cost nothing."""
    if budget.points is not None:
        return len(ranked)
    return min(len(ranked), 1 + sum(not one.points <= 0 for one in ranked))


def _conclude(ranked: Sequence[LayerCost], tried: Sequence[Trial], budget: Budget, sensitivity: str) -> Mixed:
    fast = [one for one in tried if budget.is_fast(one)]
    enough = [one for one in fast if budget.is_enough(one)]
    if budget.points is None:
        chosen = max(fast, key=lambda one: one.count)
    elif enough:
        chosen = min(enough, key=lambda one: one.count)
    else:
        chosen = min(fast, key=lambda one: (np.nan_to_num(one.points, nan=np.inf), one.count))
    costs = [replace(one, kept=place < chosen.count) for place, one in enumerate(ranked)]
    return Mixed(
        layers=tuple(costs),
        kept=tuple(one.layer for one in costs if one.kept),
        chosen=chosen,
        budget=budget,
        met=budget.points is None or bool(enough),
        tried=tuple(tried),
        float_macs=sum(one.macs for one in costs if one.kept),
        sensitivity=sensitivity,
    )


def _rank(
    lose: Callable[[Sequence[str]], float],
    layers: Sequence[str],
    macs: Mapping[str, int],
    *,
    lost: float,
    sensitivity: str,
    tell: Callable[[str], None],
) -> list[LayerCost]:
    total = sum(macs.get(layer, 0) for layer in layers) or 1
    found = []
    for number, layer in enumerate(layers, start=1):
        others = [other for other in layers if other != layer]
        points = lost if not others else lose(others) if sensitivity == "alone" else lost - lose([layer])
        found.append(LayerCost(layer=layer, points=points, macs=macs.get(layer, 0) / total))
        if number % 10 == 0 or number == len(layers):
            tell(f"sensitivity: {number} of {len(layers)} layers")
    return sorted(found, key=lambda one: -np.nan_to_num(one.points, nan=np.inf))


def _plain(one: LayerCost | Trial) -> dict[str, Any]:
    return asdict(one) | {"points": float(one.points) if np.isfinite(one.points) else None}

"""Which bundle may go into production: one that is good enough, and no worse than what is there."""

from __future__ import annotations

from dataclasses import dataclass

from cellvision.errors import CellvisionError, ConfigError, explain, is_finite_number, unknown_name
from cellvision.release.record import Gate, ModelVersion, Scores

_LESS_IS_BETTER = ("error", "bias", "loss", "missed", "false", "merged", "split", "inexact", "undefined", "count")


class GateError(CellvisionError):
    """A bundle is not good enough, or it cannot be told whether it is."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """What is asked of a bundle: a score where more is better, and its least value, or None.

    Raises:
        ConfigError: an error, a count or such, of which more is not better; a bound that is no finite number.
    """

    metric: str
    at_least: float | None = None

    def __post_init__(self) -> None:
        if any(word in self.metric for word in _LESS_IS_BETTER):
            got = f"metric {self.metric}, of which more is not better"
            raise ConfigError(explain(got=got, need="a score of which more is better", hint="cell/f1"))
        if self.at_least is not None and not is_finite_number(self.at_least):
            raise ConfigError(explain(got=f"at_least={self.at_least}", need="a finite number", hint="at_least=0.7"))


def pass_gate(
    scores: Scores, bar: Bar, *, production: ModelVersion | None, production_scores: Scores | None = None
) -> Gate:
    """How a bundle gets past the gate: its score reaches the bar, and that of the version in production.

    Both must be of the same fields: a difference between others says nothing of the bundles.

    Args:
        scores: of the bundle.
        bar: what is asked of it.
        production: None where there is none.
        production_scores: of the version in production on the fields of ``scores``; None takes those that it was
            registered with.

    Raises:
        GateError: it is not good enough, or the two cannot be compared.
        ConfigError: there is no such score.
    """
    value = _find_value(scores, bar.metric)
    if bar.at_least is not None and value < bar.at_least:
        got = f"{bar.metric} {value:.4g}"
        raise GateError(explain(got=got, need=f"at least {bar.at_least:g}", hint="train longer, or compress less"))
    if production is None:
        return Gate(metric=bar.metric, value=value, at_least=bar.at_least)
    there = _find_value(_choose_scores(scores, production, production_scores), bar.metric)
    if value < there:
        got = f"{bar.metric} {value:.4g}, and {production.title}, which is in production, has {there:.4g}"
        raise GateError(explain(got=got, need="at least as much", hint="keep that one, or train longer"))
    return Gate(
        metric=bar.metric,
        value=value,
        at_least=bar.at_least,
        production=production.version,
        production_value=there,
    )


def is_compared_anew(gate: Gate | None, version: ModelVersion) -> bool:
    """Whether a gate compares the bundle of a version with another one in production than its own gate did."""
    before = None if version.gate is None else version.gate.production
    return gate is not None and gate.production not in (None, version.version, before)


def check_still_passes(version: ModelVersion, production: ModelVersion | None) -> None:
    """Raise GateError where a registered version may not replace what is in production by now."""
    if version.gate is None or version.scores is None:
        got = f"{version.title}, which was registered without a gate"
        hint = "cellvision register BUNDLE .. --scores FILE --metric NAME"
        raise GateError(explain(got=got, need="one that has passed", hint=hint))
    if production is not None and production.version not in (version.version, version.gate.production):
        pass_gate(version.scores, Bar(metric=version.gate.metric), production=production)


def _choose_scores(scores: Scores, production: ModelVersion, given: Scores | None) -> Scores:
    for found in (given, production.scores):
        if found is not None and found.data_fingerprint == scores.data_fingerprint:
            if found is given and found.graph_sha256 not in production.tags.get("graphs", ""):
                got = f"production scores of another bundle than {production.title}"
                hint = f"cellvision evaluate --bundle {production.bundle} .."
                raise GateError(explain(got=got, need="those of the version in production", hint=hint))
            return found
    got = f"{production.title}, which is in production, was scored on other fields"
    need = f"scores of both on the same {scores.images} fields"
    hint = f"cellvision evaluate --bundle {production.bundle} .. --json FILE"
    hint += ", and cellvision register .. --production-scores FILE"
    raise GateError(explain(got=got, need=need, hint=hint))


def _find_value(scores: Scores, metric: str) -> float:
    if metric not in scores.values:
        raise ConfigError(unknown_name("metric", metric, scores.values))
    return scores.values[metric]

"""The gate: a form of a net is kept only if it is about as right as the net and no slower than its fp32 graph."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cellvision.bundle import Manifest, load_manifest, write_manifest
from cellvision.errors import ConfigError, ExportError, explain, is_finite_number
from cellvision.export.gate.measure import Measurement
from cellvision.metrics.accuracy import Headline, choose_headlines
from cellvision.metrics.cost.timing import describe_machine

TOLERANCE_POINTS = 1.0

SLOWER = 1.05
"""A form that is sure to take this many times as long as fp32 is slower; less is nothing to refuse it for. Sure is what
`find_least_ratio` says: a form of fp32's own speed passes on the busiest machine, where medians alone were over this by
chance."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What the gate says of one form.

    Attributes:
        name: of the form.
        lost_points: of each score that decides, against the net in PyTorch; below 0 where points are won. NaN where
            only one side has the score.
        ratio: so many times as long as the fp32 graph; NaN where unknown.
        size_ratio, memory_ratio: of the files and of the peak memory to those of the fp32 graph, or None.
        faults: why it is refused, each a part of a sentence; empty where it passes.
        remarks: what is said of it and is no fault, likewise.
    """

    name: str
    lost_points: Mapping[str, float]
    ratio: float
    size_ratio: float | None
    memory_ratio: float | None
    faults: tuple[str, ...]
    remarks: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether there is no fault."""
        return not self.faults

    def to_record(self) -> dict[str, Any]:
        """Plain data; a number that is none is None."""
        return {
            "passed": self.passed,
            "faults": list(self.faults),
            "remarks": list(self.remarks),
            "lost_points": {name: _to_plain(points) for name, points in self.lost_points.items()},
            "ratio": _to_plain(self.ratio),
            "size_ratio": _to_plain(self.size_ratio),
            "memory_ratio": _to_plain(self.memory_ratio),
        }


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the gate says of all forms of one net.

    Attributes:
        kept: name of the form to keep.
        passed: whether every form passed, the fp32 graph included.
        allow_worse: whether a form was wanted however it did.
        sentence: what is wrong and what can be done, or "".
        tolerance_points: most points that may be lost.
        reference: the net in PyTorch.
        measurements: of the forms, the fp32 graph first.
        findings: of the same forms in the same order.
        machine: where the times are from.
    """

    kept: str
    passed: bool
    allow_worse: bool
    sentence: str
    tolerance_points: float
    reference: Measurement
    measurements: tuple[Measurement, ...]
    findings: tuple[Finding, ...]
    machine: Mapping[str, Any] = field(default_factory=dict)

    def to_record(self, name: str | None = None) -> dict[str, Any]:
        """Plain data for ``manifest.gate`` of the form ``name``, by default the one that is kept."""
        name = name or self.kept
        return {
            "form": name,
            "passed": self._find(name).passed,
            "allow_worse": self.allow_worse,
            "kept": self.kept,
            "sentence": self.sentence,
            "tolerance_points": self.tolerance_points,
            "slower_from": SLOWER,
            "machine": dict(self.machine),
            "pytorch": self.reference.to_record(),
            "forms": {
                found.name: found.to_record() | measured.to_record()
                for found, measured in zip(self.findings, self.measurements, strict=True)
            },
        }

    def raise_if_refused(self) -> None:
        """Raise ExportError with the sentence unless every form passed or ``allow_worse`` was given."""
        if not self.passed and not self.allow_worse:
            raise ExportError(self.sentence)

    def _find(self, name: str) -> Finding:
        return next(finding for finding in self.findings if finding.name == name)


def judge(
    reference: Measurement,
    candidates: Sequence[Measurement],
    *,
    headlines: Sequence[Headline],
    tolerance_points: float = TOLERANCE_POINTS,
    allow_worse: bool = False,
    may_be_slow: Collection[str] = (),
) -> Verdict:
    """Which form of a net is to be kept, and what is wrong with the others.

    Accuracy is judged against the net in PyTorch, speed against the fp32 graph. Kept is the fastest of the other forms
    that pass, else the fp32 graph; with ``allow_worse`` the first of the other forms rather than the fp32 graph. Of
    two that are equally fast the first is kept. What was not measured, or is NaN, does not pass.

    Args:
        reference: the net in PyTorch, from `measure_forms`.
        candidates: its forms, the fp32 graph first.
        headlines: the scores that decide, from `choose_headlines`.
        tolerance_points: most points that a form may lose in any of them.
        allow_worse: keep what was asked for however it did; it is marked all the same.
        may_be_slow: names of forms that are for something else than speed; that they are slower is a remark.

    Raises:
        ConfigError: the tolerance is not a number from 0 up.
    """
    check_tolerance(tolerance_points)
    first = candidates[0]
    findings = tuple(
        _judge_one(reference, first, one, headlines, tolerance_points, may_be_slow=one.name in may_be_slow)
        for one in candidates
    )
    others = findings[1:]
    sound = [finding for finding in others if finding.passed]
    if sound:
        kept = min(sound, key=lambda finding: finding.ratio).name
    else:
        kept = others[0].name if others and allow_worse else first.name
    return Verdict(
        kept=kept,
        passed=all(finding.passed for finding in findings),
        allow_worse=allow_worse,
        sentence=_explain(findings, kept, headlines, tolerance_points=tolerance_points, allow_worse=allow_worse),
        tolerance_points=tolerance_points,
        reference=reference,
        measurements=tuple(candidates),
        findings=findings,
        machine=describe_machine(),
    )


def judge_forms(measurements: Sequence[Measurement], manifest: Manifest, **how: Any) -> Verdict:
    """`judge` of what `measure_forms` gave, by the scores that decide on the manifest's kind of net."""
    headlines = choose_headlines(manifest.kind, manifest.classes)
    return judge(measurements[0], measurements[1:], headlines=headlines, **how)


def mark_bundle(folder: Path, verdict: Verdict, name: str) -> Manifest:
    """The manifest of a form's bundle, which now says what the gate measured of it.

    Args:
        folder: of the bundle.
        verdict: from `judge`.
        name: of the form.
    """
    manifest = replace(load_manifest(folder), gate=verdict.to_record(name))
    write_manifest(manifest, folder)
    return manifest


def check_tolerance(tolerance_points: float, *, name: str = "tolerance_points") -> None:
    """Raise ConfigError, which names the setting, unless the tolerance is a number of points from 0 up."""
    if not is_finite_number(tolerance_points) or tolerance_points < 0:
        got = f"{name}={tolerance_points}"
        raise ConfigError(explain(got=got, need="points of accuracy, from 0 up", hint=f"{name}=1.0"))


def _judge_one(
    reference: Measurement,
    first: Measurement,
    candidate: Measurement,
    headlines: Sequence[Headline],
    tolerance_points: float,
    *,
    may_be_slow: bool,
) -> Finding:
    lost = _compute_losses(reference.accuracy, candidate.accuracy, headlines)
    ratio, least_ratio = (1.0, 1.0) if candidate is first else (candidate.ratio, candidate.least_ratio)
    remarks: list[str] = []
    if candidate.failure:
        faults = [f"could not be measured ({candidate.failure.partition('; ')[0]})"]
    else:
        faults = _find_losses(reference.accuracy, candidate.accuracy, lost, headlines, tolerance_points)
        # Written so that a NaN, which compares as neither larger nor smaller, does not pass.
        if not least_ratio < SLOWER:
            known = math.isfinite(ratio)
            said = f"takes {ratio:.2f} times as long as {first.name}" if known else "has no time"
            (remarks if may_be_slow and known else faults).append(said)
    return Finding(
        name=candidate.name,
        lost_points=lost,
        ratio=ratio,
        size_ratio=_divide(candidate.size_bytes, first.size_bytes),
        memory_ratio=_divide(_find_peak(candidate), _find_peak(first)),
        faults=tuple(faults),
        remarks=tuple(remarks),
    )


def _compute_losses(
    before: Mapping[str, float], after: Mapping[str, float], headlines: Sequence[Headline]
) -> dict[str, float]:
    """Points lost in each score that either side has."""
    none = float("nan")
    return {
        headline.score: headline.lose(before.get(headline.score, none), after.get(headline.score, none))
        for headline in headlines
        if headline.score in before or headline.score in after
    }


def _find_losses(
    before: Mapping[str, float],
    after: Mapping[str, float],
    lost: Mapping[str, float],
    headlines: Sequence[Headline],
    tolerance_points: float,
) -> list[str]:
    if not lost:
        return ["has no accuracy, for there is no true cell to measure it by"]
    faults = []
    for headline in headlines:
        points = lost.get(headline.score, 0.0)
        if points <= tolerance_points:
            continue
        numbers = " to ".join(_show(side.get(headline.score), headline) for side in (before, after))
        what = f"is {points:.2f} points worse in" if math.isfinite(points) else "cannot be compared in"
        faults.append(f"{what} {headline.words} ({numbers})")
    return faults


def _explain(
    findings: Sequence[Finding], kept: str, headlines: Sequence[Headline], *, tolerance_points: float, allow_worse: bool
) -> str:
    """One sentence on all forms that are refused, or "" where there is none."""
    refused = [finding for finding in findings if not finding.passed]
    if not refused:
        return ""
    faults = "; ".join(f"{finding.name} {' and '.join(finding.faults)}" for finding in refused)
    scores = ", ".join(headline.words for headline in headlines)
    points = "1 point" if tolerance_points == 1 else f"{tolerance_points:g} points"
    worse = f"at most {points} worse than PyTorch in {scores}"
    return explain(
        got=f"{faults}; {kept} is kept",
        need=f"{worse}, and no slower than {findings[0].name} on this machine",
        hint="allow_worse=false to keep the better one" if allow_worse else "allow_worse=true to keep it all the same",
    )


def _show(score: float | None, headline: Headline) -> str:
    if score is None:
        return "none"
    return f"{score:.3f}" if abs(headline.points) > 1 else f"{score:.1f}"


def _find_peak(measured: Measurement) -> float | None:
    return measured.memory.peak_mib if measured.memory else None


def _divide(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def _to_plain(value: float | None) -> float | None:
    return value if value is None or math.isfinite(value) else None

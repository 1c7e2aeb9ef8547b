"""Quantisation as a step of a run: ranges from real batches, then training with rounding, if that is needed at all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from cellvision.checks import MANY, check_count, check_switch, refuse
from cellvision.compression.patterns import to_patterns
from cellvision.compression.prune.cost import count_positions
from cellvision.compression.prune.runs import run_layers
from cellvision.compression.qat.calibrate import METHODS, calibrate
from cellvision.compression.qat.mixed import SENSITIVITIES, Budget, Mixed, choose_float
from cellvision.compression.qat.mixed_picture import draw_mixed
from cellvision.compression.qat.plan import plan_rounding
from cellvision.compression.run import Run
from cellvision.compression.step import Step
from cellvision.errors import ConfigError, check_choice, explain, is_finite_number
from cellvision.metrics.accuracy import HEADLINES
from cellvision.models.base import keep_modes
from cellvision.models.structure.fake_quant import (
    QuantPlan,
    find_fake_quants,
    is_rounding,
    remove_fake_quant,
    set_fake_quant,
    set_phase,
)
from cellvision.types import Batch

WHEN = ("needed", "always")


class Quantize(Step):
    """Lets the net round to 8 bits as its INT8 bundle will, and trains it with that.

    Ranges are found first, without training: where the score falls by no more than ``tolerance_points``, that is all.
    Else the net as it was rounded counts as one epoch more: by the monitored score training never ends with a worse
    one.

    Args:
        epochs, lr: see Step.
        when: "needed", or "always" to train however little is lost without.
        tolerance_points: loss of the monitored score that needs no training.
        calibration_batches: training batches that the ranges are found on.
        freeze_epochs: so many last epochs have fixed ranges and statistics of batch normalisations.
        calibration: how ranges are found: "minmax", or "percentile", which gives up rare extremes for finer steps.
        percentile: share of the values kept, in percent, in (50, 100]; for "percentile".
        learned: ranges of activations are trained like weights and do not follow the batches.
        keep_float: layers that stay float, by name or pattern.
        budget_points: what rounding may cost before any training; where it is more, the layers that cost most stay
            float, until it is not. None rounds all.
        budget_ms: at most so long on this machine, as the run measures the rounded net on a training crop. Alone, as
            many of the layers that cost most stay float as the time allows; with budget_points the fewest that are
            enough, and where these take longer, what loses least within the time, which is then told. None is no limit.
        sensitivity: what a layer costs is measured with it "alone" rounded, or with all "others"; for the budgets.

    Raises:
        ConfigError: an unknown choice, or a setting of another kind or out of range; in the run, a net that is slower
            than ``budget_ms`` with all layers rounded.
    """

    name = "quantize"
    key = "qat"

    def __init__(
        self,
        *,
        epochs: int,
        lr: float = 0.1,
        when: str = "needed",
        tolerance_points: float = 1.0,
        calibration_batches: int = 8,
        calibration: str = "minmax",
        percentile: float = 99.99,
        freeze_epochs: int = 1,
        learned: bool = False,
        keep_float: Sequence[str] = (),
        budget_points: float | None = None,
        budget_ms: float | None = None,
        sensitivity: str = "alone",
    ) -> None:
        super().__init__(epochs=epochs, lr=lr)
        check_choice("compress.qat.when", when, WHEN)
        check_choice("compress.qat.sensitivity", sensitivity, SENSITIVITIES)
        check_choice("compress.qat.calibration", calibration, METHODS)
        if not is_finite_number(percentile) or not 50 < percentile <= 100:
            raise refuse("compress.qat.percentile", percentile, need="a percentile above 50 up to 100", example=99.99)
        _check_points("tolerance_points", tolerance_points)
        check_count("compress.qat.calibration_batches", calibration_batches, high=MANY, example=8)
        check_count("compress.qat.freeze_epochs", freeze_epochs, low=0, example=1)
        if freeze_epochs > epochs:
            need = f"0 to compress.qat.epochs={epochs}"
            raise refuse("compress.qat.freeze_epochs", freeze_epochs, need=need, example=1)
        check_switch("compress.qat.learned", learned)
        self.when, self.tolerance_points, self.count = when, float(tolerance_points), calibration_batches
        self.calibration, self.percentile = calibration, percentile
        self.freeze_epochs, self.learned = freeze_epochs, learned
        self.keep_float = to_patterns("compress.qat.keep_float", keep_float)
        self.budget, self.sensitivity = _check_budget(budget_points, budget_ms), sensitivity
        self._is_frozen = False
        self._score_rounded: float | None = None
        self._is_enough = False

    @property
    def state(self) -> dict[str, Any]:
        """The score of the net when it had been rounded, and whether that needs no training."""
        return {"score_rounded": self._score_rounded, "is_enough": self._is_enough}

    def load_state(self, state: dict[str, Any]) -> None:
        """Remember what rounding alone has given."""
        self._score_rounded, self._is_enough = state.get("score_rounded"), state.get("is_enough", False)

    def attach(self, run: Run) -> None:
        """Look whether the net can round so, and learn its ranges: their steps are relative with AdamW only."""
        run.check_monitor("compress=[qat]")
        if self.learned and run.task.optim.name != "adamw":
            got = f"compress.qat.learned=true with optim.name={run.task.optim.name}"
            raise ConfigError(explain(got=got, need="optim.name=adamw", hint="optim=adamw"))
        if not is_rounding(run.net):
            self._plan(run, self.keep_float)

    def begin_epoch(self, run: Run, epoch: int) -> None:
        """Let the net round, before the first epoch; fix ranges and statistics, before the last ones."""
        if not is_rounding(run.net):
            self._begin(run)
        if self._is_enough:
            assert self._score_rounded is not None
            run.stop("quantize  no training needed", score=self._score_rounded)
        self._is_frozen = epoch >= self.epochs - self.freeze_epochs
        set_phase(run.net, observing=not self._is_frozen, rounding=True)
        for module in run.net.modules():
            if self._is_frozen and isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()

    def before_update(self, run: Run) -> None:
        """Leave learned ranges as they are, in the last epochs."""
        if self.learned and self._is_frozen:
            for quant in find_fake_quants(run.net):
                assert quant.growth is not None
                quant.growth.grad = None

    def end_run(self, run: Run) -> None:
        """Say so where training has been of no use."""
        if not self._is_enough and self._score_rounded is not None and run.is_best(self._score_rounded):
            run.say("quantize  no epoch of training was better than rounding alone: the net from before them is kept")

    def _begin(self, run: Run) -> None:
        batches, before = run.batches(self.count), run.score()
        mixed = None if self.budget == Budget() else self._choose(run, batches, before)
        plan = self._round(run, batches, () if mixed is None else mixed.kept)
        after = run.score()
        lost = compute_points(run.task.monitor, run.task.monitor_mode, before, after)
        enough = self.when == "needed" and lost <= self.tolerance_points
        record = {
            "step": self.name,
            "plan": plan.to_plain(),
            "calibration": self.calibration,
            "percentile": self.percentile,
            "trained": False,
            "score_before": before,
            "score_rounded": after,
            "lost_points": lost,
            "mixed": None if mixed is None else mixed.to_record(),
        }
        run.write_record(record)
        run.changed()
        allowed = f", of {self.tolerance_points:g} allowed without training" if self.when == "needed" else ""
        run.say(
            f"quantize  {len(plan.layers)} layers round; {lost:.2f} points lost in {run.task.monitor} by that{allowed}"
        )
        self._score_rounded, self._is_enough = after, enough
        if not enough:
            run.keep(after)
            run.write_record(record | {"trained": True})  # of the checkpoints from here on

    def _round(self, run: Run, batches: Sequence[Batch], names: Sequence[str] = ()) -> QuantPlan:
        """The plan that keeps some more layers float, which the net follows from now on."""
        plan = self._plan(run, [*self.keep_float, *names])
        set_fake_quant(run.net, plan)
        calibrate(run.net, batches, method=self.calibration, percentile=self.percentile)
        return plan

    def _choose(self, run: Run, batches: Sequence[Batch], before: float) -> Mixed:
        """Which layers have to stay float."""
        image = run.sample_image()
        cells = run.count_cells(image)

        @contextmanager
        def rounded(names: Sequence[str]) -> Iterator[None]:
            self._round(run, batches, names)
            try:
                yield
            finally:
                remove_fake_quant(run.net)

        def lose(names: Sequence[str]) -> float:
            with rounded(names):
                return compute_points(run.task.monitor, run.task.monitor_mode, before, run.score())

        def time(names: Sequence[str]) -> float:
            with rounded(names):
                return run.ask_lead(lambda: run.measure_ms(run.net, image, cells))

        mixed = choose_float(
            lose,
            self._plan(run, self.keep_float).layers,
            _count_macs(run),
            budget=self.budget,
            time=time,
            sensitivity=self.sensitivity,
            tell=lambda line: run.say(f"quantize  {line}"),
        )
        run.say(f"quantize  {mixed.to_words()}")
        if run.is_lead and mixed.layers:
            path = Path(run.folder) / "sensitivity_quantize.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            draw_mixed(mixed, path, score_name=run.task.monitor)
            path.with_suffix(".json").write_text(json.dumps(mixed.to_record(), indent=1) + "\n", encoding="utf-8")
            run.say(f"quantize  sensitivity of each layer: {path}")
        return mixed

    def _plan(self, run: Run, keep_float: Sequence[str]) -> QuantPlan:
        """The plan of the lead process, in every process."""
        image = run.sample_image()

        def find() -> dict[str, Any]:
            with keep_modes(run.net):
                run.net.eval()
                given: dict[str, Any] = {"keep_float": keep_float, "learned": self.learned}
                return plan_rounding(run.net, lambda: run_layers(run.net, image), **given).to_plain()

        return QuantPlan(**run.ask_lead(find))


def compute_points(monitor: str, mode: str, before: float, after: float) -> float:
    """Points lost in a score: hundredths, and percentage points where it has such; of errors that grow.

    Example:
        >>> compute_points("val/pixel/miou", "max", 0.9, 0.88), compute_points("val/loss", "min", 0.1, 0.12)
        (2.0, 2.0)
    """
    known = {headline.score: headline for headlines in HEADLINES.values() for headline in headlines}
    headline = known.get(monitor.removeprefix("val/"))
    if headline is not None:
        return headline.lose(before, after)
    factor = 1 if monitor.endswith("_pp") else 100
    return round(factor * (before - after if mode == "max" else after - before), 9)


def _check_budget(points: float | None, latency_ms: float | None) -> Budget:
    if points is not None:
        _check_points("budget_points", points)
    if latency_ms is not None and (not is_finite_number(latency_ms) or latency_ms <= 0):
        raise refuse("compress.qat.budget_ms", latency_ms, need="null, or a time in ms above 0", example=20)
    return Budget(points=points, latency_ms=latency_ms)


def _check_points(key: str, points: float) -> None:
    if not is_finite_number(points) or points < 0:
        raise refuse(f"compress.qat.{key}", points, need="points of the monitored score, from 0 up", example=1)


def _count_macs(run: Run) -> dict[str, int]:
    """{layer: multiplications for one training crop}."""
    sizes = {name: parameter.numel() for name, parameter in run.net.named_parameters()}
    positions = count_positions(run.net, run.sample_image())
    return {name.removesuffix(".weight"): count * sizes[name] for name, count in positions.items()}

"""Pruning as a step of a run: channels leave the net, or weights become zero, at once or in several epochs."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from cellvision.checks import MANY, check_range, check_switch
from cellvision.compression.patterns import check_patterns
from cellvision.compression.prune.cut import Cut
from cellvision.compression.prune.gradients import GRADIENTS, take_gradients
from cellvision.compression.prune.latency import LatencyTrial, search_latency
from cellvision.compression.prune.masks import build_masks, list_layers, measure_sparsity
from cellvision.compression.prune.options import PruneOptions, check_counts, choose_targets
from cellvision.compression.prune.pruner import Pruner, PruneStep
from cellvision.compression.prune.runs import REGIONS
from cellvision.compression.prune.scales import pull_scales
from cellvision.compression.prune.sensitivity import draw_sensitivity, scan_sensitivity
from cellvision.compression.run import Run
from cellvision.compression.step import Step
from cellvision.errors import ConfigError, explain
from cellvision.models.base import SegNet
from cellvision.models.build import build_model
from cellvision.models.structure.widths import read_widths

T = TypeVar("T")


class Prune(Step):
    """Takes channels from the net until a target is met, then trains what is left for the rest of the phase.

    Args:
        epochs, lr: see Step.
        ratio, macs, parameters: the target, see PruneOptions; or
        latency_ms: at most so long on this machine, as the run measures it; looked for by halving before the first cut,
            and again before the last; what the net takes behind that is told, and recorded as "reached_ms".
        latency_px: edge of the square that it is measured on, a training crop repeated; None for the crop as it is.
        steps: cuts on the way there, each at the beginning of an epoch.
        every: epochs from one cut to the next.
        batches: training batches from which statistics are taken anew after each cut, and gradients for "taylor" and
            "fisher".
        sparse_epochs: epochs before the first cut in which scales of normalisations are pulled to 0, so that
            importance "bn_scale" says something; needed there.
        sparse_strength: of that force, see `pull_scales`.
        sensitivity: first score the net with each layer alone pruned, and draw it as ``sensitivity_prune.png``.
        importance, scope, schedule, protected, max_ratio, round_to, tolerance, masks, sparsity: see PruneOptions.

    Raises:
        ConfigError: a setting of another kind or out of range, or more cuts than the epochs have room for.
    """

    name = key = "prune"

    def __init__(
        self,
        *,
        epochs: int,
        lr: float = 1.0,
        ratio: float | None = None,
        macs: float | None = None,
        parameters: float | None = None,
        latency_ms: float | None = None,
        latency_px: int | None = None,
        steps: int = 1,
        every: int = 1,
        batches: int = 20,
        sparse_epochs: int = 0,
        sparse_strength: float = 1e-4,
        sensitivity: bool = False,
        importance: str = "magnitude",
        scope: str = "global",
        schedule: str = "cubic",
        protected: Sequence[str] = (),
        max_ratio: float = 0.9,
        round_to: int = 1,
        tolerance: float = 0.05,
        masks: str | None = None,
        sparsity: float = 0.5,
    ) -> None:
        super().__init__(epochs=epochs, lr=lr)
        targets: dict[str, Any] = choose_targets(ratio=ratio, macs=macs, parameters=parameters, latency_ms=latency_ms)
        choice: dict[str, Any] = {"importance": importance, "scope": scope, "schedule": schedule}
        limits: dict[str, Any] = {"max_ratio": max_ratio, "round_to": round_to, "tolerance": tolerance}
        zeros: dict[str, Any] = {"masks": masks, "sparsity": sparsity}
        self.options = PruneOptions(steps=steps, protected=protected, **targets, **choice, **limits, **zeros)
        check_switch("compress.prune.sensitivity", sensitivity)
        check_range("compress.prune.sparse_strength", sparse_strength, low=0, high=100, example=1e-4)
        check_counts(every=every, batches=batches, sparse_epochs=sparse_epochs, latency_px=latency_px)
        self.every, self.count, self.sensitivity = every, batches, sensitivity
        self.latency_ms, self.latency_px = latency_ms, latency_px
        self.sparse_epochs, self.sparse_strength = sparse_epochs, sparse_strength
        self._state: dict[str, Any] = {}
        self._check_epochs()

    @property
    def state(self) -> dict[str, Any]:
        """Cuts done, what the pruner has done, the ratio for a latency and what came of it; empty before the first."""
        return dict(self._state)

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._state = dict(state)

    def attach(self, run: Run) -> None:
        """Look whether the net can be pruned so far, by weights: gradients and scales say nothing yet."""
        if self.sensitivity:
            run.check_monitor("compress.prune.sensitivity=true")
        record = run.task.record
        layers = set(list_layers(run.net))
        before = [] if record is None else [known.get("options", {}).get("masks") for known in record.recipe]
        if self.options.target:
            if "2:4" in before and self.options.masks != "2:4":
                got, need = "channels to be taken from a net with masks 2:4, whose fours would come apart", "new masks"
                raise ConfigError(explain(got=got, need=need, hint="compress.prune.masks=2:4"))
            options = replace(self.options, importance="magnitude")
            pruner = Pruner(run.net, run.sample_image(), options, counted=run.field_image())
            pruner.check_ratio()
            layers |= pruner.layers
        check_patterns("compress.prune.protected", self.options.protected, layers)
        if self.options.masks is not None:
            self._build_masks(run, share=1.0)

    def begin_epoch(self, run: Run, epoch: int) -> None:
        """Cut, where a cut is due."""
        number, rest = divmod(epoch - self.sparse_epochs, self.every)
        if epoch < self.sparse_epochs or rest or number >= self.options.steps:
            return
        if self.sensitivity and number == 0:
            _scan(run, self.options)
        batches = run.batches(self.count)
        done = self._cut(run, batches, number) if self.options.target else None
        masks = self._mask(run, self.options.share_done(number + 1))
        run.refresh_statistics(batches)
        self._state["done"] = number + 1
        self._tell(run, done, masks)

    def before_update(self, run: Run) -> None:
        """Pull the scales of normalisations, before the first cut."""
        if self.sparse_epochs and not self._state:
            pull_scales(run.net, self.sparse_strength)

    def _check_epochs(self) -> None:
        if self.options.importance == "bn_scale" and not self.sparse_epochs:
            got, need = "compress.prune.sparse_epochs=0 with importance=bn_scale", "epochs that pull the scales to 0"
            raise ConfigError(explain(got=got, need=need, hint="compress.prune.sparse_epochs=5"))
        needed = self.sparse_epochs + (self.options.steps - 1) * self.every + 1
        if needed > self.epochs:
            steps = f"compress.prune.steps={self.options.steps}, every and sparse_epochs"
            got = f"compress.prune.epochs={self.epochs} with {steps}"
            hint = f"compress.prune.epochs={needed + 1}" if needed < MANY else "compress.prune.steps=5"
            need = f"{needed} epochs or more"
            raise ConfigError(explain(got=got, need=need, hint=hint))

    def _cut(self, run: Run, batches: Sequence[Any], number: int) -> PruneStep:
        """Take channels, and let everything follow that holds on to them."""
        image, counted = run.sample_image(), run.field_image()
        if self.options.importance in GRADIENTS:
            torch.manual_seed(run.trainer.current_epoch)  # of dropout
            take_gradients(run.net, batches, self.options.importance)
        measure = None if self.latency_ms is None else self._prepare_timing(run, image)
        is_last = number == self.options.steps - 1
        if measure is not None and (number == 0 or is_last):
            self._state["ratio"] = self._find_ratio(run, image, counted, number, measure)
        options = replace(self.options, ratio=self._state.get("ratio", self.options.ratio))
        pruner = Pruner(run.net, image, options, counted=counted, state=self._state.get("pruner"))
        done = pruner.apply(run.ask_lead(pruner.plan))
        run.net.zero_grad(set_to_none=True)
        run.changed(cut=done.cut, replaced=done.replaced)
        self._state |= {"pruner": pruner.state, "counted_px": list(counted.shape[-2:])}
        if measure is not None and is_last:
            self._state["reached_ms"] = run.ask_lead(lambda: measure(copy.deepcopy(run.net).eval()))
            self._state["timed_px"] = list(_repeat(image, self.latency_px).shape[-2:])
        return done

    def _prepare_timing(self, run: Run, image: Tensor) -> Callable[[SegNet], float]:
        """What measures the latency of a net in evaluation mode, with as many cells as there are before this cut."""
        timed = _repeat(image, self.latency_px)
        cells = run.count_cells(timed)
        return lambda net: run.measure_ms(net, timed, cells)

    def _find_ratio(
        self, run: Run, image: Tensor, counted: Tensor, number: int, measure: Callable[[SegNet], float]
    ) -> float:
        """The ratio that a latency needs, by the net and its gradients as they are before this cut."""
        assert self.latency_ms is not None
        target_ms = self.latency_ms
        gone = self._state["ratio"] * self.options.share_done(number) if number else 0.0

        def search() -> LatencyTrial:
            found = search_latency(
                run.net,
                image,
                measure,
                target_ms=target_ms,
                options=self.options,
                counted=counted,
                state=self._state.get("pruner"),
                gone=gone,
            )
            for trial in found.trials:
                run.say(f"prune     ratio {trial.ratio:.3f}: {trial.latency_ms:.4g} ms, {trial.macs:.0%} of the MACs")
            return found.best

        try:
            best = run.ask_lead(search)
        except ConfigError as error:
            if number == 0:
                raise
            run.say(f"prune     the ratio found before the first cut stays: {error}")
            return float(self._state["ratio"])
        if best.ratio == 0:
            got, need = f"compress.prune.latency_ms={target_ms}, which the net meets already", "less than it takes now"
            hint = f"compress.prune.latency_ms={best.latency_ms / 2:.4g}"
            raise ConfigError(explain(got=got, need=need, hint=hint))
        return best.ratio

    def _mask(self, run: Run, share: float) -> dict[str, Tensor]:
        """Lay the masks that are due, over averages of the weights too; none where none are."""
        if self.options.masks is None or (self.options.masks == "2:4" and share < 1):
            return {}
        cut = Cut(masks=self._build_masks(run, share=share))
        run.changed(cut=cut, replaced=cut.apply(run.net))
        return dict(cut.masks)

    def _build_masks(self, run: Run, *, share: float) -> dict[str, Tensor]:
        assert self.options.masks is not None
        given: dict[str, Any] = {"pattern": self.options.masks, "protected": self.options.protected}
        return build_masks(run.net, sparsity=self.options.sparsity * share, **given)

    def _tell(self, run: Run, done: PruneStep | None, masks: dict[str, Tensor]) -> None:
        """Let the checkpoint and the user know what was done."""
        options = {key: value for key, value in asdict(self.options).items() if value is not None}
        targets = {"ratio": self._state.get("ratio"), "latency_ms": self.latency_ms} if self.latency_ms else {}
        record = {
            "step": self.name,
            **read_widths(run.net, build_model(**run.net.config)),
            "options": options | targets | {"protected": list(self.options.protected)},
            "done": self._state["done"],
        }
        lines = []
        if done is not None:
            record |= {"macs": done.macs, "parameters": done.parameters, "cost": asdict(done.cost)}
            record |= {"counted_px": self._state["counted_px"], "regions": REGIONS}
            macs = f"{done.macs:.0%} of the MACs of {' x '.join(map(str, self._state['counted_px']))} px"
            left = f"{macs} and {done.parameters:.0%} of the parameters left"
            is_last = self._state["done"] == self.options.steps
            asked = {} if self.latency_ms else self.options.target  # its ratio was found, not asked for
            wanted = [f"; {key}={value:g} was asked for" for key, value in asked.items() if is_last]
            narrower = f"{len(done.widths)} layer{'s' * (len(done.widths) != 1)} narrower"
            lines.append("".join([f"{left}, {narrower}", *wanted]))
        if (reached_ms := self._state.get("reached_ms")) is not None:
            record["reached_ms"] = reached_ms
            px = " x ".join(map(str, self._state["timed_px"]))
            lines.append(f"{reached_ms:.4g} ms for {px} px, where {self.latency_ms:.4g} were asked for")
        if masks:
            zeros = measure_sparsity(run.net)
            record |= {"masks": sorted(masks), "zeros": zeros}
            lines.append(f"{zeros:.1%} of the weights are zero ({self.options.masks}), in {len(masks)} layers")
        run.write_record(record)
        for line in lines:
            run.say(f"prune     {self._state['done']} of {self.options.steps}: {line}")


def _repeat(image: Tensor, edge_px: int | None) -> Tensor:
    """An image side by side with itself, cut to a square; as it is for None."""
    if edge_px is None:
        return image
    times = [-(-edge_px // length) for length in image.shape[-2:]]
    return image.repeat(1, 1, *times)[..., :edge_px, :edge_px]


def _scan(run: Run, options: PruneOptions) -> None:
    """Score the net with each layer alone pruned, in all processes, as each has its part of the fields."""
    base = run.score()
    rows = scan_sensitivity(
        run.net,
        run.sample_image(),
        run.score,
        importance="magnitude",
        protected=options.protected,
        progress=lambda done, total: run.say(f"prune     sensitivity: {done} of {total}") if done % 20 == 0 else None,
    )
    if not run.is_lead:
        return
    path = run.folder / "sensitivity_prune.png"
    draw_sensitivity(rows, path, base=base, score_name=run.task.monitor, mode=run.task.monitor_mode)
    plain = {"monitor": run.task.monitor, "base": base, "rows": [asdict(row) for row in rows]}
    path.with_suffix(".json").write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
    run.say(f"prune     sensitivity of each layer: {path}")

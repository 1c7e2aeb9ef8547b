"""Pruning as a step of a run: whole channels leave the net, at once or at the beginning of several epochs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from cellvision.compression.prune.latency import search_latency
from cellvision.compression.prune.options import PruneOptions
from cellvision.compression.prune.pruner import Pruner, PruneStep
from cellvision.compression.prune.scales import pull_scales
from cellvision.compression.prune.sensitivity import draw_sensitivity, scan_sensitivity
from cellvision.compression.prune.statistics import refresh_batch_norm
from cellvision.compression.run import Run
from cellvision.compression.step import Step
from cellvision.errors import ConfigError, explain
from cellvision.models.build import build_model
from cellvision.models.structure.widths import read_widths


class Prune(Step):
    """Takes channels from the net until a target is met, then trains what is left for the rest of the phase.

    Args:
        epochs, lr: see Step.
        ratio, macs, parameters: the target, see PruneOptions; or
        latency_ms: at most so long on this machine, as the run measures it; looked for by halving before the first cut.
        latency_px: edge of the square that it is measured on, a training crop repeated; None for the crop as it is.
        steps: cuts on the way there, each at the beginning of an epoch.
        every: epochs from one cut to the next.
        batches: training batches from which statistics are taken anew after each cut, and gradients for "taylor".
        sparse_epochs: epochs before the first cut in which scales of normalisations are pulled to 0, so that
            importance "bn_scale" says something; needed there.
        sparse_strength: of that force, see `pull_scales`.
        sensitivity: first score the net with each layer alone pruned, and draw it as ``sensitivity_prune.png``.
        importance, scope, schedule, protected, max_ratio, round_to, tolerance: see PruneOptions.

    Raises:
        ConfigError: numbers out of range, or more cuts than the epochs have room for.
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
    ) -> None:
        super().__init__(epochs=epochs, lr=lr)
        targets: dict[str, Any] = _choose_targets(ratio=ratio, macs=macs, parameters=parameters, latency_ms=latency_ms)
        choice: dict[str, Any] = {"importance": importance, "scope": scope, "schedule": schedule}
        limits: dict[str, Any] = {"max_ratio": max_ratio, "round_to": round_to, "tolerance": tolerance}
        self.options = PruneOptions(steps=steps, protected=tuple(protected), **targets, **choice, **limits)
        _check_counts(every=every, batches=batches, sparse_epochs=sparse_epochs, latency_px=latency_px)
        self.every, self.count, self.sensitivity = every, batches, sensitivity
        self.latency_ms, self.latency_px = latency_ms, latency_px
        self.sparse_epochs, self.sparse_strength = sparse_epochs, sparse_strength
        self._state: dict[str, Any] = {}
        self._check_epochs()

    @property
    def state(self) -> dict[str, Any]:
        """What the pruner has done, and the ratio that was found for a latency."""
        return dict(self._state)

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._state = dict(state)

    def attach(self, run: Run) -> None:
        """Look whether the net can be pruned so far, by weights: gradients and scales say nothing yet."""
        Pruner(run.net, run.sample_image(), replace(self.options, importance="magnitude"))

    def begin_epoch(self, run: Run, epoch: int) -> None:
        """Cut, where a cut is due."""
        number, rest = divmod(epoch - self.sparse_epochs, self.every)
        if epoch < self.sparse_epochs or rest or number >= self.options.steps:
            return
        image = run.sample_image()
        if number == 0:
            self._look_around(run, image)
        options = replace(self.options, ratio=self._state.get("ratio", self.options.ratio))
        pruner = Pruner(run.net, image, options, state=self._state.get("pruner"))
        batches = run.batches(self.count)
        if options.importance == "taylor":
            _take_gradients(run, batches)
        cut = run.broadcast(pruner.plan() if run.is_lead else None)
        assert cut is not None
        done = pruner.apply(cut)
        run.net.zero_grad(set_to_none=True)
        run.changed(cut=cut, replaced=done.replaced)
        refresh_batch_norm(run.net, [batch.images for batch in batches])
        run.share_buffers()
        self._state["pruner"] = pruner.state
        self._tell(run, done)

    def before_update(self, run: Run) -> None:
        """Pull the scales of normalisations, before the first cut."""
        if self.sparse_epochs and "pruner" not in self._state:
            pull_scales(run.net, self.sparse_strength)

    def _check_epochs(self) -> None:
        if self.options.importance == "bn_scale" and not self.sparse_epochs:
            got, need = "prune.importance=bn_scale with prune.sparse_epochs=0", "epochs that pull the scales to 0"
            raise ConfigError(explain(got=got, need=need, hint="prune.sparse_epochs=5"))
        needed = self.sparse_epochs + (self.options.steps - 1) * self.every + 1
        if needed > self.epochs:
            got = f"prune.epochs={self.epochs} with prune.steps={self.options.steps}, every and sparse_epochs"
            raise ConfigError(explain(got=got, need=f"{needed} epochs or more", hint=f"prune.epochs={needed + 1}"))

    def _look_around(self, run: Run, image: torch.Tensor) -> None:
        """What is measured on the whole net, before the first cut."""
        if self.sensitivity and run.is_lead:
            _scan(run, image, self.options)
        if self.latency_ms is None:
            return
        found = None
        if run.is_lead:
            timed = image if self.latency_px is None else _repeat(image, self.latency_px)
            found = search_latency(
                run.net,
                image,
                lambda net: run.measure_ms(net, timed),
                target_ms=self.latency_ms,
                options=self.options,
            )
            for trial in found.trials:
                run.say(f"prune     ratio {trial.ratio:.3f}: {trial.latency_ms:.2f} ms, {trial.macs:.0%} of the MACs")
        found = run.broadcast(found)
        assert found is not None
        if found.ratio == 0:
            got, need = f"prune.latency_ms={self.latency_ms}, which the net meets already", "less than it takes now"
            hint = f"prune.latency_ms={found.trials[0].latency_ms / 2:.4g}"
            raise ConfigError(explain(got=got, need=need, hint=hint))
        self._state["ratio"] = found.ratio

    def _tell(self, run: Run, done: PruneStep) -> None:
        """Let the checkpoint and the user know what was done."""
        structure = read_widths(run.net, build_model(**run.net.config))
        options = {key: value for key, value in asdict(self.options).items() if value is not None}
        record = {
            "step": self.name,
            **structure,
            "options": options | {"protected": list(self.options.protected)},
            "done": done.step,
            "macs": done.macs,
            "parameters": done.parameters,
            "cost": asdict(done.cost),
        }
        run.write_record(record)
        left = f"{done.macs:.0%} of the MACs and {done.parameters:.0%} of the parameters left"
        run.say(f"prune     {done.step} of {done.of}: {left}, {len(done.widths)} layers narrower")


def _choose_targets(**targets: float | None) -> dict[str, float | None]:
    """The target of PruneOptions; a ratio where that is to be looked for by the latency."""
    latency_ms = targets.pop("latency_ms")
    if latency_ms is None:
        return targets
    if given := [key for key, value in targets.items() if value is not None]:
        got, need = f"prune.latency_ms={latency_ms} with prune.{given[0]}={targets[given[0]]}", "one target"
        raise ConfigError(explain(got=got, need=need, hint=f"prune.{given[0]}=null"))
    if latency_ms <= 0:
        got, need = f"prune.latency_ms={latency_ms}", "a time above 0 ms"
        raise ConfigError(explain(got=got, need=need, hint="prune.latency_ms=100"))
    return {"ratio": 0.5}


def _check_counts(*, every: int, batches: int, sparse_epochs: int, latency_px: int | None) -> None:
    counts = {"every": (every, 1), "batches": (batches, 1), "sparse_epochs": (sparse_epochs, 0)}
    for key, (value, least) in (counts | {"latency_px": (32 if latency_px is None else latency_px, 32)}).items():
        if value < least:
            got, need = f"prune.{key}={value}", f"a whole number from {least} up"
            raise ConfigError(explain(got=got, need=need, hint=f"prune.{key}={max(least, 1)}"))


def _repeat(image: torch.Tensor, edge_px: int) -> torch.Tensor:
    """An image side by side with itself, cut to a square."""
    times = [-(-edge_px // length) for length in image.shape[-2:]]
    return image.repeat(1, 1, *times)[..., :edge_px, :edge_px]


def _take_gradients(run: Run, batches: Sequence[Any]) -> None:
    """The mean gradient of the training loss over some batches, of all processes."""
    run.net.zero_grad(set_to_none=True)
    torch.manual_seed(run.trainer.current_epoch)
    for batch in batches:
        losses = run.net.losses(batch.images, batch.targets)
        (torch.stack(list(losses.values())).sum() / len(batches)).backward()
    if run.trainer.world_size > 1:
        for parameter in run.net.parameters():
            if parameter.grad is not None:
                torch.distributed.all_reduce(parameter.grad)


def _scan(run: Run, image: torch.Tensor, options: PruneOptions) -> None:
    base = run.score()
    rows = scan_sensitivity(
        run.net,
        image,
        run.score,
        importance="magnitude",
        protected=options.protected,
        progress=lambda done, total: run.say(f"prune     sensitivity: {done} of {total}") if done % 20 == 0 else None,
    )
    path = run.folder / "sensitivity_prune.png"
    draw_sensitivity(rows, path, base=base, score_name=run.task.monitor)
    plain = {"monitor": run.task.monitor, "base": base, "rows": [asdict(row) for row in rows]}
    path.with_suffix(".json").write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
    run.say(f"prune     sensitivity of each layer: {path}")

"""What can be chosen about pruning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cellvision.checks import MANY, check_count, refuse
from cellvision.compression.patterns import to_patterns
from cellvision.compression.prune.masks import PATTERNS
from cellvision.errors import ConfigError, check_choice, explain, is_finite_number

IMPORTANCES = ("magnitude", "taylor", "fisher", "bn_scale")
SCOPES = ("local", "global", "isomorphic")
SCHEDULES = ("linear", "cubic")
LARGEST_PX = 8192
"""An edge of the image that is timed."""


@dataclass(frozen=True, kw_only=True)
class PruneOptions:
    """How channels are chosen, how many, and in how many steps; one of ``ratio``, ``macs``, ``parameters``.

    With ``masks`` all channels may stay, and none of the three is needed.

    Attributes:
        importance: what a channel's worth is taken from: "magnitude" of what makes it and takes it in (see
            `score_channels`), "taylor" (weight times mean gradient, Molchanov et al. 2019) or "fisher" (weight times
            root mean square of gradients, the root of the Fisher information's diagonal, Theis et al. 2018), which need
            `take_gradients` before each step, or "bn_scale", the scale of its normalisation (Liu et al. 2017; says
            something after training that pulls the scales to 0, and prunes only layers with a normalisation).
        scope: among which channels the least are looked for: "local" those of one layer, "global" those of the net,
            "isomorphic" those of layers of the same make (Fang et al. 2024).
        ratio: share of the prunable channels to remove, in (0, 1).
        macs: share of the multiplications to keep, in (0, 1).
        parameters: share of the parameters to keep, in (0, 1).
        steps: how many steps lead there; 1 is one-shot.
        schedule: "linear", or "cubic", which takes most at the beginning (Zhu and Gupta 2018).
        protected: patterns such as "decoder.0.*" of layers that keep their channels.
        max_ratio: a layer loses no more than this share of its channels, in (0, 1).
        round_to: widths become multiples of this, which some kernels like; 1 leaves them.
        tolerance: by how much of the whole net's cost the last step may miss ``macs`` or ``parameters``.
        masks: also hold single weights at zero, see `build_masks`: "unstructured", more of them with each step, or
            "2:4", from the last one on.
        sparsity: share of the weights that "unstructured" masks zero in the end, in (0, 1).
    """

    importance: str = "magnitude"
    scope: str = "global"
    ratio: float | None = None
    macs: float | None = None
    parameters: float | None = None
    steps: int = 1
    schedule: str = "cubic"
    protected: Sequence[str] = ()
    max_ratio: float = 0.9
    round_to: int = 1
    tolerance: float = 0.05
    masks: str | None = None
    sparsity: float = 0.5

    def __post_init__(self) -> None:
        check_choice("compress.prune.importance", self.importance, IMPORTANCES)
        check_choice("compress.prune.scope", self.scope, SCOPES)
        check_choice("compress.prune.schedule", self.schedule, SCHEDULES)
        if self.masks is not None:
            check_choice("compress.prune.masks", self.masks, PATTERNS)
        object.__setattr__(self, "protected", to_patterns("compress.prune.protected", self.protected))
        if self.target or self.masks is None:
            self.check_target()
        for key in (*self.target, "max_ratio", "tolerance", "sparsity"):
            value = getattr(self, key)
            if not is_finite_number(value) or not 0 < value < 1:
                raise refuse(f"compress.prune.{key}", value, need="a share in (0, 1)", example=0.5)
        for key in ("steps", "round_to"):
            check_count(f"compress.prune.{key}", getattr(self, key), high=MANY, example=1)

    @property
    def target(self) -> dict[str, float]:
        """Which of ratio, macs and parameters is given; empty where no channel is to go."""
        given = {key: getattr(self, key) for key in ("ratio", "macs", "parameters")}
        return {key: value for key, value in given.items() if value is not None}

    def check_target(self) -> None:
        """Raise ConfigError where not exactly one target is given."""
        if len(self.target) != 1:
            given = " and ".join(f"{key}={value}" for key, value in self.target.items()) or "no target"
            need = "one of ratio, macs, parameters, latency_ms, or masks"
            hint = f"compress.prune.macs={'null' if 'macs' in self.target else 0.5}"  # which there is by default
            raise ConfigError(explain(got=f"compress.prune has {given}", need=need, hint=hint))

    def share_done(self, step: int) -> float:
        """How much of the way lies behind after ``step`` steps, in 0..1.

        Example:
            >>> [round(PruneOptions(ratio=0.5, steps=4).share_done(step), 3) for step in range(5)]
            [0.0, 0.578, 0.875, 0.984, 1.0]
        """
        part = min(step / self.steps, 1.0)
        return part if self.schedule == "linear" else 1 - (1 - part) ** 3


def choose_targets(**targets: float | None) -> dict[str, float | None]:
    """The target of PruneOptions; any ratio where that is to be looked for by "latency_ms".

    Raises:
        ConfigError: a latency beside another target, or that is no time.
    """
    latency_ms = targets.pop("latency_ms")
    if latency_ms is None:
        return targets
    if given := [key for key, value in targets.items() if value is not None]:
        got, need = (
            f"compress.prune.latency_ms={latency_ms} with compress.prune.{given[0]}={targets[given[0]]}",
            "one target",
        )
        raise ConfigError(explain(got=got, need=need, hint=f"compress.prune.{given[0]}=null"))
    if not is_finite_number(latency_ms) or latency_ms <= 0:
        raise refuse("compress.prune.latency_ms", latency_ms, need="a time above 0 ms", example=100)
    return {"ratio": 0.5}


def check_counts(*, every: int, batches: int, sparse_epochs: int, latency_px: int | None) -> None:
    """Raise ConfigError where a number of epochs, batches or pixels is out of range, or no whole number."""
    check_count("compress.prune.every", every, high=MANY, example=1)
    check_count("compress.prune.batches", batches, high=MANY, example=20)
    check_count("compress.prune.sparse_epochs", sparse_epochs, low=0, high=MANY, example=1)
    check_count("compress.prune.latency_px", latency_px, low=32, high=LARGEST_PX, or_none=True, example=32)

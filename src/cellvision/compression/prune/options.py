"""What can be chosen about pruning."""

from __future__ import annotations

from dataclasses import dataclass

from cellvision.errors import ConfigError, check_choice, explain

IMPORTANCES = ("magnitude", "taylor", "bn_scale")
SCOPES = ("local", "global", "isomorphic")
SCHEDULES = ("linear", "cubic")


@dataclass(frozen=True, kw_only=True)
class PruneOptions:
    """How channels are chosen, how many, and in how many steps; exactly one of ``ratio``, ``macs``, ``parameters``.

    Attributes:
        importance: what a channel's worth is taken from: "magnitude" of all weights that hang on it, "taylor" (weight
            times gradient, Molchanov et al. 2017; needs the gradients of a backward pass before each step), or
            "bn_scale", the scale of its normalisation (Liu et al. 2017; says something after training that pulls the
            scales to 0, and prunes only layers with a normalisation).
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
    """

    importance: str = "magnitude"
    scope: str = "global"
    ratio: float | None = None
    macs: float | None = None
    parameters: float | None = None
    steps: int = 1
    schedule: str = "cubic"
    protected: tuple[str, ...] = ()
    max_ratio: float = 0.9
    round_to: int = 1
    tolerance: float = 0.05

    def __post_init__(self) -> None:
        check_choice("prune.importance", self.importance, IMPORTANCES)
        check_choice("prune.scope", self.scope, SCOPES)
        check_choice("prune.schedule", self.schedule, SCHEDULES)
        targets = {key: getattr(self, key) for key in ("ratio", "macs", "parameters")}
        given = {key: value for key, value in targets.items() if value is not None}
        if len(given) != 1:
            got = f"prune has {' and '.join(f'{key}={value}' for key, value in given.items()) or 'no target'}"
            raise ConfigError(explain(got=got, need="one of ratio, macs, parameters", hint="prune.macs=0.5"))
        for key, value in (*given.items(), ("max_ratio", self.max_ratio), ("tolerance", self.tolerance)):
            if not 0 < value < 1:
                raise ConfigError(
                    explain(got=f"prune.{key}={value}", need="a share in (0, 1)", hint=f"prune.{key}=0.5")
                )
        for key in ("steps", "round_to"):
            if getattr(self, key) < 1:
                got, need = f"prune.{key}={getattr(self, key)}", "a whole number from 1 up"
                raise ConfigError(explain(got=got, need=need, hint=f"prune.{key}=1"))

    def share_done(self, step: int) -> float:
        """How much of the way lies behind after ``step`` steps, in 0..1.

        Example:
            >>> [round(PruneOptions(ratio=0.5, steps=4).share_done(step), 3) for step in range(5)]
            [0.0, 0.578, 0.875, 0.984, 1.0]
        """
        part = min(step / self.steps, 1.0)
        return part if self.schedule == "linear" else 1 - (1 - part) ** 3

"""What a step of compression is: some epochs of a run in which a net gets smaller or learns to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cellvision.checks import MANY, check_count, refuse
from cellvision.errors import is_finite_number

if TYPE_CHECKING:
    from cellvision.compression.run import Run


class Step:
    """A step of a recipe.

    All that happens in an epoch of its phase follows from the epoch's number and from ``state``, so that a killed run,
    resumed, does what an unbroken one does.

    Args:
        epochs: of its phase.
        lr: share of the peak learning rate at which the phase begins; the whole schedule runs through in each phase.

    Attributes:
        name: under which its record stands in a checkpoint.
        key: under which its settings stand in ``conf/compress``.

    Raises:
        ConfigError: a number out of range.
    """

    name: str
    key: str

    def __init__(self, *, epochs: int, lr: float) -> None:
        check_count(f"compress.{self.key}.epochs", epochs, high=MANY, example=5)
        if not is_finite_number(lr) or not 0 < lr <= 10:
            raise refuse(f"compress.{self.key}.lr", lr, need="a share of optim.lr above 0, up to 10", example=0.3)
        self.epochs, self.lr = epochs, float(lr)

    @property
    def state(self) -> dict[str, Any]:
        """Plain data and tensors, for checkpoints."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up what ``state`` of an earlier process was; the net has been given its structure already."""

    def attach(self, run: Run) -> None:
        """Refuse what cannot work, and add losses and modules; in every process, before optimizers are made."""

    def begin_epoch(self, run: Run, epoch: int) -> None:
        """Do what is due at the beginning of an epoch of the phase, from 0 up; the net may be changed here."""

    def before_update(self, run: Run) -> None:
        """Change gradients, in its phase, before the optimizer sees them."""

    def end_run(self, run: Run) -> None:
        """Let go of what ``attach`` took hold of; after training."""

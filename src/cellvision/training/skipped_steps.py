"""Steps without a finite loss or gradient: left out, and after too many in a row the end of a run."""

from __future__ import annotations

from cellvision.errors import CellvisionError, explain

MAX_SKIPPED_STEPS = 10


class SkippedSteps:
    """Counts the steps in a row that were left out.

    Raises:
        CellvisionError: from ``note_loss`` and ``note_gradient``, at the tenth.
    """

    def __init__(self) -> None:
        self._in_a_row, self._loss_was_finite = 0, True

    def note_loss(self, is_finite: bool, what: str) -> bool:
        """Take note of the loss of a step, which ``what`` describes; whether the step can be made."""
        self._loss_was_finite = is_finite
        if not is_finite:
            self._count(what)
        return is_finite

    def note_gradient(self, is_finite: bool, what: str) -> None:
        """Take note of the gradient of a step, with which it ends."""
        if not is_finite:
            self._count(what)
        elif self._loss_was_finite:
            self._in_a_row = 0

    def _count(self, what: str) -> None:
        self._in_a_row += 1
        if self._in_a_row >= MAX_SKIPPED_STEPS:
            raise CellvisionError(
                explain(
                    got=f"{MAX_SKIPPED_STEPS} steps in a row without a finite loss or gradient ({what})",
                    need="finite numbers",
                    hint="a lower optim.lr, trainer.precision=32-true, or check those images",
                )
            )

"""Predicted to true cells in the order of the scores: the surer takes its best, the next the best of what is left."""

from __future__ import annotations

import numpy as np


def assign_in_order(pred: np.ndarray, true: np.ndarray, *, many: np.ndarray | None = None) -> np.ndarray:
    """Positions (n,) of the pairs that are taken, ascending; each predicted cell has at most one.

    The same as going through the predicted cells one by one, but all at once: each proposes to its best true cell,
    which keeps the first of its suitors (Gale and Shapley 1962); the others go on to their next. As all true cells
    prefer the same order, what comes out is what the loop would find.

    Args:
        pred: (P,) integers, ascending: who chooses first. Pairs of one predicted cell stand together, best first.
        true: (P,) integers from 0.
        many: (P,) bool, pairs whose true cell may be taken by any number of predicted ones; None for no pair.

    Example:
        >>> assign_in_order(np.array([0, 1, 1, 2]), np.array([5, 5, 6, 6])).tolist()
        [0, 2]
    """
    left = np.arange(pred.size)
    shared = np.zeros(pred.size, bool) if many is None else many
    holder = np.empty(int(true.max(initial=-1)) + 1, np.int64)
    while True:
        best = left[np.flatnonzero(np.diff(pred[left], prepend=-1))]
        holder[:] = np.iinfo(np.int64).max
        rivals = best[~shared[best]][::-1]
        holder[true[rivals]] = pred[rivals]  # of several writes to one place the last stays: the first suitor's
        if (shared[best] | (holder[true[best]] == pred[best])).all():
            return best
        # A true cell only ever changes to an earlier suitor, so later ones need not ask again.
        left = left[shared[left] | (pred[left] <= holder[true[left]])]

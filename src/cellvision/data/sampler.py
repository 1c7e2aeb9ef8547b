"""The order of training samples, a pure function of seed and epoch: a resumed run repeats nothing and skips nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch.distributed as dist
from torch.utils.data import Sampler

from cellvision.checks import MANY, check_count
from cellvision.errors import ConfigError, explain

Draw = tuple[int, int, int]
"""(sample index, epoch, position in the epoch): all that augmentation needs to seed itself."""


class EpochSampler(Sampler[Draw]):
    """Draws of one epoch, shuffled by (seed, epoch) alone and dealt out over the ranks of a distributed run.

    Keys instead of bare indices reach the worker processes, so each sample's random augmentation depends on
    (seed, epoch, position) and on no random state that a killed run would lose.

    Args:
        length: number of samples in the data set.
        draws: draws per epoch over all ranks, at least 1; samples repeat when it exceeds ``length``.
        seed: of the run, at least 0.
        weights: chance of each sample relative to the others, or None for every sample equally often.
        aspects: kind of each sample, e.g. whether it is portrait; all draws of a batch are then of one kind. None mixes
            them.
        batch_size: draws per batch on one device; matters for ``aspects`` only.

    Raises:
        ConfigError: ``draws`` or ``seed`` is not a whole number, or too low.
    """

    def __init__(
        self,
        *,
        length: int,
        draws: int,
        seed: int,
        weights: Sequence[float] | None = None,
        aspects: Sequence[int] | None = None,
        batch_size: int = 1,
    ) -> None:
        check_count("data.draws_per_epoch", draws, high=100 * MANY, example="null")
        check_count("seed", seed, low=0, example=0)
        self.length, self.draws, self.seed, self.epoch = length, draws, seed, 0
        self.aspects, self.batch_size = None if aspects is None else np.asarray(aspects), batch_size
        self.chances = None if weights is None else np.asarray(weights, dtype=np.float64) / np.sum(weights)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; Lightning calls this before each one."""
        self.epoch = epoch

    def __len__(self) -> int:
        world, _ = _world_and_rank()
        return -(-self.draws // world)

    def __iter__(self) -> Iterator[Draw]:
        world, rank = _world_and_rank()
        total = len(self) * world
        epoch, order = self.epoch, self._order(total, in_a_row=self.batch_size * world)
        return ((int(order[at]), epoch, at) for at in range(rank, total, world))

    def _order(self, total: int, *, in_a_row: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, self.epoch])
        if self.chances is not None:
            order = rng.choice(self.length, size=total, p=self.chances)
        else:
            rounds = -(-total // self.length)
            order = np.concatenate([rng.permutation(self.length) for _ in range(rounds)])[:total]
        return order if self.aspects is None else _group_draws(order, self.aspects[order], in_a_row, rng)


def _group_draws(order: np.ndarray, kinds: np.ndarray, in_a_row: int, rng: np.random.Generator) -> np.ndarray:
    """The draws of an epoch, every ``in_a_row`` of them (a batch on each device) of one kind.

    What is left of each kind when its full batches are dealt fills up with repeats of that kind, most numerous first,
    and the surplus of the others is left out: fewer than ``in_a_row`` draws per kind are exchanged, and the epoch
    keeps its length.
    """
    batches, rests = [], []
    for kind in np.unique(kinds):
        pile = order[kinds == kind]
        full = len(pile) // in_a_row * in_a_row
        batches += list(pile[:full].reshape(-1, in_a_row))
        rests.append((pile[full:], pile))
    missing = len(order) - len(batches) * in_a_row
    last = order[:0]
    for rest, pile in sorted(rests, key=lambda r: -len(r[0])):
        wanted = min(in_a_row, missing)
        filled = np.concatenate([rest, rng.choice(pile, size=max(0, wanted - len(rest)))])[:wanted]
        missing -= wanted
        if wanted == in_a_row:
            batches.append(filled)
        elif wanted:
            last = filled
    return np.concatenate([*(batches[i] for i in rng.permutation(len(batches))), last])


class FieldSampler(Sampler[int]):
    """Every field once and in order, dealt out over the ranks of a distributed run without repeating any."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        world, rank = _world_and_rank()
        return len(range(rank, self.length, world))

    def __iter__(self) -> Iterator[int]:
        world, rank = _world_and_rank()
        return iter(range(rank, self.length, world))


def check_world(fields: Mapping[str, int]) -> None:
    """Raise ConfigError if a process of a distributed run would be left without a field to be scored.

    Args:
        fields: number of them in each split that is scored.
    """
    world, _ = _world_and_rank()
    for split, count in fields.items():
        if count < world:
            got, need = f"{world} devices for {count} {split} fields", "one field or more for each device"
            raise ConfigError(explain(got=got, need=need, hint=f"trainer.devices={max(1, count)}"))


def _world_and_rank() -> tuple[int, int]:
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size(), dist.get_rank()
    return 1, 0


def compute_class_weights_per_sample(cell_counts: np.ndarray) -> np.ndarray:
    """(S,) chance weights that show rare cell classes as often as common ones.

    A sample weighs the mean, over its cells, of 1 / frequency of the cell's class; a sample without cells weighs
    as much as the lightest one with cells.

    Args:
        cell_counts: (S, K-1) number of cells of each foreground class in each sample.

    Example:
        >>> compute_class_weights_per_sample(np.array([[9, 0], [0, 1]])).round(2).tolist()
        [1.11, 10.0]
    """
    totals = cell_counts.sum(axis=0)
    frequency = totals / max(1, totals.sum())
    rarity = np.divide(1.0, frequency, out=np.zeros(len(frequency)), where=frequency > 0)
    cells = cell_counts.sum(axis=1)
    weights = np.divide(cell_counts @ rarity, cells, out=np.zeros(len(cells)), where=cells > 0)
    lightest = weights[weights > 0].min() if (weights > 0).any() else 1.0
    return np.where(weights > 0, weights, lightest)

"""Pairs against a loop in Python, in chunks of any size."""

import pytest
import torch

from cellvision.models.centermask2 import pairs


@pytest.mark.parametrize("at_once", [1, 4, 7, 1000])
@pytest.mark.parametrize("counts", [[], [0], [0, 0], [5], [2, 0, 3, 1, 0, 9, 0]])
def test_every_pair_is_there_once_and_in_order(monkeypatch, counts, at_once):
    monkeypatch.setattr(pairs, "PAIRS_AT_ONCE", at_once)
    expected = [(owner, number) for owner, count in enumerate(counts) for number in range(count)]
    chunks = list(pairs.list_pairs(torch.tensor(counts, dtype=torch.int64)))
    found = [pair for owners, numbers in chunks for pair in zip(owners.tolist(), numbers.tolist(), strict=True)]
    assert found == expected
    assert all(len(owners) < at_once + max(counts, default=0) for owners, _ in chunks)

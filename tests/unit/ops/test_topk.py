"""The best in portions against the best at once."""

import pytest
import torch

from cellvision.ops.topk import find_best


@pytest.mark.parametrize("count", [1, 6, 7, 8, 20, 50])
def test_portions_give_what_one_search_gives(count):
    values = torch.rand(3, 50, generator=torch.Generator().manual_seed(0))
    best, places = find_best(values, count, at_once=7)
    expected = values.topk(count)
    assert torch.equal(best, expected.values)
    assert torch.equal(places, expected.indices)


def test_places_with_equal_values_are_found_once_each():
    values = torch.tensor([[0.5, -1.0, 0.5, -1.0, 0.5, 0.9, -1.0]])
    best, places = find_best(values, 7, at_once=2)
    assert best.tolist() == [[pytest.approx(0.9), 0.5, 0.5, 0.5, -1.0, -1.0, -1.0]]
    assert sorted(places[0].tolist()) == list(range(7))
    assert torch.equal(values.gather(1, places), best)

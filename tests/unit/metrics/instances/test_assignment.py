import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cellvision.metrics.instances.assignment import assign_in_order


def assign_one_by_one(pred, true, many):
    """The loop that is meant."""
    taken, chosen = set(), []
    for cell in sorted(set(pred)):
        for position in np.flatnonzero(np.array(pred) == cell):
            if many[true[position]] or true[position] not in taken:
                taken.add(true[position])
                chosen.append(position)
                break
    return chosen


@settings(max_examples=300, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 6)), unique=True, max_size=40),
    many=st.lists(st.booleans(), min_size=7, max_size=7),
)
def test_the_same_as_going_one_by_one(pairs, many):
    pairs = sorted(pairs, key=lambda pair: pair[0])  # their order within a predicted cell is the preference
    pred, true = (np.array([pair[i] for pair in pairs], np.int64) for i in (0, 1))
    several = np.array(many)
    assert assign_in_order(pred, true, many=several[true]).tolist() == assign_one_by_one(pred, true, several)
    assert assign_in_order(pred, true).tolist() == assign_one_by_one(pred, true, np.zeros(7, bool))


def test_a_long_chain_of_refusals_ends():
    # Each predicted cell prefers the true cell that the one before it gets.
    count = 200
    pred = np.repeat(np.arange(count), 2)
    true = np.stack([np.maximum(np.arange(count) - 1, 0), np.arange(count)], axis=1).ravel()
    assert assign_in_order(pred, true).tolist() == assign_one_by_one(pred, true, np.zeros(count, bool))

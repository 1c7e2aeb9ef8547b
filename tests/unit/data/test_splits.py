"""Oracle: every possible assignment of groups, tried one by one."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellvision.bundle import Channel
from cellvision.data.splits import check_alike, check_leakage, split_by_group
from cellvision.errors import ConfigError, DataError
from cellvision.types import Sample

FRACTIONS = [{"train": 0.8, "val": 0.2}, {"train": 0.7, "val": 0.15, "test": 0.15}, {"a": 0.5, "b": 0.3, "c": 0.2}]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.sampled_from([1, 1, 2, 3, 5, 8, 13]), min_size=3, max_size=7),
    fractions=st.sampled_from(FRACTIONS),
    seed=st.integers(0, 99),
)
def test_splits_are_whole_groups_near_the_fractions(sizes, fractions, seed):
    groups = [f"g{i}" for i, size in enumerate(sizes) for _ in range(size)]
    parts = split_by_group(groups, fractions=fractions, seed=seed)
    assert sorted(itertools.chain(*parts.values())) == list(range(len(groups)))
    members = {split: {groups[i] for i in part} for split, part in parts.items()}
    assert all(members.values())
    assert sum(map(len, members.values())) == len(sizes)

    def miss(counts):
        return sum(abs(counts[split] - share * len(groups)) for split, share in fractions.items())

    best = min(
        miss({s: sum(n for n, h in zip(sizes, homes, strict=True) if h == s) for s in fractions})
        for homes in itertools.product(fractions, repeat=len(sizes))
        if len(set(homes)) == len(fractions)
    )
    assert miss({split: len(part) for split, part in parts.items()}) <= best + 0.1 * len(groups) + 1


def test_equal_groups_give_the_fractions_exactly():
    groups = [f"w{i // 4}" for i in range(400)]
    parts = split_by_group(groups, fractions=FRACTIONS[1], seed=0)
    assert {split: len(part) for split, part in parts.items()} == {"train": 280, "val": 60, "test": 60}


def test_seed_and_order():
    groups = [f"w{i // 3}" for i in range(60)]
    first = split_by_group(groups, fractions=FRACTIONS[0], seed=1)
    assert first == split_by_group(groups, fractions=FRACTIONS[0], seed=1)
    assert first != split_by_group(groups, fractions=FRACTIONS[0], seed=2)
    backwards = split_by_group(groups[::-1], fractions=FRACTIONS[0], seed=1)
    assert {groups[::-1][i] for i in backwards["val"]} == {groups[i] for i in first["val"]}


def test_a_tiny_fraction_still_gets_a_group():
    parts = split_by_group([str(i) for i in range(10)], fractions={"train": 0.98, "val": 0.01, "test": 0.01}, seed=0)
    assert {split: len(part) for split, part in parts.items()} == {"train": 8, "val": 1, "test": 1}


def test_too_few_groups():
    with pytest.raises(
        DataError, match=r"1 groups \(A1\) for the splits train, val; need at least one group per split"
    ):
        split_by_group(["A1"] * 9, fractions=FRACTIONS[0], seed=0)


@pytest.mark.parametrize(
    "fractions", [{}, {"train": 1.2, "val": -0.2}, {"train": 0.5, "val": 0.4}, {"train": float("nan")}]
)
def test_fractions_that_are_no_shares(fractions):
    with pytest.raises(ConfigError, match="need numbers over 0 that add up to 1"):
        split_by_group(["a", "b"], fractions=fractions, seed=0)


class Fields:
    classes = ("background", "cell")
    channels = (Channel(name="grey"),)

    def __init__(self, fields):
        self.fields = fields
        self.names = tuple(fields)
        self.groups = tuple(group for group, _ in fields.values())

    def __len__(self):
        return len(self.fields)

    def sample(self, index):
        name = self.names[index]
        group, value = self.fields[name]
        image = np.full((1, 4, 4), value, np.uint8)
        empty = np.zeros((4, 4), np.int32)
        return Sample(name=name, group=group, image=image, label_image=empty, cell_classes=np.zeros(0, np.int64))

    def fingerprint(self):
        return ""


def test_leakage_names_both_splits():
    train = Fields({"a": ("w1", 1), "b": ("w2", 2), "b_again": ("w2", 2)})
    check_leakage({"train": train, "val": Fields({"c": ("w3", 3)})})
    with pytest.raises(DataError, match="1 fault: group 'w2' is in train and val"):
        check_leakage({"train": train, "val": Fields({"c": ("w2", 3)})})
    with pytest.raises(DataError, match="1 fault: image 'a' of train and 'd' of test have the same pixels"):
        check_leakage({"train": train, "val": Fields({"c": ("w3", 3)}), "test": Fields({"d": ("w4", 1)})})


def test_splits_have_the_same_classes_and_channels_in_the_same_order():
    def make(*classes, channels=("a", "b")):
        return SimpleNamespace(classes=classes, channels=tuple(Channel(name=name, role="other") for name in channels))

    def check(channels=(0, 1), **splits):
        check_alike({"train": make("background", "big", "small"), **splits}, channels=channels)

    check(val=make("background", "big", "small"), test=make("background", "big"))
    with pytest.raises(DataError, match=r"classes background, small, big in val, and background, big, small in train"):
        check(val=make("background", "small", "big"))
    with pytest.raises(DataError, match=r"classes background, big, small, odd in test, and"):
        check(test=make("background", "big", "small", "odd"))
    swapped = make("background", "big", "small", channels=("b", "a"))
    with pytest.raises(DataError, match=r"channels b, a in val, and a, b in train; need the same ones in the same"):
        check(val=swapped)
    with pytest.raises(DataError, match=r"channels a in val, and a, b in train"):
        check(val=make("background", "big", "small", channels=("a",)))
    check(val=make("background", "big", "small", channels=("a",)), channels=(0,))

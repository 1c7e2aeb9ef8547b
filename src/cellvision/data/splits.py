"""Splits that never divide a group, and the proof that no field is in two of them."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from cellvision.data.dataset import CellDataset, list_faults
from cellvision.errors import ConfigError, DataError, explain


def split_by_group(groups: Sequence[str], *, fractions: Mapping[str, float], seed: int) -> dict[str, list[int]]:
    """Sample indices per split, ascending; whole groups only, sizes as near to ``fractions`` as the groups allow.

    The result depends on the groups and their sizes, ``fractions`` and ``seed``, not on the order of the samples.

    Args:
        groups: group of each sample.
        fractions: share of the samples per split, each over 0, together 1.
        seed: shuffles which of equally suitable groups goes where.

    Raises:
        ConfigError: the fractions are no shares of a whole.
        DataError: there are fewer groups than splits.

    Example:
        >>> split_by_group(["A1", "A1", "B2", "C3"], fractions={"train": 0.75, "val": 0.25}, seed=0)["val"]
        [2]
    """
    if not fractions or min(fractions.values()) <= 0 or not math.isclose(sum(fractions.values()), 1, abs_tol=1e-6):
        raise ConfigError(
            explain(
                got=f"split fractions {dict(fractions)}",
                need="numbers over 0 that add up to 1",
                hint="{train: 0.8, val: 0.2}",
            )
        )
    sizes = Counter(groups)
    if len(sizes) < len(fractions):
        raise DataError(
            explain(
                got=f"{len(sizes)} groups ({', '.join(sorted(sizes)[:5])}) for the splits {', '.join(fractions)}",
                need="at least one group per split, because a group is never divided",
                hint="fewer splits, or group names that tell the fields apart",
            )
        )
    home = _deal(sizes, {split: share * len(groups) for split, share in fractions.items()}, seed)
    return {split: [i for i, group in enumerate(groups) if home[group] == split] for split in fractions}


def _deal(sizes: Mapping[str, int], wanted: Mapping[str, float], seed: int) -> dict[str, str]:
    """Split of each group: large groups first, each where most samples are missing."""
    order = sorted(sizes)
    np.random.default_rng(seed).shuffle(order)
    order.sort(key=lambda group: -sizes[group])
    home: dict[str, str] = {}
    missing = dict(wanted)
    for position, group in enumerate(order):
        empty = [split for split in wanted if split not in home.values()]
        # The last groups are kept for splits that have none yet.
        choice = empty if len(order) - position <= len(empty) else list(wanted)
        split = max(choice, key=lambda s: missing[s])
        home[group] = split
        missing[split] -= sizes[group]
    return home


def check_alike(datasets: Mapping[str, CellDataset], *, channels: Sequence[int]) -> None:
    """Raise DataError if a split has other classes or channels than the training fields, or in another order.

    A class is a number in the labels: with another order every score would be one of other classes. A split may lack
    the last ones.

    Args:
        datasets: of the splits, "train" among them.
        channels: positions of those that are looked at.
    """
    train = datasets["train"]
    for split, dataset in datasets.items():
        known, given = list(train.classes), list(dataset.classes)
        if given != known[: len(given)]:
            got = f"classes {', '.join(given)} in {split}, and {', '.join(known)} in train"
            hint = "data.categories=[...] for one order in all COCO files"
            raise DataError(explain(got=got, need="the same ones in the same order", hint=hint))
        known, given = (
            [one.channels[at].name for at in channels if at < len(one.channels)] for one in (train, dataset)
        )
        if given != known:
            got = f"channels {', '.join(given)} in {split}, and {', '.join(known)} in train"
            hint = f"++data.datasets.{split}.channels=[{','.join(known)}] where only their names are missing"
            raise DataError(explain(got=got, need="the same ones in the same order", hint=hint))


def check_leakage(datasets: Mapping[str, CellDataset]) -> None:
    """Raise DataError if two splits share a group or an image, naming both; images are compared by decoded pixels.

    Every image is decoded once. An image that is turned, cut or brightened is not recognised: groups are for that.
    """
    faults: list[str] = []
    seen_groups: dict[str, str] = {}
    seen_images: dict[str, tuple[str, str]] = {}
    for split, dataset in datasets.items():
        for group in sorted(set(dataset.groups)):
            other = seen_groups.setdefault(group, split)
            if other != split:
                faults.append(f"group {group!r} is in {other} and {split}")
    for split, dataset in datasets.items():
        for index in range(len(dataset)):
            sample = dataset.sample(index)
            other, name = seen_images.setdefault(_hash_pixels(sample.image), (split, sample.name))
            if other != split:
                faults.append(f"image {name!r} of {other} and {sample.name!r} of {split} have the same pixels")
    if faults:
        raise DataError(
            explain(
                got=f"leakage between splits, {list_faults(faults)}",
                need="every group and every image in one split only",
                hint="split by group again, remove the copies, or give unrelated groups names of their own",
            )
        )


def _hash_pixels(image: np.ndarray) -> str:
    digest = hashlib.sha256(f"{image.dtype}{image.shape}".encode())
    digest.update(np.ascontiguousarray(image).tobytes())
    return digest.hexdigest()

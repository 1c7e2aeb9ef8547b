"""Samples become training crops, crops become a Batch; runs in the worker processes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from cellvision.data.dataset import CellDataset
from cellvision.data.sampler import Draw
from cellvision.data.transforms import Augment, Field
from cellvision.errors import DataError, explain
from cellvision.ops.targets import compute_distance
from cellvision.types import Batch, Sample, Targets


class SubsetView:
    """A data set cut down to some of its samples, decoded ones kept in memory up to a budget.

    Args:
        dataset: the whole data set.
        indices: which of its samples, in order.
        cache_mib: decoded samples are kept while they fit into this much memory; 0 keeps none.
    """

    def __init__(self, dataset: CellDataset, indices: Sequence[int], *, cache_mib: float) -> None:
        self.dataset, self.indices = dataset, list(indices)
        self.classes, self.channels = dataset.classes, dataset.channels
        self._budget = cache_mib * 2**20
        self._kept: dict[int, Sample] = {}

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def names(self) -> tuple[str, ...]:
        """Sample names in order."""
        return tuple(self.dataset.names[i] for i in self.indices)

    @property
    def groups(self) -> tuple[str, ...]:
        """Group of each sample in order."""
        return tuple(self.dataset.groups[i] for i in self.indices)

    def fingerprint(self) -> str:
        """That of the whole data set, and which samples of it."""
        return f"{self.dataset.fingerprint()}[{len(self)} of {len(self.dataset)}]"

    def sample(self, index: int) -> Sample:
        """The decoded sample; from memory when it was kept."""
        if (kept := self._kept.get(index)) is not None:
            return kept
        sample = self.dataset.sample(self.indices[index])
        size = sample.image.nbytes + sample.label_image.nbytes
        if size <= self._budget:
            self._budget -= size
            self._kept[index] = sample
        return sample


class Crops(Dataset[tuple[Field, Sample]]):
    """Training view: a draw (index, epoch, position) gives an augmented crop with its sample."""

    def __init__(self, view: SubsetView, *, channels: Sequence[int], augment: Augment, seed: int) -> None:
        self.view, self.channels, self.augment, self.seed = view, list(channels), augment, seed

    def __len__(self) -> int:
        return len(self.view)

    def __getitem__(self, draw: Draw) -> tuple[Field, Sample]:
        index, epoch, position = draw
        sample = self.view.sample(index)
        state = np.random.SeedSequence([self.seed, epoch, position]).generate_state(1, np.uint64)[0]
        rng = torch.Generator().manual_seed(int(state >> np.uint64(1)))
        return self.augment(to_field(sample, self.channels), rng), sample


class Fields(Dataset[tuple[Field, Sample]]):
    """Evaluation view: whole fields, unchanged."""

    def __init__(self, view: SubsetView, *, channels: Sequence[int]) -> None:
        self.view, self.channels = view, list(channels)

    def __len__(self) -> int:
        return len(self.view)

    def __getitem__(self, index: int) -> tuple[Field, Sample]:
        sample = self.view.sample(index)
        return to_field(sample, self.channels), sample


def to_field(sample: Sample, channels: Sequence[int]) -> Field:
    """The chosen channels as float32 counts, with the label image, as tensors."""
    image = np.ascontiguousarray(sample.image[list(channels)], dtype=np.float32)
    return Field(image=torch.from_numpy(image), label_image=torch.from_numpy(sample.label_image.astype(np.int32)))


def collate(items: list[tuple[Field, Sample]]) -> Batch:
    """The Batch of a list of fields of one size; DataError names two samples of different sizes."""
    check_equal_sizes(items)
    labels = torch.stack([field.label_image.as_subclass(torch.Tensor) for field, _ in items])
    classes = [torch.from_numpy(sample.cell_classes.astype(np.int64)) for _, sample in items]
    of_label = [torch.cat([torch.zeros(1, dtype=torch.int64), one]) for one in classes]
    return Batch(
        images=torch.stack([field.image.as_subclass(torch.Tensor) for field, _ in items]),
        targets=Targets(
            class_map=torch.stack([table[one.long()] for one, table in zip(labels, of_label, strict=True)]),
            distance=torch.stack([torch.from_numpy(compute_distance(one.numpy())) for one in labels]),
            label_image=labels,
            cell_classes=tuple(classes),
        ),
        names=tuple(sample.name for _, sample in items),
    )


def check_equal_sizes(items: list[tuple[Field, Sample]]) -> None:
    """Raise DataError, naming two samples, unless all fields of a batch have one size."""
    sizes = {tuple(field.image.shape): sample.name for field, sample in items}
    if len(sizes) > 1:
        raise DataError(
            explain(
                got=f"one batch with {' and '.join(f'{name} {shape}' for shape, name in list(sizes.items())[:2])}",
                need="crops of one size",
                hint="keep data.augment.crop, or set data.batch_size=1",
            )
        )

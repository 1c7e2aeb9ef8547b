"""The one Lightning data module: data sets, splits, sampling, workers and the statistics that travel into the net."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from lightning.pytorch import LightningDataModule
from scipy.ndimage import find_objects
from torch.utils.data import DataLoader

from cellvision.bundle import Channel
from cellvision.checks import MANY, check_count, check_range
from cellvision.data.augment import Augment, Step
from cellvision.data.augment.cropping import CROPS, RandomCrop, RandomScaleCrop
from cellvision.data.batching import Crops, Fields, SubsetView, collate, hush_unread_batches
from cellvision.data.dataset import CellDataset
from cellvision.data.sampler import (
    EpochSampler,
    FieldSampler,
    check_world,
    compute_class_weights_per_sample,
)
from cellvision.data.splits import check_alike, check_leakage, split_by_group
from cellvision.data.statistics import CountRange, compute_stats, find_fault
from cellvision.errors import ConfigError, explain, unknown_name
from cellvision.types import IGNORE, Batch, DataStats, Sample

SPLITS = ("train", "val", "test")


class CellDataModule(LightningDataModule):
    """Batches for training, validation and test out of any CellDataset.

    Args:
        datasets: one data set per split ("train", "val", and "test" if there is one), or {"all": data set} that
            ``fractions`` then divides by group.
        fractions: share of each split, e.g. {"train": 0.7, "val": 0.3}; only with "all".
        channels: names of the channels that the net sees, in its order; None takes all.
        augment: named training steps; None switches one off. The crop that makes sizes equal is one of them.
        normalization, percentiles, count_range: see ``compute_stats``.
        batch_size: crops per training step on one device; fields are validated one by one, whole.
        draws_per_epoch: crops per epoch; None draws as many as cover the training pixels once.
        balanced: draw fields with rare cell classes more often.
        group_by_aspect: batches of fields that are higher than wide, and batches of the others, so that little is
            padding where fields are not cut to one size.
        workers: loader processes; 0 loads in the main process.
        cache_mib: decoded samples kept in memory, per split, in MiB.
        nucleus_margin_px: how far a cell's outline lies beyond its nucleus, told to the Otsu baseline so that it is
            compared fairly where whole cells are annotated.
        seed: of sampling, augmentation and splitting.

    Attributes:
        faults: after ``setup``, names of the training fields whose counts are doubtful, by `find_fault`.
        with_distance: False leaves ``Targets.distance`` 0 in batches made from then on, for nets that learn none.

    Raises:
        ConfigError: splits or channels that do not exist, or group_by_aspect with a crop to one size.
        DataError: leakage between splits, or unreadable data.
    """

    def __init__(
        self,
        *,
        datasets: Mapping[str, CellDataset],
        fractions: Mapping[str, float] | None = None,
        channels: Sequence[str] | None = None,
        augment: Mapping[str, Step | None] | None = None,
        normalization: str = "percentile",
        percentiles: tuple[float, float] = (1.0, 99.8),
        count_range: CountRange | None = None,
        batch_size: int = 8,
        draws_per_epoch: int | None = None,
        balanced: bool = False,
        group_by_aspect: bool = False,
        workers: int = 1,
        cache_mib: float = 1024.0,
        nucleus_margin_px: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        _check_counts(seed, batch_size, workers, nucleus_margin_px)
        check_range("data.cache_mib", cache_mib, low=0, example=1024)
        self.views = _build_views(datasets, fractions, cache_mib=cache_mib, seed=seed)
        first = self.views["train"]
        self.classes: tuple[str, ...] = tuple(first.classes)
        self.channel_positions = _find_channels(first.channels, channels)
        self.channels: tuple[Channel, ...] = tuple(first.channels[i] for i in self.channel_positions)
        self.augment = Augment(augment or {})
        if group_by_aspect:
            _check_no_crop(self.augment)
        self.normalization, self.percentiles, self.count_range = normalization, percentiles, count_range
        self.batch_size, self.draws_per_epoch, self.nucleus_margin_px = batch_size, draws_per_epoch, nucleus_margin_px
        self.balanced, self.group_by_aspect, self.workers, self.seed = balanced, group_by_aspect, workers, seed
        self.stats: DataStats | None = None
        self.image_dtypes: tuple[str, ...] = ()
        self.faults: dict[str, list[str]] = {}
        self.pixel_size_um: float | None = None
        self.small_cell_px, self.long_cell_px, self._draws, self.with_distance = 1, 0, 0, True
        self._weights: np.ndarray | None = None
        self._aspects: list[int] | None = None

    @property
    def kind(self) -> str:
        """The task that the classes suggest: "viability" for background, live, dead; otherwise "semantic"."""
        return "viability" if self.classes == ("background", "live", "dead") else "semantic"

    def setup(self, stage: str | None = None) -> None:
        """Check the splits against leakage and measure the training fields, once; see also ``check_world``."""
        check_world({split: len(view) for split, view in self.views.items() if split != "train"})
        if self.stats is not None:
            return
        check_alike(dict(self.views), channels=self.channel_positions)
        check_leakage(dict(self.views))
        train = self.views["train"]
        seen = _Watch((train.sample(i) for i in range(len(train))), channels=self.channel_positions)
        self.stats = compute_stats(
            seen,
            channels=self.channel_positions,
            classes=len(self.classes),
            normalization=self.normalization,
            percentiles=self.percentiles,
            count_range=self.count_range,
        )
        self.pixel_size_um = float(np.median(seen.pixel_sizes_um)) if seen.pixel_sizes_um else None
        self.image_dtypes = tuple(sorted(seen.dtypes | {"float32"}))
        self.faults = seen.faults
        self.small_cell_px, self.long_cell_px = seen.find_small_cell_px(), seen.find_long_cell_px()
        self._draws = self._count_covering(seen.pixels) if self.draws_per_epoch is None else self.draws_per_epoch
        self._aspects = seen.aspects if self.group_by_aspect else None
        if self.balanced:
            counts = np.stack(seen.class_counts)[:, 1 : len(self.classes)]
            self._weights = compute_class_weights_per_sample(counts)

    def fingerprint(self) -> str:
        """SHA-256 over the data sets and the split: equal for equal training data."""
        text = "\n".join(f"{split}:{view.fingerprint()}:{','.join(view.names)}" for split, view in self.views.items())
        return hashlib.sha256(text.encode()).hexdigest()

    def train_dataloader(self, *, workers: int | None = None) -> DataLoader[Batch]:
        """Shuffled, augmented crops; the order and every random number follow from (seed, epoch) alone."""
        crops = self._build_crops()
        weights = None if self._weights is None else self._weights.tolist()
        sampler = EpochSampler(
            length=len(crops),
            draws=self._draws,
            seed=self.seed,
            weights=weights,
            aspects=self._aspects,
            batch_size=self.batch_size,
        )
        return self._build_loader(crops, workers=workers, batch_size=self.batch_size, sampler=sampler)

    def collect_batches(self, count: int, *, epoch: int) -> list[Batch]:
        """The first ``count`` training batches of an epoch, of this process, or as many as there are."""
        loader = self.train_dataloader(workers=0)
        assert isinstance(loader.sampler, EpochSampler)
        loader.sampler.set_epoch(epoch)
        return list(islice(loader, count))

    def val_dataloader(self, *, workers: int | None = None) -> DataLoader[Batch]:
        """Whole validation fields, one by one."""
        return self._build_field_loader(self.views["val"], workers=workers)

    def test_dataloader(self) -> DataLoader[Batch]:
        """Whole test fields, one by one; the validation fields where there is no test split."""
        return self._build_field_loader(self.held_out)

    @property
    def held_out(self) -> SubsetView:
        """The test split, or the validation split where there is none."""
        return self.views.get("test", self.views["val"])

    def collect_held_out(self, count: int) -> list[Sample]:
        """The first ``count`` held-out samples, or as many as there are, with the net's channels only."""
        samples = [self.held_out.sample(i) for i in range(min(count, len(self.held_out)))]
        return [replace(sample, image=sample.image[self.channel_positions]) for sample in samples]

    def _build_crops(self) -> Crops:
        return Crops(self.views["train"], channels=self.channel_positions, augment=self.augment, seed=self.seed)

    def _count_covering(self, pixels: int) -> int:
        """Draws that show as many pixels as there are; each field once where none is cut."""
        fields = len(self.views["train"])
        if not any(isinstance(step, CROPS) for step in self.augment.steps.values()):
            return fields
        crop, _ = self._build_crops()[0, 0, 0]
        return max(fields, round(pixels / (crop.height * crop.width)))

    def _build_field_loader(self, view: SubsetView, *, workers: int | None = None) -> DataLoader[Batch]:
        fields = Fields(view, channels=self.channel_positions)
        return self._build_loader(fields, workers=workers, batch_size=1, sampler=FieldSampler(len(view)))

    def _build_loader(self, dataset: Any, *, workers: int | None, **options: Any) -> DataLoader[Batch]:
        processes = self.workers if workers is None else workers
        return DataLoader(
            dataset,
            num_workers=processes,
            persistent_workers=processes > 0,
            worker_init_fn=hush_unread_batches,
            collate_fn=partial(collate, with_distance=self.with_distance),
            **options,
        )


class _Watch:
    """The samples passed on one by one, and what there is to note of each."""

    def __init__(self, samples: Iterable[Sample], *, channels: list[int]) -> None:
        self._samples, self._channels = samples, channels
        self.faults: dict[str, list[str]] = {}
        self.dtypes: set[str] = set()
        self.pixel_sizes_um: list[float] = []
        self.class_counts: list[np.ndarray] = []
        self.aspects: list[int] = []
        self.pixels = 0
        self._areas: list[np.ndarray] = []
        self._lengths: list[int] = [0]

    def __iter__(self) -> Iterator[Sample]:
        for sample in self._samples:
            self.pixels += sample.label_image.size
            self.dtypes.add(sample.image.dtype.name)
            self.aspects.append(int(sample.label_image.shape[0] > sample.label_image.shape[1]))
            self.class_counts.append(np.bincount(sample.cell_classes, minlength=IGNORE + 1))
            self._areas.append(np.bincount(sample.label_image.ravel())[1:])
            windows = [window for window in find_objects(sample.label_image) if window is not None]
            self._lengths += [max(side.stop - side.start for side in window) for window in windows]
            if fault := find_fault(sample.image[self._channels]):
                self.faults.setdefault(fault, []).append(sample.name)
            if sample.pixel_size_um is not None:
                self.pixel_sizes_um.append(sample.pixel_size_um)
            yield sample

    def find_small_cell_px(self) -> int:
        """Area that 98 % of the cells exceed; 1 where there are none."""
        areas = np.concatenate(self._areas)
        return int(np.percentile(areas[areas > 0], 2)) if (areas > 0).any() else 1

    def find_long_cell_px(self) -> int:
        """Length, along rows or columns, that all but one cell in a thousand stay below; 0 where there are none."""
        return int(np.ceil(np.percentile(self._lengths, 99.9)))


def _build_views(
    datasets: Mapping[str, CellDataset], fractions: Mapping[str, float] | None, *, cache_mib: float, seed: int
) -> dict[str, SubsetView]:
    if set(datasets) == {"all"}:
        whole = datasets["all"]
        parts = split_by_group(whole.groups, fractions=dict(fractions or {"train": 0.8, "val": 0.2}), seed=seed)
        views = {split: SubsetView(whole, part, cache_mib=cache_mib) for split, part in parts.items()}
    else:
        views = {s: SubsetView(d, range(len(d)), cache_mib=cache_mib) for s, d in datasets.items() if d is not None}
    for split in views:
        if split not in SPLITS:
            raise ConfigError(unknown_name("data split", split, SPLITS))
    if missing := {"train", "val"} - views.keys():
        got, need = f"data splits {sorted(views)}", f"also {', '.join(sorted(missing))}"
        hint = "data.datasets.all with data.fractions={train: 0.8, val: 0.2}"
        raise ConfigError(explain(got=got, need=need, hint=hint))
    return views


def _check_no_crop(augment: Augment) -> None:
    for name, step in augment.steps.items():
        if isinstance(step, RandomCrop | RandomScaleCrop):
            got = f"data.group_by_aspect=true with data.augment.{name}, after which all fields have one size"
            raise ConfigError(explain(got=got, need="fields of their own shape", hint=f"data.augment.{name}=null"))


def _check_counts(seed: int, batch_size: int, workers: int, nucleus_margin_px: int) -> None:
    check_count("seed", seed, low=0, example=0)
    check_count("data.batch_size", batch_size, high=MANY, example=8)
    check_count("data.workers", workers, low=0, high=1024, example=1)
    check_count("data.nucleus_margin_px", nucleus_margin_px, low=0, high=10_000, example=6)


def _find_channels(known: Sequence[Channel], wanted: Sequence[str] | None) -> list[int]:
    names = [channel.name for channel in known]
    if wanted is None:
        return list(range(len(names)))
    if not wanted or len(set(wanted)) < len(wanted):
        got = f"data.channels={list(wanted)}"
        raise ConfigError(
            explain(got=got, need="different names, at least one", hint=f"data.channels=[{','.join(names)}]")
        )
    for name in wanted:
        if name not in names:
            raise ConfigError(unknown_name("data.channels entry", name, names))
    return [names.index(name) for name in wanted]

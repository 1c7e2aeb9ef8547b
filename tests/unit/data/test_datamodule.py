"""Batches: equal for equal (seed, epoch), whole for validation, with the channels asked for."""

import numpy as np
import pytest
import torch
import torch.distributed as dist

from cellvision.data.augment import CropByCells, RandomCrop, RandomFlip, RandomIntensity, ResizeShortestEdge
from cellvision.data.batching import SubsetView
from cellvision.data.datamodule import CellDataModule
from cellvision.data.synthetic import SyntheticLiveDead
from cellvision.errors import ConfigError, DataError
from cellvision.ops.targets import compute_distance

CELLS = SyntheticLiveDead(fields=10, height=64, width=48, cells=(2, 5), seed=5)


def build(**settings) -> CellDataModule:
    data = CellDataModule(
        **{
            "datasets": {"all": CELLS},
            "fractions": {"train": 0.6, "val": 0.2, "test": 0.2},
            "augment": {"crop": RandomCrop(size=32), "flip": RandomFlip(), "light": RandomIntensity(), "off": None},
            "batch_size": 3,
            "workers": 0,
            **settings,
        }
    )
    data.setup()
    return data


def read(data: CellDataModule, epoch: int):
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return list(loader)


def test_batches_follow_from_seed_and_epoch_alone():
    first, again = read(build(), 3), read(build(), 3)
    assert [b.names for b in first] == [b.names for b in again]
    assert all(torch.equal(a.images, b.images) for a, b in zip(first, again, strict=True))
    other = read(build(), 4)
    assert not all(torch.equal(a.images, b.images) for a, b in zip(first, other, strict=True))


def test_worker_processes_change_nothing():
    alone, helped = read(build(), 1), read(build(workers=2), 1)
    assert all(torch.equal(a.images, b.images) for a, b in zip(alone, helped, strict=True))


def test_a_batch_holds_what_its_label_image_says():
    batch = read(build(), 0)[0]
    assert batch.images.shape == (3, 3, 32, 32)
    assert batch.images.dtype == torch.float32
    for at, name in enumerate(batch.names):
        sample = CELLS.sample(CELLS.names.index(name))
        labels = batch.targets.label_image[at].numpy()
        expected = np.append(0, sample.cell_classes)[labels]
        assert np.array_equal(batch.targets.class_map[at].numpy(), expected)
        assert np.allclose(batch.targets.distance[at].numpy(), compute_distance(labels))


def test_an_epoch_covers_the_training_pixels_once_unless_told_otherwise():
    assert sum(len(batch.names) for batch in read(build(), 0)) == 6 * 64 * 48 // 32**2
    assert sum(len(batch.names) for batch in read(build(draws_per_epoch=7), 0)) == 7


def test_validation_fields_are_whole_and_unchanged():
    data = build(channels=["pi", "hoechst"])
    batch = next(iter(data.val_dataloader()))
    sample = CELLS.sample(CELLS.names.index(batch.names[0]))
    assert np.array_equal(batch.images[0].numpy(), sample.image[[2, 0]].astype(np.float32))
    assert [channel.name for channel in data.channels] == ["pi", "hoechst"]
    assert data.collect_held_out(1)[0].image.shape[0] == 2


def test_splits_cover_the_fields_without_sharing_any():
    data = build()
    names = [name for view in data.views.values() for name in view.names]
    assert sorted(names) == sorted(CELLS.names)
    assert data.held_out is data.views["test"]
    assert data.fingerprint() == build().fingerprint()
    assert data.fingerprint() != build(seed=1).fingerprint()


def test_statistics_come_from_the_training_fields():
    data = build()
    assert data.image_dtypes == ("float32", "uint16")
    assert data.pixel_size_um == pytest.approx(0.65)
    train = np.concatenate([s.image.reshape(3, -1) for s in map(data.views["train"].sample, range(6))], axis=1)
    assert data.stats.offset == pytest.approx(np.percentile(train, 1.0, axis=1), rel=0.02)


def test_kind_follows_the_classes():
    assert build().kind == "viability"


class Renamed:
    """The same fields under another group name."""

    def __init__(self, group: str) -> None:
        self.groups = tuple(group for _ in range(len(CELLS)))

    def __getattr__(self, name: str):
        return getattr(CELLS, name)

    def __len__(self) -> int:
        return len(CELLS)


def test_leakage_is_an_error():
    with pytest.raises(DataError, match="shared"):
        build(datasets={"train": Renamed("shared"), "val": Renamed("shared")})
    with pytest.raises(DataError, match="synthetic"):
        build(datasets={"train": Renamed("a"), "val": Renamed("b")})


class Mixed:
    """Wide and high fields in turns."""

    def __init__(self) -> None:
        shapes = {"height": 32, "width": 48}, {"height": 48, "width": 32}
        self._sets = [SyntheticLiveDead(fields=7, cells=(2, 5), seed=at, **shape) for at, shape in enumerate(shapes)]
        self.classes, self.channels = CELLS.classes, CELLS.channels
        self.names = tuple(self._sets[at % 2].names[at // 2] for at in range(14))
        self.groups = self.names

    def __len__(self) -> int:
        return 14

    def sample(self, index: int):
        return self._sets[index % 2].sample(index // 2)

    def fingerprint(self) -> str:
        return "mixed"


def test_whole_fields_of_several_sizes_are_trained_and_each_is_drawn_once():
    data = build(datasets={"all": Mixed()}, augment={"flip": RandomFlip()}, batch_size=4)
    batches = read(data, 0)
    assert sorted(name for batch in batches for name in batch.names) == sorted(data.views["train"].names)
    mixed = [batch for batch in batches if batch.targets.sizes is not None]
    assert {tuple(batch.images.shape[-2:]) for batch in mixed} == {(48, 48)}
    resize = ResizeShortestEdge(sizes=(16,))
    assert sum(len(batch.names) for batch in read(build(augment={"resize": resize}), 0)) == 6


def test_batches_by_aspect():
    data = build(datasets={"all": Mixed()}, augment={}, batch_size=2, group_by_aspect=True)
    for epoch in range(3):
        batches = read(data, epoch)
        assert all(batch.targets.sizes is None for batch in batches)
        assert {tuple(batch.images.shape[-2:]) for batch in batches} == {(32, 48), (48, 32)}
        assert [b.names for b in batches] == [b.names for b in read(data, epoch)]
    with pytest.raises(ConfigError, match=r"group_by_aspect=true with data\.augment\.crop.*data\.augment\.crop=null"):
        build(group_by_aspect=True)
    build(augment={"crop": CropByCells(size=30, max_cells=2)}, group_by_aspect=True)  # keeps the shape of a field


def test_the_cache_stays_within_its_budget():
    size = CELLS.sample(0).image.nbytes + CELLS.sample(0).label_image.nbytes
    view = SubsetView(CELLS, range(4), cache_mib=2.5 * size / 2**20)
    kept = [view.sample(i) for i in range(4)]
    assert [view.sample(i) is sample for i, sample in enumerate(kept)] == [True, True, False, False]


def test_unknown_splits_are_named():
    with pytest.raises(ConfigError, match="data split 'valid'"):
        build(datasets={"train": CELLS, "valid": CELLS})


def test_more_devices_than_fields_are_refused_also_after_the_data_were_measured(monkeypatch):
    """The program sets up the data to build the net, and Lightning again when there are processes."""
    data = build()
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 3)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    with pytest.raises(ConfigError, match=r"^3 devices for 2 val fields; need one field or more for each device"):
        data.setup()


def test_distances_are_left_out_on_demand():
    data = build()
    assert next(iter(data.val_dataloader())).targets.distance.any()
    data.with_distance = False
    assert not next(iter(data.val_dataloader())).targets.distance.any()
    assert not next(iter(data.train_dataloader())).targets.distance.any()


class Blank(SyntheticLiveDead):
    """Every second field has nothing in its last channel."""

    def sample(self, index):
        sample = super().sample(index)
        if index % 2:
            sample.image[2] = 9
        return sample


def test_training_fields_of_doubtful_counts_are_noted_where_the_net_sees_them():
    blank = Blank(fields=10, height=64, width=48, cells=(2, 5), seed=5)
    data = build(datasets={"all": blank})
    train = [blank.names.index(name) for name in data.views["train"].names]
    assert data.faults == {"constant": [blank.names[i] for i in train if i % 2]}
    assert data.faults["constant"]
    assert build(datasets={"all": blank}, channels=["hoechst", "calcein"]).faults == {}

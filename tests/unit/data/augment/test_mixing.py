"""MixUp and CutMix: images and every target from the same places, and every label with its class."""

import numpy as np
import pytest
import torch

from cellvision.data.augment.mixing import Mixing, cutmix, mixup
from cellvision.errors import ConfigError
from cellvision.types import IGNORE, Batch, Targets

K = 3


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def build_batch(images=4, height=24, width=31):
    """Random cells, 2 more per image than in the one before; some are of class IGNORE."""
    rng = np.random.default_rng(0)
    labels, classes = [], []
    for index in range(images):
        count = 3 + 2 * index
        labels.append(rng.integers(0, count + 1, (height, width)))
        classes.append(torch.from_numpy(rng.choice([1, 2, IGNORE], count)))
    label_image = torch.from_numpy(np.stack(labels).astype(np.int32))
    class_map = torch.stack([_look_up(c, one) for c, one in zip(classes, label_image, strict=True)])
    counts = torch.from_numpy(rng.uniform(0, 1000, (images, 2, height, width))).float()
    return Batch(
        images=counts,
        targets=Targets(
            class_map=class_map,
            distance=torch.from_numpy(rng.random((images, height, width))).float() * (label_image > 0),
            label_image=label_image,
            cell_classes=tuple(classes),
        ),
        names=tuple(f"field_{i}" for i in range(images)),
    )


def _look_up(classes, label_image):
    return torch.cat([torch.zeros(1, dtype=torch.int64), classes])[label_image.long()]


def get_tensors(batch):
    t = batch.targets
    soft = () if t.soft_classes is None else (t.soft_classes,)
    return (batch.images, t.class_map, t.distance, t.label_image, *t.cell_classes, *soft)


def find_partner(mixed, batch, share):
    """For each image, the other one whose blend with it, at this share, is the mixed image."""
    partners = []
    for index, image in enumerate(mixed.images):
        rest = (image - share * batch.images[index]) / (1 - share)
        partners.append(int((batch.images - rest).abs().amax((1, 2, 3)).argmin()))
    return partners


@pytest.mark.parametrize("mix", [lambda b, g: mixup(b, alpha=0.8, generator=g, classes=K), None])
def test_repeatable_without_global_chance_or_writing_into_the_batch(mix):
    mix = mix or (lambda b, g: cutmix(b, alpha=0.8, generator=g))
    batch, untouched = build_batch(), build_batch()
    for seed in range(5):
        state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        one, other = mix(batch, seeded(seed)), mix(batch, seeded(seed))
        assert torch.equal(state[0], torch.get_rng_state())
        assert np.array_equal(state[1], np.random.get_state()[1])  # noqa: NPY002
        assert all(map(torch.equal, get_tensors(one), get_tensors(other)))
        assert [t.dtype for t in get_tensors(one)[:4]] == [t.dtype for t in get_tensors(batch)[:4]]
        assert [t.shape for t in get_tensors(one)[:4]] == [t.shape for t in get_tensors(batch)[:4]]
        assert one.names == batch.names
    assert all(map(torch.equal, get_tensors(batch), get_tensors(untouched)))


def test_mixup_blends_images_classes_and_distance_alike(monkeypatch):
    monkeypatch.setattr("cellvision.data.augment.mixing._draw_share", lambda generator, alpha: 0.3)
    batch = build_batch()
    mixed = mixup(batch, alpha=1.0, generator=seeded(), classes=K)
    old, new = batch.targets, mixed.targets
    partner = find_partner(mixed, batch, 0.7)
    assert sorted(partner) == [0, 1, 2, 3]
    assert all(index != other for index, other in enumerate(partner))
    assert torch.allclose(mixed.images, 0.7 * batch.images + 0.3 * batch.images[partner], atol=1e-2)
    assert torch.allclose(new.distance, 0.7 * old.distance + 0.3 * old.distance[partner], atol=1e-6)
    unknown = (old.class_map == IGNORE) | (old.class_map[partner] == IGNORE)
    assert unknown.any()
    assert (new.class_map[unknown] == IGNORE).all()
    assert torch.equal(new.class_map[~unknown], old.class_map[~unknown])
    known = (~unknown)[:, None].expand_as(new.soft_classes)
    one_hot = torch.nn.functional.one_hot(old.class_map.clamp(max=K - 1), K).permute(0, 3, 1, 2).float()
    assert torch.allclose(new.soft_classes[known], (0.7 * one_hot + 0.3 * one_hot[partner])[known])
    assert (new.soft_classes[~known] == 0).all()
    assert torch.equal(new.label_image, old.label_image)


def test_mixup_of_one_image_only_adds_its_soft_classes():
    batch = build_batch(images=1)
    mixed = mixup(batch, alpha=0.4, generator=seeded(), classes=K)
    assert torch.allclose(mixed.images, batch.images)
    assert torch.equal(mixed.targets.class_map, batch.targets.class_map)
    assert torch.equal(mixed.targets.soft_classes.sum(1) > 0, batch.targets.class_map != IGNORE)


def test_mixup_twice_keeps_probabilities():
    once = mixup(build_batch(), alpha=1.0, generator=seeded(0), classes=K)
    twice = mixup(once, alpha=1.0, generator=seeded(1), classes=K)
    known = twice.targets.class_map != IGNORE
    assert torch.allclose(twice.targets.soft_classes.sum(1)[known], torch.tensor(1.0))


@pytest.mark.parametrize("seed", range(6))
def test_cutmix_takes_everything_from_the_same_place(seed):
    batch = build_batch()
    mixed = cutmix(batch, alpha=1.0, generator=seeded(seed))
    old, new = batch.targets, mixed.targets
    for index in range(4):
        pasted = (mixed.images[index] != batch.images[index]).any(0)
        if not pasted.any():
            continue
        rows, columns = pasted.any(1), pasted.any(0)
        assert torch.equal(pasted, rows[:, None] & columns[None])
        partner = int((batch.images - mixed.images[index]).abs().sum(1)[:, pasted].sum(1).argmin())
        assert partner != index
        shift = len(old.cell_classes[index])
        theirs = old.label_image[partner]
        for name, source in (
            ("class_map", old.class_map[partner]),
            ("distance", old.distance[partner]),
            ("label_image", torch.where(theirs > 0, theirs + shift, 0)),
        ):
            assert torch.equal(getattr(new, name)[index], torch.where(pasted, source, getattr(old, name)[index]))


@pytest.mark.parametrize("seed", range(6))
def test_cutmix_leaves_every_label_with_its_class(seed):
    mixed = cutmix(build_batch(), alpha=1.0, generator=seeded(seed)).targets
    for class_map, labels, classes in zip(mixed.class_map, mixed.label_image, mixed.cell_classes, strict=True):
        assert labels.max() <= len(classes)
        assert torch.equal(class_map, _look_up(classes, labels))


def test_cutmix_pastes_soft_classes_too():
    soft = mixup(build_batch(), alpha=1.0, generator=seeded(0), classes=K)
    mixed = cutmix(soft, alpha=1.0, generator=seeded(1)).targets
    assert torch.equal(mixed.soft_classes.sum(1) > 0, mixed.class_map != IGNORE)


def test_cutmix_area_follows_beta():
    batch = build_batch(images=2, height=64, width=64)
    areas = []
    for seed in range(200):
        mixed = cutmix(batch, alpha=1.0, generator=seeded(seed))
        areas.append((mixed.images[0] != batch.images[0]).any(0).float().mean().item())
    assert np.mean(areas) == pytest.approx(0.5, abs=0.07)
    assert np.std(areas) == pytest.approx(12**-0.5, abs=0.05)


def test_mixing_chooses_per_batch():
    batch = build_batch(images=2, height=8, width=8)
    mixing = Mixing(mixup_probability=0.3, cutmix_probability=0.3, alpha=5.0)
    kinds = {"mixup": 0, "cutmix": 0, "neither": 0}
    for seed in range(300):
        mixed = mixing(batch, seeded(seed), classes=K)
        soft = mixed.targets.soft_classes is not None
        kinds["neither" if mixed is batch else "mixup" if soft else "cutmix"] += 1
    assert kinds["mixup"] == pytest.approx(90, abs=25)
    assert kinds["cutmix"] == pytest.approx(90, abs=25)
    assert Mixing()(batch, seeded(), classes=K) is batch


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"mixup_probability": 0.7, "cutmix_probability": 0.4}, "at most 1 together"),
        ({"mixup_probability": -0.1}, "0 or more"),
        ({"alpha": 0.0}, "mixing alpha=0.0"),
    ],
)
def test_wrong_settings(arguments, text):
    with pytest.raises(ConfigError, match=text):
        Mixing(**arguments)

"""A Swin-UNet teaches a U-Net and the other way round, by classes and by the maps of the strides that both have."""

import pytest

from cellvision.compression.distill.step import Distill
from cellvision.compression.prune.options import PruneOptions
from cellvision.compression.prune.pruner import Pruner

ALL = {"classes": 1.0, "boundary": 1.0, "class_channels": 1.0, "features": 1.0, "focus": 1.0}


def begin(kit, tmp_path, net, teacher):
    path = kit.save_net(teacher, tmp_path / "teacher.ckpt")
    step, run = Distill(teacher=path, weights=ALL), kit.FakeRun(net, teacher=path)
    step.attach(run)
    return step, run


@pytest.mark.parametrize("student", ["unet", "swin_unet"])
def test_one_teaches_the_other(kit, tmp_path, student):
    unet, swin = kit.build_net(widths=(6, 8, 8), seed=1), kit.build_net("swin_unet", seed=2)
    net, teacher = (unet, swin) if student == "unet" else (swin, unet)
    _, run = begin(kit, tmp_path, net.train(), teacher)
    assert set(run.task.helpers) == {"distill_stride_1", "distill_stride_2"}
    batch = kit.build_batch(side=56)  # padded to 56 px by the one, to 64 by the other
    first, last = run.learn(batch)
    assert all(last[name] < 0.9 * first[name] for name in ALL), (first, last)


def test_a_swin_unet_like_its_teacher_has_nothing_to_learn(kit, tmp_path):
    net = kit.build_net("swin_unet").eval()
    _, run = begin(kit, tmp_path, net, net)
    assert set(run.task.helpers) == {"distill_stride_1", "distill_stride_2"}
    assert all(abs(value.item()) < 1e-6 for value in run.train(kit.build_batch())[0].values())


def test_a_pruned_swin_unet_is_taught_by_what_it_has_left(kit, tmp_path):
    net = kit.build_net("swin_unet").eval()
    _, run = begin(kit, tmp_path, net, kit.build_net("swin_unet"))
    batch = kit.build_batch()
    cut = Pruner(net, batch.images[:1], PruneOptions(ratio=0.5)).step().cut
    for adapter in run.task.helpers.values():
        adapter.follow(cut.kept)
    found, _ = run.train(batch)
    assert all(value.isfinite() and value > 0 for value in found.values())
    assert [int(each.stays.sum()) for each in run.task.helpers.values()] == [
        net.full[0].out_channels, net.decoder[0].reduce.out_channels,
    ]  # fmt: skip
    assert net.decoder[0].reduce.out_channels < 8

"""A CenterMask2 taught by another one, in all its branches."""

import copy

import pytest
import torch

from cellvision.compression.distill.cell_lesson import find_classes
from cellvision.compression.distill.step import Distill
from cellvision.compression.distill.terms import CELL_TERMS
from cellvision.compression.prune.options import PruneOptions
from cellvision.compression.prune.pruner import Pruner
from cellvision.errors import ConfigError

ALL = {**CELL_TERMS, "focus": 1.0}
TWO = ("background", "live", "dead")


def begin(kit, tmp_path, net, teacher, **settings):
    path = kit.save_net(teacher, tmp_path / "teacher.ckpt")
    step = Distill(**{"teacher": path, "weights": ALL, "confident": 0.0, **settings})
    run = kit.FakeRun(net, teacher=path)
    step.attach(run)
    return step, run


def sharpen(net):
    """Last layers that say something, where those of an untrained net say nearly nothing."""
    head, rois = net.detector.proposal_generator.fcos_head, net.detector.roi_heads
    with torch.no_grad():
        for layer, factor in ((head.cls_logits, 30), (head.ctrness, 30), (rois.mask_head.predictor, 1000)):
            layer.weight *= factor
        rois.maskiou_head.maskiou.weight *= 10
    return net


@pytest.mark.parametrize("classes", [1, 2])
def test_a_student_like_its_teacher_has_nothing_to_learn(kit, tmp_path, classes):
    net = sharpen(kit.build_net("centermask2", classes=TWO[: classes + 1])).eval()
    _, run = begin(kit, tmp_path, net, net)
    found, own = run.train(kit.build_batch(classes=classes))
    assert found.keys() == ALL.keys()
    assert {name: value.item() for name, value in found.items()} == pytest.approx(dict.fromkeys(ALL, 0), abs=1e-5)
    assert own > 0.1


def test_each_term_reaches_its_branch_and_falls(kit, tmp_path):
    """Of another backbone, other widths and other levels than the student."""
    net = kit.build_net("centermask2", seed=1, levels=(3, 4), top_levels=1, **LEVELS).train()
    teacher = kit.build_net("centermask2", seed=2, backbone="vovnet19_slim", fpn_channels=48, maskiou_convs=2)
    step, run = begin(kit, tmp_path, net, sharpen(teacher))
    batch = kit.build_batch(classes=1)
    assert set(run.task.helpers) == {"distill_stride_8", "distill_stride_16", "distill_stride_32"}
    before = copy.deepcopy(step._teacher.net.state_dict())
    fresh = copy.deepcopy(net.state_dict())
    for term, part in PARTS.items():
        net.load_state_dict(fresh)
        optimizer = torch.optim.Adam([*net.parameters(), *run.task.helpers.parameters()], lr=3e-4)
        found = []
        for _ in range(9):  # the box loss rises at first
            optimizer.zero_grad()
            found.append(run.train(batch)[0][term])
            found[-1].backward()
            optimizer.step()
        reached = {name for name, each in net.named_parameters() if each.grad is not None and each.grad.any()}
        assert any(part in name for name in reached), term
        assert any("bottom_up" in name for name in reached), term
        assert found[-1] < 0.95 * found[0], (term, found)
    after = step._teacher.net.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(each.grad is None for each in step._teacher.net.parameters())


LEVELS = {"assigning": {"sizes_of_interest": (64, 128)}, "roi_levels": (3, 4)}
PARTS = {
    "fcos_class": "cls_logits",
    "fcos_box": "bbox_pred",
    "fcos_centre": "ctrness",
    "features": "fpn_output3",
    "focus": "fpn_output3",
    "masks": "mask_head.predictor",
    "attention": "mask_head.spatialAtt.conv",
    "mask_iou": "maskiou_head.maskiou",
}


def test_a_large_net_teaches_a_slim_one(kit, tmp_path):
    """V-39 to V-19-slim, as they are but for the width of their heads."""
    net = kit.build_net("centermask2", backbone="vovnet19_slim")
    teacher = kit.build_net("centermask2", backbone="vovnet39", fpn_channels=64)
    _, run = begin(kit, tmp_path, net, teacher, weights=None)
    assert {name: tuple(each.shape) for name, each in run.task.helpers.named_parameters()} == {
        f"distill_stride_{stride}.weight": (64, 32) for stride in (8, 16, 32, 64, 128)
    }
    found, own = run.train(kit.build_batch())
    assert found.keys() == {name for name, weight in CELL_TERMS.items() if weight}
    sum(found.values(), own).backward()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in net.parameters() if each.requires_grad)


def test_a_pruned_student_is_taught_by_what_it_has_left(kit, tmp_path):
    net = kit.build_net("centermask2", backbone="vovnet19_slim", fpn_channels=64).eval()
    _, run = begin(kit, tmp_path, net, net)
    batch = kit.build_batch()
    cut = Pruner(net, batch.images[:1], PruneOptions(macs=0.5)).step().cut
    for adapter in run.task.helpers.children():
        adapter.follow(cut.kept)
    assert not all(adapter.stays.all() for adapter in run.task.helpers.children())
    found, own = run.train(batch)
    sum(found.values(), own).backward()
    assert all(value.isfinite() for value in found.values())
    assert all(each.grad is not None and each.grad.isfinite().all() for each in net.parameters() if each.requires_grad)


def test_fields_without_cells_teach_too(kit, tmp_path):
    net = kit.build_net("centermask2", seed=1)
    _, run = begin(kit, tmp_path, net, kit.build_net("centermask2"))
    batch = kit.build_batch()
    batch.targets.label_image.zero_()
    found, own = run.train(batch)
    sum(found.values(), own).backward()
    assert {name for name, value in found.items() if value == 0} == {"masks", "attention", "mask_iou"}
    assert all(each.grad is not None and each.grad.isfinite().all() for each in net.parameters() if each.requires_grad)


def test_a_branch_that_one_lacks_is_said_or_refused(kit, tmp_path):
    net = kit.build_net("centermask2", mask_attention=False)
    teacher = kit.build_net("centermask2", mask_attention=False, mask_iou=False)
    _, run = begin(kit, tmp_path, net, teacher, weights=None)
    assert run.lines == [
        "distill: no attention: the student and the teacher without spatial attention",
        "distill: no mask_iou: the teacher without MaskIoU head",
    ]
    found, _ = run.train(kit.build_batch())
    assert not {"attention", "mask_iou"} & found.keys()
    with pytest.raises(ConfigError, match=r"distill.weights.mask_iou=1.0 and the teacher without MaskIoU head"):
        begin(kit, tmp_path, net, teacher, weights={"mask_iou": 1.0})


def test_levels_of_no_common_stride_are_refused(kit, tmp_path):
    fine, coarse = (
        kit.build_net("centermask2", levels=levels, roi_levels=levels, top_levels=0, assigning=ONE_SIZE)
        for levels in ((2, 3), (4, 5))
    )
    with pytest.raises(ConfigError, match=r"strides \[4, 8\] px and a teacher with maps at \[16, 32\] px"):
        begin(kit, tmp_path, fine, coarse, weights={"features": None})


ONE_SIZE = {"sizes_of_interest": (64,)}


def test_a_box_has_the_class_of_the_cell_it_lies_on(kit):
    targets = kit.build_batch(classes=2).targets  # cells 1 and 3 are of class 1, cell 2 of class 2
    boxes = torch.tensor([[19.0, 3, 31, 21], [4, 4, 19, 22], [32, 34, 60, 60]])
    assert find_classes(boxes, torch.tensor([1, 0, 0]), targets, class_count=2).tolist() == [1, 0, 0]
    assert find_classes(boxes, torch.tensor([1, 0, 0]), targets, class_count=1).tolist() == [0, 0, 0]


def test_a_cached_teacher_says_the_same(kit, tmp_path):
    net, teacher, batch = kit.build_net("centermask2").eval(), kit.build_net("centermask2", seed=1), kit.build_batch()
    _, plain = begin(kit, tmp_path, net, teacher)
    wanted = {name: value.item() for name, value in plain.train(batch)[0].items()}
    step, run = begin(kit, tmp_path, net, teacher, cache_mib=8)
    for _ in range(2):
        assert {name: value.item() for name, value in run.train(batch)[0].items()} == pytest.approx(wanted)
    assert (step.cache.hits, step.cache.misses) == (2, 2)

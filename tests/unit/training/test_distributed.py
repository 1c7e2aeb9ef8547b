"""Processes that train together: what each sees, what they wait for, and how the images of a step are shared out."""

from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cellvision.data.sampler import EpochSampler, compute_class_weights_per_sample
from cellvision.errors import ConfigError
from cellvision.models.build import build_model
from cellvision.training.distributed import Together, build_ddp
from cellvision.training.drift import PER_STEP, check_drift, find_drift
from cellvision.types import IGNORE, Targets
from forked import run_two

RARE = compute_class_weights_per_sample(np.array([[9, 0]] * 15 + [[0, 1]])).tolist()


def draw_balanced(batch_size, aspects=None):
    sampler = EpochSampler(length=16, draws=48, seed=3, weights=RARE, aspects=aspects, batch_size=batch_size)
    sampler.set_epoch(2)
    draws = list(sampler)
    return [draws[at : at + batch_size] for at in range(0, len(draws), batch_size)]


def draw_part(rank, aspects):
    return draw_balanced(4, aspects)


@pytest.mark.slow
@pytest.mark.parametrize("aspects", [None, [0, 1] * 8])
def test_two_processes_together_draw_the_balanced_batches_of_one(aspects):
    first, second = run_two(draw_part, aspects)
    together = [sorted(one + other) for one, other in zip(first, second, strict=True)]
    assert together == [sorted(batch) for batch in draw_balanced(8, aspects)]
    shown = np.bincount([index for batch in together for index, _, _ in batch], minlength=16)
    assert shown[15] > 3 * shown[:15].max()  # the rare class, and in both processes
    assert all(any(index == 15 for batch in part for index, _, _ in batch) for part in (first, second))


class Losses(nn.Module):
    """A net whose call is what training asks of it, as Lightning has it."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, images, targets):
        return torch.stack(list(self.net.losses(images, targets).values())).sum()


def train_without_cells(rank, empty):
    """Three steps of CenterMask2; the processes of ``empty`` have no cell in the second one."""
    torch.manual_seed(0)
    shape = {"backbone": "vovnet19_slim_dw", "fpn_channels": 32, "levels": [2, 3, 4], "top_levels": 0}
    roi = {"roi_levels": [2, 3], "assigning": {"sizes_of_interest": [24, 48]}, "norm": "group"}
    classes = ("background", "cell")
    net = build_model(name="centermask2", kind="instance", in_channels=1, classes=classes, **shape, **roi).train()
    together = DistributedDataParallel(Losses(net))
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    before = [parameter.detach().clone() for parameter in net.parameters()]
    for step in range(3):
        labels = torch.zeros(2, 64, 64, dtype=torch.int64)
        if step != 1 or rank not in empty:
            labels[:, 5:20, 5:20], labels[:, 30:50, 30:50] = 1, 2
        cells = tuple(torch.ones(int(each.max()), dtype=torch.int64) for each in labels)
        flat = (labels > 0).long()
        targets = Targets(class_map=flat, distance=torch.zeros(2, 64, 64), label_image=labels, cell_classes=cells)
        optimizer.zero_grad()
        together(torch.rand(2, 1, 64, 64) * 1000, targets).backward()
        optimizer.step()
    moved = [not torch.equal(old, new) for old, new in zip(before, net.parameters(), strict=True)]
    return sum(moved) / len(moved), [parameter.detach().numpy() for parameter in net.parameters()]


@pytest.mark.slow
@pytest.mark.parametrize("empty", [(1,), (0, 1)])
def test_images_without_cells_in_one_process_or_all_stop_nothing(empty):
    """Without ``find_unused_parameters``: every weight has a gradient in every step, be it of 0."""
    (moved, first), (_, second) = run_two(train_without_cells, empty)
    assert moved > 0.9
    assert all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))


NETS = {
    "unet": {"widths": [4, 8], "norm": "group"},
    "swin_unet": {"widths": [4, 8], "depths": [1, 1], "heads": [1, 2], "window": 2, "patch_size": 2},
}


def draw_share(rank):
    """Two fields of one process: many cells in the first one's; in the second's no cell, and no pixel that counts."""
    generator = torch.Generator().manual_seed(rank)
    images = torch.rand(2, 2, 16, 16, generator=generator)
    class_map = (torch.rand(2, 16, 16, generator=generator) * 3).long()
    if rank == 1:
        class_map[0], class_map[1] = 0, IGNORE
    distance = torch.rand(2, 16, 16, generator=generator) * (class_map > 0)
    return images, Targets(class_map=class_map, distance=distance, label_image=class_map, cell_classes=())


def learn_share(rank):
    """{net: gradient of its default loss} in one of two processes, or, for None, of both shares in one."""
    shares = [draw_share(each) for each in ((0, 1) if rank is None else (rank,))]
    images = torch.cat([each for each, _ in shares])
    maps = {
        name: torch.cat([getattr(each, name) for _, each in shares])
        for name in ("class_map", "distance", "label_image")
    }
    found = {}
    for name, shape in NETS.items():
        torch.manual_seed(0)
        net = build_model(name=name, in_channels=2, classes=("background", "live", "dead"), **shape).train()
        together = Losses(net) if rank is None else DistributedDataParallel(Losses(net))
        together(images, Targets(cell_classes=(), **maps)).backward()
        found[name] = torch.cat([each.grad.flatten() for each in net.parameters()]).numpy()
    return found


@pytest.mark.slow
def test_default_losses_have_in_two_processes_the_gradient_of_one():
    first, second = run_two(learn_share)
    for name, gradient in learn_share(None).items():
        assert np.array_equal(first[name], second[name])
        assert np.abs(gradient).max() > 0.01
        np.testing.assert_allclose(first[name], gradient, rtol=0, atol=1e-6)


def test_a_strategy_has_a_time_after_which_nobody_waits_any_more():
    assert build_ddp(timeout_s=45)._timeout == timedelta(seconds=45)
    assert build_ddp()._timeout == timedelta(minutes=10)
    assert build_ddp()._ddp_kwargs["find_unused_parameters"] is False
    for wrong in (0, -1, True, "60", float("nan")):
        with pytest.raises(ConfigError, match=r"trainer\.strategy\.timeout_s=.*; need seconds above 0"):
            build_ddp(timeout_s=wrong)


def compare_folders(rank):
    callback = Together(folder=Path(f"/runs/{rank}"))

    class Trainer:
        world_size = 2

    try:
        callback.on_fit_start(Trainer, None)
    except ConfigError as error:
        return str(error)
    return None


@pytest.mark.slow
def test_processes_with_a_folder_each_are_refused():
    for said in run_two(compare_folders):
        assert said == "2 processes with the run folders /runs/0 and /runs/1; need one for all; try: run_dir=runs/mine"


def note(batch_size, accumulate, per_step=None, **more):
    settings = {"data": {"batch_size": batch_size, **more}, "trainer": {"accumulate_grad_batches": accumulate}}
    settings |= {} if per_step is None else {PER_STEP: per_step}
    return {"net": {}, "settings": settings, "fingerprint": "f"}


def test_a_run_goes_on_with_other_processes_if_a_step_has_as_many_images():
    check_drift(note(4, 1, 8), note(4, 2, 8))
    check_drift(note(4, 1, 8), note(8, 1, 8))
    assert find_drift(note(4, 1, 8, overlap=1), note(8, 1, 8, overlap=2)) == ["data.overlap: 1 became 2"]
    with pytest.raises(
        ConfigError, match=r"^images_per_step: 8 became 4; .*try: other data\.batch_size or trainer\.acc"
    ):
        check_drift(note(4, 1, 8), note(4, 1, 4))


def test_a_checkpoint_of_before_is_compared_by_its_settings():
    check_drift(note(4, 1), note(4, 1, 8))
    assert find_drift(note(4, 1), note(8, 1, 8)) == ["data.batch_size: 4 became 8"]
    assert find_drift({"net": {}, "fingerprint": "f"}, {"net": {}, "settings": {}, "fingerprint": "f"}) == []

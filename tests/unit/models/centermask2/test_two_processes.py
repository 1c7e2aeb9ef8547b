"""Validation over two processes that hold different numbers of fields."""

from datetime import timedelta

import pytest
import torch
from tiny_detector import build_tiny, make_field
from torch import distributed, multiprocessing

from cellvision.data.sampler import FieldSampler
from cellvision.models.centermask2.ground_truth.cells import truth_from_labels

FIELDS = 3


def compute_losses(field):
    image, labels = make_field(height=64, width=64, count=4 + field, seed=field)
    truth = truth_from_labels(labels, torch.ones(int(labels.max()), dtype=torch.int64))
    detector = build_tiny(classes=1).eval()
    with torch.no_grad():
        pyramid = detector.encode(image[None])
        found = detector.losses(pyramid, detector.predict(pyramid), [(64, 64)], [truth])
    return {name: value.item() for name, value in found.items() if name.startswith("loss_fcos")}


def run_process(rank, path, results):
    waiting = {"timeout": timedelta(seconds=30)}
    distributed.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2, **waiting)
    try:
        results.put({field: compute_losses(field) for field in FieldSampler(FIELDS)})
        distributed.barrier()
    finally:
        distributed.destroy_process_group()


@pytest.mark.slow
def test_a_process_with_a_field_more_waits_for_nobody(tmp_path):
    """And each field has the losses that it has alone: averages over processes would mix it with another one."""
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    workers = [context.Process(target=run_process, args=(rank, tmp_path / "store", results)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    first, second = results.get(), results.get()
    assert sorted(map(len, (first, second))) == [1, 2]
    for field, losses in {**first, **second}.items():
        assert losses == pytest.approx(compute_losses(field), rel=1e-5)

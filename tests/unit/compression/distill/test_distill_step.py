"""A U-Net taught by another one: what is learned, what is touched, and when."""

import copy
import hashlib

import pytest
import torch
from torch import nn

import stain_net
from cellvision.compression.distill.map_losses import compute_softmax_divergence, find_boundary
from cellvision.compression.distill.step import Distill
from cellvision.compression.prune.options import PruneOptions
from cellvision.compression.prune.pruner import Pruner
from cellvision.errors import ConfigError
from cellvision.models.structure.fake_quant import QuantPlan, set_fake_quant
from cellvision.models.structure.widths import read_widths
from cellvision.training.phases import Phase

ALL = {"classes": 1.0, "boundary": 1.0, "class_channels": 1.0, "features": 1.0, "focus": 1.0}
VIABLE = {"in_channels": 2, "classes": ("background", "live", "dead"), "kind": "viability"}
STAINS = tuple(each.name for each in stain_net.CHANNELS)


def begin(kit, tmp_path, net, teacher, *, channels=("stain",), phases=(), recipe=(), **settings):
    path = kit.save_net(teacher, tmp_path / "teacher.ckpt", channels=channels, recipe=recipe)
    step = Distill(teacher=path, **settings)
    run = kit.FakeRun(net, teacher=path, channels=channels, phases=phases)
    step.attach(run)
    return step, run


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_a_student_like_its_teacher_has_nothing_to_learn(kit, tmp_path, activation):
    net = kit.build_net(activation=activation).eval()
    _, run = begin(kit, tmp_path, net, net, weights=ALL)
    found, own = run.train(kit.build_batch())
    assert found.keys() == ALL.keys()
    assert all(abs(value.item()) < 1e-6 for value in found.values())
    assert own > 0.1


def test_each_term_falls_and_reaches_the_student_alone(kit, tmp_path):
    net = kit.build_net(seed=1, widths=(6, 8, 8), **VIABLE).train()
    teacher = kit.build_net(seed=2, **VIABLE)
    weights = {**ALL, "distance": 1.0}
    step, run = begin(kit, tmp_path, net, teacher, channels=STAINS, weights=weights)
    batch = kit.build_batch(channels=2, classes=2)
    before = copy.deepcopy(step._teacher.net.state_dict())
    assert set(run.task.helpers) == {"distill_stride_1", "distill_stride_2"}
    for term in weights:
        net.zero_grad(set_to_none=True)
        run.train(batch)[0][term].backward()
        reached = {name for name, each in net.named_parameters() if each.grad is not None and each.grad.any()}
        assert {"encoder", "decoder"} <= {name.split(".")[0] for name in reached}, term
    first, last = run.learn(batch)
    assert all(last[name] < 0.9 * first[name] for name in weights), (first, last)
    after = step._teacher.net.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(each.grad is None for each in step._teacher.net.parameters())


def test_the_teacher_is_in_no_state(kit, tmp_path):
    net = kit.build_net(widths=(6, 8, 8))
    before = set(net.state_dict())
    step, run = begin(kit, tmp_path, net, kit.build_net(), weights=ALL)
    run.train(kit.build_batch())
    assert set(net.state_dict()) == before
    shapes = {name: tuple(value.shape) for name, value in run.task.helpers.state_dict().items()}
    assert shapes["distill_stride_1.weight"] == (8, 6)
    assert len(shapes) == 4
    assert step.state == {"sha256": hashlib.sha256((tmp_path / "teacher.ckpt").read_bytes()).hexdigest()}


def test_the_student_runs_once_and_no_hook_stays(kit, tmp_path):
    net = kit.build_net()
    step, run = begin(kit, tmp_path, net, kit.build_net(seed=1), weights=ALL)
    calls = []
    net.encoder.register_forward_hook(lambda *_: calls.append(1))
    run.train(kit.build_batch())
    assert len(calls) == 1
    assert count_hooks(net) == 2  # that on the encoder, and that which begins
    copied = copy.deepcopy(net)
    with torch.no_grad():
        copied(kit.build_batch().images)
    step.end_run(run)
    assert count_hooks(net) == 1
    assert step._teacher is None


def count_hooks(net):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in net.modules())


def test_a_copy_of_the_task_copies_no_teacher(kit, tmp_path):
    """Averages of weights copy the task with its losses."""
    _, run = begin(kit, tmp_path, kit.build_net(), kit.build_net())
    loss = run.losses["distill_classes"]
    assert copy.deepcopy({"loss": loss})["loss"] is loss


def test_a_pruned_student_is_taught_by_what_it_has_left(kit, tmp_path):
    net = kit.build_net().eval()
    _, run = begin(kit, tmp_path, net, net, weights=ALL)
    batch = kit.build_batch()
    run.train(batch)
    cut = Pruner(net, batch.images[:1], PruneOptions(macs=0.6)).step().cut
    with pytest.raises(ConfigError, match="which ones were cut"):
        run.train(batch)
    for adapter in run.task.helpers.children():
        adapter.follow(cut.kept)
    found, own = run.train(batch)
    sum(found.values(), own).backward()
    assert all(value > 1e-4 for value in found.values())
    assert all(each.grad is not None and each.grad.isfinite().all() for each in net.parameters())


def test_a_pruned_teacher_and_a_student_that_rounds(kit, tmp_path):
    teacher, like = kit.build_net(), kit.build_net()
    Pruner(teacher, torch.zeros(1, 1, 64, 64), PruneOptions(macs=0.6)).step()
    recipe = ({"step": "prune", **read_widths(teacher, like)},)
    net = kit.build_net(seed=1)
    _, run = begin(kit, tmp_path, net, teacher, recipe=recipe, weights=ALL)
    before = {name: value.item() for name, value in run.train(kit.build_batch())[0].items()}
    outputs = {"decoder.0.convolve.5": False, "decoder.1.convolve.5": False}
    set_fake_quant(net, QuantPlan(layers=("decoder.1.convolve.3", "head"), outputs=outputs))
    found, own = run.train(kit.build_batch())
    assert all(value.item() != before[name] for name, value in found.items())
    sum(found.values(), own).backward()
    assert all(each.grad.isfinite().all() for each in net.parameters())


def test_half_precision_compares_in_single(kit, tmp_path):
    net = kit.build_net(seed=1).eval()
    _, run = begin(kit, tmp_path, net, kit.build_net(), weights=ALL)
    batch = kit.build_batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half, _ = run.train(batch)
    full, _ = run.train(batch)
    for name, value in full.items():
        assert half[name].dtype == torch.float32
        assert half[name].item() == pytest.approx(value.item(), rel=0.05)


def test_only_its_phases_are_taught(kit, tmp_path):
    phases, net = kit.PHASES, kit.build_net(widths=(6, 8, 8))
    batch = kit.build_batch()
    for throughout, taught in ((True, [0, 0, 6, 5, 4, 3, 2, 1]), (False, [0, 0, 0, 0, 2, 1, 0, 0])):
        settings = {"throughout": throughout, "schedule": "linear_to_zero", "weights": {**ALL, "focus": None}}
        step, run = begin(kit, tmp_path, net, kit.build_net(), phases=phases, weight=0.5, **settings)
        whole = None
        found = []
        for epoch in range(8):
            run.task.current_epoch = epoch
            if epoch in (4, 5):
                step.begin_epoch(run, epoch - 4)
            losses, _ = run.train(batch)
            total = sum(losses.values())
            run.task.helpers.zero_grad(set_to_none=True)
            total.backward()
            # Processes that train together wait for a gradient of every parameter, in every phase.
            assert all(each.grad is not None for each in run.task.helpers.parameters())
            found.append(total.item())
        whole = max(found)
        shares = [round(value / whole * max(taught), 2) for value in found]
        assert shares == pytest.approx(taught, abs=0.2)  # batch statistics move a little
        (record,) = run.task.record.recipe
        assert record["step"] == "distill"
        assert record["sha256"] == step.state["sha256"]
        assert record["weights"] == {"classes": 1.0, "boundary": 1.0, "class_channels": 1.0, "features": 1.0}
        step.end_run(run)


def test_the_net_as_it_was_teaches_when_none_is_named(kit, tmp_path):
    """Where this run trains it first, its file is read when the first step begins, and is the same on resume."""
    path = tmp_path / "base.ckpt"
    net, batch = kit.build_net().eval(), kit.build_batch()
    step = Distill(weights=ALL)
    run = kit.FakeRun(net, teacher=path, phases=kit.PHASES)
    step.attach(run)
    assert sum(run.train(batch)[0].values()) == 0
    assert step.state == {"sha256": None}
    kit.save_net(kit.build_net(seed=4), path)
    kit.save_net(net, path)  # a better one later
    run.task.current_epoch = 2
    assert sum(run.train(batch)[0].values()).abs() < 1e-6
    state = step.state

    again, run = Distill(weights=ALL), kit.FakeRun(net, teacher=path, phases=kit.PHASES)
    again.attach(run)
    again.load_state(state)
    run.task.current_epoch = 5
    assert sum(run.train(batch)[0].values()).abs() < 1e-6

    kit.save_net(kit.build_net(seed=4), path)
    changed, run = Distill(weights=ALL), kit.FakeRun(net, teacher=path, phases=kit.PHASES)
    changed.attach(run)
    changed.load_state(state)
    run.task.current_epoch = 5
    with pytest.raises(ConfigError, match=r"base.ckpt with SHA-256 \w{12}.., which was \w{12}..; need the teacher"):
        run.train(batch)


def test_a_teacher_changed_between_two_parts_of_a_run_is_an_error(kit, tmp_path):
    net = kit.build_net()
    step, _ = begin(kit, tmp_path, net, kit.build_net(), phases=(Phase(name="distill", epochs=1),))
    state = step.state
    again, _ = begin(kit, tmp_path, net, kit.build_net(), phases=(Phase(name="distill", epochs=1),))
    again.load_state(state)
    changed, _ = begin(kit, tmp_path, net, kit.build_net(seed=1), phases=(Phase(name="distill", epochs=1),))
    with pytest.raises(ConfigError, match="need the teacher that the run began with"):
        changed.load_state(state)


def test_a_bundle_teaches_and_shows_no_features(kit, tmp_path, stain_bundle):
    net = kit.build_net(**VIABLE).train()
    step, run = Distill(teacher=stain_bundle), kit.FakeRun(net, teacher=None, channels=STAINS)
    step.attach(run)
    batch = kit.build_batch(channels=2, classes=2)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    totals = []
    for _ in range(15):
        optimizer.zero_grad()
        losses, _ = run.train(batch)
        totals.append(sum(losses.values()))
        totals[-1].backward()
        optimizer.step()
    assert losses.keys() == {"classes", "boundary", "distance"}
    assert totals[-1] < 0.7 * totals[0]
    asking = Distill(teacher=stain_bundle, weights={"features": 1.0})
    with pytest.raises(ConfigError, match=r"distill.weights.features=1.0 and a bundle shows no features"):
        asking.attach(kit.FakeRun(net, teacher=None, channels=STAINS))


def test_a_distance_that_is_not_there_is_said(kit, tmp_path):
    _, run = begin(kit, tmp_path, kit.build_net(), kit.build_net())
    assert run.lines == ["distill: no distance: the net has no distance map"]
    assert isinstance(run.task.helpers, nn.ModuleDict)
    assert not run.task.helpers


def test_a_cache_gives_the_same_losses_and_tells_its_hits(kit, tmp_path):
    net, teacher, batch = kit.build_net().eval(), kit.build_net(seed=1), kit.build_batch()
    _, plain = begin(kit, tmp_path, net, teacher, weights=ALL)
    wanted = {name: value.item() for name, value in plain.train(batch)[0].items()}
    step, run = begin(kit, tmp_path, net, teacher, weights=ALL, cache_mib=8)
    for epoch in range(3):
        run.task.current_epoch = epoch
        found = {name: value.item() for name, value in run.train(batch)[0].items()}
        assert found == pytest.approx(wanted)
    told = [line for line in run.lines if "cache" in line]
    assert [line.split(" images")[0] for line in told] == ["distill: 0 of 2", "distill: 2 of 2"]
    assert (step.cache.hits, step.cache.misses) == (2, 0)


def test_padding_is_not_taught(kit, tmp_path):
    """What a batch adds to a smaller image has no part in the terms of pixels."""
    net, teacher = kit.build_net().eval(), kit.build_net(seed=1)
    terms = {"classes": 1.0, "boundary": 1.0}
    _, run = begin(kit, tmp_path, net, teacher, weights=terms)
    batch = kit.build_batch(sizes=((64, 64), (24, 64)))
    batch.targets.label_image[1, 24:] = 5  # a boundary that is not there
    found, _ = run.train(batch)
    with torch.no_grad():
        student, taught = (each.eval().logits(batch.images)["classes"] for each in (net, teacher))
    divergence = compute_softmax_divergence(student, taught, temperature=2.0)
    near = find_boundary(batch.targets.label_image, radius_px=2)
    pixels = torch.cat([divergence[0].flatten(), divergence[1, :24].flatten()])
    on_boundary = torch.cat([divergence[0][near[0]], divergence[1, :24][near[1, :24]]])
    assert found["classes"].item() == pytest.approx(pixels.mean().item())
    assert found["boundary"].item() == pytest.approx(on_boundary.mean().item())

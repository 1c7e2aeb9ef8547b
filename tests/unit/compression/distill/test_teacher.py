"""Teachers from checkpoints and bundles, and what they are refused for."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import expit

import dot_net
import stain_net
from cellvision.bundle import Channel, Splitting
from cellvision.compression.distill.teacher import Images, build_teacher, compute_digest, load_teacher
from cellvision.errors import ConfigError

STAIN = Images(channels=(Channel(name="stain"),))
STAINS = Images(channels=stain_net.CHANNELS, dtypes=("float32", "uint16"))
PLAIN = {"kind": "semantic", "outputs": ("probabilities",), "splitting": Splitting(method="components")}
VIABLE = {"in_channels": 2, "classes": ("background", "live", "dead"), "kind": "viability"}


def test_a_checkpoint_teaches_frozen_and_in_evaluation_mode(kit, tmp_path):
    net, student = kit.build_net(widths=(6, 8), dropout=0.5).train(), kit.build_net()
    teacher = load_teacher(kit.save_net(net, tmp_path / "a.ckpt"), student, STAIN)
    images = kit.build_batch().images
    with torch.autocast("cpu", dtype=torch.bfloat16):
        told = teacher.look(images, None)
    wanted = net.eval().logits(images)["classes"]
    torch.testing.assert_close(told["classes"], wanted)
    torch.testing.assert_close(told["stride_1"], net.features(images)["stride_1"])
    assert all(maps.dtype == torch.float32 and not maps.requires_grad for maps in told.values())
    assert not any(parameter.requires_grad for parameter in teacher.net.parameters())
    assert not any(module.training for module in teacher.net.modules())
    assert not any(module._forward_hooks for module in teacher.net.modules())


@pytest.mark.parametrize(("own", "other"), [("softmax", "sigmoid"), ("sigmoid", "softmax")])
def test_another_activation_is_translated(kit, own, other):
    student, net = kit.build_net(activation=own), kit.build_net(activation=other).eval()
    images = kit.build_batch().images
    told = build_teacher(net, student).look(images, None)["classes"]
    torch.testing.assert_close(student.decode({"classes": told})["probabilities"], net(images)["probabilities"])


def test_a_detector_tells_by_stride(kit):
    net = kit.build_net("centermask2").eval()
    images = kit.build_batch().images
    told = build_teacher(net, kit.build_net("centermask2", seed=1)).look(images, ((64, 64), (40, 50)))
    images[1, :, 40:], images[1, :, :, 50:] = -9.0, -9.0
    again = build_teacher(net, net).look(images, ((64, 64), (40, 50)))
    for name, maps in told.items():
        assert torch.equal(maps, again[name])  # what is padded is never seen
    logits = net.logits(images[:1])
    torch.testing.assert_close(told["class_logits_8"][:1], logits["class_logits_3"])
    torch.testing.assert_close(told["pyramid_32"][:1], logits["pyramid_5"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "channels", "message"),
    [
        ({"classes": ("background", "dot")}, ("stain",), r"classes \['background', 'dot'\]; need classes"),
        ({"in_channels": 2}, ("stain", "more"), r"channels \['stain', 'more'\]; need channels \['stain'\]"),
        (VIABLE, ("a", "b"), r"kind viability, classes .*, channels .*; need kind semantic, classes .*, channels"),
    ],
)
def test_a_teacher_of_something_else_is_refused(kit, tmp_path, arguments, channels, message):
    path = kit.save_net(kit.build_net(**arguments), tmp_path / "a.ckpt", channels=channels)
    with pytest.raises(ConfigError, match=rf"distill.teacher=.*a.ckpt with {message}"):
        load_teacher(path, kit.build_net(), STAIN)


def test_a_teacher_to_whom_counts_mean_something_else_is_refused(kit, tmp_path):
    path = kit.save_net(kit.build_net(), tmp_path / "a.ckpt")
    with pytest.raises(ConfigError, match=r"counts \['float32', 'uint8'\]; need counts \['float32', 'uint16'\]"):
        load_teacher(path, kit.build_net(), replace(STAIN, dtypes=("float32", "uint16")))
    load_teacher(path, kit.build_net(), replace(STAIN, dtypes=("float32", "uint8")))
    load_teacher(path, kit.build_net(), replace(STAIN, dtypes=("float32",)))


def test_no_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"none.ckpt; need a checkpoint file or a bundle folder"):
        compute_digest(tmp_path / "none.ckpt")


def test_a_bundle_of_detections_is_refused(kit, tmp_path):
    folder = dot_net.write_dot_bundle(tmp_path / "bundle")
    net = kit.build_net("centermask2", in_channels=3, classes=("background", "live", "dead"))
    with pytest.raises(ConfigError, match=r"bundle of detections; .*=the checkpoint that it was exported from"):
        load_teacher(folder, net, Images(channels=dot_net.CHANNELS))


def test_a_net_without_known_layers_is_refused(kit):
    net = kit.build_net()
    other = torch.nn.Module()
    other.spec = net.spec
    with pytest.raises(ConfigError, match="distill with the net 'unet'; need one whose layers are known"):
        build_teacher(other, net)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_a_bundle_teaches_what_its_arithmetic_says(kit, tmp_path, activation, dtype):
    folder = stain_net.write_bundle(
        tmp_path / "bundle",
        stain_net.build_graph(input_dtype=dtype, distance=activation == "softmax"),
        input_dtype=dtype,
        **({} if activation == "softmax" else PLAIN),
    )
    kind = "viability" if activation == "softmax" else "semantic"
    student = kit.build_net(**{**VIABLE, "kind": kind, "activation": activation})
    draw = np.random.default_rng(0)
    counts = draw.uniform(900, 1100, (2, 2, 9, 11)).astype(np.float32) - np.array([0, 500]).reshape(2, 1, 1)
    told = load_teacher(folder, student, STAINS).look(torch.tensor(counts, dtype=torch.float32), None)
    shown = np.rint(counts) if dtype == "uint16" else counts
    cell, dead = expit((shown[:, 0] - 1000) / 50), expit((shown[:, 1] - 500) / 50)
    wanted = np.stack([1 - cell, cell * (1 - dead), cell * dead], axis=1)
    if activation == "softmax":
        np.testing.assert_allclose(told["classes"].softmax(1), wanted, atol=1e-5)
        middle = shown[:, 0, 3:6, 3:6].mean((1, 2)) / 4000
        np.testing.assert_allclose(told["distance"][:, 0, 4, 4].sigmoid(), middle, atol=1e-5)
    else:
        np.testing.assert_allclose(told["classes"].sigmoid(), wanted[:, 1:], atol=1e-5)
        assert "distance" not in told

"""Nets by name, their record, and what a wrong setting says."""

import json
from collections import OrderedDict

import pytest
import torch

from cellvision.errors import ConfigError
from cellvision.models.base import SegNet
from cellvision.models.build import build_model, list_models

PLAIN = {"name": "unet", "in_channels": 2, "classes": ("background", "live", "dead"), "widths": (4, 8)}


def test_config_is_complete_plain_data():
    loss = OrderedDict(ce=OrderedDict(weight=1.0, class_weights=(1, 2, 3)), dice=None)
    net = build_model(**PLAIN, loss=loss)
    assert isinstance(net, SegNet)
    assert json.loads(json.dumps(net.config)) == net.config
    assert net.config["name"] == "unet"
    assert net.config["attention"] == "none"
    assert net.config["loss"] == {"ce": {"weight": 1.0, "class_weights": [1, 2, 3]}, "dice": None}
    assert build_model(**net.config).config == net.config


def test_models_are_listed():
    assert "unet" in list_models()
    with pytest.raises(ConfigError, match=r"unknown model 'unett'; need one of: .*unet.*; try: 'unet'"):
        build_model(name="unett")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widthz": 3}, r"unknown setting of unet 'model.widthz'; need one of: .*try: 'model.widths'"),
        ({"in_channels": 0}, r"model.in_channels=0; need a whole number from 1 up"),
        ({"in_channels": True}, r"model.in_channels=True"),
        ({"classes": ["cell"]}, r"model.classes=\['cell'\]; need two or more different names, background first"),
        ({"classes": ["background", "cell", "cell"]}, r"need two or more different names"),
        ({"classes": "background"}, r"need two or more different names"),
        ({"kind": "instance"}, r"unknown model.kind 'instance'; need one of: semantic, viability"),
        ({"kind": "viability", "classes": ["background", "cell"]}, r"need live and dead among them"),
        ({"kind": "viability", "activation": "sigmoid"}, r"model.activation=sigmoid; need softmax"),
        ({"widths": [8]}, r"model.widths=\[8\]; need a whole number from 1 up for each of two or more strides"),
        ({"widths": [8, 0]}, r"model.widths=\[8, 0\]"),
        ({"widths": 8}, r"model.widths=8"),
        ({"widths": [3, 8], "norm": "group"}, r"model.widths=\[3, 8\]; need even numbers for model.norm=group"),
        (
            {"attention": "gates"},
            r"unknown model.attention 'gates'; need one of: cbam, gate, none, se, self; try: 'gate'",
        ),
        ({"norm": "layer"}, r"unknown model.norm 'layer'; need one of: batch, group"),
        ({"activation": "relu"}, r"unknown model.activation 'relu'"),
        ({"dropout": 1}, r"model.dropout=1; need a number from 0 up and below 1"),
        ({"pretrained": "no"}, r"model.pretrained='no'; need true or false"),
        ({"pretrained": True}, r"model.pretrained=true; need a timm encoder"),
        ({"loss": {"ce": {"weight": 1}, "distance": {"weight": 1}}}, r"model.loss has the term distance"),
    ],
)
def test_wrong_settings_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        build_model(**{**PLAIN, **changes})


def test_missing_settings_are_named_all_at_once():
    with pytest.raises(
        ConfigError, match=r"model 'unet' lacks model.in_channels, model.classes; need a value for each"
    ):
        build_model(name="unet")


def test_building_twice_from_one_seed_gives_equal_weights():
    nets = []
    for _ in range(2):
        torch.manual_seed(3)
        nets.append(build_model(**PLAIN).state_dict())
    assert all(torch.equal(nets[0][key], nets[1][key]) for key in nets[0])

"""What the keys of a CenterMask2 config file must be, alone and together, to become a net here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from cellvision.errors import ConfigError, explain
from cellvision.models.centermask2.config_file.keys import BUILDERS, FIXED, MASK_HEADS, NORMS, RESNETS, VOVNETS
from cellvision.models.centermask2.config_file.settings import (
    NET_KEYS,
    TRAINING_KEYS,
    CenterMaskSettings,
    TrainingSettings,
)

_Values = Mapping[str, Any]
_LEVEL = re.compile("(?:stage|res|p)([1-9])")


def find_idle(values: _Values) -> dict[str, str]:
    """The keys that have no part in this net, because another backbone was chosen or a head is off, with the reason.

    Args:
        values: every key, with its default where a file does not hold it.
    """
    builder = values["MODEL.BACKBONE.NAME"]
    reasons = {
        f"MODEL.{section}": f"the backbone is of {builder}"
        for section in ("VOVNET", "RESNETS")
        if section != BUILDERS.get(builder)
    }
    if BUILDERS.get(builder) != "RESNETS":
        reasons["MODEL.MOBILENET"] = "MODEL.BACKBONE.NAME decides"
    if not values["MODEL.MASKIOU_ON"]:
        reasons["MODEL.ROI_MASKIOU_HEAD"] = reasons["MODEL.MASKIOU_LOSS_WEIGHT"] = "MODEL.MASKIOU_ON is off"
    return {key: why for key in values for name, why in reasons.items() if key == name or key.startswith(f"{name}.")}


def build_net_settings(values: _Values, idle: Mapping[str, str]) -> CenterMaskSettings:
    """The settings of the net.

    Args:
        values: every key, with its default where a file does not hold it.
        idle: keys that are not looked at.

    Raises:
        ConfigError: a key has a value that CenterMask2 does not have here, or two keys do not fit together.
    """
    _check_fixed(values, idle)
    _check_sizes(values)
    section = BUILDERS[values["MODEL.BACKBONE.NAME"]]
    plain = {name: values[key] for name, key in NET_KEYS.items()}
    plain["freeze_at"] = max(plain["freeze_at"], 0)  # -1 is another way to say that nothing is frozen
    return CenterMaskSettings(
        **plain,
        **_read_bottom_up(section, values),
        levels=_read_levels("MODEL.FPN.IN_FEATURES", values),
        roi_levels=_read_levels("MODEL.ROI_HEADS.IN_FEATURES", values),
        roi_iou=values["MODEL.ROI_HEADS.IOU_THRESHOLDS"][0],
        head_norm={"GN": "group", "none": "none"}[values["MODEL.FCOS.NORM"]],
        mask_attention=MASK_HEADS[values["MODEL.ROI_MASK_HEAD.NAME"]],
    )


def build_training_settings(values: _Values) -> TrainingSettings:
    """The settings of the training; ``values`` as in ``build_net_settings``."""
    return TrainingSettings(**{name: values[key] for name, key in TRAINING_KEYS.items()})


def _check_fixed(values: _Values, idle: Mapping[str, str]) -> None:
    """Raise one ConfigError that names every key with a value that is not possible here."""
    wrong = {key: FIXED[key] for key in FIXED if key not in idle and values[key] not in FIXED[key]}
    if values["MODEL.MOBILENET"] and "MODEL.MOBILENET" not in idle:
        wrong["MODEL.MOBILENET"] = (False,)
    if values["MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK"] and values["MODEL.FCOS.NUM_CLASSES"] > 1:
        wrong["MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK"] = (False,)
    if wrong:
        got = ", ".join(f"{key}={_show(values[key])}" for key in wrong)
        need = "; ".join(f"{key}: {' or '.join(map(_show, known))}" for key, known in wrong.items())
        raise ConfigError(explain(got=got, need=need, hint="a config of CenterMask2, and set what its base leaves out"))


def _check_sizes(values: _Values) -> None:
    """Raise ConfigError for numbers that do not fit together."""
    classes = {key: values[key] for key in ("MODEL.FCOS.NUM_CLASSES", "MODEL.ROI_HEADS.NUM_CLASSES")}
    width_keys = ["MODEL.FPN.OUT_CHANNELS", "MODEL.ROI_MASK_HEAD.CONV_DIM"]
    width_keys += ["MODEL.ROI_MASKIOU_HEAD.CONV_DIM"] if values["MODEL.MASKIOU_ON"] else []
    _check_equal("number of classes", classes)
    _check_equal("number of channels", {key: values[key] for key in width_keys})
    inner = _read_levels("MODEL.FPN.IN_FEATURES", values)
    levels = [*inner, *(inner[-1] + 1 + i for i in range(values["MODEL.FCOS.TOP_LEVELS"]))]
    convs = values["MODEL.ROI_MASK_HEAD.NUM_CONV"]
    thresholds = values["MODEL.ROI_HEADS.IOU_THRESHOLDS"]
    pooled = _read_levels("MODEL.ROI_HEADS.IN_FEATURES", values)
    _check_key(values, "MODEL.FCOS.IN_FEATURES", tuple(f"p{level}" for level in levels))
    _check_key(values, "MODEL.FCOS.FPN_STRIDES", tuple(2**level for level in levels))
    sizes = values["MODEL.FCOS.SIZES_OF_INTEREST"]
    _require(len(sizes) == len(levels) - 1, values, "MODEL.FCOS.SIZES_OF_INTEREST", f"{len(levels) - 1} sizes")
    _require(set(pooled) <= set(levels), values, "MODEL.ROI_HEADS.IN_FEATURES", f"some of p{levels[0]}..p{levels[-1]}")
    _require(convs >= 1, values, "MODEL.ROI_MASK_HEAD.NUM_CONV", "one or more convolutions")
    _require(len(thresholds) == 1, values, "MODEL.ROI_HEADS.IOU_THRESHOLDS", "one threshold")
    mean, std = values["MODEL.PIXEL_MEAN"], values["MODEL.PIXEL_STD"]
    _require(len(mean) == len(std) and min(std, default=0) > 0, values, "MODEL.PIXEL_STD", "a number > 0 per channel")


def _check_equal(what: str, values: _Values) -> None:
    if len(set(values.values())) > 1:
        got = ", ".join(f"{key}={value}" for key, value in values.items())
        raise ConfigError(explain(got=got, need=f"the same {what} in each", hint="change the one that is wrong"))


def _check_key(values: _Values, key: str, expected: object) -> None:
    _require(values[key] == expected, values, key, f"{_show(expected)}, the levels of FPN and TOP_LEVELS")


def _require(holds: bool, values: _Values, key: str, need: str) -> None:
    if not holds:
        hint = "set it in the file, or in the base that the file lacks"
        raise ConfigError(explain(got=f"{key}={_show(values[key])}", need=need, hint=hint))


def _read_levels(key: str, values: _Values) -> tuple[int, ...]:
    """Level 3 of "stage3", "res3" or "p3", and so on, finest first and without a gap."""
    found = [_LEVEL.fullmatch(name) for name in values[key]]
    levels = tuple(int(match[1]) for match in found if match)
    whole = bool(levels) and levels == tuple(range(levels[0], levels[0] + len(found)))
    _require(whole, values, key, "levels without a gap, such as p3, p4, p5")
    return levels


def _read_bottom_up(section: str, values: _Values) -> dict[str, Any]:
    """Name, norm and deformable stages of the bottom-up."""
    if section == "MOBILENET":
        return {"backbone": "mobilenetv2", "norm": "frozen"}
    norm = NORMS[values[f"MODEL.{section}.NORM"]]
    if section == "RESNETS":
        return {"backbone": _read_resnet(values), "norm": norm}
    stages, modulated = values["MODEL.VOVNET.STAGE_WITH_DCN"], values["MODEL.VOVNET.WITH_MODULATED_DCN"]
    need = "true, the published kind, where MODEL.VOVNET.STAGE_WITH_DCN is"
    _require(modulated or not any(stages), values, "MODEL.VOVNET.WITH_MODULATED_DCN", need)
    backbone = VOVNETS[values["MODEL.VOVNET.CONV_BODY"]]
    return {"backbone": backbone, "norm": norm, "deformable": stages, "deformable_modulated": modulated}


def _read_resnet(values: _Values) -> str:
    shape = tuple(values[f"MODEL.RESNETS.{name}"] for name in ("DEPTH", "NUM_GROUPS", "WIDTH_PER_GROUP"))
    known = ", ".join("x".join(map(str, one)) for one in RESNETS)
    need = f"depth x groups x width of {known}"
    if shape not in RESNETS:
        got = f"MODEL.RESNETS.DEPTH, NUM_GROUPS, WIDTH_PER_GROUP={'x'.join(map(str, shape))}"
        raise ConfigError(explain(got=got, need=need, hint="MODEL.RESNETS.DEPTH: 50"))
    width = 64 if shape[0] < 50 else 256
    _require(values["MODEL.RESNETS.RES2_OUT_CHANNELS"] == width, values, "MODEL.RESNETS.RES2_OUT_CHANNELS", str(width))
    return RESNETS[shape]


def _show(value: object) -> str:
    """A value as YAML spells it."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_show, value))}]"
    return str(value).lower() if isinstance(value, bool) else repr(value) if value == "" else str(value)

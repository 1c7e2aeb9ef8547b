"""What tensors are called in files of others, and what the same tensors are called here."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

_Rename = Callable[[str], str]

_SCALE = re.compile(r"(.*fcos_head\.scales\.)(\d+)(\.\w+)")

_PLACES = ("", "backbone.", "backbone.bottom_up.", "bottom_up.")
"""Before the names of a file, to get those of a detector, a pyramid or a bottom-up; each also with "encoder."."""


@dataclass(frozen=True, kw_only=True)
class NameMatch:
    """Which tensor of a file is which of a net.

    Attributes:
        scheme: whose names the file has, one of SCHEMES.
        names: {name in the net: name in the file}.
    """

    scheme: str
    names: dict[str, str]


def match_names(given: Collection[str], wanted: Collection[str]) -> NameMatch:
    """The reading of the names in a file under which most of them are found in a net.

    A file may hold the whole net or its backbone, under any prefix ("module.", "net.detector.", ...), with the names
    of the published nets or one of the other SCHEMES.

    Args:
        given: names in the file.
        wanted: names in the net.

    Example:
        >>> match_names(["module.bn1.bias", "fc.bias"], ["backbone.bottom_up.stem.conv1.norm.bias"]).names
        {'backbone.bottom_up.stem.conv1.norm.bias': 'module.bn1.bias'}
    """
    plain = {name.replace("/pw_norm.", "/norm."): name for name in wanted}
    places = [f"{place}{encoder}" for place in _PLACES for encoder in ("", "encoder.")]
    best = NameMatch(scheme="published", names={})
    for scheme, rename in SCHEMES.items():
        votes: Counter[tuple[str, str]] = Counter()
        readings = {name: list(_read(name, rename)) for name in given}
        for each in readings.values():
            votes.update((head, place) for head, tail in each for place in places if f"{place}{tail}" in plain)
        for (head, place), count in votes.most_common(1):
            if count <= len(best.names):
                continue
            tails = {name: dict(each).get(head) for name, each in readings.items()}
            found = {f"{place}{tail}": name for name, tail in tails.items() if tail is not None}
            names = {plain[tail]: name for tail, name in found.items() if tail in plain}
            is_encoder = scheme == "published" and place.endswith("encoder.")  # outside of any detector
            best = NameMatch(scheme="timm" if is_encoder else scheme, names=names)
    return best


def match_levels(match: NameMatch, given: Collection[str], wanted: Collection[str]) -> NameMatch:
    """The same with the right level for each scale of the FCOS head, which are numbered from the finest level on.

    Where a file begins with another level than the net, number 0 is not the same level there and here; other parts
    are numbered by level.

    Args:
        match: of ``match_names``.
        given: names in the file.
        wanted: names in the net.
    """
    here, there = _find_finest(wanted), _find_finest(given)
    pairs = [(_SCALE.fullmatch(ours), _SCALE.fullmatch(theirs)) for ours, theirs in match.names.items()]
    heads = [(ours[1], theirs[1]) for ours, theirs in pairs if ours and theirs]
    if here is None or there is None or here == there or not heads:
        return match
    names = {ours: theirs for ours, theirs in match.names.items() if not _SCALE.fullmatch(ours)}
    for scale in filter(None, map(_SCALE.fullmatch, wanted)):
        theirs = f"{heads[0][1]}{int(scale[2]) + here - there}{scale[3]}"
        if theirs in given:
            names[scale[0]] = theirs
    return replace(match, names=names)


def _find_finest(names: Collection[str]) -> int | None:
    """The finest level of the feature pyramid, or None without one."""
    found = (re.search(r"fpn_lateral(\d)\.", name) for name in names)
    return min((int(level[1]) for level in found if level), default=None)


def _read(name: str, rename: _Rename) -> list[tuple[str, str]]:
    """Every (prefix, name here of the rest), shortest prefix first."""
    name = name.replace("/pw_norm.", "/norm.")
    ends = [0, *(match.end() for match in re.finditer(r"\.", name))]
    return [(name[:end], rename(name[end:])) for end in ends]


def _from_published(name: str) -> str:
    return name


_CAFFE2_LEAVES = {
    "w": "weight",
    "b": "bias",
    "bn_s": "norm.weight",
    "bn_b": "norm.bias",
    "bn_rm": "norm.running_mean",
    "bn_riv": "norm.running_var",
}
_CAFFE2_CONVS = {"1": "shortcut", "2a": "conv1", "2b": "conv2", "2c": "conv3"}


def _from_caffe2(name: str) -> str:
    """ResNets of the model zoo that detectron2 took over, from before PyTorch."""
    leaf = "|".join(_CAFFE2_LEAVES)
    if stem := re.fullmatch(rf"(?:res_)?conv1_({leaf})", name):
        return f"stem.conv1.{_CAFFE2_LEAVES[stem[1]]}"
    if block := re.fullmatch(rf"res(\d)_(\d+)_branch(1|2[abc])_({leaf})", name):
        return f"res{block[1]}.{block[2]}.{_CAFFE2_CONVS[block[3]]}.{_CAFFE2_LEAVES[block[4]]}"
    return name


def _from_resnet(name: str) -> str:
    """ResNets of torchvision and timm."""
    if stem := re.fullmatch(r"(conv1|bn1)\.(\w+)", name):
        return f"stem.conv1.{_in_conv(stem[1])}{stem[2]}"
    if block := re.fullmatch(r"layer(\d)\.(\d+)\.(?:(conv|bn)(\d)|downsample\.(\d))\.(\w+)", name):
        stage, index, kind, conv, shortcut, leaf = block.groups()
        part = f"conv{conv}.{_in_conv(kind)}" if kind else f"shortcut.{_in_conv('bn' if shortcut == '1' else '')}"
        return f"res{int(stage) + 1}.{index}.{part}{leaf}"
    return name


def _in_conv(kind: str) -> str:
    return "norm." if kind.startswith("bn") else ""


_VOVNET_PARTS = {"conv": "conv", "bn": "norm", "conv_dw": "dw_conv3x3", "conv_pw": "pw_conv1x1"}


def _from_vovnet(name: str) -> str:
    """VoVNets of timm."""
    if stem := re.fullmatch(r"stem\.(\d)\.(\w+)\.(\w+)", name):
        index, part, leaf = stem.groups()
        return f"stem.stem_{int(index) + 1}/{_VOVNET_PARTS.get(part)}.{leaf}"
    if block := re.fullmatch(r"stages\.(\d)\.blocks\.(\d+)\.(\w+)\.(?:(\d)\.)?(\w+)\.(\w+)", name):
        stage, number, kind, index, part, leaf = block.groups()
        osa = f"OSA{int(stage) + 2}_{int(number) + 1}"
        inner = {
            "attn": "ese.fc",
            "conv_mid": f"layers.{index}.{osa}_{index}/{_VOVNET_PARTS.get(part)}",
            "conv_concat": f"concat.{osa}_concat/{_VOVNET_PARTS.get(part)}",
            "conv_reduction": f"conv_reduction.{osa}_reduction_0/{_VOVNET_PARTS.get(part)}",
        }
        return f"stage{int(stage) + 2}.{osa}.{inner.get(kind)}.{leaf}"
    return name


def _from_nested_mobilenet(name: str) -> str:
    """MobileNetV2 of torchvision, which puts a convolution with its norm and activation in a part of its own."""
    if nested := re.fullmatch(r"features\.(\d+)\.conv\.(\d)\.(\d)\.(\w+)", name):
        feature, group, part, leaf = nested.groups()
        return f"features.{feature}.conv.{3 * int(group) + int(part)}.{leaf}"
    if flat := re.fullmatch(r"features\.(\d+)\.conv\.(\d)\.(\w+)", name):
        feature, part, leaf = flat.groups()
        groups = 1 if feature == "1" else 2
        return f"features.{feature}.conv.{int(part) + 2 * groups}.{leaf}"
    return name


_MOBILENET_STAGES = (1, 2, 4, 7, 11, 14, 17)
_MOBILENET_PARTS = {"conv_pw": 0, "bn1": 1, "conv_dw": 3, "bn2": 4, "conv_pwl": 6, "bn3": 7}
_MOBILENET_FIRST = {"conv_dw": 0, "bn1": 1, "conv_pw": 3, "bn2": 4}


def _from_timm_mobilenet(name: str) -> str:
    """MobileNetV2 of timm, which counts blocks within stages."""
    if stem := re.fullmatch(r"(conv_stem|bn1)\.(\w+)", name):
        return f"features.0.{'0' if stem[1] == 'conv_stem' else '1'}.{stem[2]}"
    if block := re.fullmatch(r"blocks\.([0-6])\.(\d)\.(\w+)\.(\w+)", name):
        stage, number, part, leaf = block.groups()
        parts = _MOBILENET_FIRST if stage == "0" else _MOBILENET_PARTS
        return f"features.{_MOBILENET_STAGES[int(stage)] + int(number)}.conv.{parts.get(part)}.{leaf}"
    return name


def _from_timm(name: str) -> str:
    """Whole nets of timm, whose feature extractors write "stages_0" for "stages.0"."""
    return re.sub(r"^(\w+)\.(\d+)\.", r"\1_\2.", name)


SCHEMES = {
    "published": _from_published,
    "timm": _from_timm,
    "caffe2 ResNet": _from_caffe2,
    "torchvision ResNet": _from_resnet,
    "timm VoVNet": _from_vovnet,
    "torchvision MobileNetV2": _from_nested_mobilenet,
    "timm MobileNetV2": _from_timm_mobilenet,
}
"""Each gives the name here of a name elsewhere; one that it does not know stays as it is."""

RED_FIRST = frozenset(scheme for scheme in SCHEMES if scheme.startswith(("timm", "torchvision")))
"""Schemes of weights that know images with red first and on a scale of 0..1; those of the others know blue first."""

"""Which tensors of a file a net can take, and how they are changed to fit."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cellvision.errors import ConfigError, DataError, check_choice, explain
from cellvision.models.centermask2.weights.names import RED_FIRST, NameMatch, match_levels, match_names
from cellvision.models.centermask2.weights.report import LoadReport

ORDERS = ("bgr", "rgb")
"""How weights may know the channels of an image."""

PIXELS = ("pixel_mean", "pixel_std")
"""Names of what is no weight but tells which images the weights know."""

_COUNTER = "num_batches_tracked"
_CLASS_HEADS = re.compile(r"(fcos_head\.cls_logits|mask_head\.predictor|maskiou_head\.maskiou)\.(weight|bias)$")
_STATISTICS = {"running_mean": 0.0, "running_var": 1.0}

_AJAR = 3 - 2**-10
"""Bias at which an excitation lets 99.98% through and can learn; at 3 all passes and there is no slope to learn by."""


def load_weights(net: nn.Module, weights: Mapping[str, Tensor], *, source: str, order: str | None) -> LoadReport:
    """Load what fits; all is looked at before the net is changed.

    Args:
        net: changed in place.
        weights: tensors by name.
        source: of the weights, for texts.
        order: one of ORDERS, as the weights know the channels; None for what their names tell. The net is shown red
            first: of "bgr" weights the first and the last channel are exchanged.

    Raises:
        ConfigError: ``order`` is unknown, or "bgr" for weights of timm or torchvision.
        DataError: no weight fits, one is not finite or of whole numbers, or "bgr" for other than three channels.
    """
    state = {name: value for name, value in net.state_dict().items() if _leaf(name) != _COUNTER}
    given = {name: value for name, value in weights.items() if _leaf(name) not in (_COUNTER, *PIXELS)}
    match = match_levels(match_names(given, state), given, state)
    stem = next((name for name, value in state.items() if value.ndim == 4 and _is_in_bottom_up(name, state)), "")
    fitted = {name: given[theirs] for name, theirs in match.names.items()}
    _check_types(fitted, state, source=source)
    adapted: dict[str, str] = {}
    known_order = _choose_order(order, match.scheme, fitted.get(stem), source)
    if stem in fitted:
        if known_order == "bgr":
            fitted[stem] = fitted[stem].flip(1)
        if how := _describe_adapting(fitted[stem], state[stem]):
            adapted[stem], fitted[stem] = how, _adapt(fitted[stem], state[stem].shape[1])
    skipped = {name: reason for name in fitted if (reason := _find_misfit(name, fitted, state, match, given))}
    values = {name: value for name, value in fitted.items() if name not in skipped}
    _check(values, source=source, given=given, state=state)
    filled = _fill(state, fitted, scheme=match.scheme)
    with torch.no_grad():
        for name, value in values.items():
            state[name].copy_(value)
        for name, (number, _) in filled.items():
            state[name].fill_(number)
    return LoadReport(
        source=source,
        loaded=tuple(values),
        filled={name: reason for name, (_, reason) in filled.items()},
        skipped=skipped,
        missing=tuple(name for name in state if name not in fitted and name not in filled),
        adapted={name: how for name, how in adapted.items() if name in values},
        unused=tuple(sorted(given.keys() - set(match.names.values()))),
        scheme=match.scheme,
        order=known_order,
        is_order_given=order is not None,
        **_read_pixels(weights, flip=known_order == "bgr"),
    )


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _is_in_bottom_up(name: str, state: Mapping[str, Tensor]) -> bool:
    """Whether a tensor belongs to the bottom-up; all do where the net is nothing else."""
    return "bottom_up." in name or not any("bottom_up." in each for each in state)


def _choose_order(order: str | None, scheme: str, stem: Tensor | None, source: str) -> str | None:
    """How the weights know the channels, or None where they do not know three; ``stem`` is their first convolution."""
    if order is not None:
        check_choice("model.weights_order", order, ORDERS)
    if order == "bgr" and scheme in RED_FIRST:
        got = f"model.weights_order=bgr for {source}, whose names are those of {scheme} weights"
        need = "rgb, as all weights of timm and torchvision know images"
        raise ConfigError(explain(got=got, need=need, hint="model.weights_order=rgb"))
    if stem is not None and (stem.ndim != 4 or stem.shape[1] != 3):
        if order == "bgr":
            got = f"model.weights_order=bgr for {source}, whose first convolution is of shape {tuple(stem.shape)}"
            raise DataError(explain(got=got, need="three channels to exchange", hint="model.weights_order=rgb"))
        return None
    return order or ("rgb" if scheme in RED_FIRST else "bgr")


def _describe_adapting(theirs: Tensor, ours: Tensor) -> str | None:
    """How the channels are changed, or None where nothing is to be changed or more than the channels differ."""
    same_besides = theirs.ndim == 4 and (theirs.shape[0], theirs.shape[2:]) == (ours.shape[0], ours.shape[2:])
    if not same_besides or theirs.shape[1] == ours.shape[1]:
        return None
    how = "summed up" if ours.shape[1] == 1 else "repeated"
    return f"{how}: {theirs.shape[1]} image channels in the file, {ours.shape[1]} here"


def _adapt(weight: Tensor, channels: int) -> Tensor:
    """Weights (O, ``channels``, h, w) that give of equal channels what ``weight`` (O, C, h, w) gives."""
    known = weight.shape[1]
    if channels == 1:
        return weight.sum(1, keepdim=True)
    return weight.repeat(1, math.ceil(channels / known), 1, 1)[:, :channels] * (known / channels)


def _find_misfit(
    name: str,
    fitted: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    match: NameMatch,
    given: Mapping[str, Tensor],
) -> str | None:
    """Why a tensor of the file cannot be taken, or None if it can."""
    theirs, ours = fitted[name].shape, state[name].shape
    if theirs != ours:
        if _CLASS_HEADS.search(name) and len(theirs) == len(ours) and theirs[1:] == ours[1:]:
            return f"{theirs[0]} classes in the file, {ours[0]} here"
        return f"shape {tuple(theirs)} in the file, {tuple(ours)} here"
    their_norm = f"{match.names[name].rpartition('.')[0]}.running_mean"
    if their_norm in given and f"{name.rpartition('.')[0]}.running_mean" not in state:
        return "of batch normalisation in the file, of another kind here"
    return None


def _fill(state: Mapping[str, Tensor], fitted: Mapping[str, Tensor], *, scheme: str) -> dict[str, tuple[float, str]]:
    """{name: (value, reason)} of tensors that the file lacks and that have a value that goes with the others."""
    filled: dict[str, tuple[float, str]] = {}
    for name in state.keys() - fitted.keys():
        part, _, leaf = name.rpartition(".")
        if leaf in _STATISTICS and f"{part}.weight" in fitted:
            filled[name] = (_STATISTICS[leaf], "mean 0 and variance 1: scale and offset already hold the statistics")
        elif scheme == "timm VoVNet" and part.endswith("ese.fc"):
            filled[name] = (_AJAR if leaf == "bias" else 0.0, "open: timm's net has no excitation there")
    return dict(sorted(filled.items()))


def _check_types(fitted: Mapping[str, Tensor], state: Mapping[str, Tensor], *, source: str) -> None:
    """Raise DataError for whole numbers in place of weights: stored so, they had a scale that is not known here."""
    for name, value in fitted.items():
        if state[name].is_floating_point() and not value.is_floating_point():
            got = f"{name} in {source} is of type {str(value.dtype).removeprefix('torch.')}"
            need = "floating-point numbers, such as float32 or float16"
            raise DataError(explain(got=got, need=need, hint="the file from before it was converted"))


def _check(
    values: Mapping[str, Tensor], *, source: str, given: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> None:
    """Raise DataError if there is no weight to load (offsets and norms fit by chance), or one is not finite."""
    if not any(value.ndim >= 2 for value in values.values()):
        names, wanted = ", ".join(list(given)[:3]), ", ".join(list(state)[:2])
        got = f"nothing in {source} fits the net ({len(given)} tensors such as {names})"
        raise DataError(explain(got=got, need=f"names and shapes such as of {wanted}", hint="weights of this backbone"))
    for name, value in values.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            got = f"{name} in {source} holds numbers that are not finite"
            raise DataError(explain(got=got, need="finite weights", hint="an earlier checkpoint of that training"))


def _read_pixels(weights: Mapping[str, Tensor], *, flip: bool) -> dict[str, tuple[float, ...]]:
    """Mean and standard deviation of the images that the weights know, if they hold them."""
    found = {_leaf(name): value.flatten().float() for name, value in weights.items() if _leaf(name) in PIXELS}
    return {key: tuple((value.flip(0) if flip else value).tolist()) for key, value in found.items()}

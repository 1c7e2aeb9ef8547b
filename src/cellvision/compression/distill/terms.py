"""Which of the losses that a teacher can give are used, and how much each counts."""

from __future__ import annotations

from collections.abc import Mapping

from cellvision.checks import check_range
from cellvision.errors import ConfigError, explain, unknown_name

MAP_TERMS: Mapping[str, float | None] = {
    "classes": 1.0,
    "boundary": 0.5,
    "distance": 5.0,
    "class_channels": None,
    "features": None,
    "focus": None,
}
"""Terms of nets of maps with their usual weights; None is off.

So chosen that on fields of nuclei each pulled at the encoder about as the net's own losses do. "focus" compares
features as they are, and pulled 2 to 100 times as strongly at weight 1: begin with 0.02.
"""

CELL_TERMS: Mapping[str, float | None] = {
    "fcos_class": 1.0,
    "fcos_box": 1.0,
    "fcos_centre": 1.0,
    "features": 1.0,
    "focus": None,
    "masks": 1.0,
    "attention": 1.0,
    "mask_iou": 1.0,
}
"""Terms of instance nets. Those of the mask branch are on: taught by boxes and features only, masks get worse."""

LARGEST_WEIGHT = 1e4

FEATURE_TERMS = ("features", "focus")


def choose_terms(
    usual: Mapping[str, float | None], given: Mapping[str, float | None], missing: Mapping[str, str]
) -> tuple[dict[str, float], list[str]]:
    """The weights of the terms that are on, and lines on usual ones that are left out.

    Args:
        usual: MAP_TERMS or CELL_TERMS.
        given: what the user says of some; None is off.
        missing: {term: why the two nets cannot have it}.

    Raises:
        ConfigError: a term is unknown, asked for and missing, no weight, or none is left.
    """
    for name, weight in given.items():
        key = f"compress.distill.weights.{name}"
        if name not in usual:
            raise ConfigError(
                unknown_name("loss of this net", key, [f"compress.distill.weights.{each}" for each in usual])
            )
        if weight is not None:
            check_range(key, weight, low=0, high=LARGEST_WEIGHT, example=1.0)
            if name in missing:
                raise ConfigError(explain(got=f"{key}={weight} and {missing[name]}", need="both", hint=f"{key}=null"))
    weights = {name: float(weight) for name, weight in {**usual, **given}.items() if weight}
    lines = [f"distill: no {name}: {missing[name]}" for name in weights if name in missing]
    chosen = {name: weight for name, weight in weights.items() if name not in missing}
    if not chosen:
        got, need = "compress.distill.weights with nothing to learn", f"a weight above 0 for one of {', '.join(usual)}"
        raise ConfigError(explain(got=got, need=need, hint=f"compress.distill.weights.{next(iter(usual))}=1.0"))
    return chosen, lines

"""What the graphs of a bundle are to be like."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from cellvision.bundle import Detecting, Splitting
from cellvision.checks import check_count, check_range
from cellvision.errors import ConfigError, check_choice, explain
from cellvision.models.base import SegNet
from cellvision.types import IMAGE_DTYPES

FORMS = ("whole", "parted")

MOST_CELLS = 100_000
"""Of an image or tile; the outputs of a graph have a place of 3 kB for each, whatever is found."""

SCORE_SHARE = 0.9
"""Of the score from which cells count: a mask's rating hardly ever raises the score of its box."""


@dataclass(frozen=True, kw_only=True)
class GraphOptions:
    """Settings of a bundle's graphs, whatever their precision.

    Attributes:
        input_dtype: of the graph's input, one of IMAGE_DTYPES.
        form: one of FORMS; "parted" for engines that cannot suppress doubles, and for less memory, instance nets only.
        max_cells: of an instance net, most cells of an image or tile, 1..MOST_CELLS; None for the net's own number.
        min_score: of an instance net, in [0, 1): boxes below it get no mask. None for SCORE_SHARE of the score from
            which cells count, which loses no cell; smaller, down to 0, for average precision over all scores.

    Raises:
        ConfigError: an unknown choice, or a number out of range.
    """

    input_dtype: str = "float32"
    form: str = "whole"
    max_cells: int | None = None
    min_score: float | None = None

    def __post_init__(self) -> None:
        check_choice("input_dtype", self.input_dtype, IMAGE_DTYPES)
        check_choice("form", self.form, FORMS)
        check_count("max_cells", self.max_cells, high=MOST_CELLS, or_none=True, example=1000)
        if self.min_score is not None:
            check_range("min_score", self.min_score, low=0, below=1, example=0.1)

    @property
    def parted(self) -> bool:
        """Whether boxes and masks come from two graphs."""
        return self.form == "parted"

    def choose_detecting(self, net: SegNet, splitting: Splitting) -> Detecting | None:
        """How the graph of an instance net chooses detections; None for other nets.

        Raises:
            ConfigError: a setting for a net without detections.
        """
        given: dict[str, Any] = {"max_cells": self.max_cells, "min_score": self.min_score}
        told = {name: value for name, value in given.items() if value is not None}
        if net.detecting is not None:
            usual = {"min_score": round(SCORE_SHARE * splitting.score_threshold, 4)}
            return replace(net.detecting, **(usual | told))
        if told:
            name, value = next(iter(told.items()))
            need = "an instance net, which alone has detections"
            raise ConfigError(explain(got=f"{name}={value} for a {net.spec.kind} net", need=need, hint=f"{name}=null"))
        return None

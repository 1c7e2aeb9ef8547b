"""How an engine is to be built: for which sizes, in which precision, with which library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cellvision.errors import ConfigError, check_choice, explain
from cellvision.runtime.engines.library import BACKENDS
from cellvision.runtime.engines.sidecar import PRECISIONS

Shape = tuple[int, ...]
Shapes = tuple[Shape, Shape, Shape]
"""Smallest, best and largest shape of one input; the engine is fastest at the second and refuses what is beyond."""

CALIBRATIONS = ("minmax", "entropy", "percentile")


@dataclass(frozen=True, kw_only=True)
class TensorrtOptions:
    """How an engine is to be built.

    Attributes:
        precision: "fp32", "fp16" or "int8". It is the graph that computes in it; an engine is built of a graph of that
            precision, and of no other.
        backend: "tensorrt", for the GPU at hand; or "tensorrt_rtx", for RTX GPUs, which needs none to build.
        batch, height, width: smallest, best and largest of the graph's input, each >= 1; height and width in px.
        multiple_px: heights and widths must be multiples of it; >= 1.
        workspace_mib: GPU memory that a layer may use for itself, >= 1; None for all there is.
        timing_cache: file in which times of layers are kept and found again by later builds, of "tensorrt" only;
            None for none. "tensorrt_rtx" takes no times when it builds.
        tf32: let fp32 layers round their factors to 10 bits, which is faster and 1000 times less exact.
        calibration: how ranges for int8 are found, one of CALIBRATIONS; of int8 only.
        device: number of the GPU that "tensorrt" builds on and for, from 0 up.

    Raises:
        ConfigError: a value out of its range, or two that do not go together.
    """

    precision: str = "fp32"
    backend: str = "tensorrt"
    batch: Sequence[int] = (1, 1, 8)
    height: Sequence[int] = (32, 512, 1024)
    width: Sequence[int] = (32, 512, 1024)
    multiple_px: int = 1
    workspace_mib: int | None = None
    timing_cache: Path | str | None = None
    tf32: bool = False
    calibration: str | None = None
    device: int = 0

    def __post_init__(self) -> None:
        check_choice("trt.precision", self.precision, PRECISIONS)
        check_choice("trt.backend", self.backend, BACKENDS)
        for name, least in (("multiple_px", 1), ("workspace_mib", 1), ("device", 0)):
            value = getattr(self, name)
            if not _is_whole(value, least) and not (value is None and name == "workspace_mib"):
                _refuse(f"trt.{name}={value}", f"a whole number from {least} up", f"trt.{name}={max(least, 1024)}")
        for name in ("batch", "height", "width"):
            _check_range(name, getattr(self, name), 1 if name == "batch" else self.multiple_px)
        if self.timing_cache is not None and self.backend != "tensorrt":
            got = f"trt.timing_cache={self.timing_cache} with trt.backend={self.backend}"
            _refuse(got, "trt.backend=tensorrt, for the other takes no times when it builds", "trt.timing_cache=null")
        if self.calibration is not None:
            check_choice("trt.calibration", self.calibration, CALIBRATIONS)
        if (self.calibration is not None) != (self.precision == "int8"):
            got = f"trt.calibration={self.calibration} with trt.precision={self.precision}"
            _refuse(got, "a calibration for int8, and for no other precision", "+trt=int8")


def plan_image_shapes(options: TensorrtOptions, channels: int) -> Shapes:
    """Shapes (B, C, H, W) of a graph's image.

    Example:
        >>> plan_image_shapes(TensorrtOptions(batch=(1, 2, 4)), channels=3)
        ((1, 3, 32, 32), (2, 3, 512, 512), (4, 3, 1024, 1024))
    """
    sizes = zip(options.batch, options.height, options.width, strict=True)
    smallest, best, largest = ((batch, channels, height, width) for batch, height, width in sizes)
    return smallest, best, largest


def plan_mask_shapes(
    options: TensorrtOptions,
    *,
    strides: Sequence[int],
    channels: int,
    padded_to: int,
    regions: tuple[int, int, int] = (1, 64, 64),
) -> Mapping[str, Shapes]:
    """Shapes of the inputs of an instance net's masks graph, from those of the image that its trunk was given.

    Args:
        options: of the trunk's engine.
        strides: of the pyramid maps map_0, map_1, .. in px.
        channels: of each of them.
        padded_to: px; the trunk pads height and width to the next multiple of it.
        regions: smallest, best and largest number of boxes.

    Example:
        >>> shapes = plan_mask_shapes(TensorrtOptions(), strides=(8,), channels=16, padded_to=32)
        >>> shapes["map_0"][1], shapes["boxes"][1]
        ((1, 16, 64, 64), (64, 4))
    """
    padded = {
        name: [-(-size // padded_to) * padded_to for size in getattr(options, name)] for name in ("height", "width")
    }
    shapes: dict[str, Shapes] = {}
    for level, stride in enumerate(strides):
        sizes = zip(options.batch, padded["height"], padded["width"], strict=True)
        small, best, large = ((batch, channels, high // stride, wide // stride) for batch, high, wide in sizes)
        shapes[f"map_{level}"] = (small, best, large)
    low, usual, high = regions
    shapes["boxes"] = ((low, 4), (usual, 4), (high, 4))
    shapes["images"] = shapes["classes"] = ((low,), (usual,), (high,))
    shapes["image_area"] = ((1,), (1,), (1,))
    return shapes


def _check_range(name: str, sizes: Sequence[int], multiple: int) -> None:
    """Raise ConfigError unless these are three rising sizes, all of them multiples."""
    example = f"trt.{name}=[{','.join(str(max(1, factor) * multiple) for factor in (1, 2, 4))}]"
    is_list = not isinstance(sizes, str) and isinstance(sizes, Sequence) and len(sizes) == 3
    if not is_list or not all(_is_whole(size, 1) for size in sizes) or list(sizes) != sorted(sizes):
        _refuse(f"trt.{name}={sizes}", "smallest, best and largest size, whole numbers from 1 up", example)
    if odd := [size for size in sizes if size % multiple]:
        _refuse(f"trt.{name}={list(sizes)} with {odd[0]}", f"multiples of {multiple} px", example)


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _refuse(got: str, need: str, hint: str) -> None:
    raise ConfigError(explain(got=got, need=need, hint=hint))

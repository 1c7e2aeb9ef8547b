from pathlib import Path

import pytest
import yaml

from cellvision.errors import ConfigError
from cellvision.export.quantize.calibration import METHODS
from cellvision.export.tensorrt.options import CALIBRATIONS, TensorrtOptions, plan_image_shapes, plan_mask_shapes

CONF = Path(__file__).parents[4] / "conf" / "trt"


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_settings_of_every_precision_are_its_options(precision):
    settings = yaml.safe_load((CONF / f"{precision}.yaml").read_text())
    target = settings.pop("_target_")
    assert target == f"{TensorrtOptions.__module__}.{TensorrtOptions.__name__}"
    options = TensorrtOptions(**settings)
    assert options.precision == precision
    assert {key: getattr(options, key) for key in settings} == settings


def test_calibrations_are_those_of_the_quantiser():
    assert set(CALIBRATIONS) == set(METHODS)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"precision": "fp8"}, r"unknown trt\.precision 'fp8'; need one of: fp16, fp32, int8"),
        ({"backend": "tensorrt-rtx"}, r"unknown trt\.backend 'tensorrt-rtx'; need one of: tensorrt, tensorrt_rtx"),
        (
            {"batch": (2, 1, 8)},
            r"trt\.batch=\(2, 1, 8\); need smallest, best and largest .*; try: trt\.batch=\[1,2,4\]",
        ),
        ({"height": (64, 128)}, r"trt\.height=\(64, 128\)"),
        ({"width": (0, 64, 128)}, r"trt\.width=\(0, 64, 128\)"),
        ({"width": "512"}, r"trt\.width=512"),
        ({"width": (64, 64.5, 128)}, r"trt\.width"),
        (
            {"height": (64, 100, 128), "multiple_px": 32},
            r"trt\.height=\[64, 100, 128\] with 100; need multiples of 32 px; try: trt\.height=\[32,64,128\]",
        ),
        ({"multiple_px": 0}, r"trt\.multiple_px=0; need a whole number from 1 up"),
        ({"workspace_mib": 0}, r"trt\.workspace_mib=0; need a whole number from 1 up; try: trt\.workspace_mib=1024"),
        ({"device": -1}, r"trt\.device=-1; need a whole number from 0 up"),
        (
            {"backend": "tensorrt_rtx", "timing_cache": "a.cache"},
            r"trt\.timing_cache=a\.cache with trt\.backend=tensorrt_rtx; need trt\.backend=tensorrt",
        ),
        ({"precision": "int8"}, r"trt\.calibration=None with trt\.precision=int8; need .*; try: \+trt=int8"),
        ({"calibration": "minmax"}, r"trt\.calibration=minmax with trt\.precision=fp32"),
        ({"precision": "int8", "calibration": "mean"}, r"unknown trt\.calibration 'mean'"),
    ],
)
def test_bad_settings_are_explained(settings, said):
    with pytest.raises(ConfigError, match=said):
        TensorrtOptions(**settings)


def test_multiples_are_of_height_and_width_only():
    options = TensorrtOptions(batch=(1, 3, 5), height=(32, 64, 96), width=(32, 32, 32), multiple_px=32)
    assert plan_image_shapes(options, 2) == ((1, 2, 32, 32), (3, 2, 64, 32), (5, 2, 96, 32))


def test_maps_are_as_large_as_the_padded_image_gives():
    options = TensorrtOptions(batch=(1, 1, 2), height=(64, 520, 1000), width=(33, 704, 1000))
    shapes = plan_mask_shapes(options, strides=(8, 16, 32), channels=4, padded_to=32, regions=(1, 8, 64))
    assert shapes["map_0"] == ((1, 4, 8, 8), (1, 4, 68, 88), (2, 4, 128, 128))
    assert shapes["map_2"] == ((1, 4, 2, 2), (1, 4, 17, 22), (2, 4, 32, 32))
    assert shapes["boxes"] == ((1, 4), (8, 4), (64, 4))
    assert shapes["images"] == shapes["classes"] == ((1,), (8,), (64,))
    assert shapes["image_area"] == ((1,), (1,), (1,))

"""What a user can get wrong about an export is said before anything is read, and the help says what there is."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from cellvision import app
from cellvision.errors import ConfigError
from cellvision.export.gate.judged import Request
from cellvision.export.graph_options import GraphOptions

ROOT = Path(__file__).parents[3]
WRONG = [
    ("samples=0", "samples=0; need a whole number from 1 up; try: samples=4"),
    ("samples=many", "samples='many'; need a whole number from 1 up"),
    ("samples=true", "samples=True; need a whole number from 1 up"),
    ("calibration.fields=-3", "calibration.fields=-3; need a whole number from 1 up"),
    ("overwrite=maybe", "overwrite='maybe'; need true or false; try: overwrite=false"),
    ("allow_worse=maybe", "allow_worse='maybe'; need true or false; try: allow_worse=false"),
    ("calibration.method=foo", "unknown calibration.method 'foo'; need one of: entropy, minmax, percentile"),
    ("precision=fp32 tolerance_points=-1", "tolerance_points=-1; need points of accuracy"),
    ("+trt=int8 precision=fp32", r"precision=fp32 with \+trt=int8; need one precision; try: \+trt=fp32 alone"),
    (
        "+trt=int8 calibration.method=percentile",
        "calibration.method=percentile with trt.calibration=entropy; need .*; try: trt.calibration=percentile alone",
    ),
]
WRONG_OPTIONS = [
    ({"max_cells": 0}, "max_cells=0; need a whole number from 1 to 100000; try: max_cells=1000"),
    ({"max_cells": 10**8}, "max_cells=100000000; need a whole number from 1 to 100000"),
    ({"max_cells": "many"}, "max_cells='many'; need a whole number"),
    ({"max_cells": True}, "max_cells=True; need a whole number"),
    ({"min_score": 2}, "min_score=2; need a number from 0 up and below 1; try: min_score=0.1"),
    ({"min_score": float("nan")}, "min_score=nan; need a number"),
    ({"form": "half"}, "unknown form 'half'; need one of: parted, whole"),
    ({"input_dtype": "int3"}, "unknown input_dtype 'int3'"),
]
WRONG_REQUESTS = [
    ({"precision": "int4"}, "unknown precision 'int4'; need one of: fp16, fp32, int8; try: 'int8'"),
    ({"calibration": "mean"}, "unknown calibration.method 'mean'; need one of: entropy, minmax, percentile"),
    ({"rounds": -1}, "calibration.rounds=-1; need a whole number from 0 up; try: calibration.rounds=4"),
    ({"tolerance_points": float("nan")}, "tolerance_points=nan; need points of accuracy"),
    ({"allow_worse": "yes"}, "allow_worse='yes'; need true or false"),
]


@pytest.mark.parametrize(("setting", "message"), WRONG)
def test_settings_are_checked_before_anything_is_read(setting, message):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("export", overrides=["ckpt=no_file", "bundle=no_folder", *setting.split()])
    with pytest.raises(ConfigError, match=message):
        app.export(cfg)


def test_a_place_that_cannot_be_written_is_found_before_anything_is_read(tmp_path):
    (tmp_path / "file").touch()
    for place in ("/proc/bundle", "/proc/new/bundle", str(tmp_path / "file" / "bundle")):
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            cfg = compose("export", overrides=["ckpt=no_file", f"bundle={place}", "precision=fp32"])
        with pytest.raises(ConfigError, match=rf"{place} in .*, which cannot be written \(.*\); need .*; try: bundle="):
            app.export(cfg)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(("facts", "message"), WRONG_REQUESTS)
def test_requests_are_checked(facts, message):
    with pytest.raises(ConfigError, match=message):
        Request(**({"precision": "int8"} | facts))


@pytest.mark.parametrize(("options", "message"), WRONG_OPTIONS)
def test_options_of_graphs_are_checked_under_the_names_of_the_settings(options, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        GraphOptions(**options)


def test_help_tells_the_meaning_of_every_setting():
    command = [sys.executable, "export.py", "--help"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120).stdout
    for file, left_out in (("export.yaml", {"defaults", "hydra"}), ("trt/int8.yaml", {"_target_"})):
        for key in OmegaConf.load(ROOT / "conf" / file).keys() - left_out:
            assert re.search(rf"^{key}: .*# \w", printed, re.MULTILINE), key
    assert "fp32 | fp16" in printed
    assert "synthetic_livedead" in printed
    assert "hydra" not in printed

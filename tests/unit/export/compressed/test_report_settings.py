"""Settings of the report, looked at before anything is trained, and what it tells of weights that are zero."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from compressed_run import MAPS, SIZE, prune, save, start
from omegaconf import OmegaConf

from cellvision.compression.prune.masks import apply_masks, build_masks
from cellvision.delivery import check_delivery, check_fields
from cellvision.errors import ConfigError, ExportError
from cellvision.export.compressed.rows import describe_net
from cellvision.report.lines import list_lines
from report_rows import build_report

STEPS = [SimpleNamespace(name="prune"), SimpleNamespace(name="quantize")]
USUAL = {"samples": 20, "tolerance_points": 1.0, "ptq": ["base", "prune"], "calibration_fields": 16, "scratch": False}


def check(devices=1, max_epochs=10, start=None, folder=Path("a new run"), bundle=True, predict=0, **changed):
    trainer = {"devices": devices, "max_epochs": max_epochs}
    cfg = OmegaConf.create({"report": USUAL | changed, "trainer": trainer, "bundle": bundle, "predict": predict})
    check_delivery(cfg, folder, compression=SimpleNamespace(steps=STEPS, start=start))


def test_names_of_nets_in_float_are_fine():
    check()
    check(ptq=[])
    check(scratch=True)
    check(devices=-1)


def test_a_tolerance_is_told_by_its_setting():
    with pytest.raises(ConfigError, match=r"report\.tolerance_points=-1; need points .*; try: report\.tol"):
        check(tolerance_points=-1)


def test_a_small_net_needs_one_that_the_compression_begins_with():
    check(scratch=True, max_epochs=0, start="base.ckpt")
    with pytest.raises(ConfigError, match=r"report\.scratch=true with trainer\.max_epochs=0; need a net"):
        check(scratch=True, max_epochs=0)


def test_several_processes_do_not_wait_for_a_net_that_one_of_them_trains():
    with pytest.raises(ConfigError, match=r"report\.scratch=true with trainer\.devices=-1; need one process"):
        check(devices=-1, scratch=True)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ptq": ["base", "distill"]}, r"unknown report\.ptq entry 'distill'; need one of: base, prune;"),
        ({"ptq": ["scratch"]}, r"report\.ptq names scratch; need a net .* try: report\.scratch=true"),
        ({"ptq": ["quantize"]}, r"unknown report\.ptq entry 'quantize'; need one of: base, prune;"),
        ({"ptq": ["prune", "base", "prune"]}, r"report\.ptq names prune twice; .* try: report\.ptq=\[prune,base\]"),
        ({"ptq": "base"}, r"report\.ptq=base; need a list of names of steps; try: report\.ptq=\[base\]"),
        ({"ptq": None}, r"report\.ptq=None; need a list"),
        ({"samples": 0}, r"report\.samples=0; need a whole number from 1 up"),
        ({"calibration_fields": 0}, r"report\.calibration_fields=0; need"),
        ({"tolerance_points": -1}, r"tolerance_points=-1; need points of accuracy"),
        ({"scratch": "no"}, r"report\.scratch='no'; need true or false"),
        ({"predict": "many"}, r"predict='many'; need a whole number from 0 up"),
        ({"bundle": "maybe"}, r"bundle='maybe'; need true or false"),
    ],
)
def test_settings_that_no_report_can_be_made_with(changed, message):
    with pytest.raises(ConfigError, match=message):
        check(**changed)


def test_a_bundle_with_files_of_others_is_found_before_training(tmp_path):
    (tmp_path / "bundle").mkdir()
    check(folder=tmp_path)
    (tmp_path / "bundle" / "notes.txt").touch()
    with pytest.raises(ConfigError, match=r"bundle exists and is not a bundle only; .* try: run_dir=ANOTHER_FOLDER"):
        check(folder=tmp_path)


def test_zeros_are_counted_whatever_the_net_was_led_through(tmp_path):
    net = start(name="unet", widths=(8, 16))
    image = torch.zeros(1, 1, *SIZE)
    record = prune(net, macs=0.6)
    before = describe_net(save(net, tmp_path / "whole.ckpt", record, splitting=MAPS), image)
    apply_masks(net, build_masks(net, sparsity=0.7))
    weights = [module.weight for module in net.modules() if type(module).__name__ in ("Conv2d", "ConvTranspose2d")]
    zeros = sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)
    for more in ([], [{"step": "quantize", "plan": {"layers": ["head"]}}]):
        found = describe_net(save(net, tmp_path / "masked.ckpt", record, *more, splitting=MAPS), image)
        assert found.zeros == pytest.approx(zeros) == pytest.approx(0.7, abs=0.001)
        assert (found.macs, found.parameters) == (before.macs, before.parameters)
    assert before.zeros == 0


def test_a_latency_that_an_earlier_run_was_to_meet_is_not_asked_of_this_one(tmp_path):
    net = start(name="unet", widths=(8, 16))
    record = prune(net, macs=0.6) | {"options": {"latency_ms": 10.0}, "reached_ms": 12.0}
    path, image = save(net, tmp_path / "net.ckpt", record, splitting=MAPS), torch.zeros(1, 1, *SIZE)
    own, later = (describe_net(path, image, earlier=earlier) for earlier in (0, 1))
    assert (own.asked_ms, own.reached_ms) == (10.0, 12.0)
    assert (later.asked_ms, later.reached_ms, later.steps) == (None, None, ("prune",))


@pytest.mark.parametrize("name", ["held_out", "predicted", "report", "scratch"])
def test_folders_that_no_run_has_made_are_not_replaced(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match=f"with {name}, and without the run.json of a run that made it; need a new f"):
        check(folder=tmp_path)
    (tmp_path / "run.json").write_text("mine")
    with pytest.raises(ConfigError, match=r"without the run\.json of a run"):
        check(folder=tmp_path)
    (tmp_path / "run.json").write_text('{"settings": {"seed": 0}}')
    check(folder=tmp_path)


@pytest.mark.parametrize("trained", [True, False])
def test_a_net_that_has_learned_nothing_since_it_was_rounded_is_named_so(tmp_path, trained):
    net = start(name="unet", widths=(8, 16))
    recipe = [prune(net, macs=0.6), {"step": "quantize", "plan": {"layers": ["head"]}, "trained": trained}]
    found = describe_net(save(net, tmp_path / "rounded.ckpt", *recipe, splitting=MAPS), torch.zeros(1, 1, *SIZE))
    assert found.rounded_only is not trained
    report = build_report()
    rows = [replace(row, rounded_only=row.name == "quantize" and found.rounded_only) for row in report.rows]
    forms = {line.label: line.values for line in list_lines(replace(report, rows=tuple(rows)))}["form"]
    assert forms[3] == ("int8" if trained else "int8 (rounded only)")
    assert forms[4] == "int8"


def test_zeros_are_shown_where_there_are_any():
    report = build_report()
    rows = (report.rows[0], *(replace(row, zeros=0.5) for row in report.rows[1:]))
    shown = {line.label: line.values for line in list_lines(replace(report, rows=rows))}
    assert shown["weights that are 0, %"] == ("0", *["50.0"] * (len(rows) - 1))
    assert "weights that are 0, %" not in {line.label for line in list_lines(report)}


def test_fields_without_a_cell_are_told_before_training():
    empty, full = SimpleNamespace(cell_classes=()), SimpleNamespace(cell_classes=(1,))
    cfg = OmegaConf.create({"report": USUAL, "bundle": True})
    run = SimpleNamespace(steps=STEPS, start=None)

    def check(*samples, cfg=cfg, run=run):
        check_fields(cfg, SimpleNamespace(collect_held_out=lambda count: samples[:count]), compression=run)

    check(empty, full)
    with pytest.raises(ExportError, match=r"2 held-out fields without a cell; need .*; try: report\.samples=20"):
        check(empty, empty)
    check(empty, run=None)
    check(empty, cfg=OmegaConf.merge(cfg, {"bundle": False}))

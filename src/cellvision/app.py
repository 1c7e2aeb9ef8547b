"""The one place that knows Hydra: settings in, built parts out, then one call into the library."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from cellvision.building import (
    Start,
    build_compression,
    build_task,
    build_trainer,
    find_data_settings,
    is_lead,
    load_start,
    quieten,
    say_once,
)
from cellvision.bundle import compute_sha256
from cellvision.composition import (
    GROUPS,
    build,
    build_data,
    check_compression,
    check_groups,
    check_settings,
    choose_steps,
    resolve,
)
from cellvision.delivery import check_delivery, check_fields, deliver
from cellvision.errors import CellvisionError, ConfigError, explain, to_sentence
from cellvision.launch import explain_composition
from cellvision.training.stopping import Stopped, stopping

if TYPE_CHECKING:
    from cellvision.data.datamodule import CellDataModule
    from cellvision.export.gate.judged import Request
    from cellvision.export.tensorrt.options import TensorrtOptions


def run(job: Callable[[DictConfig], Any], cfg: DictConfig) -> Any:
    """Run a job; an error that a user can mend is one sentence on stderr and exit status 2.

    So is Ctrl-C, with exit status 130, and SIGTERM, with 143. In a sweep the jobs after one with an error run all the
    same, and the exit status comes at the end.
    """
    try:
        with stopping():
            return job(cfg)
    except Stopped as stop:
        folder = cfg.get("run_dir")
        print(stop.advise(None if folder is None else Path(folder)), file=sys.stderr)
        sys.exit(stop.exit_status)
    except (CellvisionError, OSError, OmegaConfBaseException) as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        # An error of a loader process carries that process's traceback; its last line is the error itself.
        is_of_settings = isinstance(error, OmegaConfBaseException)
        line = explain_composition(error) if is_of_settings else to_sentence(error).strip().splitlines()[-1]
        print(f"error: {line.removeprefix(_prefix(error))}", file=sys.stderr)
        if not (HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN):
            sys.exit(2)
    _end_sweep()  # outside of the handler: Hydra keeps the error until all jobs have run, but not their nets and data
    return None


def _end_sweep() -> None:
    """Raise what a sweep ends with, because of one job; in its first process, which others would have killed by it."""
    if is_lead():
        got = f"job {HydraConfig.get().job.num} of the sweep ended with an error, told above as those of later jobs are"
        hint = f"that one again, mended: {' '.join(_list_words())}"
        raise ConfigError(explain(got=got, need="sweeps whose jobs all end well", hint=hint))


def _prefix(error: BaseException) -> str:
    return f"{type(error).__module__}.{type(error).__name__}: "


def train(cfg: DictConfig) -> float | None:
    """Train, score the held-out fields, export a bundle and draw its predictions.

    With steps in ``cfg.compress`` the trained net is compressed in the same run, see ``compress``.

    Returns:
        The best value of ``cfg.monitor``, which sweepers compare; None where no checkpoint was kept.
    """
    check_settings(cfg)
    choose_steps(cfg, _list_words(), say=say_once)
    _check_place(cfg)
    folder = _find_run_folder(cfg)
    # All settings are checked before a long time goes into reading: names before any file is opened, values before
    # pixels are.
    check_groups(resolve(cfg), GROUPS)
    return _fit(cfg, build_data(cfg.data), folder)


def compress(cfg: DictConfig) -> float | None:
    """Take the net of a checkpoint through the steps of ``cfg.compress``, and report what became of it.

    Returns:
        The best value of ``cfg.monitor`` of the compressed net, which sweepers compare.
    """
    check_settings(cfg)
    check_compression(cfg, _list_words(), say=say_once)
    _check_place(cfg)
    folder = _find_run_folder(cfg)
    check_groups(resolve(cfg), GROUPS)
    OmegaConf.update(cfg, "data", _choose_data(cfg, Path(cfg.ckpt)), force_add=True)
    checkpoint = _fix_start(cfg, folder)
    data = build_data(cfg.data)
    return _fit(cfg, data, folder, start=load_start(checkpoint, data))


def _list_words() -> list[str]:
    """The settings of the command line."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def _fit(cfg: DictConfig, data: CellDataModule, folder: Path, *, start: Start | None = None) -> float | None:
    from lightning.pytorch import seed_everything

    from cellvision.training.checkpoint import check_script, choose_resume
    from cellvision.training.find_lr import find_lr
    from cellvision.training.finish import finish_run
    from cellvision.training.record import RunRecord, read_settings

    quieten()
    resume = choose_resume(cfg.resume, folder / "checkpoints")
    if resume is not None:
        check_script(read_settings(Path(resume).parent.parent), resume, is_compression=start is not None)
    seed_everything(cfg.seed, workers=True, verbose=False)
    compression = build_compression(cfg, folder, start=start)
    check_delivery(cfg, folder, compression=compression)
    task = build_task(cfg, data, start=start, compression=compression)
    record = RunRecord(folder, settings=resolve(cfg), data=data, link=_choose_link(folder, is_start=start is None))
    trainer = build_trainer(cfg, folder, record=record, compression=compression)
    data.setup()
    check_fields(cfg, data, compression=compression)
    if start is None and cfg.splitting.min_area_px is None:
        task.splitting = replace(task.splitting, min_area_px=max(1, data.small_cell_px // 2))
    if cfg.get("find_lr") and resume is None:
        find_lr(build_trainer(cfg, folder, record=None), task, data)
    trainer.fit(task, datamodule=data, ckpt_path=resume)
    fit_score = task.net.spec.kind == "instance" and (start is not None or cfg.splitting.score_threshold is None)
    best = finish_run(trainer, task, data, folder=folder, fit_score=fit_score)
    if trainer.is_global_zero and cfg.bundle:
        deliver(cfg, data, task, folder, best=best.checkpoint, compression=compression)
    return best.score


def export(cfg: DictConfig) -> None:
    """Make a bundle of a checkpoint, measure it against PyTorch on real samples, and refuse a form that is worse."""
    check_settings(cfg)
    from cellvision.bundle import load_manifest
    from cellvision.export.checks import check_folder
    from cellvision.export.gate.judged import export_judged
    from cellvision.export.gate.table import print_verdict
    from cellvision.export.graph_options import GraphOptions
    from cellvision.export.progress import PhaseLines
    from cellvision.export.quantize.calibration import collect_training_fields
    from cellvision.export.writer import check_options
    from cellvision.metrics.accuracy import choose_headlines

    # Before fields are read, which can take minutes.
    _check_export(cfg)
    checkpoint, bundle = Path(cfg.ckpt), Path(cfg.bundle)
    check_folder(bundle.resolve(), overwrite=cfg.overwrite)
    engines = None if cfg.get("trt") is None else build(cfg.trt, "trt")
    request = _build_request(cfg, engines)
    data = build_data(_choose_data(cfg, checkpoint))
    options = GraphOptions(input_dtype=cfg.input_dtype, form=cfg.form, max_cells=cfg.max_cells, min_score=cfg.min_score)
    check_options(checkpoint, options, engines)
    given: dict[str, Any] = {"options": options, "tolerance": cfg.tolerance, "overwrite": cfg.overwrite}
    with PhaseLines() as tell:
        tell("reading fields")
        if request.precision == "int8":
            request = replace(request, fields=collect_training_fields(data, cfg.calibration.fields))
        samples = data.collect_held_out(cfg.samples)
        verdict = export_judged(checkpoint, bundle, request, samples=samples, tell=tell, **given)
    manifest = load_manifest(bundle)
    print_verdict(verdict, choose_headlines(manifest.kind, manifest.classes))
    difference, cases = manifest.parity["max_difference"], len(manifest.parity["cases"])
    over = f"over {cases} images of several sizes"
    print(f"bundle {cfg.bundle}: {verdict.kept}; {over}, largest difference from PyTorch {difference:.1e}")
    verdict.raise_if_refused()


def _check_export(cfg: DictConfig) -> None:
    from cellvision.checks import check_count, check_switch, check_text
    from cellvision.export.writer import check_tolerance

    check_text("bundle", cfg.bundle, example="runs/latest/bundle_int8")
    check_count("samples", cfg.samples, example=4)
    check_count("calibration.fields", cfg.calibration.fields, example=16)
    check_switch("overwrite", cfg.overwrite)
    check_tolerance(cfg.tolerance)


def _build_request(cfg: DictConfig, engines: TensorrtOptions | None) -> Request:
    """What is asked for, without fields.

    Raises:
        ConfigError: a setting out of its range, or two that say different things of engines.
        DataError: the checkpoint cannot be read.
    """
    from cellvision.export.gate.judged import Request
    from cellvision.export.writer import choose_precision

    method = cfg.calibration.method
    request = Request(
        precision=cfg.precision or ("fp32" if engines is None else engines.precision),
        engines=engines,
        calibration=method or (engines and engines.calibration) or "minmax",
        rounds=cfg.calibration.rounds,
        tolerance_points=cfg.tolerance_points,
        allow_worse=cfg.allow_worse,
    )
    if engines is None:
        return request if cfg.precision else replace(request, precision=choose_precision(Path(cfg.ckpt)))
    if request.precision != engines.precision:
        got = f"precision={cfg.precision} with +trt={engines.precision}"
        raise ConfigError(explain(got=got, need="one precision", hint=f"+trt={cfg.precision} alone"))
    if method is not None and engines.calibration not in (None, method):
        got = f"calibration.method={method} with trt.calibration={engines.calibration}"
        raise ConfigError(explain(got=got, need="one way to find ranges", hint=f"trt.calibration={method} alone"))
    return request


def _choose_data(cfg: DictConfig, checkpoint: Path) -> Any:
    """The data group that was asked for, or that of the checkpoint's run with single settings laid over it.

    Raises:
        ConfigError: see ``find_data_settings``, or a setting that the recorded data do not have, such as ``data.root``.
    """
    given = cfg.get("data")
    if given is None or "_target_" in given:
        return find_data_settings(cfg, checkpoint)
    recorded = find_data_settings(OmegaConf.create({}), checkpoint)
    if unknown := [f"data.{key}" for key in map(str, given) if key not in recorded]:
        got = f"{unknown[0]}, which the recorded data of {checkpoint} do not have"
        need = f"one of {', '.join(f'data.{key}' for key in sorted(map(str, recorded)) if key != '_target_')}"
        raise ConfigError(explain(got=got, need=need, hint=f"data=NAME {unknown[0]}=..."))
    return OmegaConf.merge(recorded, given)


def _fix_start(cfg: DictConfig, folder: Path) -> Path:
    """The checkpoint to begin with, in the folder that links lead to now; its path and SHA-256 become settings.

    Raises:
        ConfigError: the run to be resumed began with another one.
    """
    from cellvision.training.checkpoint import check_start
    from cellvision.training.record import read_settings

    checkpoint = Path(cfg.ckpt).parent.resolve() / Path(cfg.ckpt).name
    if cfg.resume is not None:
        check_start(read_settings(folder), checkpoint)  # {} where none is written: the run's checkpoint knows it too
    cfg.ckpt = str(checkpoint)
    OmegaConf.update(cfg, "ckpt_sha256", compute_sha256(checkpoint), force_add=True)
    return checkpoint


def _find_run_folder(cfg: DictConfig) -> Path:
    """Each job of a sweep has its own folder, which only Hydra knows."""
    if HydraConfig.initialized():
        cfg.run_dir = HydraConfig.get().runtime.output_dir
    return Path(cfg.run_dir)


def _choose_link(folder: Path, *, is_start: bool) -> Path:
    """The link to the newest run; of compressions in a sweep, to the folder of all of them, as a report takes them."""
    if is_start:
        return folder.parent / "latest"
    is_sweep = HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN
    return (folder.parent.parent if is_sweep else folder.parent) / "latest_compressed"


def _check_place(cfg: DictConfig) -> None:
    """Take ``trainer.where`` out of the settings; a run that was meant for Azure begins nowhere else.

    Raises:
        ConfigError: ``trainer=azure`` came here, past its launcher: chosen in a sweep, or with another launcher.
    """
    where = cfg.trainer.get("where")
    if where == "azure" and not {"AZUREML_RUN_ID", "MLFLOW_RUN_ID"} & set(os.environ):
        got, need = "trainer=azure outside of a job of Azure ML", "the launcher that submits one"
        hint = "trainer=azure alone, neither in a list nor with hydra/launcher or hydra.mode"
        raise ConfigError(explain(got=got, need=need, hint=hint))
    if where is not None:
        with open_dict(cfg):
            del cfg.trainer["where"]

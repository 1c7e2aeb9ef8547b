"""Every YAML composes and its parts can be built; bad settings are answered in one sentence."""

import inspect
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import hydra
import pytest
from hydra._internal import utils as hydra_utils
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from omegaconf.errors import OmegaConfBaseException

from cellvision import app, building
from cellvision.errors import CellvisionError, ConfigError
from cellvision.launch import launch
from cellvision.models.build import list_models
from forked import call

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
CHOICES = sorted(
    (file.parent.name, file.stem)
    for file in CONF.glob("*/*.yaml")
    if file.parent.name not in ("trt", "last", "target") and not file.stem.startswith("_")
)


def compose(*overrides: str, name: str = "train"):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose(name, overrides=["run_dir=unused", *overrides] if name == "train" else list(overrides))


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_composes_and_resolves(group, choice):
    cfg = compose(f"{group}={choice}")
    if "root" in cfg.data.keys():  # noqa: SIM118 - "in" is false for a value that is still missing
        cfg.data.root = "somewhere"
    app.check_settings(cfg)
    settings = app.resolve(cfg)
    assert group == "experiment" or settings[group]


def test_a_debug_run_of_an_experiment_is_one_epoch_unless_asked_otherwise():
    for experiment in ("nuclei_instances", "centermask2_1x"):
        trainer = compose(f"experiment={experiment}", "data=coco", "trainer=debug").trainer
        assert (trainer.max_epochs, trainer.max_steps, trainer.limit_train_batches) == (1, -1, 2)
    assert compose("experiment=nuclei_instances").trainer.max_epochs == 16
    assert compose("experiment=nuclei_instances", "trainer=debug", "trainer.max_epochs=3").trainer.max_epochs == 3


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_engines_of_every_precision_compose(precision):
    cfg = compose(f"+trt={precision}", "ckpt=a", "bundle=b", name="export")
    assert app.build(cfg.trt, "trt").precision == precision


@pytest.mark.parametrize(
    ("group", "choice"), [c for c in CHOICES if c[0] in ("optim", "callbacks", "logger", "trainer", "compress")]
)
def test_parts_of_every_choice_can_be_built(group, choice, tmp_path):
    if choice in ("gpu", "ddp", "azure"):
        pytest.skip("needs a GPU")
    cfg = compose(f"{group}={choice}", f"run_dir={tmp_path}")
    nodes = [cfg[group]] if "_target_" in cfg[group] else [node for node in cfg[group].values() if node is not None]
    assert all(app.build(node, group) is not None for node in nodes)


def test_steps_of_compression_keep_their_order_and_their_names():
    assert list(compose(name="compress").compress) == ["prune", "distill", "qat"]
    cfg = compose("compress=[qat,prune]", "compress.prune.macs=0.3", name="compress")
    assert list(cfg.compress) == ["qat", "prune"]
    assert cfg.compress.prune.macs == 0.3
    app.check_settings(cfg)
    for name, node in compose(name="compress").compress.items():  # each setting is one of the class, and all are there
        steps = inspect.signature(hydra.utils.get_class(node["_target_"]).__init__).parameters
        assert set(steps) - {"self"} == set(node) - {"_target_"}, name


def test_every_model_has_a_config_of_its_name_and_every_config_a_model():
    choices = {choice for group, choice in CHOICES if group == "model"}
    assert set(list_models()) <= choices
    assert {compose(f"model={choice}").model.name for choice in choices} == set(list_models())


def test_the_default_data_and_model_fit_together():
    cfg = compose("data.datasets.all.fields=8")
    data = app.build_data(cfg.data)
    net = app.build(cfg.model, "model", in_channels=len(data.channels), classes=data.classes, kind=data.kind)
    assert net.spec.kind == "viability"
    assert [c.role for c in data.channels] == ["nuclear", "live", "dead"]


def test_all_missing_settings_are_listed_at_once():
    with pytest.raises(ConfigError, match=r"no value for bundle, ckpt; need all of them; try: bundle=\.\.\. ckpt="):
        app.check_settings(compose(name="export"))
    with pytest.raises(ConfigError, match=r"no value for data\.root"):
        app.check_settings(compose("data=livedead"))


@pytest.mark.parametrize(
    "node",
    [
        {"_target_": "os.system", "command": "touch executed"},
        {"_target_": "cellvision.training.record._git", "_args_": ["status"]},
        {"_target_": "cellvision.data.images.Path", "_args_": [{"_target_": "subprocess.run"}]},
        {"inner": "${oc.decode:'{_target_: json.dumps, obj: 3}'}"},
    ],
)
def test_foreign_targets_are_refused(node):
    from omegaconf import OmegaConf

    with pytest.raises(ConfigError, match=r"_target_=.*; need a class of cellvision\.bundle"):
        app.build(OmegaConf.create(node), "part")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.attention=gates", r"model\.attention 'gates'; need one of: cbam, gate, none, se, self; try: 'gate'"),
        ("model.name=unett", r"model 'unett'; need one of: centermask2, detectron2, swin_unet, unet; try: 'unet'"),
        ("optim.schedule=cos", r"optim\.schedule 'cos'"),
        ("splitting.method=watershed", r"splitting\.method"),
        ("data.normalization=minmax", r"data\.normalization 'minmax'; need one of: fixed, none, percentile, zscore"),
        ("data.count_range=[0,255]", r"data\.count_range=\[0, 255\] with data\.normalization=percentile; need fixed"),
        (
            "data.channels=[hoechts]",
            r"data\.channels entry 'hoechts'; need one of: calcein, hoechst, pi; try: 'hoechst'",
        ),
        ("+data.batchsize=3", r"unknown setting 'data\.batchsize'.*try: 'data\.batch_size'"),
        ("+model.nrom=batch", r"unknown setting of unet 'model\.nrom'.*try: 'model\.norm'"),
        ("+optim.leraning_rate=1", r"unknown setting 'optim\.leraning_rate'; need one of: optim\.cycles, .*optim\.lr"),
        ("+splitting.min_sed_px=1", r"unknown setting 'splitting\.min_sed_px'.*try: 'splitting\.min_seed_px'"),
        ("+data.datasets.all.hight=64", r"'data\.datasets\.all\.hight'.*try: 'data\.datasets\.all\.height'"),
        ("data.fractions.train=0.9", r"split fractions .* add up to 1"),
        ("data.augment.crop.size=-3", r"size"),
        ("data.batch_size=0", r"data\.batch_size=0; need a whole number from 1 to 1000000"),
        ("data.workers=-1", r"data\.workers=-1"),
        ("data.workers=1025", r"data\.workers=1025; need a whole number from 0 to 1024"),
        ("data.nucleus_margin_px=10001", r"data\.nucleus_margin_px=10001; need a whole number from 0 to 10000"),
        ("data.channels=[pi,pi]", r"data\.channels=\['pi', 'pi'\]; need different names"),
        ("live_threshold=2", r"live_threshold=2; need a number between 0 and 1"),
        ("splitting.min_area_px=0", r"splitting\.min_area_px=0"),
        ("+optim.momentum=2", r"optim\.momentum=2"),
        ("optim.power=-1", r"optim\.power=-1"),
    ],
)
def test_bad_values_are_explained(override, said):
    cfg = compose("data.datasets.all.fields=4", override)

    def build_all():
        data = app.build_data(cfg.data)
        data.setup()
        building.build_task(cfg, data)

    with pytest.raises(CellvisionError, match=said):
        build_all()


def test_help_answers_within_three_seconds_and_lists_the_choices():
    environment, began = {**os.environ, "OMP_NUM_THREADS": "1"}, os.times()
    command = [sys.executable, "train.py", "--help"]
    printed = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    took = os.times()
    assert printed.returncode == 0
    assert "synthetic_livedead" in printed.stdout
    # Processor time, so that other work on the machine does not count; one thread, so it is what an idle machine takes.
    assert took.children_user + took.children_system - began.children_user - began.children_system < 3.0


def test_help_of_compress_tells_every_setting():
    printed = call("compress.py", "--help")
    assert printed.returncode == 0
    for name in ("prune", "distill", "qat"):
        for key in compose(name="compress").compress[name]:
            assert key.startswith("_") or f"\n{key}: " in printed.stdout, f"compress.{name}.{key}"
    for words in ("tolerance_points: 1.0", "ckpt: runs/latest", "- trainer: cpu"):
        assert words in printed.stdout


def test_a_checkpoint_that_is_not_there_is_one_sentence(tmp_path):
    printed = call("compress.py", "ckpt=nowhere/best.ckpt", f"hydra.run.dir={tmp_path}")
    assert printed.returncode == 2
    assert printed.stderr.startswith("error: no file ckpt=nowhere/best.ckpt; need a checkpoint; try: ")


COMPOSITIONS = [
    (["model=unett"], "unknown model 'unett'; need one of: centermask2, centermask2_lite, .*, unet; try: 'unet'"),
    (["model.nrom=batch"], "unknown setting 'model.nrom'; need one of: model.activation, .*; try: 'model.norm'"),
    (["trainer=azure", "hydra.launcher.nodes=abc"], "hydra.launcher.nodes, where Value 'abc' .*Integer; need .*"),
    (["modell=unet"], "unknown setting 'modell'; need one of: bundle, .*; try: 'model'"),
    (["hydra.run.dirr=a"], "unknown setting 'hydra.run.dirr'; need one of: hydra.run.dir .*; try: 'hydra.run.dir'"),
    (["model.widths=[1"], r"model.widths=\[1, which cannot be read .*; need key=value; try: quotes around it all: .*"),
    (["optim.lr=1,2"], r"optim\.lr=1,2, which are two values; need one, or -m .*; try: optim\.lr=1\.2, .*"),
    (
        ["+data.draws_per_epoch=1,2"],
        r"\+data\.draws_per_epoch=1,2, which are two values; .*; try: \+data\.draws_per_epoch=1\.2, .*",
    ),
    (["optim.name=a,b"], "Ambiguous value for argument 'optim.name=a,b', .* add --multirun .*; try: --help for .*"),
    (
        ["run_dir=${foo}"],
        ".*, where Interpolation key 'foo' not found; need .*; try: --help for the .*",
    ),
    (["-m", "optim.lrr=1,2"], "unknown setting 'optim.lrr'; .*; try: 'optim.lr'"),
]


@pytest.fixture
def keep_hydra_out():
    """Hydra leaves its settings and log handlers behind, as a script has no use for what was there before."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    HydraConfig.instance().cfg = None
    GlobalHydra.instance().clear()


@pytest.mark.usefixtures("keep_hydra_out")
@pytest.mark.parametrize(("settings", "said"), COMPOSITIONS)
def test_what_does_not_compose_is_explained_in_one_line(settings, said, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)  # a sweep begins its folder first
    monkeypatch.setattr(sys, "argv", ["train.py", *settings])
    monkeypatch.setattr(hydra_utils, "run_and_report", None)  # what launch puts there is taken away again

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
    def command(cfg):
        raise AssertionError("was composed")

    with pytest.raises(SystemExit) as left:
        launch(command)
    assert left.value.code == 2
    assert re.fullmatch(f"error: {said}\n", capsys.readouterr().err)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises((CompactHydraException, OmegaConfBaseException)):
        launch(command)


def test_a_script_answers_an_unknown_setting_in_one_line():
    for script, setting in (("train.py", "model.nrom=batch"), ("export.py", "tolerence=1")):
        printed = call(script, setting)
        assert printed.returncode == 2
        assert printed.stderr.startswith(f"error: unknown setting '{setting.split('=')[0]}'; need one of: ")
        assert len(printed.stderr.splitlines()) == 1


def test_errors_are_one_line_without_traceback(tmp_path):
    printed = call("train.py", f"hydra.run.dir={tmp_path}", "data=livedead", f"data.root={tmp_path / 'none'}")
    assert printed.returncode == 2
    assert printed.stderr.startswith("error: ")
    assert "Traceback" not in printed.stderr
    assert len(printed.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_a_sweep_trains_every_point(tmp_path):
    """Also those after one with an error, which the exit status tells in the end."""
    printed = call(
        "train.py", "-m", "model=unet", "optim.lr=1e-3,-1,3e-4", "trainer=debug", f"hydra.sweep.dir={tmp_path}",
        "data.datasets.all.fields=12", "bundle=false", "model.widths=[4,8]",
    )  # fmt: skip
    assert printed.returncode == 2, printed.stderr
    assert (tmp_path / "0/results.json").is_file()
    assert (tmp_path / "2/results.json").is_file()
    assert '"lr": 0.0003' in (tmp_path / "2/run.json").read_text()
    assert not (tmp_path / "1/results.json").is_file()
    assert re.search("^error: .*lr=-1", printed.stderr, re.MULTILINE)
    assert "error: job 1 of the sweep ended with an error, told above as those of later jobs are;" in printed.stderr
    assert "Traceback" not in printed.stderr


def test_settings_of_a_step_that_was_not_chosen_are_left_out(capsys):
    cfg = compose("experiment=compress_livedead", "compress=[prune]", name="compress")
    app.check_compression(cfg, ["compress=[prune]"])
    assert [name for name, node in cfg.compress.items() if node is not None] == ["prune"]
    assert cfg.report.ptq == ["base", "scratch"]
    assert capsys.readouterr().out.splitlines() == [
        "compress  distill was not chosen, and its settings are left out: epochs=4",
        "compress  qat was not chosen, and its settings are left out: when=always",
        "report    no distill in this run, and so no such row rounded without training",
    ]
    assert (
        len(building.build_compression(cfg, Path("run"), start=SimpleNamespace(checkpoint=Path("a.ckpt"))).steps) == 1
    )


def test_a_setting_of_the_command_line_is_not_left_out():
    word = "++compress.prun.macs=0.3"
    with pytest.raises(ConfigError, match=r"macs=0\.3 without the step prun; need settings of prune, distill, qat"):
        app.check_compression(compose(word, name="compress"), [word])


def test_a_row_that_the_command_line_asks_for_is_not_left_out():
    words = ["experiment=compress_livedead", "compress=[prune]", "report.ptq=[distill]"]
    cfg = compose(*words, name="compress")
    app.check_compression(cfg, words)
    assert cfg.report.ptq == ["distill"]  # refused later, with the names that there are


def test_without_a_step_no_setting_of_one_is_asked_for():
    words = ["compress=[]", "++compress.prune.macs=0.3"]
    with pytest.raises(ConfigError, match=r"macs=0\.3 without the step prune; need no settings, as no step was chosen"):
        app.check_compression(compose(*words, name="compress"), words)


@pytest.mark.parametrize("word", ["compress.qat=false", "compress.prune=0.5", "++compress.foo=bar"])
def test_what_is_no_step_is_one_sentence(word):
    with pytest.raises(ConfigError, match="need settings of a step, or null, which leaves it out"):
        app.check_compression(compose(word, name="compress"), [word])


def test_a_compression_is_counted_in_epochs_of_its_steps():
    with pytest.raises(ConfigError, match=r"trainer\.max_epochs=3; need epochs of each step, .*prune\.epochs=4"):
        app.check_compression(compose(name="compress"), ["trainer.max_epochs=3"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["train.py", "compress.prune.macs=0.5"],
            "error: a setting of compress, of which nothing was chosen; need compress= with one or more of distill,",
        ),
        (
            ["compress.py", "compress=[prune]", "compress.qat.epochs=3"],
            "error: a setting of compress.qat, which was not chosen; need qat among the choices of compress=; try: ",
        ),
        (["compress.py", "+foo=1"], "error: unknown setting 'foo'; need one of: bundle, callbacks, ckpt, "),
        (["train.py", "++report.sample=9"], "error: unknown setting 'report.sample'; need one of: report.calibration_"),
        (["compress.py", "+trt=int8"], "error: unknown setting 'trt'; need one of: bundle, callbacks, ckpt, "),
        (["train.py", "+target=azure"], "error: unknown setting 'target'; need one of: bundle, callbacks, "),
        (["train.py", "report=null"], "error: report=null that is no choice; need the name of one, or a list of names"),
        (
            ["compress.py", "compress=[distill]", "compress.prune.macs=0.5"],
            "error: a setting of compress.prune, which was not chosen; need prune among the choices of compress=; "
            "try: compress=[prune,distill]",
        ),
        (
            ["train.py", "mixing={}"],
            "error: mixing={}; need settings with a _target_, their class; try: mixing=null, or ",
        ),
        (
            ["train.py", "++callbacks.foo.bar=1"],
            "error: callbacks.foo={'bar': 1}; need settings with a _target_, their class",
        ),
        (
            ["train.py", "mixing=abc"],
            "error: mixing=abc; need settings with a _target_, their class; try: mixing=null, or ",
        ),
        (["compress.py", "+model=unet"], "error: a model that was chosen; need that of ckpt, whose settings are in it"),
    ],
)
def test_what_was_not_chosen_is_told_so(words, said, tmp_path):
    printed = call(*words, f"run_dir={tmp_path / 'run'}")
    assert (printed.returncode, printed.stdout) == (2, "")
    assert printed.stderr.startswith(said)
    assert len(printed.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["foo", "quantise"])
def test_an_unknown_step_is_told_with_those_there_are(name, tmp_path):
    printed = call("compress.py", f"compress=[prune,{name}]", f"run_dir={tmp_path / 'run'}")
    assert (printed.returncode, printed.stdout) == (2, "")
    assert printed.stderr.startswith(f"error: unknown compress '{name}'; need one of: distill, prune, qat; try: ")


@pytest.mark.parametrize(
    ("settings", "message"),
    [(["bundle={tmp}"], "is not a bundle only"), (["bundle={tmp}/new", "tolerance=-1"], "tolerance=-1")],
)
def test_an_export_checks_what_it_can_before_anything_is_read(tmp_path, settings, message):
    (tmp_path / "notes.txt").touch()
    given = [setting.format(tmp=tmp_path) for setting in settings]
    with pytest.raises(CellvisionError, match=message):
        app.export(compose("ckpt=nowhere.ckpt", *given, name="export"))


@pytest.mark.parametrize("precision", ["bf16-true", "64-true", "bf16", "nonsense"])
def test_a_precision_that_nets_are_not_trained_in_is_refused(precision, tmp_path):
    """Lightning itself would take some of them, and its casts know nothing of batches."""
    cfg = compose(f"trainer.precision={precision}")
    with pytest.raises(
        ConfigError, match=rf"unknown trainer\.precision '{precision}'; need one of: 16-mixed, 32, .*; try"
    ):
        building.build_trainer(cfg, tmp_path, record=None)


@pytest.mark.parametrize("precision", ["bf16-mixed", "32", "null"])
def test_a_precision_that_nets_are_trained_in_is_taken(precision, tmp_path):
    assert building.build_trainer(compose(f"trainer.precision={precision}"), tmp_path, record=None).precision

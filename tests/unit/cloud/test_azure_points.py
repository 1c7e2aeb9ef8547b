"""From overrides to the command of a job: what is dropped, refused and added, and that a shell reads it as it was."""

import json
import os
import re
import shlex
import subprocess
import sys

import pytest

from cellvision.cloud.options import LaunchOptions
from cellvision.cloud.points import (
    Point,
    Word,
    check_paths,
    drop_local,
    find_paths,
    list_own_words,
    name_input,
    write_command,
)
from cellvision.errors import CellvisionError, ConfigError


def words(*texts, **assets):
    keys = [text.partition("=")[0].lstrip("+~") for text in texts]
    return tuple(Word(key=key, text=text, asset=assets.get(key)) for key, text in zip(keys, texts, strict=True))


def write(*texts, logger=None, assets=(), **options):
    made = tuple(Word(key=text.partition("=")[0].lstrip("+"), text=text) for text in texts)
    made += tuple(Word(key=text.partition("=")[0].lstrip("+"), text=text, asset="azureml:a:1") for text in assets)
    point = Point(index=0, script="train.py", model="unet", words=drop_local(made), logger=logger)
    return write_command(point, LaunchOptions(**options))


def test_what_only_says_where_a_job_runs_stays_here():
    kept = drop_local(
        words(
            *("model=unet", "trainer=azure", "hydra.launcher.gpus=4", "hydra.sweep.dir=a", "hydra/launcher=azureml"),
            *("run_dir=runs/a", "resume=auto", "seed=1"),
        )
    )
    assert [word.text for word in kept] == ["model=unet", "seed=1"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "trainer=cpu",
            r"trainer=cpu for a job on Azure; need hydra\.launcher\.gpus to say it, .*; try: leave trainer",
        ),
        ("trainer.devices=2", r"trainer\.devices=2 for a job on Azure; need hydra\.launcher\.gpus"),
        ("++trainer.num_nodes=2", r"trainer\.num_nodes=2 for a job on Azure; need hydra\.launcher\.nodes"),
        ("resume=runs/a/last.ckpt", r"resume=.* for a job on Azure; need none, as a job continues by itself"),
        ("+a='${{inputs.b}}'", r"where Azure would replace \$\{\{\.\.\.\}\}; need a value without it"),
        ("+a='one\ntwo'", r"of several lines; need one line"),
    ],
)
def test_what_a_job_cannot_be_told_is_refused(text, said):
    with pytest.raises(ConfigError, match=said):
        drop_local(words(text))


@pytest.mark.parametrize(
    ("options", "own"),
    [
        ({"gpus": 0}, ["trainer=cpu"]),
        ({}, ["trainer=gpu"]),
        ({"gpus": 4}, ["trainer=ddp", "trainer.devices=4", "++trainer.num_nodes=1"]),
        ({"nodes": 3}, ["trainer=ddp", "trainer.devices=1", "++trainer.num_nodes=3"]),
    ],
)
def test_lightning_is_told_of_the_processes_that_azure_starts(options, own):
    assert list_own_words(LaunchOptions(**options)) == [*own, "hydra/launcher=basic", "hydra.mode=RUN", "resume=auto"]


def test_a_logger_is_that_of_the_point():
    assert " logger=azure " in write("seed=1", logger="azure")
    assert "logger" not in write("seed=1")


AWKWARD = [
    "+a='x=1 y'", '+b="it\'s"', "data.pattern='fluor_*'", "model.widths=[16,32]", "+c=$HOME", r"+d=a\,b", "+e=`id`",
    "group_pattern='^(.*?_[A-Z]+[0-9]+)_'", "~callbacks.pictures=null", "+f={a: 1, b: [2,3]}", "+g=µm;ls|&>x", "+h=!",
    "+i=${oc.env:HOME}", "+j=",
]  # fmt: skip


def test_a_shell_reads_each_word_as_hydra_wrote_it():
    command = write(*AWKWARD, assets=["++data.root=azureml:a:1"])
    line = command.replace("${{inputs.data__root}}", "/in").replace("${{outputs.run}}", "/out")
    show = f"{shlex.quote(sys.executable)} -c 'import json, sys; print(json.dumps(sys.argv[1:]))' "
    line = show + line.removeprefix("python train.py ")
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True, env=os.environ)
    read = json.loads(done.stdout)
    assert read[: len(AWKWARD)] == AWKWARD
    assert read[len(AWKWARD)] == "++data.root=/in"
    assert read[-1] == "run_dir=/out"


def test_names_of_inputs_are_what_the_service_takes():
    assert name_input("data.root") == "data__root"
    assert name_input("model/encoder@x.y") == "model_encoder_x__y"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"nodes": 0}, r"hydra\.launcher\.nodes=0; need a whole number from 1 up"),
        ({"gpus": -1}, r"hydra\.launcher\.gpus=-1; need a whole number from 0 up"),
        ({"nodes": 2, "gpus": 0}, r"nodes=2 with hydra\.launcher\.gpus=0; need GPUs on several machines"),
        ({"sweep": "nativ"}, r"unknown hydra\.launcher\.sweep 'nativ'; need one of: jobs, native; try: 'native'"),
        ({"data_mode": "mount"}, r"hydra\.launcher\.data_mode 'mount'"),
        ({"sampling": "tpe"}, r"hydra\.launcher\.sampling 'tpe'"),
        ({"job_tier": "cheap", "compute": None, "instance_type": "a"}, r"hydra\.launcher\.job_tier 'cheap'"),
        ({"compute": None}, r"compute=None with hydra\.launcher\.instance_type=None; need either a cluster or"),
        ({"instance_type": "a"}, r"compute=gpu-cluster with hydra\.launcher\.instance_type=a; need either"),
        ({"job_tier": "spot"}, r"job_tier=spot with hydra\.launcher\.compute=gpu-cluster, which has a tier"),
        ({"environment": "cells"}, r"environment=cells; need azureml:NAME:VERSION"),
        ({"environment": "azureml:a:1", "image": "b"}, r"with a conda file or an image; need one environment"),
        ({"conda": "a.yml"}, r"conda=a\.yml; need the image that it is installed on"),
        ({"workspace": "a"}, r"no hydra\.launcher\.subscription_id and no hydra\.launcher\.resource_group; need all"),
    ],
)
def test_options_that_do_not_fit_are_explained(options, said):
    with pytest.raises(CellvisionError, match=said):
        LaunchOptions(**options).check()
    LaunchOptions().check()


def test_settings_that_name_something_of_this_machine_are_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "unet").mkdir()  # a folder called as a net is no reason to take the net's name for one
    (tmp_path / "a.ckpt").touch()
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/b.yaml").touch()
    plain = {
        "model": {"name": "unet", "config": "conf/b.yaml"}, "compress": {"teachers": ["a.ckpt", f"{tmp_path}/none"]},
        "data": {"root": "/on/the/node", "pattern": "*/fluor_*"}, "seed": 1, "odd": "a\0/b", "long": "a/" * 5000,
        "home": "~nobody-of-this-name/a", "where": str(tmp_path),
    }  # fmt: skip
    found = find_paths(plain)
    assert found == {"model.config": "conf/b.yaml", "compress.teachers[0]": "a.ckpt", "where": str(tmp_path)}
    check_paths([("model.config", "conf/b.yaml"), ("folder", "conf")], ["conf/b.yaml", "train.py"])
    for key, path, kind in (("compress.teachers[0]", "a.ckpt", "uri_file"), ("where", str(tmp_path), "uri_folder")):
        with pytest.raises(ConfigError, match=rf"{re.escape(key)}={path}, a path of this machine, .*--type {kind}"):
            check_paths([(key, path)], ["conf/b.yaml", "train.py", "a.ckpt.md"])

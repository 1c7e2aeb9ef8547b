"""Settings at the top, which belong to no class that would look at them."""

import pytest
from omegaconf import OmegaConf

from cellvision.composition import check_settings
from cellvision.errors import ConfigError

USUAL = {"ckpt": "run/best.ckpt", "resume": None, "seed": 0, "monitor": None, "monitor_mode": "max"}


def test_usual_ones_are_fine():
    check_settings(OmegaConf.create(USUAL))
    check_settings(OmegaConf.create(USUAL | {"resume": "auto", "seed": 2**32 - 1}))
    check_settings(OmegaConf.create({"model": {"name": "unet"}}))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("ckpt", None, "ckpt=None; need a text; try: ckpt="),
        ("ckpt", 5, "ckpt=5; need a text; try: ckpt="),
        ("ckpt", " ", "ckpt=' '; need a text; try: ckpt="),
        ("resume", True, "resume=True; need a text, or null; try: resume=auto, or RUN/"),
        ("resume", 5, "resume=5; need a text, or null"),
        ("monitor", [1, 2], "monitor=[1, 2]; need a text, or null; try: monitor=val/loss"),
        ("monitor_mode", "abc", "unknown monitor_mode 'abc'; need one of"),
        ("seed", "abc", "seed='abc'; need a whole number from 0 to 4294967295; try: seed=0"),
        ("seed", 1.5, "seed=1.5; need a whole number"),
        ("seed", -1, "seed=-1; need a whole number"),
        ("seed", 2**32, "seed=4294967296; need a whole number"),
    ],
)
def test_others_are_one_sentence(key, value, words):
    with pytest.raises(ConfigError) as caught:
        check_settings(OmegaConf.create(USUAL | {key: value}))
    assert str(caught.value).startswith(words)


def test_a_setting_without_a_value_is_named():
    with pytest.raises(
        ConfigError, match=r"no value for ckpt, data\.root; need all of them; try: ckpt=\.\.\. data\.root"
    ):
        check_settings(OmegaConf.create({"ckpt": "???", "data": {"root": "???"}}))

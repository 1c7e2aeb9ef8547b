"""Command lines as Hydra gets them."""

import pytest

from cellvision.launch import open_words


@pytest.mark.parametrize(
    ("script", "words", "opened"),
    [
        ("export", ["data.root=PATH", "samples=8"], ["++data.root=PATH", "samples=8"]),
        ("export", ["data=livedead", "+trt=fp16"], ["data=livedead", "+trt=fp16"]),
        ("train", ["data.root=PATH", "model=unet"], ["data.root=PATH", "model=unet"]),
        ("train", ["compress.distill.weights.classes=null"], ["++compress.distill.weights.classes=null"]),
        ("compress", ["compress.distill.weights={features: 0.5}"], ["++compress.distill.weights={features: 0.5}"]),
        ("compress", ["compress.distill.weight=0", "-m"], ["compress.distill.weight=0", "-m"]),
    ],
)
def test_what_is_open_takes_settings_that_are_not_there(script, words, opened):
    assert open_words(script, words) == opened

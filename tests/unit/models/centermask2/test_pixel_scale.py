"""On which scale a net sees images, by the normalisation of the data and the images that its weights know."""

import numpy as np
import pytest
import torch

from cellvision.data.statistics import compute_stats
from cellvision.errors import ConfigError
from cellvision.models.build import build_model
from cellvision.types import DataStats, Sample

SMALL = {
    "backbone": "vovnet19_slim_dw",
    "fpn_channels": 16,
    "class_convs": 1,
    "box_convs": 1,
    "mask_convs": 1,
    "maskiou_convs": 1,
    "decoding": {"score_threshold": 0.0, "post_nms": 20},
}
MEAN, STD = torch.tensor([123.675, 116.28, 103.53]).view(-1, 1, 1), 1.0


def build(**more):
    torch.manual_seed(0)
    return build_model(name="centermask2", in_channels=3, classes=["background", "cell"], **{**SMALL, **more}).eval()


def make_sample(dtype, *, brightness=1, darkness=0):
    """Random counts; 0 and 255 before ``brightness`` and ``darkness`` are 1 and 99.8 % quantiles by far."""
    counts = np.random.default_rng(0).integers(0, 256, (3, 64, 64))
    counts[:, :8], counts[:, -8:] = 0, 255
    image = (counts * brightness + darkness).astype(dtype)
    labels = np.zeros((64, 64), np.int32)
    labels[20:30, 20:30] = 1
    return Sample(name="a", group="a", image=image, label_image=labels, cell_classes=np.ones(1, np.int64)), counts


def measure(sample, normalization):
    return compute_stats([sample], channels=[0, 1, 2], classes=2, normalization=normalization)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A file as the published ones: blue first, without a word on its images."""
    torch.manual_seed(1)
    detector = build(norm="batch").detector
    path = tmp_path_factory.mktemp("weights") / "published.pth"
    torch.save({"model": detector.state_dict()}, path)
    return str(path)


@pytest.mark.parametrize(
    ("normalization", "dtype", "brightness", "darkness"),
    [
        ("none", "uint8", 1, 0),
        ("fixed", "uint8", 1, 0),
        ("percentile", "uint8", 1, 0),
        ("percentile", "uint16", 16, 300),
        ("fixed", "uint16", 257, 0),
    ],
)
def test_published_weights_see_8_bit_counts(published, normalization, dtype, brightness, darkness):
    """Oracle: the detector alone, with the published preparation of 8-bit images."""
    sample, counts = make_sample(dtype, brightness=brightness, darkness=darkness)
    net = build(weights=published)
    net.set_statistics(measure(sample, normalization))
    images = torch.from_numpy(sample.image.astype(np.float32))[None]
    shown = (torch.from_numpy(counts).float()[None] - MEAN) / STD
    torch.testing.assert_close(net.normalize(images), shown, rtol=1e-4, atol=2e-3)
    with torch.no_grad():
        pyramid = net.detector.encode(shown)
        expected = net.detector.detect(pyramid, net.detector.predict(pyramid), [(64, 64)])[0]
        found = net(images)
    torch.testing.assert_close(found["scores"][0], expected.scores, rtol=1e-3, atol=1e-4)
    assert net.report[-1].startswith(
        f"pixel_mean=[123.675, 116.28, 103.53]; pixel_std=[1, 1, 1]; data.normalization={normalization}; shown as "
    )


@pytest.mark.parametrize("normalization", ["percentile", "zscore", "none", "fixed"])
def test_a_net_without_pixel_statistics_sees_what_the_data_say(normalization):
    sample, _ = make_sample("uint8")
    stats, net = measure(sample, normalization), build()
    net.set_statistics(stats)
    assert net.normalize.offset.tolist() == pytest.approx(stats.offset)
    assert net.normalize.scale.tolist() == pytest.approx(stats.scale)


def test_the_report_tells_the_numbers_once_however_often_they_are_set():
    net = build()
    for scale in (50.0, 80.0):
        net.set_statistics(DataStats(offset=(10.0,) * 3, scale=(scale,) * 3, class_pixels=(1, 1)))
    assert list(net.report) == [
        "random; norm batch, which is trained",
        "data.normalization=percentile; shown as (count - [10, 10, 10]) / [80, 80, 80]",
    ]


@pytest.mark.parametrize("given", [{"pixel_mean": [128.0]}, {"pixel_std": [11.5]}])
def test_zscore_is_refused_with_pixel_statistics(given):
    sample, _ = make_sample("uint8")
    key = next(iter(given))
    with pytest.raises(ConfigError, match=rf"^data\.normalization=zscore with model\.{key}; need .*; try: data\.norm"):
        build(**given).set_statistics(measure(sample, "zscore"))

import numpy as np
import pytest
from scipy import ndimage

from cellvision.bundle import Channel
from cellvision.errors import ConfigError, DataError, ShapeError
from cellvision.metrics.baseline import OtsuBaseline
from cellvision.metrics.cells import compute_cell_scores, compute_field_score
from cellvision.types import IGNORE

NUCLEAR, LIVE, DEAD = Channel(name="H", role="nuclear"), Channel(name="C", role="live"), Channel(name="P", role="dead")
BRIGHT = Channel(name="BF")
CLASSES = ("background", "live", "dead")


def draw_discs(centres, radius, size=160):
    rows, columns = np.mgrid[:size, :size]
    image = np.zeros((size, size), np.int32)
    for label, (row, column) in enumerate(centres, start=1):
        image[(rows - row) ** 2 + (columns - column) ** 2 <= radius**2] = label
    return image


def expose(mask, level, rng, ground=100):
    """A camera frame of a stain: uneven light, Poisson noise, 16 bit."""
    light = np.linspace(0.8, 1.2, mask.shape[1])[None]
    return rng.poisson(light * (ground + level * ndimage.gaussian_filter(mask.astype(float), 1.0))).astype(np.uint16)


CENTRES = [(30, 30), (30, 49), (30, 100), (80, 40), (80, 100), (120, 120), (130, 30), (130, 46)]


@pytest.fixture
def field():
    rng = np.random.default_rng(0)
    bodies = draw_discs(CENTRES, 11)
    nuclei = draw_discs(CENTRES, 9)
    classes = np.array([1, 2, 1, 1, 2, 1, 2, 1])
    live = np.concatenate([[False], classes == 1])
    image = np.stack(
        [
            expose(nuclei > 0, 600, rng),
            expose(live[bodies] & (bodies > 0), 500, rng),
            expose(~live[nuclei] & (nuclei > 0), 700, rng),
            rng.poisson(500, nuclei.shape).astype(np.uint16),
        ]
    )
    return image, nuclei, bodies, classes


def score(found, truth, classes):
    return compute_cell_scores(
        compute_field_score(
            pred_label_image=found.label_image,
            pred_classes=found.cell_classes,
            true_label_image=truth,
            true_classes=classes,
            classes=CLASSES,
            p_live=found.p_live,
        )
    )


@pytest.mark.parametrize(
    ("kept", "channels", "whole", "f1"),
    [
        ([0, 2], (NUCLEAR, DEAD), False, 1.0),
        ([2, 3, 0], (DEAD, BRIGHT, NUCLEAR), False, 1.0),
        ([0, 1, 2], (NUCLEAR, LIVE, DEAD), True, 1.0),
        ([1, 2], (LIVE, DEAD), True, 1.0),
    ],
)
def test_finds_splits_and_classifies_clear_cells(field, kept, channels, whole, f1):
    image, nuclei, bodies, classes = field
    scores = score(OtsuBaseline(channels)(image[kept]), bodies if whole else nuclei, classes)
    assert scores.f1 == f1
    assert scores.class_f1 == f1
    assert scores.auroc == 1.0


def test_nuclei_grow_where_the_truth_is_the_whole_cell(field):
    image, _, bodies, classes = field
    plain, grown = (OtsuBaseline((NUCLEAR, DEAD), expand_px=px)(image[[0, 2]]) for px in (0, 2))
    assert score(grown, bodies, classes).iou > score(plain, bodies, classes).iou + 0.05


def test_given_cells_keep_their_labels(field):
    image, nuclei, _, _ = field
    labels = np.where(nuclei == 3, 0, nuclei)
    labels[labels == 8] = 10
    found = OtsuBaseline((NUCLEAR, DEAD)).classify(image[[0, 2]], labels)
    np.testing.assert_array_equal(found.label_image, labels)
    assert found.cell_classes.tolist() == [1, 2, IGNORE, 1, 2, 1, 2, IGNORE, IGNORE, 1]
    assert np.array_equal(found.p_live >= 0.5, found.cell_classes != 2)


@pytest.mark.parametrize("dead", [False, True])
def test_fields_of_one_class(field, dead):
    image, nuclei, _, _ = field
    rng = np.random.default_rng(1)
    stain = expose((nuclei > 0) & dead, 700, rng)
    found = OtsuBaseline((NUCLEAR, DEAD))(np.stack([image[0], stain]))
    assert found.cell_classes.tolist() == [2 if dead else 1] * 8


def test_textbook_otsu_splits_the_noise_of_a_field_without_dead_cells(field):
    image, nuclei, _, _ = field
    noise = np.random.default_rng(2).poisson(100, nuclei.shape).astype(np.uint16)
    found = OtsuBaseline((NUCLEAR, DEAD), min_contrast=0.0).classify(np.stack([image[0], noise]), nuclei)
    assert set(found.cell_classes.tolist()) == {1, 2}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("level", [0, 100, 255])
@pytest.mark.parametrize("shape", [(0, 0), (1, 1), (1, 7), (31, 33)])
def test_constant_images_hold_no_cells(dtype, level, shape):
    found = OtsuBaseline((NUCLEAR, LIVE, DEAD))(np.full((3, *shape), level, dtype))
    assert found.label_image.shape == shape
    assert (found.label_image.any(), found.cell_classes.size, found.p_live.size) == (False, 0, 0)


def test_pure_noise_holds_no_cells():
    noise = np.random.default_rng(0).poisson(100, (3, 128, 128)).astype(np.uint16)
    assert OtsuBaseline((NUCLEAR, LIVE, DEAD))(noise).cell_classes.size == 0


def test_constant_dead_channel_means_none_dead(field):
    image, nuclei, _, _ = field
    found = OtsuBaseline((NUCLEAR, DEAD)).classify(np.stack([image[0], np.full_like(image[0], 7)]), nuclei)
    assert found.cell_classes.tolist() == [1] * 8
    assert found.p_live.tolist() == [1.0] * 8


def test_roles_and_classes_that_do_not_suffice_are_refused():
    with pytest.raises(ConfigError, match=r'channels H \(nuclear\), BF \(no role\); need one with the role "dead"'):
        OtsuBaseline((NUCLEAR, BRIGHT))
    with pytest.raises(ConfigError, match="need live and dead among them"):
        OtsuBaseline((NUCLEAR, DEAD), classes=("background", "nucleus"))
    with pytest.raises(ConfigError, match='"nuclear" or "live"'):
        OtsuBaseline((DEAD,)).segment(np.zeros((1, 9, 9), np.uint8))


def test_images_that_do_not_fit_are_refused():
    baseline = OtsuBaseline((NUCLEAR, DEAD))
    with pytest.raises(ShapeError, match="with the channels H, P"):
        baseline(np.zeros((3, 9, 9), np.uint8))
    with pytest.raises(ShapeError, match="need equal height and width"):
        baseline.classify(np.zeros((2, 9, 9), np.uint8), np.zeros((9, 8), np.int32))
    with pytest.raises(DataError, match="NaN or infinity"):
        baseline(np.full((2, 9, 9), np.nan, np.float32))

import numpy as np
import pytest

from cellvision.bundle import Channel
from cellvision.errors import DataError, ShapeError
from cellvision.runtime.pictures import error_sheet
from cellvision.runtime.pictures.error_sheet import KIND_COLOURS, ErrorField, draw_error_sheet
from cellvision.runtime.pictures.overlay import LARGEST_OVERVIEW_PX

GREY = (Channel(name="grey"),)
SIZE = 400  # is not enlarged


@pytest.fixture
def field():
    """One cell of each kind, side by side, and one found."""
    pred, true = np.zeros((SIZE, SIZE), np.int32), np.zeros((SIZE, SIZE), np.int32)
    true[20:60, 20:60] = 1  # missed
    pred[20:60, 100:150] = 1  # false
    true[100:130, 20:60], true[130:160, 20:60], pred[100:160, 20:60] = 2, 3, 2  # merged
    true[100:160, 120:160], pred[100:130, 120:160], pred[130:160, 120:160] = 4, 3, 4  # split
    true[200:240, 20:60], pred[200:220, 20:45] = 5, 5  # inexact
    true[200:240, 120:160], pred[200:240, 121:160] = 6, 6  # found
    image = np.zeros((1, SIZE, SIZE), np.uint8)
    image[0, true > 0] = 90
    return ErrorField(name="well A1", image=image, pred_label_image=pred, true_label_image=true)


@pytest.fixture
def written(monkeypatch):
    """Captions of the places, and legends, as they are written."""
    found = {"captions": [], "legends": []}
    write, add = error_sheet.write_centred, error_sheet.add_legend

    def caption(pen, place, text, font, *, within):
        found["captions"].append(text)
        write(pen, place, text, font, within=within)

    def legend(picture, parts):
        found["legends"].append([text for text, _ in parts])
        return add(picture, parts)

    monkeypatch.setattr(error_sheet, "write_centred", caption)
    monkeypatch.setattr(error_sheet, "add_legend", legend)
    return found


def is_colour(picture, colour):
    return (picture == colour).all(axis=-1)


def rim(mask):
    inner = mask.copy()
    inner[1:] &= mask[:-1]
    inner[:-1] &= mask[1:]
    inner[:, 1:] &= mask[:, :-1]
    inner[:, :-1] &= mask[:, 1:]
    return mask & ~inner


def test_each_kind_has_its_colour_where_it_lies(field):
    picture = draw_error_sheet([field], channels=GREY)[:SIZE, :SIZE]
    pred, true = field.pred_label_image, field.true_label_image
    for kind, mask in {
        "missed": true == 1, "false": pred == 1, "merged": pred == 2, "split": true == 4, "inexact": true == 5,
    }.items():  # fmt: skip
        np.testing.assert_array_equal(is_colour(picture, KIND_COLOURS[kind]), rim(mask), err_msg=kind)


def test_counts_are_in_the_legend(field, written):
    picture = draw_error_sheet([field], channels=GREY, crops=0)
    assert written["legends"] == [
        [
            "well A1",
            "1 of 6 cells found (no outline)",
            "split 1 (one cell as several)",
            "merged 1 (several cells as one)",
            "false 1 (no cell there)",
            "missed 1 (nothing found)",
            "inexact 1 (IoU below 0.5)",
        ],
    ]
    assert not written["captions"]
    assert picture[SIZE:].max() == 255
    assert not picture[:SIZE, SIZE:].any()


def test_the_largest_of_each_kind_is_enlarged_in_turn(field, written):
    more = field.true_label_image.copy()
    more[300:390, 300:390] = 9
    fuller = ErrorField(name="b", image=field.image, pred_label_image=field.pred_label_image, true_label_image=more)
    picture = draw_error_sheet([fuller], channels=GREY, crops=7)
    assert written["captions"] == [
        "merged 2, x 39 y 129", "split in 2, x 139 y 129", "missed, x 344 y 344", "false, x 124 y 39",
        "inexact, x 39 y 219", "missed, x 39 y 39",
    ]  # fmt: skip
    assert picture.shape[1] > SIZE + 5 * 200
    written["captions"].clear()
    draw_error_sheet([fuller], channels=GREY, crops=2)
    assert [text.split()[0] for text in written["captions"]] == ["merged", "split"]


def test_a_place_shows_truth_in_white_and_the_error_in_its_colour(field):
    merged = field.pred_label_image * (field.pred_label_image == 2)
    truth = field.true_label_image * np.isin(field.true_label_image, [2, 3])
    alone = ErrorField(name="a", image=field.image, pred_label_image=merged, true_label_image=truth)
    place = draw_error_sheet([alone], channels=GREY)[:220, SIZE + 4 : SIZE + 224]
    blue, white = is_colour(place, KIND_COLOURS["merged"]), is_colour(place, (255, 255, 255))
    # 60 px of cell in a window of 90 px, enlarged to 220 px.
    y, x = np.nonzero(blue)
    assert np.ptp(y) == pytest.approx(60 * 220 / 90, abs=3)
    assert np.ptp(x) == pytest.approx(40 * 220 / 90, abs=3)
    y, x = np.nonzero(white)
    assert np.ptp(y) <= 4, "the line between both true cells"
    assert y.mean() == pytest.approx(110, abs=3)
    assert np.ptp(x) > 80


def test_a_field_without_errors_is_only_a_field(field, written):
    right = ErrorField(
        name="a", image=field.image, pred_label_image=field.true_label_image, true_label_image=field.true_label_image
    )
    picture = draw_error_sheet([right], channels=GREY)
    assert not written["captions"]
    first, *kinds = written["legends"][0][1:]
    assert first == "6 of 6 cells found (no outline)"
    assert [text.partition(" (")[0] for text in kinds] == ["split 0", "merged 0", "false 0", "missed 0", "inexact 0"]
    assert not any(is_colour(picture[:SIZE], colour).any() for colour in KIND_COLOURS.values())


def test_small_fields_are_enlarged_and_stacked(field):
    part = (slice(0, 170), slice(0, 170))
    small = ErrorField(
        name="small",
        image=field.image[(slice(None), *part)],
        pred_label_image=field.pred_label_image[part],
        true_label_image=field.true_label_image[part],
    )
    picture = draw_error_sheet([small, field], channels=GREY)
    yellow = is_colour(picture[: 4 * 170, : 4 * 170], KIND_COLOURS["missed"])
    np.testing.assert_array_equal(yellow[::4, ::4], rim(small.true_label_image == 1))
    assert len(picture) == 4 * 170 + SIZE + (len(draw_error_sheet([small], channels=GREY)) - 4 * 170) + (
        len(draw_error_sheet([field], channels=GREY)) - SIZE
    )


def test_unknown_truth_is_no_error(field, written):
    ignore = np.zeros((SIZE, SIZE), bool)
    ignore[:90] = True
    known = ErrorField(
        name="a", image=field.image, pred_label_image=field.pred_label_image, true_label_image=field.true_label_image,
        ignore=ignore,
    )  # fmt: skip
    draw_error_sheet([known], channels=GREY)
    assert {"false 0 (no cell there)", "missed 0 (nothing found)"} <= set(written["legends"][0])


def test_huge_fields_are_shrunk(written):
    shape = (40, LARGEST_OVERVIEW_PX + 10)
    true = np.zeros(shape, np.int32)
    true[10:30, 2900:2930] = 2**31 - 1
    true[1, 1] = 5  # between the pixels that remain
    image = np.zeros((1, *shape), np.uint8)
    picture = draw_error_sheet(
        [ErrorField(name="a", image=image, pred_label_image=np.zeros(shape, int), true_label_image=true)], channels=GREY
    )
    assert written["captions"] == ["missed, x 2914 y 19", "missed, x 1 y 1"]
    assert is_colour(picture[:20, 1450:1465], KIND_COLOURS["missed"]).any()


def test_no_field_is_refused():
    with pytest.raises(DataError, match=r"an error sheet of no field; need one or more; try: "):
        draw_error_sheet([], channels=GREY)


def test_labels_of_another_field_are_refused(field):
    other = ErrorField(
        name="a", image=field.image, pred_label_image=np.zeros((3, 3), int), true_label_image=field.true_label_image
    )
    with pytest.raises(ShapeError, match="need images of one field"):
        draw_error_sheet([other], channels=GREY)

from dataclasses import replace

import numpy as np
import pytest
from PIL import ImageDraw, ImageFont

from cellvision.bundle import Channel
from cellvision.errors import ConfigError
from cellvision.runtime.cells import build_cells
from cellvision.runtime.maps.splitting import measure_cells
from cellvision.runtime.pictures import marks as marks_module
from cellvision.runtime.pictures.marks import (
    Marks,
    add_caption,
    add_legend,
    choose_bar_um,
    shorten_text,
    stack_pictures,
)
from cellvision.runtime.pictures.overlay import LARGEST_OVERVIEW_PX, draw_overlay

CHANNELS = (Channel(name="grey"),)
ORANGE, BLUE = (230, 159, 0), (86, 180, 233)


def make_cells(label_image, *, pixel_size_um=None):
    """Odd labels are round, even ones flat."""
    maps = np.stack([label_image == 0, label_image % 2 == 1, (label_image > 0) & (label_image % 2 == 0)])
    cells = build_cells(
        measure_cells(label_image, label_image[None], maps.astype(np.float32)),
        classes=("background", "round", "flat"),
        channels=("grey",),
        kind="instance",
        live_threshold=0.5,
        shape=label_image.shape,
        label_image=label_image,
        pixel_size_um=pixel_size_um,
    )
    return replace(cells, score=np.linspace(0.9, 0.1, len(cells)))


@pytest.fixture
def cells():
    label_image = np.zeros((120, 160), np.int32)
    label_image[10:60, 20:90] = 1
    label_image[70:110, 100:150] = 2
    label_image[30:50, 40:60] = 0
    return make_cells(label_image, pixel_size_um=0.5)


def draw(cells, **options):
    """The picture without its legend, and the picture."""
    image = np.zeros((1, *cells.shape), np.uint8)
    picture = draw_overlay(image, cells, channels=CHANNELS, marks=Marks(**options) if options else None)
    zoom = options.get("zoom") or 1
    return picture[: cells.shape[0] * zoom, : cells.shape[1] * zoom], picture


def is_colour(picture, colour):
    return (picture == colour).all(axis=-1)


@pytest.fixture
def written(monkeypatch):
    """(text, x, y) of everything that is written at cells."""
    texts, write = [], marks_module.write_centred

    def record(pen, place, text, font, *, within):
        texts.append((text, *place))
        write(pen, place, text, font, within=within)

    monkeypatch.setattr(marks_module, "write_centred", record)
    return texts


def test_nothing_is_marked_unless_asked(cells, written):
    np.testing.assert_array_equal(draw(cells)[1], draw(cells, zoom=1)[1])
    assert not written


def test_boxes_hold_the_visible_pixels(cells):
    plain, boxed = draw(cells)[0], draw(cells, boxes=True)[0]
    for (top, left, bottom, right), colour in zip(cells.bbox, (ORANGE, BLUE), strict=True):
        rim = np.zeros(cells.shape, bool)
        rim[top:bottom, left:right] = True
        rim[top + 1 : bottom - 1, left + 1 : right - 1] = False
        assert is_colour(boxed, colour)[rim].all()
        assert (boxed == plain).all(axis=-1)[~rim & (cells.label_image > 0)].all()


def test_boxes_grow_with_the_picture(cells):
    boxed = draw(cells, boxes=True, zoom=3)[0]
    assert boxed.shape == (360, 480, 3)
    assert is_colour(boxed, ORANGE)[30:180, 60].all()
    assert is_colour(boxed, ORANGE)[30:180, 269].all()
    assert is_colour(boxed, ORANGE)[179, 60:270].all()


def test_text_is_number_class_and_score_in_the_middle(cells, written):
    marked = draw(cells, numbers=True, class_names=True, scores=True, zoom=2)[0]
    assert [text for text, *_ in written] == ["1\nround\n0.90", "2\nflat\n0.10"]
    centres = 2 * (np.stack([cells.centroid_x_px, cells.centroid_y_px], axis=1) + 0.5)
    np.testing.assert_allclose([place for _, *place in written], centres)
    white = marked.min(axis=-1) > 150
    y, x = np.nonzero(white[120:])
    assert (x.min() + x.max()) / 2 == pytest.approx(centres[1, 0], abs=2)
    assert (y.min() + y.max()) / 2 + 120 == pytest.approx(centres[1, 1], abs=2)
    assert len(y) > 30


@pytest.mark.parametrize(
    ("options", "text"), [({"numbers": True}, "2"), ({"class_names": True}, "flat"), ({"scores": True}, "0.10")]
)
def test_each_kind_of_text_alone(cells, written, options, text):
    draw(cells, **options)
    assert written[1][0] == text


def test_cells_without_scores_have_none_written(cells, written):
    draw(replace(cells, score=None), scores=True)
    assert not written


def test_small_cells_are_enlarged_until_their_text_fits():
    label_image = np.zeros((100, 100), np.int32)
    for index in range(25):
        y, x = index // 5 * 20, index % 5 * 20
        label_image[y : y + 10, x : x + 10] = index + 1
    cells = make_cells(label_image)
    image = np.zeros((1, 100, 100), np.uint8)
    sizes = [
        draw_overlay(image, cells, channels=CHANNELS, marks=Marks(**options)).shape[1]
        for options in ({"boxes": True}, {"numbers": True}, {"numbers": True, "class_names": True, "scores": True})
    ]
    assert sizes[0] < 200 <= sizes[1] < sizes[2] == 400
    one = make_cells(np.pad(np.ones((60, 60), np.int32), 20))
    assert draw_overlay(image, one, channels=CHANNELS, marks=Marks(numbers=True)).shape[0] < 200


def test_marks_find_their_place_in_a_shrunk_picture(written):
    label_image = np.zeros((30, 2 * LARGEST_OVERVIEW_PX), np.int32)
    label_image[10:20, 4000:4020] = 1
    cells = make_cells(label_image)
    image = np.zeros((1, *label_image.shape), np.uint8)
    picture = draw_overlay(image, cells, channels=CHANNELS, marks=Marks(numbers=True, boxes=True))
    assert picture.shape[1] == LARGEST_OVERVIEW_PX
    assert written == [("1", 2005.0, 7.5)]
    assert is_colour(picture, ORANGE)[5:10, 2000].all()


def test_text_at_an_edge_stays_whole():
    middle, corner = np.zeros((60, 60), np.int32), np.zeros((60, 60), np.int32)
    middle[28:32, 28:32] = 1
    corner[:4, 56:] = 1
    ink = []
    for label_image in (middle, corner):
        picture = draw(make_cells(label_image), scores=True, zoom=1)[0].astype(int)
        ink.append((picture.min(axis=-1) > 150).sum())
    assert ink[0] == ink[1] > 10


@pytest.mark.parametrize("zoom", [1, 3])
def test_scale_bar_has_the_length_that_it_names(cells, zoom, monkeypatch):
    texts, write = [], ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw, "text", lambda self, xy, text, **k: (texts.append(text), write(self, xy, text, **k))[1]
    )
    field, picture = draw(cells, scale_bar=True, zoom=zoom)
    assert texts[-1] == "20 um"
    runs = is_colour(picture[len(field) :], (255, 255, 255)).sum(axis=1)
    assert np.sort(runs)[-4:].tolist() == pytest.approx([40 * zoom] * 4, abs=12), "bar and letters beside it"
    bar = is_colour(picture[len(field) :], (255, 255, 255)).all(axis=0, where=runs[:, None] >= 40 * zoom)
    assert bar.sum() == 40 * zoom


def test_a_scale_bar_needs_the_pixel_size(cells):
    with pytest.raises(
        ConfigError, match="a scale bar and no pixel size; need the edge of a pixel; try: pixel_size_um"
    ):
        draw(replace(cells, pixel_size_um=None), scale_bar=True)


def test_zoom_below_1_is_refused():
    with pytest.raises(ConfigError, match="zoom=0; need a whole number from 1 up"):
        Marks(zoom=0)


@pytest.mark.parametrize("width_um", [0.01, 3.0, 4.0, 7.99, 8.0, 20.0, 999.0, 4e4])
def test_bars_are_round_and_as_long_as_may_be(width_um):
    bar = choose_bar_um(width_um)
    digits = f"{bar:.0e}"
    assert float(digits) == pytest.approx(bar)
    assert digits[0] in "125"
    assert width_um / 10 - 1e-9 <= bar <= width_um / 4 + 1e-9


def test_a_colour_picture_is_shown_in_its_colours():
    image = np.zeros((3, 40, 60), np.uint8)
    image[0, :, :20] = image[1, :, 20:40] = 200
    image[2, :, 40:] = 100
    cells = make_cells(np.zeros((40, 60), np.int32))
    colours = tuple(Channel(name=name) for name in ("red", "green", "blue"))
    picture = draw_overlay(image, cells, channels=colours)[:40]
    assert picture[5, 5].tolist() == [178, 0, 0]
    assert picture[5, 25].tolist() == [0, 178, 0]
    assert picture[5, 45].tolist() == [0, 0, 89]
    grey = draw_overlay(image, cells, channels=tuple(Channel(name=name) for name in "abc"))[:40]
    assert grey[5, 5, 0] == grey[5, 5, 1] == grey[5, 5, 2] > 100


def test_pictures_are_stacked_with_black_around():
    one, two = np.full((2, 3, 3), 7, np.uint8), np.full((4, 1, 3), 9, np.uint8)
    beside = stack_pictures([one, two], axis=1)
    assert beside[..., 0].tolist() == [[7, 7, 7, 9]] * 2 + [[0, 0, 0, 9]] * 2
    assert stack_pictures([one, two], axis=0)[..., 0].tolist() == [[7, 7, 7]] * 2 + [[9, 0, 0]] * 4


def test_a_legend_is_below_and_as_wide_as_its_text():
    picture = np.full((10, 20, 3), 50, np.uint8)
    named = add_legend(picture, [("a long name of a field", (255, 0, 0))])
    np.testing.assert_array_equal(named[:10, :20], picture)
    assert named.shape[1] > 100
    assert named[10:, :, 0].max() > 200
    assert named[10:, :, 1:].max() == 0


def test_a_long_legend_goes_on_in_further_lines_and_a_long_name_loses_its_middle():
    picture = np.full((10, 20, 3), 50, np.uint8)
    one = add_legend(picture, [("field_x", (255, 0, 0))])
    parts = [(f"field_{'x' * 150}_end", (255, 0, 0)), *[(f"class {i:02d}", (0, 255, 0)) for i in range(16)]]
    many = add_legend(picture, parts)
    assert many.shape[1] <= 640
    line = len(one) - 10
    assert len(many) - 10 == 3 * line
    assert many[10 : 10 + line, :, 0].max() > 200
    assert many[10 : 10 + line, :, 1].max() == 0, "the name has a line of its own"
    assert min(many[10 + k * line : 10 + (k + 1) * line, :, 1].max() for k in (1, 2)) > 200


def test_text_is_shortened_in_its_middle_as_little_as_can_be():
    font = ImageFont.load_default(size=12)
    name = "experiment_7_well_A01_field_12"
    assert shorten_text(name, font, 1000) == name
    short = shorten_text(name, font, 100)
    start, end = short.split("...")
    assert name.startswith(start)
    assert name.endswith(end)
    assert abs(len(start) - len(end)) <= 1
    assert 80 < font.getlength(short) <= 100
    assert shorten_text(name, font, 1) == "..."


def test_a_caption_is_above_and_no_wider_than_its_picture():
    picture = np.full((30, 120, 3), 50, np.uint8)
    captioned = add_caption(picture, ("truth", "a name of a field that is far too long for it", ""))
    np.testing.assert_array_equal(captioned[-30:], picture)
    above = captioned[:-30].max(axis=(1, 2))
    assert captioned.shape[1] == 120
    thirds = np.array_split(above, 3)
    assert [part.max() > 200 for part in thirds] == [True, True, False]


def test_captions_of_wide_pictures_are_larger():
    heights = []
    for width in (400, 2800):
        picture = np.zeros((10, width, 3), np.uint8)
        above = add_caption(picture, ("truth",))[:-10].max(axis=(1, 2))
        heights.append(np.ptp(np.flatnonzero(above > 100)))
    assert heights[1] > 2.5 * heights[0]


def test_cells_that_do_not_count_are_grey(cells):
    ignored = np.zeros(cells.shape, np.int32)
    ignored[10:30, 100:140] = 7
    image = np.zeros((1, *cells.shape), np.uint8)
    plain = draw_overlay(image, cells, channels=CHANNELS)
    picture = draw_overlay(image, cells, channels=CHANNELS, ignored=ignored)
    height = cells.shape[0]
    grey = is_colour(picture, (150, 150, 150))
    assert grey[10, 100:140].all()
    assert not grey[11:29, 101:139].any()
    assert grey[height:].any(), "named in the legend"
    np.testing.assert_array_equal(picture[:height, :100], plain[:height, :100])

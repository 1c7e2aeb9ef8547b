import numpy as np
import pytest

from cellvision.runtime.detections.found import Detections
from cellvision.runtime.detections.joining import DetectionPile, place_detections
from cellvision.runtime.tiles.tiling import Tile, plan_spans

SHAPE = (100, 160)  # one row of tiles, cores 0..80, 80..160, windows 0..112, 64..160 (columns) at overlap 16
TILE, OVERLAP = 64, 16


def make(boxes, scores=None, *, mask_scores=None, classes=None):
    count = len(boxes)
    return Detections(
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        scores=np.array([0.9] * count if scores is None else scores, np.float32),
        mask_scores=None if mask_scores is None else np.array(mask_scores, np.float32),
        class_id=np.array([1] * count if classes is None else classes, np.int64),
        class_scores=np.full((count, 1), 0.9, np.float32),
        masks=np.arange(count * 4, dtype=np.float32).reshape(count, 2, 2),
    )


@pytest.fixture
def tiles():
    rows = plan_spans(SHAPE[0], tile_px=96, overlap_px=OVERLAP)
    columns = plan_spans(SHAPE[1], tile_px=TILE, overlap_px=OVERLAP)
    assert len(rows) == 1
    assert [(s.start, s.stop, s.window_start, s.window_stop) for s in columns] == [(0, 80, 0, 96), (80, 160, 64, 160)]
    return [Tile(rows=rows[0], columns=span) for span in columns]


def place(found, tile):
    return place_detections(found, tile, shape=SHAPE, overlap_px=OVERLAP)


def test_boxes_are_moved_to_their_place_in_the_image(tiles):
    placed, is_cut = place(make([[30, 10, 40, 20]]), tiles[1])
    assert placed.boxes.tolist() == [[94, 10, 104, 20]]
    assert placed.boxes.dtype == np.float32
    assert is_cut.tolist() == [False]


@pytest.mark.parametrize(
    ("middle", "left_keeps", "right_keeps"),
    [(71.75, True, False), (72, True, True), (80, True, True), (87.75, True, True), (88, False, True)],
)
def test_a_tile_answers_for_middles_in_its_core_grown_by_half_the_overlap(tiles, middle, left_keeps, right_keeps):
    box = np.array([middle - 3, 10, middle + 3, 20])
    assert len(place(make([box]), tiles[0])[0]) == left_keeps
    assert len(place(make([box - [64, 0, 64, 0]]), tiles[1])[0]) == right_keeps


@pytest.mark.parametrize("box", [[-60, -60, 5, 5], [3, 90, 20, 400], [-1e6, 0, 2, 9]])
def test_what_leaves_the_image_stays_with_the_tile_at_its_side(tiles, box):
    placed, is_cut = place(make([box]), tiles[0])
    assert len(placed) == 1
    assert not is_cut.any()


@pytest.mark.parametrize(
    ("box", "is_cut"),
    [([70, 40, 93.9, 50], False), ([70, 40, 94, 50], True), ([70, 40, 96, 50], True), ([60, 40, 99, 50], True)],
)
def test_a_box_near_a_side_of_the_window_may_be_cut(tiles, box, is_cut):
    assert place(make([box]), tiles[0])[1].tolist() == [is_cut]
    mirrored = [160 - box[2] - 64, box[1], 160 - box[0] - 64, box[3]]
    assert place(make([mirrored]), tiles[1])[1].tolist() == [is_cut]


def test_sides_of_the_image_cut_nothing(tiles):
    _, is_cut = place(make([[0, 0, 10, 100], [-3, -3, 9, 9], [40, 90, 60, 105]]), tiles[0])
    assert not is_cut.any()
    _, is_cut = place(make([[80, 0, 96, 100], [80, 5, 99, 9]]), tiles[1])
    assert not is_cut.any()


def test_whole_ones_come_first_then_the_best_then_the_first(tiles):
    pile = DetectionPile(shape=SHAPE, overlap_px=OVERLAP, least_score=0.3)
    pile.add(tiles[0], 0, make([[70, 0, 95, 9], [1, 0, 9, 9], [2, 0, 9, 9], [3, 0, 9, 9]], [0.99, 0.5, 0.8, 0.2]))
    pile.add(tiles[1], 1, make([[20, 0, 28, 9], [1, 0, 29, 9], [30, 0, 39, 9]], [0.8, 0.5, 0.5]))
    joined = pile.join()
    assert joined.detections.scores.tolist() == pytest.approx([0.99, 0.5, 0.8, 0.8, 0.5, 0.5])
    assert joined.is_cut.tolist() == [True, False, False, False, True, False]
    assert joined.tile.tolist() == [0, 0, 0, 1, 1, 1]
    assert joined.order.tolist() == [2, 3, 1, 5, 0, 4]
    np.testing.assert_array_equal(joined.detections.masks[1], [[4, 5], [6, 7]])


def test_scores_of_masks_decide_where_there_are_any(tiles):
    pile = DetectionPile(shape=SHAPE, overlap_px=OVERLAP, least_score=0.3)
    pile.add(tiles[0], 0, make([[1, 0, 9, 9], [21, 0, 29, 9], [41, 0, 49, 9]], mask_scores=[0.4, 1.7, 0.2]))
    joined = pile.join()
    assert joined.detections.mask_scores.tolist() == pytest.approx([0.4, 1.7])
    assert joined.order.tolist() == [1, 0]


def test_what_two_tiles_found_is_there_once(tiles):
    pile = DetectionPile(shape=SHAPE, overlap_px=OVERLAP)
    pile.add(tiles[0], 0, make([[72, 0, 84, 10], [72, 1, 84, 11], [10, 0, 20, 10]], [0.7, 0.6, 0.5]))
    pile.add(tiles[1], 1, make([[9, 0, 20, 10], [8, 0, 20, 10]], [0.9, 0.8], classes=[1, 2]))
    found = pile.join().drop_doubles(nms_iou=0.6)
    # The two of the first tile overlap as much, but its own suppression has let them be.
    assert sorted(found.scores.tolist()) == pytest.approx([0.5, 0.8, 0.9])
    assert found.boxes[0].tolist() == [73, 0, 84, 10]


def test_nothing_found_anywhere(tiles):
    pile = DetectionPile(shape=SHAPE, overlap_px=OVERLAP)
    for number, tile in enumerate(tiles):
        pile.add(tile, number, make([]))
    joined = pile.join()
    assert len(joined.detections) == len(joined.order) == len(joined.drop_doubles(nms_iou=0.5)) == 0

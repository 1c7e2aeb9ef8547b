"""Every option that is out of range is refused by its name."""

import pytest

from cellvision.errors import ConfigError
from cellvision.models.centermask2.options import FcosAssigning, FcosDecoding, FcosLosses, MaskLosses, RoiSampling

WRONG = [
    (FcosAssigning, {"sizes_of_interest": (64, 32)}, r"model.assigning.sizes_of_interest=\[64, 32\]; need rising"),
    (FcosAssigning, {"sizes_of_interest": (0, 32)}, "rising numbers above 0"),
    (FcosAssigning, {"sizes_of_interest": ("a",)}, "rising numbers above 0"),
    (FcosAssigning, {"radius": 0}, "model.assigning.radius=0; need a number above 0; try: model.assigning.radius=1.5"),
    (FcosAssigning, {"max_positives": 0}, "model.assigning.max_positives=0; need a whole number from 1 up"),
    (FcosLosses, {"alpha": 1.5}, "model.fcos_loss.alpha=1.5; need a number from 0 to 1"),
    (FcosLosses, {"gamma": -1}, "model.fcos_loss.gamma=-1; need a number from 0; try"),
    (FcosLosses, {"gamma": float("nan")}, "model.fcos_loss.gamma=nan"),
    (FcosLosses, {"box_loss": "gious"}, "unknown model.fcos_loss.box_loss 'gious'.*try: 'giou'"),
    (FcosLosses, {"smoothing": True}, "model.fcos_loss.smoothing=True"),
    (FcosLosses, {"class_weights": (1.0, -2.0)}, "model.fcos_loss.class_weights=-2.0"),
    (FcosDecoding, {"score_threshold": 1.1}, "model.decoding.score_threshold=1.1"),
    (FcosDecoding, {"nms_iou": "0.5"}, "model.decoding.nms_iou='0.5'"),
    (FcosDecoding, {"pre_nms": None}, "model.decoding.pre_nms=None; need a whole number from 1 up"),
    (FcosDecoding, {"post_nms": 2.5}, "model.decoding.post_nms=2.5"),
    (FcosDecoding, {"soft_nms_sigma": 0}, "model.decoding.soft_nms_sigma=0; need a number above 0"),
    (RoiSampling, {"per_image": True}, "model.roi_sampling.per_image=True"),
    (RoiSampling, {"positive_fraction": 0}, "model.roi_sampling.positive_fraction=0; need a number above 0 to 1"),
    (RoiSampling, {"iou": 0}, "model.roi_sampling.iou=0"),
    (MaskLosses, {"dice": -1}, "model.mask_loss.dice=-1"),
    (MaskLosses, {"boundary": float("inf")}, "model.mask_loss.boundary=inf"),
    (MaskLosses, {"maskiou_weight": "1"}, "model.mask_loss.maskiou_weight='1'"),
]


@pytest.mark.parametrize(("options", "given", "message"), WRONG)
def test_what_is_out_of_range_is_refused(options, given, message):
    with pytest.raises(ConfigError, match=message):
        options(**given)


def test_published_numbers_are_the_defaults():
    assert FcosAssigning().ranges == ((-1, 64), (64, 128), (128, 256), (256, 512), (512, 1e8))
    assert RoiSampling().max_positives == 128
    assert FcosDecoding(soft_nms_sigma=0.5, score_threshold=0, nms_iou=1).post_nms == 50
    assert FcosAssigning(sizes_of_interest=(), max_positives=5).ranges == ((-1, 1e8),)

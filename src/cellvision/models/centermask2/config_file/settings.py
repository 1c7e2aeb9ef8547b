"""The settings that a CenterMask2 config file gives to our net and to its training."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class CenterMaskSettings:
    """Plain arguments of the net, with the official defaults of their keys.

    Attributes:
        backbone: name of the bottom-up.
        levels: those of the bottom-up that enter the FPN; level i has stride 2**i.
        out_channels: of every FPN level, and of the mask and MaskIoU heads.
        top_levels: levels added above the last of ``levels``.
        fuse: "sum" or "avg" of a level and the coarser one.
        norm: of the bottom-up: "frozen", "batch", "sync" or "group".
        freeze_at: 0 nothing, 1 the stem, 2 also the first stage, ... are not trained.
        stride_in_1x1: ResNet: the stride is in the first 1x1 convolution, not in the 3x3.
        deformable: stages 2, 3, 4, 5 with deformable convolutions.
        deformable_modulated: these have a mask beside their offsets.
        num_classes: classes of cells, without background.
        share_convs, class_convs, box_convs: convolutions of the towers of the FCOS head.
        head_norm: "group" or "none" in these towers.
        prior: P(cell) at the first step, in (0, 1).
        sizes_of_interest: px; box sides up to these belong to the first, second, ... level.
        centre_sampling: only locations near a box centre are positive.
        radius: how near, in strides.
        box_loss: "giou", "iou" or "linear_iou".
        focal_alpha, focal_gamma: of the class loss.
        score_threshold, score_threshold_train: smallest class probability of a detection.
        threshold_with_centreness: the threshold is on class probability times centre-ness.
        nms_iou: detections of one class that overlap more are doubles.
        pre_nms, pre_nms_train: candidates kept per level.
        post_nms, post_nms_train: detections kept per image.
        roi_levels: levels that regions are pooled from.
        roi_criterion: what chooses a region's level: "ratio" of box to image area, or box "area".
        roi_per_image, roi_positive_fraction: regions drawn per image in training, and the largest share of positives.
        roi_iou: overlap with a true box from which a region is positive.
        roi_append_truth: true boxes are regions too.
        mask_convs, mask_attention: of the mask head.
        mask_iou, maskiou_convs, maskiou_weight: whether masks are scored, that head's convolutions, its loss weight.
        pixel_mean, pixel_std: (image - mean) / std in counts of 0..255, in ``channel_order``.
        channel_order: "BGR" or "RGB": of images, mean and std.
    """

    backbone: str
    levels: tuple[int, ...]
    out_channels: int = 256
    top_levels: int = 2
    fuse: str = "sum"
    norm: str = "frozen"
    freeze_at: int = 2
    stride_in_1x1: bool = True
    deformable: tuple[bool, ...] = (False, False, False, False)
    deformable_modulated: bool = False
    num_classes: int = 80
    share_convs: int = 0
    class_convs: int = 4
    box_convs: int = 4
    head_norm: str = "group"
    prior: float = 0.01
    sizes_of_interest: tuple[float, ...] = (64.0, 128.0, 256.0, 512.0)
    centre_sampling: bool = True
    radius: float = 1.5
    box_loss: str = "giou"
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    score_threshold: float = 0.05
    score_threshold_train: float = 0.05
    threshold_with_centreness: bool = False
    nms_iou: float = 0.6
    pre_nms: int = 1000
    pre_nms_train: int = 1000
    post_nms: int = 100
    post_nms_train: int = 100
    roi_levels: tuple[int, ...] = (3, 4, 5)
    roi_criterion: str = "area"
    roi_per_image: int = 512
    roi_positive_fraction: float = 0.25
    roi_iou: float = 0.5
    roi_append_truth: bool = True
    mask_convs: int = 4
    mask_attention: bool = False
    mask_iou: bool = False
    maskiou_convs: int = 4
    maskiou_weight: float = 1.0
    pixel_mean: tuple[float, ...] = (103.53, 116.28, 123.675)
    pixel_std: tuple[float, ...] = (1.0, 1.0, 1.0)
    channel_order: str = "BGR"


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Schedule and image sizes, with detectron2's defaults.

    Attributes:
        weights: file or address of the weights to start from; empty = none.
        batch_size: images per step over all devices.
        lr, momentum, weight_decay, weight_decay_norm: of SGD; the last for the weights of norm layers.
        iterations: steps.
        decay_steps, decay_factor: the learning rate is multiplied by the factor at each of these steps.
        warmup_iterations, warmup_factor: linear warm-up of that many steps from the factor times the rate.
        checkpoint_every: steps.
        mixed_precision: train in 16 bit.
        short_sides: px; images are resized so that the shorter side is one of these ("choice") or lies between
            the two ("range").
        short_side_sampling: "choice" or "range".
        max_side: px; largest longer side in training.
        test_short_side, test_max_side: px; the same where the net is tested.
        flip: "horizontal", "vertical" or "none".
    """

    weights: str = ""
    batch_size: int = 16
    lr: float = 0.001
    momentum: float = 0.9
    weight_decay: float = 1e-4
    weight_decay_norm: float = 0.0
    iterations: int = 40000
    decay_steps: tuple[int, ...] = (30000,)
    decay_factor: float = 0.1
    warmup_iterations: int = 1000
    warmup_factor: float = 1e-3
    checkpoint_every: int = 5000
    mixed_precision: bool = False
    short_sides: tuple[int, ...] = (800,)
    short_side_sampling: str = "choice"
    max_side: int = 1333
    test_short_side: int = 800
    test_max_side: int = 1333
    flip: str = "horizontal"


NET_KEYS = {
    "out_channels": "MODEL.FPN.OUT_CHANNELS",
    "top_levels": "MODEL.FCOS.TOP_LEVELS",
    "fuse": "MODEL.FPN.FUSE_TYPE",
    "freeze_at": "MODEL.BACKBONE.FREEZE_AT",
    "stride_in_1x1": "MODEL.RESNETS.STRIDE_IN_1X1",
    "num_classes": "MODEL.FCOS.NUM_CLASSES",
    "share_convs": "MODEL.FCOS.NUM_SHARE_CONVS",
    "class_convs": "MODEL.FCOS.NUM_CLS_CONVS",
    "box_convs": "MODEL.FCOS.NUM_BOX_CONVS",
    "prior": "MODEL.FCOS.PRIOR_PROB",
    "sizes_of_interest": "MODEL.FCOS.SIZES_OF_INTEREST",
    "centre_sampling": "MODEL.FCOS.CENTER_SAMPLE",
    "radius": "MODEL.FCOS.POS_RADIUS",
    "box_loss": "MODEL.FCOS.LOC_LOSS_TYPE",
    "focal_alpha": "MODEL.FCOS.LOSS_ALPHA",
    "focal_gamma": "MODEL.FCOS.LOSS_GAMMA",
    "score_threshold": "MODEL.FCOS.INFERENCE_TH_TEST",
    "score_threshold_train": "MODEL.FCOS.INFERENCE_TH_TRAIN",
    "threshold_with_centreness": "MODEL.FCOS.THRESH_WITH_CTR",
    "nms_iou": "MODEL.FCOS.NMS_TH",
    "pre_nms": "MODEL.FCOS.PRE_NMS_TOPK_TEST",
    "pre_nms_train": "MODEL.FCOS.PRE_NMS_TOPK_TRAIN",
    "post_nms": "MODEL.FCOS.POST_NMS_TOPK_TEST",
    "post_nms_train": "MODEL.FCOS.POST_NMS_TOPK_TRAIN",
    "roi_criterion": "MODEL.ROI_MASK_HEAD.ASSIGN_CRITERION",
    "roi_per_image": "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE",
    "roi_positive_fraction": "MODEL.ROI_HEADS.POSITIVE_FRACTION",
    "roi_append_truth": "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT",
    "mask_convs": "MODEL.ROI_MASK_HEAD.NUM_CONV",
    "mask_iou": "MODEL.MASKIOU_ON",
    "maskiou_convs": "MODEL.ROI_MASKIOU_HEAD.NUM_CONV",
    "maskiou_weight": "MODEL.MASKIOU_LOSS_WEIGHT",
    "pixel_mean": "MODEL.PIXEL_MEAN",
    "pixel_std": "MODEL.PIXEL_STD",
    "channel_order": "INPUT.FORMAT",
}
"""Settings of the net that a key holds as they are."""

TRAINING_KEYS = {
    "weights": "MODEL.WEIGHTS",
    "batch_size": "SOLVER.IMS_PER_BATCH",
    "lr": "SOLVER.BASE_LR",
    "momentum": "SOLVER.MOMENTUM",
    "weight_decay": "SOLVER.WEIGHT_DECAY",
    "weight_decay_norm": "SOLVER.WEIGHT_DECAY_NORM",
    "iterations": "SOLVER.MAX_ITER",
    "decay_steps": "SOLVER.STEPS",
    "decay_factor": "SOLVER.GAMMA",
    "warmup_iterations": "SOLVER.WARMUP_ITERS",
    "warmup_factor": "SOLVER.WARMUP_FACTOR",
    "checkpoint_every": "SOLVER.CHECKPOINT_PERIOD",
    "mixed_precision": "SOLVER.AMP.ENABLED",
    "short_sides": "INPUT.MIN_SIZE_TRAIN",
    "short_side_sampling": "INPUT.MIN_SIZE_TRAIN_SAMPLING",
    "max_side": "INPUT.MAX_SIZE_TRAIN",
    "test_short_side": "INPUT.MIN_SIZE_TEST",
    "test_max_side": "INPUT.MAX_SIZE_TEST",
    "flip": "INPUT.RANDOM_FLIP",
}
"""Settings of the training, each as its key holds it."""

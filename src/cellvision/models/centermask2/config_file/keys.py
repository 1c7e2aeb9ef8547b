"""What each key of a CenterMask2 config file means here: a setting, a fixed value, or nothing.

Keys are written with dots, as detectron2 prints them: ``MODEL.FCOS.NUM_CLASSES``. Their defaults are the official
ones, because a file says only what differs from them.
"""

from __future__ import annotations

from typing import Any

ARCHITECTURE = "CellvisionCenterMask"
"""Our own name beside detectron2's GeneralizedRCNN."""

VOVNETS = {
    "V-19-slim-dw-eSE": "vovnet19_slim_dw",
    "V-19-dw-eSE": "vovnet19_dw",
    "V-19-slim-eSE": "vovnet19_slim",
    "V-19-eSE": "vovnet19",
    "V-39-eSE": "vovnet39",
    "V-57-eSE": "vovnet57",
    "V-99-eSE": "vovnet99",
}
"""MODEL.VOVNET.CONV_BODY -> name of the bottom-up."""

RESNETS = {
    **{(depth, 1, 64): f"resnet{depth}" for depth in (18, 34, 50, 101, 152)},
    (50, 32, 4): "resnext50_32x4d",
    (101, 32, 8): "resnext101_32x8d",
}
"""MODEL.RESNETS.(DEPTH, NUM_GROUPS, WIDTH_PER_GROUP) -> name of the bottom-up."""

BUILDERS = {
    "build_fcos_vovnet_fpn_backbone": "VOVNET",
    "build_fcos_resnet_fpn_backbone": "RESNETS",
    "build_fcos_mobilenetv2_fpn_backbone": "MOBILENET",
}
"""MODEL.BACKBONE.NAME -> the section of MODEL that describes the bottom-up."""

NORMS = {"FrozenBN": "frozen", "BN": "batch", "SyncBN": "sync", "GN": "group"}
MASK_HEADS = {"SpatialAttentionMaskHead": True, "MaskRCNNConvUpsampleHead": False}
"""MODEL.ROI_MASK_HEAD.NAME -> whether the mask head has spatial attention."""

CENTERMASK_DEFAULTS: dict[str, Any] = {
    "MODEL.MOBILENET": False,
    "MODEL.MASKIOU_ON": False,
    "MODEL.MASKIOU_LOSS_WEIGHT": 1.0,
    "MODEL.ROI_MASKIOU_HEAD.NAME": "MaskIoUHead",
    "MODEL.ROI_MASKIOU_HEAD.CONV_DIM": 256,
    "MODEL.ROI_MASKIOU_HEAD.NUM_CONV": 4,
    "MODEL.ROI_MASK_HEAD.ASSIGN_CRITERION": "area",
    "MODEL.ROI_KEYPOINT_HEAD.IN_FEATURES": ("p2", "p3", "p4", "p5"),
    "MODEL.ROI_KEYPOINT_HEAD.ASSIGN_CRITERION": "ratio",
    "MODEL.VOVNET.CONV_BODY": "V-39-eSE",
    "MODEL.VOVNET.OUT_FEATURES": ("stage2", "stage3", "stage4", "stage5"),
    "MODEL.VOVNET.NORM": "FrozenBN",
    "MODEL.VOVNET.OUT_CHANNELS": 256,
    "MODEL.VOVNET.BACKBONE_OUT_CHANNELS": 256,
    "MODEL.VOVNET.STAGE_WITH_DCN": (False, False, False, False),
    "MODEL.VOVNET.WITH_MODULATED_DCN": False,
    "MODEL.VOVNET.DEFORMABLE_GROUPS": 1,
    "MODEL.FCOS.NUM_CLASSES": 80,
    "MODEL.FCOS.IN_FEATURES": ("p3", "p4", "p5", "p6", "p7"),
    "MODEL.FCOS.FPN_STRIDES": (8, 16, 32, 64, 128),
    "MODEL.FCOS.PRIOR_PROB": 0.01,
    "MODEL.FCOS.INFERENCE_TH_TRAIN": 0.05,
    "MODEL.FCOS.INFERENCE_TH_TEST": 0.05,
    "MODEL.FCOS.NMS_TH": 0.6,
    "MODEL.FCOS.PRE_NMS_TOPK_TRAIN": 1000,
    "MODEL.FCOS.PRE_NMS_TOPK_TEST": 1000,
    "MODEL.FCOS.POST_NMS_TOPK_TRAIN": 100,
    "MODEL.FCOS.POST_NMS_TOPK_TEST": 100,
    "MODEL.FCOS.TOP_LEVELS": 2,
    "MODEL.FCOS.NORM": "GN",
    "MODEL.FCOS.USE_SCALE": True,
    "MODEL.FCOS.THRESH_WITH_CTR": False,
    "MODEL.FCOS.LOSS_ALPHA": 0.25,
    "MODEL.FCOS.LOSS_GAMMA": 2.0,
    "MODEL.FCOS.SIZES_OF_INTEREST": (64.0, 128.0, 256.0, 512.0),
    "MODEL.FCOS.USE_RELU": True,
    "MODEL.FCOS.USE_DEFORMABLE": False,
    "MODEL.FCOS.NUM_CLS_CONVS": 4,
    "MODEL.FCOS.NUM_BOX_CONVS": 4,
    "MODEL.FCOS.NUM_SHARE_CONVS": 0,
    "MODEL.FCOS.CENTER_SAMPLE": True,
    "MODEL.FCOS.POS_RADIUS": 1.5,
    "MODEL.FCOS.LOC_LOSS_TYPE": "giou",
}
"""The keys that CenterMask2 adds to detectron2's."""

DETECTRON2_DEFAULTS: dict[str, Any] = {
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL.MASK_ON": False,
    "MODEL.KEYPOINT_ON": False,
    "MODEL.LOAD_PROPOSALS": False,
    "MODEL.WEIGHTS": "",
    "MODEL.PIXEL_MEAN": (103.53, 116.28, 123.675),
    "MODEL.PIXEL_STD": (1.0, 1.0, 1.0),
    "MODEL.BACKBONE.NAME": "build_resnet_backbone",
    "MODEL.BACKBONE.FREEZE_AT": 2,
    "MODEL.FPN.IN_FEATURES": (),
    "MODEL.FPN.OUT_CHANNELS": 256,
    "MODEL.FPN.NORM": "",
    "MODEL.FPN.FUSE_TYPE": "sum",
    "MODEL.PROPOSAL_GENERATOR.NAME": "RPN",
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.NORM": "FrozenBN",
    "MODEL.RESNETS.NUM_GROUPS": 1,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 64,
    "MODEL.RESNETS.STRIDE_IN_1X1": True,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 256,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 64,
    "MODEL.RESNETS.RES5_DILATION": 1,
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": (False, False, False, False),
    "MODEL.RESNETS.DEFORM_MODULATED": False,
    "MODEL.RESNETS.DEFORM_NUM_GROUPS": 1,
    "MODEL.ROI_HEADS.NAME": "Res5ROIHeads",
    "MODEL.ROI_HEADS.NUM_CLASSES": 80,
    "MODEL.ROI_HEADS.IN_FEATURES": ("res4",),
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 512,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": 0.25,
    "MODEL.ROI_HEADS.IOU_THRESHOLDS": (0.5,),
    "MODEL.ROI_HEADS.IOU_LABELS": (0, 1),
    "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT": True,
    "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 0,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 256,
    "MODEL.ROI_MASK_HEAD.NORM": "",
    "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": False,
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,
    "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO": 0,
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": "ROIAlignV2",
    "INPUT.FORMAT": "BGR",
    "INPUT.MIN_SIZE_TRAIN": (800,),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": "choice",
    "INPUT.MAX_SIZE_TRAIN": 1333,
    "INPUT.MIN_SIZE_TEST": 800,
    "INPUT.MAX_SIZE_TEST": 1333,
    "INPUT.RANDOM_FLIP": "horizontal",
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.BASE_LR": 0.001,
    "SOLVER.MOMENTUM": 0.9,
    "SOLVER.WEIGHT_DECAY": 0.0001,
    "SOLVER.WEIGHT_DECAY_NORM": 0.0,
    "SOLVER.MAX_ITER": 40000,
    "SOLVER.STEPS": (30000,),
    "SOLVER.GAMMA": 0.1,
    "SOLVER.WARMUP_ITERS": 1000,
    "SOLVER.WARMUP_FACTOR": 0.001,
    "SOLVER.CHECKPOINT_PERIOD": 5000,
    "SOLVER.AMP.ENABLED": False,
}
"""The keys of detectron2 itself that say something about the net or its training."""

FIXED: dict[str, tuple[Any, ...]] = {
    "MODEL.META_ARCHITECTURE": ("GeneralizedRCNN", ARCHITECTURE),
    "MODEL.MASK_ON": (True,),
    "MODEL.KEYPOINT_ON": (False,),
    "MODEL.LOAD_PROPOSALS": (False,),
    "MODEL.BACKBONE.NAME": tuple(BUILDERS),
    "MODEL.FPN.NORM": ("",),
    "MODEL.FPN.FUSE_TYPE": ("sum", "avg"),
    "MODEL.PROPOSAL_GENERATOR.NAME": ("FCOS",),
    "MODEL.FCOS.USE_SCALE": (True,),
    "MODEL.FCOS.USE_DEFORMABLE": (False,),
    "MODEL.FCOS.NORM": ("GN", "none"),
    "MODEL.FCOS.LOC_LOSS_TYPE": ("giou", "iou", "linear_iou"),
    "MODEL.ROI_HEADS.NAME": ("CenterROIHeads",),
    "MODEL.ROI_HEADS.IOU_LABELS": ((0, 1),),
    "MODEL.ROI_MASK_HEAD.NAME": tuple(MASK_HEADS),
    "MODEL.ROI_MASK_HEAD.NORM": ("",),
    "MODEL.ROI_MASK_HEAD.ASSIGN_CRITERION": ("area", "ratio"),
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": (14,),
    "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO": (0,),
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": ("ROIAlignV2",),
    "MODEL.ROI_MASKIOU_HEAD.NAME": ("MaskIoUHead",),
    "MODEL.VOVNET.CONV_BODY": tuple(VOVNETS),
    "MODEL.VOVNET.NORM": tuple(NORMS),
    "MODEL.VOVNET.STAGE_WITH_DCN": ((False,) * 4, (False, True, True, True)),
    "MODEL.VOVNET.DEFORMABLE_GROUPS": (1,),
    "MODEL.RESNETS.NORM": tuple(NORMS),
    "MODEL.RESNETS.STEM_OUT_CHANNELS": (64,),
    "MODEL.RESNETS.RES5_DILATION": (1,),
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": ((False,) * 4,),
    "INPUT.FORMAT": ("BGR", "RGB"),
}
"""Keys that can have these values only; those of a section without part in the net are not looked at."""

WITHOUT_EFFECT: dict[str, str] = {
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": "CenterMask2 cuts at MODEL.FCOS.INFERENCE_TH_TEST",
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": "CenterMask2 suppresses doubles at MODEL.FCOS.NMS_TH",
    "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": "FCOS keeps boxes of any size",
    "MODEL.FCOS.USE_RELU": "box distances always pass through ReLU",
    "MODEL.VOVNET.OUT_FEATURES": "MODEL.FPN.IN_FEATURES decides",
    "MODEL.VOVNET.OUT_CHANNELS": "MODEL.FPN.OUT_CHANNELS decides",
    "MODEL.VOVNET.BACKBONE_OUT_CHANNELS": "MODEL.FPN.OUT_CHANNELS decides",
    "MODEL.RESNETS.OUT_FEATURES": "MODEL.FPN.IN_FEATURES decides",
    "MODEL.RPN": "FCOS proposes the boxes",
    "MODEL.RETINANET": "FCOS proposes the boxes",
    "MODEL.ANCHOR_GENERATOR": "FCOS has no anchors",
    "MODEL.ROI_BOX_HEAD": "FCOS boxes are final",
    "MODEL.ROI_BOX_CASCADE_HEAD": "FCOS boxes are final",
    "MODEL.ROI_KEYPOINT_HEAD": "keypoints are off",
    "MODEL.SEM_SEG_HEAD": "instances only",
    "MODEL.PANOPTIC_FPN": "instances only",
    "MODEL.DEVICE": "the caller moves the net",
    "TEST.DETECTIONS_PER_IMAGE": "CenterMask2 keeps MODEL.FCOS.POST_NMS_TOPK_TEST detections",
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN": "FCOS proposes the boxes",
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST": "FCOS proposes the boxes",
}
"""Keys or whole sections that a file may hold and that change nothing, with the reason."""

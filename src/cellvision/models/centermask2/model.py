"""CenterMask2 as a net of this library: raw images in, cells with masks out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cellvision.bundle import Detecting
from cellvision.checks import check_switch
from cellvision.errors import ConfigError, explain
from cellvision.models.backbones.norms import explain_lone_values
from cellvision.models.base import GraphPart, NetSpec, SegNet, fix_draws
from cellvision.models.build import MODELS
from cellvision.models.centermask2.assembly import build_detector, build_semantic_branch
from cellvision.models.centermask2.checks import check_images_and_classes
from cellvision.models.centermask2.detector import Detections
from cellvision.models.centermask2.fcos.head import FcosOutputs
from cellvision.models.centermask2.graphs import split_net
from cellvision.models.centermask2.ground_truth.cells import truth_from_labels
from cellvision.models.centermask2.settings import NetSettings
from cellvision.models.centermask2.start import FROM_CHECKPOINT, check_pixels, choose_norm, load_start, read_settings
from cellvision.models.preprocess import WHITE, Normalize, find_white
from cellvision.types import DataStats, Targets

_MAPS = ("class_logits", "ltrb", "centreness_logits")


@MODELS.register("centermask2")
class CenterMask2(SegNet):
    """Instance segmentation by FCOS boxes, spatially attended masks and rated masks (Lee and Park 2020, CenterMask).

    ``detector`` is the published net, its weights named and shaped like the published ones; around it are what this
    library adds: normalisation from the training data, any size of image, and an optional semantic branch.

    An image's cells do not depend on the rest of its batch: group normalisation in the head looks at the whole padded
    map, so every image is padded to the stride and never to the size of another one. (Training batches of mixed sizes
    are padded, as in the published code.)

    Attributes:
        spec: see NetSpec. ``tiles`` is false: group normalisation sees the whole image.
        settings: see NetSettings.

    Example:
        >>> net = CenterMask2(in_channels=1, classes=("background", "cell"), backbone="vovnet19_slim_dw",
        ...     fpn_channels=32, class_convs=1, box_convs=1, mask_convs=1, maskiou_convs=1).eval()
        >>> {name: tuple(found.shape[2:]) for name, found in net(torch.zeros(1, 1, 50, 70)).items()}["masks"]
        (28, 28)
    """

    options = NetSettings
    """What ``build_model`` takes besides the arguments below."""

    config: dict[str, Any]

    def __init__(
        self,
        *,
        in_channels: int,
        classes: Sequence[str],
        kind: str = "instance",
        config_file: str | None = None,
        weights: str | None = None,
        pretrained: bool = False,
        **settings: Any,
    ) -> None:
        """Build the net.

        Args:
            in_channels: image channels, >= 1.
            classes: background first.
            kind: "instance".
            config_file: a CenterMask2 config file of detectron2, whose values take the place of the defaults.
            weights: a checkpoint to start from: published CenterMask2 or LIVECell weights, whole or backbone only.
            pretrained: start the backbone from timm's ImageNet weights.
            **settings: some of NetSettings, of groups only the keys that differ.

        Raises:
            ConfigError: an argument is unknown or out of range, or two do not fit together.
        """
        super().__init__()
        check_images_and_classes(kind, in_channels, classes)
        if weights is not None and pretrained:
            got = f"model.weights={weights} and model.pretrained=true"
            raise ConfigError(explain(got=got, need="one of them", hint="model.pretrained=false"))
        self.settings, told = _choose_settings(config_file, settings, len(classes) - 1, weights, pretrained)
        check_pixels(self.settings, in_channels=in_channels)
        self.normalize = Normalize(in_channels)
        decoding = self.settings.decoding
        self.detecting: Detecting = Detecting(nms_iou=decoding.nms_iou, max_cells=decoding.post_nms)
        self.detector = build_detector(self.settings, in_channels=in_channels, class_count=len(classes) - 1)
        self.semantic = build_semantic_branch(self.settings, self.detector.backbone, classes=len(classes))
        self.settings, begun = load_start(self.detector, self.settings, weights=weights, pretrained=pretrained)
        self.report = self._beginning = (*told, *begun)
        self.decided = {
            **self.settings.to_plain(),
            "config_file": None,
            "pretrained": False,
            "weights": FROM_CHECKPOINT if self.settings.norm == "frozen" or self.settings.freeze_at else None,
        }
        self.spec = NetSpec(
            name="centermask2",
            kind=kind,
            in_channels=in_channels,
            classes=tuple(classes),
            stride=self.detector.backbone.size_divisibility,
            outputs=_name_outputs(self.settings),
            tiles=False,
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Cells with boxes, classes, scores and masks; see SegNet."""
        pyramid = self.encode_images(images)
        return self._decode(pyramid, self.detector.predict(pyramid), (images.shape[-2], images.shape[-1]))

    def part(self, image: Tensor, *, detecting: Detecting | None = None, parted: bool = False) -> tuple[GraphPart, ...]:
        """See SegNet; the semantic branch is left out, a bundle's pixels are those of its cells."""
        return split_net(self, image, detecting=detecting or self.detecting, parted=parted)

    def logits(self, images: Tensor) -> dict[str, Tensor]:
        """What ``decode`` and ``losses_from`` start from; all images fill the batch.

        Args:
            images: (B, C, H, W) raw counts.

        Returns:
            "pyramid_i" (B, fpn_channels, h, w), "class_logits_i" (B, K-1, h, w), "ltrb_i" (B, 4, h, w) in strides and
            "centreness_logits_i" (B, 1, h, w) for each level i, and "size" (2,) int64, the H and W given.
        """
        return self._compute_logits(images, sizes=None)

    def decode(self, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The results of ``forward`` from those of ``logits``."""
        height, width = logits["size"].tolist()
        return self._decode(*self._read(logits), (height, width))

    def losses(self, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Named scalar losses, already weighted; images that ``targets.sizes`` says are smaller may be padded."""
        return self.losses_from(self._compute_logits(images, targets.sizes), targets)

    def losses_from(self, logits: Mapping[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        """The same, from the results of ``logits``.

        Masks learn from boxes drawn at random; in evaluation they are the same ones each time.
        """
        pyramid, outputs = self._read(logits)
        height, width = logits["size"].tolist()
        sizes = targets.sizes or ((height, width),) * len(targets.label_image)
        truths = [truth_from_labels(*one) for one in zip(targets.label_image, targets.cell_classes, strict=True)]
        with nullcontext() if self.training else fix_draws(outputs.ltrb[0].device):
            found = self.detector.losses(pyramid, outputs, sizes, truths)
        losses = {name.removeprefix("loss_"): value for name, value in found.items()}
        if self.semantic is not None:
            losses |= self.semantic.losses(self.semantic(pyramid, size=(height, width)), targets)
        return losses

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """The pyramid's maps, "stride_8", "stride_16", ..., finest first, of the padded image."""
        strides = self.detector.backbone.strides
        return {f"stride_{strides[level]}": found for level, found in self.encode_images(images).items()}

    def set_statistics(self, stats: DataStats) -> None:
        """Take normalisation from the training data.

        ``pixel_mean`` and ``pixel_std`` are on a scale where the training images' dark end is 0 and their bright end
        255 (under data.normalization=none, where the counts are): weights learned on 8-bit images see what they know,
        whatever the camera. Without the two, the net sees what data.normalization says.

        Raises:
            ConfigError: data.normalization=zscore, which has no such ends, with one of the two.
        """
        given = {key: getattr(self.settings, key) for key in ("pixel_mean", "pixel_std")}
        told = [f"{key}=[{_list(values)}]" for key, values in given.items() if values is not None]
        if told:
            key, *_ = (key for key, values in given.items() if values is not None)
            stats = _move(find_white(stats, needed_by=f"model.{key}"), **given)
        self.normalize.set_statistics(stats)
        shown = f"shown as (count - [{_list(stats.offset)}]) / [{_list(stats.scale)}]"
        self.report = (*self._beginning, "; ".join([*told, f"data.normalization={stats.normalization}", shown]))

    def _compute_logits(self, images: Tensor, sizes: Sequence[tuple[int, int]] | None) -> dict[str, Tensor]:
        pyramid = self.encode_images(images, sizes)
        outputs = self.detector.predict(pyramid)
        found = {f"pyramid_{level}": maps for level, maps in pyramid.items()}
        for name in _MAPS:
            found |= {f"{name}_{level}": maps for level, maps in zip(pyramid, getattr(outputs, name), strict=True)}
        return {**found, "size": torch.tensor(images.shape[-2:])}

    def _read(self, logits: Mapping[str, Tensor]) -> tuple[dict[int, Tensor], FcosOutputs]:
        levels = self.detector.backbone.levels
        outputs = {name: tuple(logits[f"{name}_{level}"] for level in levels) for name in _MAPS}
        return {level: logits[f"pyramid_{level}"] for level in levels}, FcosOutputs(**outputs)

    def encode_images(self, images: Tensor, sizes: Sequence[tuple[int, int]] | None = None) -> dict[int, Tensor]:
        """The pyramid of (B, C, H, W) raw counts, normalised and 0 wherever there is no image; levels as keys.

        ``sizes``: height and width of each image where some are padded.
        """
        shown = self.normalize(images)
        if sizes is not None:
            for image, (height, width) in zip(shown, sizes, strict=True):
                image[:, height:] = 0
                image[:, :, width:] = 0
        # Written as multiples, so that the exporter sees that halving is exact.
        stride = self.detector.backbone.size_divisibility
        height, width = ((side + stride - 1) // stride * stride for side in shown.shape[-2:])
        with explain_lone_values():
            return self.detector.encode(F.pad(shown, (0, width - shown.shape[-1], 0, height - shown.shape[-2])))

    def _decode(self, pyramid: Mapping[int, Tensor], outputs: FcosOutputs, size: tuple[int, int]) -> dict[str, Tensor]:
        found = self.detector.detect(pyramid, outputs, [size] * len(outputs.ltrb[0]))
        results = _join(found)
        if self.semantic is not None:
            results["probabilities"] = self.semantic(pyramid, size=size).float().softmax(1)
        return results


def _choose_settings(
    config_file: str | None, given: Mapping[str, Any], class_count: int, weights: str | None, pretrained: bool
) -> tuple[NetSettings, list[str]]:
    """The settings with a norm that is not "auto", and lines on what is not as the file says."""
    check_switch("model.pretrained", pretrained)
    if config_file is not None:
        return read_settings(config_file, given, class_count=class_count, weights=weights, pretrained=pretrained)
    has_weights = weights is not None or pretrained
    return choose_norm(NetSettings().change(given), has_weights=has_weights, file=weights), []


def _move(stats: DataStats, *, pixel_mean: Sequence[float] | None, pixel_std: Sequence[float] | None) -> DataStats:
    """Statistics by which the net sees (value - mean) / std, from those by which it sees values of 0..255 as 0..1."""
    channels = len(stats.offset)
    mean, std = _spread(pixel_mean or (0.0,), channels), _spread(pixel_std or (WHITE,), channels)
    return replace(
        stats,
        offset=tuple(o + s * m / WHITE for o, s, m in zip(stats.offset, stats.scale, mean, strict=True)),
        scale=tuple(s * d / WHITE for s, d in zip(stats.scale, std, strict=True)),
    )


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _join(found: Sequence[Detections]) -> dict[str, Tensor]:
    """The detections of a batch as one tensor each, filled up with zeros to the most of an image."""
    counts = torch.stack([torch.ones_like(one.classes).sum() for one in found])
    names = {"boxes": "boxes", "scores": "scores", "class_scores": "class_scores", "masks": "masks"}
    if found[0].mask_scores is not None:
        names["mask_scores"] = "mask_scores"
    joined = {key: pad_sequence([getattr(one, name) for one in found], batch_first=True) for key, name in names.items()}
    places = torch.arange(joined["scores"].shape[1], device=counts.device)
    masks = joined.pop("masks")
    return {
        "boxes": joined.pop("boxes"),
        "scores": joined.pop("scores"),
        "classes": pad_sequence([one.classes + 1 for one in found], batch_first=True),
        "valid": places < counts[:, None],
        "class_scores": joined.pop("class_scores"),
        "masks": masks,
        **joined,
    }


def _name_outputs(settings: NetSettings) -> tuple[str, ...]:
    optional = {"mask_scores": settings.mask_iou, "probabilities": settings.semantic is not None}
    names = ("boxes", "scores", "classes", "valid", "class_scores", "masks")
    return (*names, *(name for name, is_there in optional.items() if is_there))


def _spread(values: Sequence[float], channels: int) -> Sequence[float]:
    """One value per channel; three published ones are for red, green and blue, other channels get their mean."""
    return values if len(values) == channels else (sum(values) / len(values),) * channels

"""Any instance segmentation net of detectron2, Mask R-CNN first, as a net of this library."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn

from cellvision.checks import check_switch
from cellvision.errors import ConfigError, explain
from cellvision.models.backbones.norms import FrozenBatchNorm
from cellvision.models.base import NetSpec, SegNet, fix_draws
from cellvision.models.build import MODELS
from cellvision.models.centermask2.checks import check_images_and_classes
from cellvision.models.detectron2.convert import build_truths, join
from cellvision.models.detectron2.install import check_detectron2
from cellvision.models.detectron2.settings import build_cfg, load_published_weights, to_plain
from cellvision.models.preprocess import WHITE, Normalize, find_white
from cellvision.types import DataStats, Targets

_OUTPUTS = ("boxes", "scores", "classes", "valid", "class_scores", "masks")
_KEEP_STILL = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)


@MODELS.register("detectron2")
class Detectron2Net(SegNet):
    """A detectron2 net with masks, built from a config file of detectron2.

    Images keep their size: detectron2's resizing is part of its data loading, and here scale is set in the data.
    Anchors are made for COCO's objects of 32 to 512 px; give smaller ones for smaller cells, with
    ``overrides={"MODEL": {"ANCHOR_GENERATOR": {"SIZES": [[8], [16], [32], [64], [128]]}}}``.

    Cells of class IGNORE count as background, since detectron2 has no such class. Its class scores are those of the
    chosen class alone.

    Attributes:
        spec: see NetSpec. ``tiles`` is false: the best proposals are chosen among those of the whole image.
        model: detectron2's net.
    """

    config: dict[str, Any]
    model: Any

    def __init__(
        self,
        *,
        in_channels: int,
        classes: Sequence[str],
        kind: str = "instance",
        config_file: str | None = None,
        overrides: Mapping[str, Any] | None = None,
        pretrained: bool = False,
        content: Mapping[str, Any] | None = None,
    ) -> None:
        """Build the net.

        Args:
            in_channels: as many as MODEL.PIXEL_MEAN has, or 1, which is then shown in all of them.
            classes: background first; they replace the number of classes of the config.
            kind: "instance".
            config_file: a file, or the name of one in detectron2's model zoo.
            overrides: sections with the keys to change, such as {"MODEL": {"RESNETS": {"NORM": "BN"}}}.
            pretrained: start from MODEL.WEIGHTS of the config; layers whose sizes do not fit are left random.
            content: a whole config as nested sections in place of ``config_file``; checkpoints use it, so that they
                do not need the file.

        Raises:
            ConfigError: detectron2 cannot be imported, the config cannot be used, or an argument is out of range.
        """
        check_detectron2("model=detectron2")
        super().__init__()
        check_images_and_classes(kind, in_channels, classes)
        check_switch("model.pretrained", pretrained)
        cfg = build_cfg(config_file, content, overrides, class_count=len(classes) - 1)
        self.model = model = _build(cfg, in_channels)
        if content is None and not pretrained:
            _check_can_learn(model)
        if pretrained:
            load_published_weights(model, cfg.MODEL.WEIGHTS)
        self.normalize = Normalize(in_channels)
        self.shown_channels = len(cfg.MODEL.PIXEL_MEAN)
        self.is_bgr = cfg.INPUT.FORMAT == "BGR" and in_channels == self.shown_channels == 3
        self.has_mask_scores = hasattr(model.roi_heads, "maskiou_head")
        self.decided = {"config_file": None, "overrides": None, "pretrained": False, "content": to_plain(cfg)}
        self.spec = NetSpec(
            name="detectron2",
            kind=kind,
            in_channels=in_channels,
            classes=tuple(classes),
            stride=max(model.backbone.size_divisibility, 1),
            outputs=(*_OUTPUTS, "mask_scores") if self.has_mask_scores else _OUTPUTS,
            tiles=False,
            exportable=False,
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Cells; see SegNet."""
        return self.decode(self.logits(images))

    def logits(self, images: Tensor) -> dict[str, Tensor]:
        """The images as detectron2 wants them: "images" (B, C, H, W) float32, 0..255 from dark to bright.

        Its nets compute losses and cells in two different passes, so there are no results to share: validation runs
        the net twice.
        """
        shown = self.normalize(images) * WHITE
        if self.is_bgr:
            shown = shown.flip(1)
        return {"images": shown.expand(-1, self.shown_channels, -1, -1)}

    def decode(self, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The results of ``forward`` from those of ``logits``."""
        with _run_as(self.model, training=False):
            found = self.model.inference(_list_inputs(logits["images"]), do_postprocess=False)
        return join(found, class_count=len(self.spec.classes) - 1, has_mask_scores=self.has_mask_scores)

    def losses(self, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Named scalar losses: those of the detectron2 net."""
        return self.losses_from(self.logits(images), targets)

    def losses_from(self, logits: Mapping[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        """The same, from the results of ``logits``.

        The nets draw boxes at random. In evaluation they draw the same ones each time, so that validation losses can
        be compared.
        """
        from detectron2.utils.events import EventStorage

        images = logits["images"]
        size = (images.shape[-2], images.shape[-1])
        inputs = _list_inputs(images, targets.sizes)
        for one, truth in zip(inputs, build_truths(targets, size), strict=True):
            one["instances"] = truth
        draws = nullcontext() if self.training else fix_draws(images.device)
        with draws, EventStorage(), _run_as(self.model, training=True):
            return {name.removeprefix("loss_"): value for name, value in self.model(inputs).items()}

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """The backbone's maps under detectron2's names ("p2", "p3", ...), finest first, of the padded images."""
        batch = self.model.preprocess_image(_list_inputs(self.logits(images)["images"]))
        found = self.model.backbone(batch.tensor)
        return dict(sorted(found.items(), key=lambda one: -one[1].shape[-1] * one[1].shape[-2]))

    def set_statistics(self, stats: DataStats) -> None:
        """Take normalisation from the training data: their dark end becomes 0 and their bright end 255.

        Raises:
            ConfigError: data.normalization=zscore, which has no such ends; see ``find_white``.
        """
        self.normalize.set_statistics(find_white(stats, needed_by="model=detectron2, whose MODEL.PIXEL_MEAN it is"))


def _build(cfg: Any, in_channels: int) -> Any:
    """The detectron2 net with random weights; ConfigError if it does not suit."""
    from detectron2.modeling import build_model

    _check_config(cfg, in_channels)
    try:
        return build_model(cfg)
    except (AssertionError, KeyError, ValueError) as error:
        got = f"detectron2 cannot build this config ({type(error).__name__}: {error})"
        need = "one in which sections fit together"
        raise ConfigError(explain(got=got, need=need, hint="compare model.overrides with model.config_file")) from error


def _check_config(cfg: Any, in_channels: int) -> None:
    """Raise ConfigError unless the config is of a net with masks for images of ``in_channels``."""
    from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, PanopticFPN

    channels, name = len(cfg.MODEL.PIXEL_MEAN), cfg.MODEL.META_ARCHITECTURE
    architecture: Any = META_ARCH_REGISTRY.get(name) if name in META_ARCH_REGISTRY else None
    is_class = isinstance(architecture, type) and issubclass(architecture, GeneralizedRCNN)
    is_suited = is_class and not issubclass(architecture, PanopticFPN)
    has_generator = cfg.MODEL.PROPOSAL_GENERATOR.NAME != "PrecomputedProposals"
    for holds, got, need, hint in (
        (
            in_channels in (1, channels),
            f"model.in_channels={in_channels} with {channels} numbers in MODEL.PIXEL_MEAN",
            "as many channels, or one",
            "++model.overrides.MODEL.PIXEL_MEAN=[...] and .PIXEL_STD=[...], a number per channel",
        ),
        (is_suited, f"MODEL.META_ARCHITECTURE={name}", "GeneralizedRCNN or one made from it", "Mask R-CNN's config"),
        (has_generator, "MODEL.PROPOSAL_GENERATOR.NAME=PrecomputedProposals", "one that looks at images", "RPN"),
        (cfg.MODEL.MASK_ON, "MODEL.MASK_ON=false", "a net with masks", "++model.overrides.MODEL.MASK_ON=true"),
    ):
        if not holds:
            raise ConfigError(explain(got=got, need=need, hint=hint))


def _check_can_learn(model: nn.Module) -> None:
    """Raise ConfigError for a net of random weights whose normalisation is frozen: its signals grow without bound."""
    from detectron2.layers import FrozenBatchNorm2d

    if any(isinstance(layer, FrozenBatchNorm2d | FrozenBatchNorm) for layer in model.modules()):
        raise ConfigError(
            explain(
                got="random weights with frozen normalisation (FrozenBN)",
                need="weights, or normalisation that learns",
                hint="model.pretrained=true, or ++model.overrides.MODEL.RESNETS.NORM=BN and .BACKBONE.FREEZE_AT=0",
            )
        )


def _list_inputs(images: Tensor, sizes: Sequence[tuple[int, int]] | None = None) -> list[dict[str, Any]]:
    """One dict per image, without its padding."""
    whole = sizes or [(images.shape[-2], images.shape[-1])] * len(images)
    return [
        {"image": image[:, :height, :width], "height": height, "width": width}
        for image, (height, width) in zip(images, whole, strict=True)
    ]


@contextmanager
def _run_as(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Let a net compute losses (training) or cells for a while, whatever its mode.

    Normalisation and dropout keep the mode they are in: a validation loss must not move running statistics.
    """
    modes = {module: module.training for module in model.modules() if not isinstance(module, _KEEP_STILL)}
    try:
        for module in modes:
            module.training = training
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode

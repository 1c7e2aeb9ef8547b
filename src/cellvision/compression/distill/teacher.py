"""The net that teaches: from a checkpoint or a bundle, checked against the student, and never trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cellvision.bundle import MANIFEST_NAME, Channel, compute_sha256, load_manifest
from cellvision.compression.distill.map_losses import to_logits
from cellvision.compression.distill.taps import Seen, list_points, watch
from cellvision.errors import ConfigError, explain
from cellvision.models.base import SegNet
from cellvision.models.centermask2.model import CenterMask2
from cellvision.models.map_net import MapNet
from cellvision.training.checkpoint import load_net

Sizes = tuple[tuple[int, int], ...] | None


class Teacher(ABC):
    """Something that says of images what a student should say of them.

    Attributes:
        net: the teaching net, in evaluation mode, float32 and without gradients; None for a bundle.
    """

    net: SegNet | None = None

    @abstractmethod
    def look(self, images: Tensor, sizes: Sizes) -> dict[str, Tensor]:
        """What it sees, computed without gradient in float32 even under autocast.

        Args:
            images: (B, C, H, W) raw counts.
            sizes: height and width of each where some are padded, see ``Targets.sizes``.

        Returns:
            Maps whose first dimension is B. Nets of maps: "classes" logits as the student's activation needs them,
            (B, K, H, W) or (B, K-1, H, W), "distance" logits (B, 1, H, W) where it has one, and "stride_s" features;
            instance nets: "pyramid_s", "class_logits_s", "ltrb_s" and "centreness_logits_s" for each stride s in px.
        """


class _FrozenNet(Teacher):
    """A net that is asked without gradient."""

    net: SegNet

    def __init__(self, net: SegNet) -> None:
        self.net = net.eval().float().requires_grad_(False)

    @torch.no_grad()
    def look(self, images: Tensor, sizes: Sizes) -> dict[str, Tensor]:
        self.net.to(images.device)
        with torch.autocast(images.device.type, enabled=False):
            return self._look(images.float(), sizes)

    @abstractmethod
    def _look(self, images: Tensor, sizes: Sizes) -> dict[str, Tensor]: ...


class MapTeacher(_FrozenNet):
    """A net of maps, of any size and of any family."""

    net: MapNet

    def __init__(self, net: MapNet, *, activation: str, with_features: bool = True) -> None:
        """``activation``: of the student, in which class logits are given; without features they are not kept."""
        super().__init__(net)
        self.activation, self.with_features = activation, with_features

    def _look(self, images: Tensor, sizes: Sizes) -> dict[str, Tensor]:
        seen = Seen()
        points = {name: each for name, each in list_points(self.net).items() if name != "head"}
        handles = watch(points, seen) if self.with_features else []
        try:
            logits = self.net.logits(images)
        finally:
            for handle in handles:
                handle.remove()
        found = {**logits, **{name: maps for name, (_, maps) in seen.items()}}
        if self.net.activation != self.activation:
            found["classes"] = to_logits(self.net.decode(logits)["probabilities"], self.activation)
        return found


class CellTeacher(_FrozenNet):
    """A CenterMask2 of any backbone; what its mask branch says is asked later, of the student's boxes."""

    net: CenterMask2

    def _look(self, images: Tensor, sizes: Sizes) -> dict[str, Tensor]:
        pyramid = self.net.encode_images(images, sizes)
        outputs = self.net.detector.predict(pyramid)
        strides = self.net.detector.backbone.strides
        found = {f"pyramid_{strides[level]}": maps for level, maps in pyramid.items()}
        for at, stride in enumerate(self.net.detector.proposal_generator.strides.values()):
            for name in ("class_logits", "ltrb", "centreness_logits"):
                found[f"{name}_{stride}"] = getattr(outputs, name)[at]
        return found


class BundleTeacher(Teacher):
    """A bundle of maps, run by ONNX Runtime on the CPU; it shows no features."""

    def __init__(self, folder: Path, *, activation: str) -> None:
        """Open the bundle; raises BundleError as `open_session` does."""
        from cellvision.runtime.graphs.map_session import MapSession  # the runtime is loaded where a bundle teaches
        from cellvision.runtime.session import open_session

        session = open_session(folder, threads=torch.get_num_threads())
        assert isinstance(session, MapSession)
        self.session, self.activation = session, activation

    def look(self, images: Tensor, sizes: Sizes) -> dict[str, Tensor]:
        """See Teacher; a graph that reads integers is given the nearest to what augmentation left of the counts."""
        shown = images.detach().float().cpu().numpy()
        dtype = np.dtype(self.session.manifest.input_dtype)
        if dtype.kind != "f":
            shown = np.clip(np.rint(shown), 0, np.iinfo(dtype).max)
        maps = self.session.run_batch(shown.astype(dtype, copy=False))
        probabilities = torch.from_numpy(np.stack([each.probabilities for each in maps])).to(images.device)
        found = {"classes": to_logits(probabilities, self.activation)}
        distances = [each.distance for each in maps if each.distance is not None]
        if distances:
            distance = torch.from_numpy(np.stack(distances)[:, None]).to(images.device)
            # As logits, like those of a net.
            found["distance"] = to_logits(torch.cat([1 - distance, distance], dim=1), "sigmoid")
        return found


@dataclass(frozen=True, kw_only=True)
class Images:
    """What a net is trained on, as far as another one must know it.

    Attributes:
        channels: in order.
        dtypes: of the images; float32 says nothing of what counts mean.
    """

    channels: Sequence[Channel]
    dtypes: Sequence[str] = ()


def load_teacher(path: Path, student: SegNet, images: Images, *, with_features: bool = True) -> Teacher:
    """The teacher of a checkpoint file or a bundle folder, for a student that is trained on these images.

    Raises:
        ConfigError: it has other classes, channels, counts or another task than the student, or its boxes and masks
            cannot be asked for one by one.
        DataError: the checkpoint cannot be read.
        BundleError: the bundle cannot.
    """
    if path.is_dir():
        return _load_bundle(path, student, images)
    net, record = load_net(path)
    taught = Images(channels=record.channels, dtypes=record.image_dtypes)
    _check_fit(path, student, images, kind=net.spec.kind, classes=net.spec.classes, taught=taught)
    return build_teacher(net, student, with_features=with_features)


def build_teacher(net: SegNet, student: SegNet, *, with_features: bool = True) -> Teacher:
    """The teacher that a net becomes; it must not be trained any more.

    Raises:
        ConfigError: a net without known layers.
    """
    list_points(net)
    if isinstance(net, MapNet) and isinstance(student, MapNet):
        return MapTeacher(net, activation=student.activation, with_features=with_features)
    assert isinstance(net, CenterMask2), "every kind of net has one class with known layers"
    return CellTeacher(net)


def _load_bundle(path: Path, student: SegNet, images: Images) -> Teacher:
    manifest = load_manifest(path)
    taught = Images(channels=manifest.channels, dtypes=manifest.image_dtypes)
    _check_fit(path, student, images, kind=manifest.kind, classes=manifest.classes, taught=taught)
    if manifest.kind == "instance":
        got = f"compress.distill.teacher={path}, a bundle of detections"
        need = "what the net says at every place and in the student's boxes, which no graph gives out"
        raise ConfigError(
            explain(got=got, need=need, hint="compress.distill.teacher=the checkpoint that it was exported from")
        )
    assert isinstance(student, MapNet)
    return BundleTeacher(path, activation=student.activation)


def _check_fit(
    path: Path, student: SegNet, images: Images, *, kind: str, classes: Sequence[str], taught: Images
) -> None:
    """Raise one ConfigError with all in which teacher and student differ and must not."""
    pairs: list[tuple[str, Any, Any]] = [
        ("kind", kind, student.spec.kind),
        ("classes", list(classes), list(student.spec.classes)),
        ("channels", [each.name for each in taught.channels], [each.name for each in images.channels]),
    ]
    if set(images.dtypes) - {"float32", *taught.dtypes}:
        pairs.append(("counts", list(taught.dtypes), list(images.dtypes)))
    if faults := [(what, theirs, ours) for what, theirs, ours in pairs if theirs != ours]:
        got = ", ".join(f"{what} {theirs}" for what, theirs, _ in faults)
        need = ", ".join(f"{what} {ours}" for what, _, ours in faults) + " as the student has"
        hint = "a teacher trained on the same channels for the same classes"
        raise ConfigError(explain(got=f"compress.distill.teacher={path} with {got}", need=need, hint=hint))


def compute_digest(path: Path) -> str:
    """SHA-256 of a checkpoint file, or of a bundle's manifest, which holds those of its graphs.

    Raises:
        ConfigError: there is neither.
    """
    file = path / MANIFEST_NAME if path.is_dir() else path
    if not file.is_file():
        got, need = f"compress.distill.teacher={path}", "a checkpoint file or a bundle folder"
        raise ConfigError(explain(got=got, need=need, hint="compress.distill.teacher=RUN_DIR/checkpoints/best.ckpt"))
    return compute_sha256(file)

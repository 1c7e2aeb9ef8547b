"""Our CenterMask2 under the names that detectron2's configs ask for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from cellvision.errors import ConfigError, unknown_name
from cellvision.models.centermask2.config_file.keys import ARCHITECTURE, BUILDERS, CENTERMASK_DEFAULTS
from cellvision.models.centermask2.config_file.reader import read_known_keys
from cellvision.models.centermask2.config_file.settings import CenterMaskSettings
from cellvision.models.detectron2.install import check_detectron2

if TYPE_CHECKING:
    from cellvision.models.detectron2.parts import CellvisionCenterMask


def register() -> None:
    """Make ``detectron2.modeling.build_model`` know our CenterMask2; a second call changes nothing.

    Two ways lead to it. MODEL.META_ARCHITECTURE "CellvisionCenterMask" is always ours: an image's answer does not
    depend on the other images of its batch. A published config with "GeneralizedRCNN" works unchanged through the
    published names of backbone, proposal generator and ROI heads, and batches as the official code does. These names
    are taken only where they are free, since detectron2 refuses a second owner: if the official package is to be
    imported too, import it before.

    Raises:
        ConfigError: detectron2 cannot be imported.
    """
    check_detectron2("register()")
    from detectron2.modeling import (
        BACKBONE_REGISTRY,
        META_ARCH_REGISTRY,
        PROPOSAL_GENERATOR_REGISTRY,
        ROI_HEADS_REGISTRY,
    )

    from cellvision.models.detectron2 import parts

    _add(META_ARCH_REGISTRY, ARCHITECTURE, parts.CellvisionCenterMask)
    for name in BUILDERS:
        _add(BACKBONE_REGISTRY, name, lambda cfg, shape: parts.build_backbone(read_cfg(cfg), shape.channels))
    _add(PROPOSAL_GENERATOR_REGISTRY, "FCOS", lambda cfg, shapes: parts.build_proposals(read_cfg(cfg)))
    _add(ROI_HEADS_REGISTRY, "CenterROIHeads", lambda cfg, shapes: parts.build_roi_heads(read_cfg(cfg)))


def add_centermask_config(cfg: Any) -> None:
    """Add the keys of CenterMask2 with their defaults to a detectron2 config, where they are absent.

    Only ``cfg`` itself changes, not detectron2's defaults, from which ``get_cfg()`` makes the next one.

    Args:
        cfg: a CfgNode that is not frozen.
    """
    node_type = type(cfg)
    for key, default in CENTERMASK_DEFAULTS.items():
        *sections, name = key.split(".")
        node = cfg
        for section in sections:
            if section not in node:
                node[section] = node_type()
            node = node[section]
        if name not in node:
            node[name] = list(default) if isinstance(default, tuple) else default


def build_centermask(*, compatible: bool = False, **settings: Any) -> CellvisionCenterMask:
    """Our CenterMask2 as a detectron2 net, without any config: a ``_target_`` for LazyConfig.

    Args:
        compatible: pad the images of a batch to one size, as the official code does, so that their answers depend a
            little on each other.
        **settings: those of CenterMaskSettings; "backbone" and "levels" have no default.

    Raises:
        ConfigError: detectron2 cannot be imported, or a setting is unknown or out of range.
    """
    check_detectron2("build_centermask")
    from cellvision.models.detectron2 import parts

    known = [one.name for one in fields(CenterMaskSettings)]
    for name in settings:
        if name not in known:
            raise ConfigError(unknown_name("setting of CenterMask2", name, known))
    plain = {name: _to_tuple(value) for name, value in settings.items()}
    return parts.CellvisionCenterMask(**parts.build_parts(CenterMaskSettings(**plain)), compatible=compatible)


def read_cfg(cfg: Any) -> CenterMaskSettings:
    """The settings of the net in a whole detectron2 config.

    Raises:
        ConfigError: as ``read_config_file`` for keys of CenterMask2; keys of other projects are left alone.
    """
    return read_known_keys(cfg).net


def _add(registry: Any, name: str, builder: Callable[..., Any]) -> None:
    """Record ``builder`` under ``name`` unless the name is taken, by us or by others."""
    if name not in registry:
        builder.__name__ = name
        registry.register(builder)


def _to_tuple(value: Any) -> Any:
    """Lists of any kind as tuples: LazyConfig has its own list type."""
    is_list = hasattr(value, "__iter__") and not isinstance(value, str)
    return tuple(value) if is_list else value

"""detectron2's config of a net, from a file and settings of ours, and its published weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from cellvision.errors import ConfigError, explain
from cellvision.models.centermask2.config_file.reader import flatten_keys
from cellvision.models.centermask2.weights.files import read_content
from cellvision.models.detectron2.register import add_centermask_config, register

_CLASS_COUNTS = ("MODEL.ROI_HEADS.NUM_CLASSES", "MODEL.FCOS.NUM_CLASSES")


def build_cfg(
    config_file: str | None,
    content: Mapping[str, Any] | None,
    overrides: Mapping[str, Any] | None,
    *,
    class_count: int,
) -> Any:
    """A detectron2 config on the CPU for ``class_count`` classes.

    Args:
        config_file: a file, or a name in the model zoo; it may also be of CenterMask2.
        content: a whole config as nested sections, in place of ``config_file``.
        overrides: nested sections, or dotted keys, with values that come last.
        class_count: without background.

    Raises:
        ConfigError: not one of ``config_file`` and ``content``, no such file, or something in it that detectron2
            refuses.
    """
    if (config_file is None) == (content is None):
        got = "neither" if config_file is None else "both"
        need = "model.config_file, a config file of detectron2"
        hint = "model.config_file=COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"
        raise ConfigError(explain(got=f"{got} of model.config_file and model.content", need=need, hint=hint))
    register()
    from detectron2.config import CfgNode, get_cfg

    cfg = get_cfg()
    add_centermask_config(cfg)
    try:
        if config_file is not None:
            cfg.merge_from_file(_find_file(config_file), allow_unsafe=False)
        else:
            cfg.merge_from_other_cfg(CfgNode(to_mutable(content)))
        for key in _CLASS_COUNTS:
            cfg.merge_from_list([key, class_count])
        for key, value in flatten_keys(overrides or {}):
            cfg.merge_from_list([key, to_mutable(value)])
    except (AssertionError, KeyError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        got = f"{config_file or 'model.content'} with model.overrides={dict(overrides or {})}: {reason}"
        raise ConfigError(
            explain(got=got, need="keys and values that detectron2 knows", hint="mend that key")
        ) from error
    cfg.MODEL.DEVICE = "cpu"
    return cfg


def to_plain(cfg: Any) -> dict[str, Any]:
    """A config as nested sections of plain values."""
    plain: dict[str, Any] = yaml.safe_load(cfg.dump())
    return plain


def to_mutable(value: Any) -> Any:
    """Dicts and lists in place of every other mapping and sequence."""
    if isinstance(value, Mapping):
        return {key: to_mutable(each) for key, each in value.items()}
    is_list = hasattr(value, "__iter__") and not isinstance(value, str)
    return [to_mutable(each) for each in value] if is_list else value


def load_published_weights(model: nn.Module, address: str) -> None:
    """Put weights of detectron2's model zoo, or of a file, into a net; what does not fit in size stays as it is.

    Raises:
        ConfigError: the address is empty.
        DataError: the file holds other things than arrays, which only a foreign program could make of it.
    """
    if not address:
        need = "weights for model.pretrained=true"
        hint = "++model.overrides.MODEL.WEIGHTS=FILE"
        raise ConfigError(explain(got="an empty MODEL.WEIGHTS", need=need, hint=hint))
    from detectron2.checkpoint import DetectionCheckpointer

    class _ArraysOnly(DetectionCheckpointer):
        """Reads pickled files of the model zoo without running what may be in them."""

        def _load_file(self, filename: str) -> dict[str, Any]:
            if not filename.endswith(".pkl"):
                found: dict[str, Any] = super()._load_file(filename)
                return found
            return _name_origin(read_content(Path(filename)))

    _ArraysOnly(model).load(address)


def _name_origin(content: dict[str, Any]) -> dict[str, Any]:
    """The content as detectron2's loader expects it: files without an author are older and named by Caffe2's rules."""
    if "model" in content and "__author__" in content:
        return content
    weights = {name: value for name, value in content.get("blobs", content).items() if not name.endswith("_momentum")}
    return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}


def _find_file(name: str) -> str:
    """A file of that name, here, in the model zoo of an installed detectron2 or in that of a checkout."""
    import detectron2

    package = Path(detectron2.__file__).parent
    # Not by detectron2's own function: it needs pkg_resources, which setuptools no longer has.
    for folder in (Path(), package / "model_zoo" / "configs", package.parent / "configs"):
        if (path := folder / Path(name).expanduser()).is_file():
            return str(path)
    need = "a file, or a name in detectron2's model zoo"
    hint = "model.config_file=COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"
    raise ConfigError(explain(got=f"model.config_file={name}", need=need, hint=hint))

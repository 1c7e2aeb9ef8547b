"""Whether detectron2 can be used, and what to do if not."""

from __future__ import annotations

import warnings
from importlib import import_module

from cellvision.errors import ConfigError, explain


def load_detectron2() -> None:
    """Import detectron2, or raise ImportError; that it uses what torch is giving up is not the caller's to mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_module("detectron2.modeling")


def check_detectron2(purpose: str) -> None:
    """Raise ConfigError, saying what to install for ``purpose``, unless detectron2 can be imported."""
    try:
        load_detectron2()
    except ImportError as error:
        hint = (
            "install detectron2 from its public source (facebookresearch/detectron2), "
            "e.g. pip install --no-build-isolation <checkout>"
        )
        raise ConfigError(
            explain(got=f"detectron2 cannot be imported ({error})", need=f"detectron2 for {purpose}", hint=hint)
        ) from error

"""From the overrides that Hydra made to the points that jobs are made of, each composed here as the job will."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from cellvision.cloud.options import LaunchOptions, is_asset
from cellvision.cloud.points import Point, Word, drop_local, find_paths, list_own_words, refuse_path
from cellvision.composition import GROUPS, check_groups, check_settings, resolve

ON_THE_NODE = "/on/the/node"


def read_point(
    loader: ConfigLoader,
    config: DictConfig,
    overrides: Sequence[str],
    *,
    options: LaunchOptions,
    script: str,
    index: int,
) -> Point:
    """A point of a sweep, whose settings were composed and checked in the form that its job will get.

    Raises:
        ConfigError: settings that would end the job at once, or that name a file of this machine.
        CompactHydraException: settings that do not compose.
    """
    parser = OverridesParser.create(config_loader=loader)
    words = drop_local(tuple(_read(override) for override in parser.parse_overrides(list(overrides))))
    asked = any(word.key.split(".")[0] == "logger" for word in words)
    logger = options.logger if not asked and options.logger in loader.get_group_options("logger") else None
    remote = [f"{word.left}={ON_THE_NODE}" if word.asset else word.text for word in words]
    remote += [*list_own_words(options, logger), f"run_dir={ON_THE_NODE}"]
    cfg = loader.load_configuration(config.hydra.job.config_name, remote, run_mode=RunMode.RUN)
    model = cfg.hydra.runtime.choices.get("model") or script.removesuffix(".py")
    with read_write(cfg), open_dict(cfg):
        del cfg["hydra"]
    _check_files(cfg)
    check_settings(cfg)
    plain = resolve(cfg)
    check_groups(plain, GROUPS)
    return Point(
        index=index,
        script=script,
        model=str(model),
        words=words,
        logger=logger,
        monitor=plain.get("monitor"),
        goal="minimize" if plain.get("monitor_mode") == "min" else "maximize",
        paths=find_paths(plain),
    )


def _read(override: Override) -> Word:
    value, text = override.value(), override.input_line
    assert text is not None
    asset = value if isinstance(value, str) and is_asset(value) else None
    return Word(key=override.key_or_group, text=text, asset=asset)


def _check_files(cfg: DictConfig) -> None:
    """Raise ConfigError for data and a checkpoint that lie on this machine, which a job does not see."""
    for key in ("data.root", "ckpt"):
        path = None if OmegaConf.is_missing(cfg.get("data") or {}, "root") else OmegaConf.select(cfg, key)
        if path is not None and not str(path).startswith(ON_THE_NODE):
            raise refuse_path(key, str(path))

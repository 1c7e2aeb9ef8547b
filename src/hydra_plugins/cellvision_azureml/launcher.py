"""The launcher itself: what Hydra composes goes to ``cellvision.cloud``; nothing heavy is imported before."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from cellvision.cloud.options import LaunchOptions


class AzureMLLauncher(Launcher):
    """Submits one job to Azure ML per list of overrides, or one sweep job for all of them."""

    def __init__(self, **options: Any) -> None:
        plain: dict[str, Any] = {
            key: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for key, v in options.items()
        }
        self.options = LaunchOptions(**plain)
        self.config: DictConfig | None = None
        self.context: HydraContext | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what composing the points needs; the task function runs elsewhere."""
        self.config, self.context = config, hydra_context

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submit the points of a sweep, or attach to the jobs that they have; a single run is a sweep of one.

        Returns:
            For each point COMPLETED, with the name and address of its job and, once it was waited for and downloaded,
            its score as the value to compare; FAILED with the error for the first that could not be submitted, which
            ends the list.
        """
        from cellvision.cloud.launching import launch_points

        from ._points import read_point  # a checker of types finds no name for a namespace without __init__.py

        setup_globals()
        assert self.config is not None
        assert self.context is not None
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        script, loader = Path(sys.argv[0]).resolve(), self.context.config_loader
        self.options.check()
        points = [
            read_point(loader, self.config, overrides, options=self.options, script=script.name, index=index)
            for index, overrides in enumerate(job_overrides, initial_job_idx)
        ]
        folder = Path(str(self.config.hydra.sweep.dir))
        outcomes = launch_points(points, self.options, root=script.parent, folder=folder)
        return [
            JobReturn(
                overrides=list(overrides),
                cfg=self.config,
                hydra_cfg=self.config,
                status=JobStatus.COMPLETED if outcome.error is None else JobStatus.FAILED,
                _return_value=outcome.value if outcome.error is None else outcome.error,
            )
            for overrides, outcome in zip(job_overrides, outcomes, strict=False)
        ]

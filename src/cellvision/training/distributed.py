"""Several processes that train one net: how they find each other's end, and what a step holds of each."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy

from cellvision.errors import ConfigError, explain
from cellvision.training.gathering import gather


def build_ddp(*, timeout_s: float = 600.0, find_unused_parameters: bool = False) -> DDPStrategy:
    """One net in every process, with the mean of their gradients: NCCL between GPUs, gloo on CPUs.

    Args:
        timeout_s: how long a process waits for the others before it gives up, and the run with it. Longer than anything
            that the first process does alone, such as timing a net that is pruned.
        find_unused_parameters: look in every step for weights that it did not use; slower, and needed by no net of this
            library: where there is nothing to learn their losses are 0 with a gradient.

    Raises:
        ConfigError: a time that is not above 0.
    """
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or not timeout_s > 0:
        got = f"trainer.strategy.timeout_s={timeout_s!r}"
        raise ConfigError(explain(got=got, need="seconds above 0", hint="trainer.strategy.timeout_s=600"))
    return DDPStrategy(timeout=timedelta(seconds=timeout_s), find_unused_parameters=find_unused_parameters)


def check_processes(trainer: Trainer) -> None:
    """Look whether as many processes were started as a trainer is told of, where it does not start them itself.

    Raises:
        ConfigError: there are more or fewer.
    """
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if environment is None:
        return
    try:
        environment.validate_settings(num_devices=trainer.num_devices, num_nodes=trainer.num_nodes)
    except ValueError as error:
        started = environment.world_size()
        each = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("SLURM_NTASKS_PER_NODE") or started)
        got = f"trainer.devices={trainer.num_devices} on trainer.num_nodes={trainer.num_nodes}"
        nodes = "" if started // each == trainer.num_nodes else f" ++trainer.num_nodes={started // each}"
        need = f"{started} in all, as many as processes were started"
        raise ConfigError(explain(got=got, need=need, hint=f"trainer.devices={each}{nodes}")) from error


class Together(Callback):
    """One run folder for all processes, and a line on how to go on where one of them was lost.

    Args:
        folder: of the run, as this process knows it.

    Raises:
        ConfigError: when training begins, where another process has another folder.
    """

    def __init__(self, *, folder: Path) -> None:
        self.folder = folder

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the folders: processes that did not start each other may each have taken the name from its clock."""
        folders = sorted({str(folder.absolute()) for folder in gather(self.folder)})
        if len(folders) > 1:
            got = f"{trainer.world_size} processes with the run folders {' and '.join(folders)}"
            raise ConfigError(explain(got=got, need="one for all", hint="run_dir=runs/mine"))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say what the error of a connection means."""
        if trainer.world_size > 1 and isinstance(exception, RuntimeError):
            print(
                f"process {trainer.global_rank} of {trainer.world_size} ends: it failed, or lost another one; to go on "
                f"after the last saved epoch: the same command with run_dir={self.folder} resume=auto",
                file=sys.stderr,
            )

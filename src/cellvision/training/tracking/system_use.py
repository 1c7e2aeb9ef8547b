"""How busy the machine is while a net is trained."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import psutil
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from cellvision.errors import ConfigError, explain

GIB = 2**30


class SystemUse(Callback):
    """Tells all loggers, every so often, how busy processor, memory and GPU are, of the machine of the first process.

    Args:
        every_s: seconds between two measurements, each after the next training step.

    Raises:
        ConfigError: a time that is not above 0.
    """

    def __init__(self, *, every_s: float = 30.0) -> None:
        if isinstance(every_s, bool) or not isinstance(every_s, int | float) or not every_s > 0:
            got = f"callbacks.system_use.every_s={every_s!r}"
            raise ConfigError(explain(got=got, need="seconds above 0", hint="callbacks.system_use.every_s=30"))
        self.every_s = every_s
        self._next = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count the processor's time."""
        measure_use(pl_module.device)
        self._next = time.monotonic() + self.every_s

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure, if it is time to."""
        if trainer.is_global_zero and time.monotonic() >= self._next:
            self._next = time.monotonic() + self.every_s
            use = measure_use(pl_module.device)
            for logger in trainer.loggers:
                logger.log_metrics(use, step=trainer.global_step)


def measure_use(device: torch.device) -> dict[str, float]:
    """How busy this machine is.

    Args:
        device: where the net is; what of it is a GPU is measured, too.

    Returns:
        "system/cpu_percent" of all cores since the call before, "system/memory_percent" of the machine's,
        "system/process_memory_gib" of this process and those that it started, pages that they share counted in each;
        on a GPU "system/gpu_memory_gib", the most that tensors took so far, and, where its driver says so,
        "system/gpu_percent".
    """
    own = psutil.Process()
    taken = 0
    for process in (own, *own.children(recursive=True)):
        with suppress(psutil.Error):  # ended meanwhile
            taken += process.memory_info().rss
    found = {
        "system/cpu_percent": psutil.cpu_percent(),
        "system/memory_percent": psutil.virtual_memory().percent,
        "system/process_memory_gib": taken / GIB,
    }
    if device.type == "cuda":
        found["system/gpu_memory_gib"] = torch.cuda.max_memory_allocated(device) / GIB
        with suppress(Exception):  # not installed, another driver, a part of a GPU: no reason to end a training
            found["system/gpu_percent"] = float(torch.cuda.utilization(device))
    return found

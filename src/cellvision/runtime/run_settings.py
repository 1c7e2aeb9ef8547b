"""How a bundle's graphs are to be run: on what, with how many threads, and what becomes of their memory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cellvision.errors import ConfigError, check_choice, explain

ARENAS = ("keep", "shrink", "none")


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How graphs are run; the same for all graphs of a bundle.

    Attributes:
        provider: short name of an ONNX Runtime execution provider: "cpu", "cuda", "tensorrt", "openvino" ..
        provider_options: of that provider by name, e.g. {"device_id": "1"}; the processor's has none.
        threads: processor threads for one run of a graph, from 1 to those of the machine, or 16; None leaves it to ONNX
            Runtime (all cores).
        arena: what happens to the working memory of a run. "keep" holds it for the next run, which is fastest; "shrink"
            gives it back after each run; "none" asks the system for every piece, which is slowest and needs least.
        profile_prefix: beginning of the name of the file that ONNX Runtime writes the times of all operators to; None
            for no such file. `Session.end_profiling` completes it.

    Raises:
        ConfigError: threads out of range, another arena, or options for the processor.
    """

    provider: str = "cpu"
    provider_options: Mapping[str, str] = field(default_factory=dict)
    threads: int | None = None
    arena: str = "keep"
    profile_prefix: Path | None = None

    def __post_init__(self) -> None:
        most = max(16, os.cpu_count() or 1)  # many more only wait for each other, for minutes
        if self.threads is not None and not 1 <= self.threads <= most:
            got, need = f"threads={self.threads}", f"a whole number from 1 to {most}"
            raise ConfigError(explain(got=got, need=need, hint="leave it out"))
        check_choice("arena", self.arena, ARENAS)
        if self.provider == "cpu" and self.provider_options:
            raise ConfigError(
                explain(
                    got=f"provider_options {', '.join(sorted(self.provider_options))} with provider=cpu",
                    need="none, for the processor has no such options",
                    hint="threads and arena, or another provider",
                )
            )

"""``azure_jobs.json`` in the folder of a sweep: which point is which job, written after each submission."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cellvision.errors import DataError, explain

FILE = "azure_jobs.json"


class Ledger:
    """The jobs of a sweep, by the names that were planned for them; a file of an earlier try is taken up.

    Raises:
        DataError: that file cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self.jobs: dict[str, dict[str, Any]] = {}
        if self.path.is_file():
            try:
                self.jobs = {job["plan"]: job for job in json.loads(self.path.read_text(encoding="utf-8"))["jobs"]}
            except (ValueError, KeyError, TypeError) as error:
                got, need = f"{self.path} cannot be read", "what an earlier launch wrote"
                raise DataError(explain(got=got, need=need, hint="another run_dir, or without that file")) from error

    def write(self, plan: str, **facts: Any) -> None:
        """Keep what is known of a job, at once: the next submission may be the one that breaks."""
        self.jobs[plan] = {**self.jobs.get(plan, {}), "plan": plan, **facts}
        rows = sorted(self.jobs.values(), key=lambda job: job.get("index", 0))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        staged = self.path.with_suffix(".part")
        staged.write_text(json.dumps({"jobs": rows}, indent=2) + "\n", encoding="utf-8")
        staged.replace(self.path)

"""What a server has done, in the text format of Prometheus."""

from __future__ import annotations

import threading
from collections import Counter


class Meter:
    """Counts requests and the seconds they took; safe to use from several threads."""

    def __init__(self) -> None:
        """Start at zero."""
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._seconds: Counter[str] = Counter()
        self._cells = self._images = 0
        self._working_seconds = 0.0

    def add_request(self, path: str, status: int, seconds: float) -> None:
        """Count a request that was answered after so many seconds; one that waited and sent its image counts that."""
        with self._lock:
            self._requests[path, status] += 1
            self._seconds[path] += seconds  # type: ignore[assignment]  # a Counter of float

    def add_image(self, cells: int, seconds: float) -> None:
        """Count an image that was worked on for so many seconds."""
        with self._lock:
            self._images += 1
            self._cells += cells
            self._working_seconds += seconds

    def render(self, *, taken: int) -> str:
        """All of it.

        Args:
            taken: places that are taken now.

        Example:
            >>> print(Meter().render(taken=0).splitlines()[-1])
            cellvision_places_taken 0
        """
        with self._lock:
            requests = [
                f'cellvision_requests_total{{path="{path}",status="{status}"}} {count}'
                for (path, status), count in sorted(self._requests.items())
            ]
            errors = sum(count for (_, status), count in self._requests.items() if status >= 400)
            seconds = [
                f'cellvision_request_seconds_total{{path="{path}"}} {value:.6f}'
                for path, value in sorted(self._seconds.items())
            ]
            totals = {
                "errors_total": errors,
                "images_total": self._images,
                "cells_total": self._cells,
                "image_seconds_total": f"{self._working_seconds:.6f}",
            }
        lines = ["# TYPE cellvision_requests_total counter", *requests]
        lines += ["# TYPE cellvision_request_seconds_total counter", *seconds]
        for name, value in totals.items():
            lines += [f"# TYPE cellvision_{name} counter", f"cellvision_{name} {value}"]
        lines += ["# TYPE cellvision_places_taken gauge", f"cellvision_places_taken {taken}"]
        return "\n".join(lines) + "\n"

"""A few images are worked on at once, a few wait, and the rest is told when to come back."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from cellvision.errors import explain
from cellvision.serve.limits import Limits
from cellvision.serve.refusal import Refusal

_Result = TypeVar("_Result")
_SHARE_OF_LAST = 0.2


class Desk:
    """Hands work to threads, for the one event loop of a server.

    Attributes:
        taken: requests that have a place, those that still send their image included.
    """

    def __init__(self, limits: Limits) -> None:
        """Start without threads; each is started when it is needed."""
        self.taken = 0
        self._limits = limits
        self._pool = ThreadPoolExecutor(limits.workers, thread_name_prefix="cellvision-serve")
        self._seconds = 1.0

    @contextmanager
    def take_place(self) -> Iterator[None]:
        """Hold a place, before an image is received, as long as the ``with`` block lasts.

        Raises:
            Refusal: 503, as all are taken; it says after how many seconds one should be free.
        """
        limits = self._limits
        if self.taken >= limits.workers + limits.queue:
            wait = math.ceil(self._seconds * (limits.queue + 1) / limits.workers)
            got = f"{limits.workers} images at work and {limits.queue} waiting, which is all this server takes on"
            raise Refusal(
                503, explain(got=got, need="a free place", hint=f"the same again in {wait} s"), retry_after=wait
            )
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1

    async def run(self, work: Callable[[], _Result]) -> _Result:
        """What ``work`` gives, from a thread of its own."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._time, work)

    def close(self) -> None:
        """Wait for the threads to end."""
        self._pool.shutdown()

    def _time(self, work: Callable[[], _Result]) -> _Result:
        began = time.monotonic()
        try:
            return work()
        finally:
            self._seconds += _SHARE_OF_LAST * (time.monotonic() - began - self._seconds)

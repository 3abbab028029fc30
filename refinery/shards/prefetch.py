"""Read ahead in one background thread.

A training step needs megabytes per second, so one thread that calls ``pread`` (which frees the interpreter lock) is
enough; worker processes would add copies and state. The thread holds no position of its own: what it reads is a list of
requests, so a run restarts anywhere.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Generic, TypeVar

from refinery.errors import ConfigError

Request = TypeVar("Request")
Result = TypeVar("Result")


class Prefetcher(Generic[Request, Result]):
    """Iterate ``read(request)`` over requests, `ahead` results early. Close it, use it as a context, or exhaust it."""

    def __init__(self, read: Callable[[Request], Result], requests: Iterable[Request], ahead: int = 2) -> None:
        """Start reading.

        Args:
            read: for example ``lambda step: reader.batch(plan, step * rows, rows, slots)``.
            requests: may be endless; taken in the background thread.
            ahead: results that wait at most.
        """
        if ahead < 1:
            raise ConfigError(f"ahead {ahead} must be at least 1")
        self._queue: queue.Queue[tuple[str, Result | BaseException | None]] = queue.Queue(maxsize=ahead)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(read, requests), name="shard-prefetch", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Result]:
        """Yield results in order; an exception of `read` is raised where its result would have come."""
        while not self._stop.is_set():
            try:
                kind, value = self._queue.get(timeout=0.1)  # awake now and then: another thread may close
            except queue.Empty:
                continue
            if kind == "result":
                yield value  # type: ignore[misc]
                continue
            self.close()
            if isinstance(value, BaseException):
                raise value

    def __enter__(self) -> Prefetcher[Request, Result]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the thread and wait for it; results that nobody took are dropped."""
        self._stop.set()
        while self._thread.is_alive():
            try:
                self._queue.get_nowait()  # a thread that waits for room must see the stop
            except queue.Empty:
                self._thread.join(timeout=0.01)

    def _run(self, read: Callable[[Request], Result], requests: Iterable[Request]) -> None:
        try:
            for request in requests:
                if self._stop.is_set() or not self._put(("result", read(request))):
                    return
            self._put(("end", None))
        except BaseException as error:  # whatever failed belongs to the thread that iterates
            self._put(("error", error))

    def _put(self, item: tuple[str, Result | BaseException | None]) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.05)
            except queue.Full:
                continue
            return True
        return False

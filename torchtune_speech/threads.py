"""Threads for work that may hang, such as reading files."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, Self

_POLL_S = 0.05


class TimedTask:
    """Work that a thread of :class:`TimedThreads` sees to.

    Args:
        work: called without arguments.
    """

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self.future: Future[Any] = Future()
        self.started_at: float | None = None
        self.given_up = False

    def run(self) -> None:
        """Do the work; keep its result or its exception."""
        self.started_at = time.monotonic()
        try:
            self.future.set_result(self._work())
        except BaseException as error:
            self.future.set_exception(error)


class TimedThreads:
    """A pool of threads in which work that takes too long is given up.

    A thread cannot be stopped from outside, and one that waits for a dead network disk not even by
    the system. So its task counts as failed, another thread takes its place, and the process does
    not wait for it at its end.

    Args:
        num_threads: how many tasks run at once.
        time_limit_s: longest time for one task, from its start.

    Example:
        >>> with TimedThreads(4, time_limit_s=60) as threads:
        ...     tasks = [threads.submit(partial(load_audio, path)) for path in paths]
        ...     waveforms = [threads.result(task) for task in tasks]
    """

    def __init__(self, num_threads: int, time_limit_s: float) -> None:
        self._num_threads = num_threads
        self._time_limit_s = time_limit_s
        self._tasks: queue.SimpleQueue[TimedTask | None] = queue.SimpleQueue()

    def __enter__(self) -> Self:
        for _ in range(self._num_threads):
            self._start_thread()
        return self

    def __exit__(self, *error: object) -> None:
        """Drop what has not been started, and let the threads end."""
        with contextlib.suppress(queue.Empty):
            while True:  # not empty() and get(): a thread may take the last one in between
                self._tasks.get_nowait()
        for _ in range(self._num_threads):
            self._tasks.put(None)

    def submit(self, work: Callable[[], Any]) -> TimedTask:
        """Queue work.

        Args:
            work: called without arguments, in a thread.

        Returns:
            What :meth:`result` takes.
        """
        task = TimedTask(work)
        self._tasks.put(task)
        return task

    def result(self, task: TimedTask) -> Any:
        """Wait for a task.

        Args:
            task: of :meth:`submit`.

        Returns:
            What the work returned.

        Raises:
            TimeoutError: if it took longer than the limit; else whatever the work raised.
        """
        while not wait([task.future], _POLL_S).done:
            started = task.started_at
            if started is not None and time.monotonic() - started > self._time_limit_s:
                task.given_up = True
                self._start_thread()
                raise TimeoutError(f"took longer than {self._time_limit_s:g} s")
        return task.future.result()

    def _start_thread(self) -> None:
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            task.run()
            if task.given_up:  # another thread is in this one's place
                return

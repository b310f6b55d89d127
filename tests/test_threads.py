"""Threads for work that may hang."""

import subprocess
import sys
import threading
import time

import pytest

from torchtune_speech.threads import TimedThreads


def test_results_and_errors_come_back_in_any_order():
    with TimedThreads(3, time_limit_s=30) as threads:
        tasks = [threads.submit(lambda n=n: n * n) for n in range(50)]
        wrong = threads.submit(lambda: 1 / 0)
        assert [threads.result(task) for task in reversed(tasks)] == [
            n * n for n in reversed(range(50))
        ]
        with pytest.raises(ZeroDivisionError):
            threads.result(wrong)


def test_what_hangs_is_given_up_and_replaced():
    goes_on = threading.Event()
    with TimedThreads(2, time_limit_s=0.2) as threads:
        hanging = [threads.submit(lambda: goes_on.wait(60)) for _ in range(3)]
        after = threads.submit(lambda: "done")
        for task in hanging:
            with pytest.raises(TimeoutError, match=r"took longer than 0.2 s"):
                threads.result(task)
        assert threads.result(after) == "done"
        goes_on.set()


def test_waiting_in_the_queue_does_not_count():
    with TimedThreads(1, time_limit_s=0.4) as threads:
        tasks = [threads.submit(lambda n=n: time.sleep(0.15) or n) for n in range(5)]
        assert [threads.result(task) for task in tasks] == list(range(5))


def test_an_error_drops_what_is_queued():
    done = []
    with pytest.raises(RuntimeError), TimedThreads(1, time_limit_s=30) as threads:
        threads.submit(lambda: time.sleep(0.2))
        for n in range(100):
            threads.submit(lambda n=n: done.append(n))
        raise RuntimeError
    time.sleep(0.4)
    assert len(done) == 0


def test_the_process_does_not_wait_for_what_hangs():
    code = (
        "import threading\n"
        "from torchtune_speech.threads import TimedThreads\n"
        "with TimedThreads(1, time_limit_s=0.1) as threads:\n"
        "    try:\n"
        "        threads.result(threads.submit(threading.Event().wait))\n"
        "    except TimeoutError:\n"
        "        print('given up')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "given up")

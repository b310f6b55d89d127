"""One line for an error the user can mend, one line for all the processes of a run."""

import os
import select
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import yaml
from omegaconf.errors import OmegaConfBaseException

from torchtune_speech.errors import InputError

# What may be wrong with the user's files, settings or machine rather than with the program.
_USER_ERRORS = (InputError, OSError, OmegaConfBaseException, yaml.YAMLError)


@contextmanager
def one_line_errors(traceback: bool = False) -> Iterator[None]:
    """Turns the errors a user can mend into one line on stderr and exit code 1.

    Covered are `InputError`, missing files, lacking permissions, a full disk, and what OmegaConf
    and YAML say of config files. Anything else is a bug and keeps its traceback. Under torchrun
    one process of the run prints. Ctrl-C exits with 130. Where the reader of stdout has gone, as in
    `torchtune-speech ls | head -1`, the program ends without a word and with 141, as shells say it.

    Args:
        traceback: Let all errors through with their traceback; so does
            `TORCHTUNE_SPEECH_TRACEBACK=1` in the environment.

    Raises:
        SystemExit: With code 1 after an error, 130 after Ctrl-C, 141 without a reader of stdout.

    Example:
        >>> with one_line_errors():
        ...     cfg = OmegaConf.load(path)
    """
    try:
        with _quiet_without_reader():
            yield
    except _USER_ERRORS as error:
        if traceback or os.environ.get("TORCHTUNE_SPEECH_TRACEBACK", "0") not in ("", "0"):
            raise
        _print_once(f"error: {_one_line(error)}")
        sys.exit(1)
    except KeyboardInterrupt:
        _print_once("interrupted")
        sys.exit(130)


@contextmanager
def _quiet_without_reader() -> Iterator[None]:
    try:
        try:
            yield
        except SystemExit:  # after --help, say
            _flush_stdout()
            raise
        _flush_stdout()
    except BrokenPipeError:
        if not _reader_has_gone():
            raise
        # What is buffered would be tried again, and complained about, when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)


def _flush_stdout() -> None:
    print(end="", flush=True)  # there is no sys.stdout after >&-


def _reader_has_gone() -> bool:
    """Whether stdout is what broke, rather than some other pipe or connection."""
    poll = select.poll()
    try:
        poll.register(sys.stdout, 0)  # errors are always told
    except (TypeError, ValueError):  # no file
        return False
    return bool(poll.poll(0))


def _one_line(error: BaseException) -> str:
    if isinstance(error, OmegaConfBaseException):
        # The lines after the first repeat the key and name OmegaConf's types.
        what, key = str(error).partition("\n")[0], error.full_key or error.key or "KEY"
        text = f"config: {key}: {what}; set it in the file or as {key}=VALUE on the command line"
    elif isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        text = f"{mark.name}:{mark.line + 1}: not YAML ({error.problem}); mend it there"
    elif isinstance(error, OSError) and error.filename is not None and error.strerror:
        text = f"{os.fsdecode(error.filename)}: {error.strerror}"
    else:
        text = str(error) or type(error).__name__
    return " ".join(text.split())


def _print_once(line: str) -> None:
    """Prints a line on stderr, from one process only when torchrun started several."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or _claim():
        print(line, file=sys.stderr, flush=True)


def _claim() -> bool:
    """Returns True in one of the failing processes of a run.

    Any process may be the one that fails, and torchrun kills the others at once, so that waiting
    for rank 0 would lose the message. torchrun's own store outlives its processes: whoever adds
    first may speak. Where it cannot be reached, rank 0 speaks.
    """
    rank, attempt = os.environ.get("RANK", "0"), os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    try:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        timeout = timedelta(seconds=3)
        # TCPStore answers a closed port with pages of C++ log, so knock first.
        socket.create_connection((host, port), timeout.total_seconds()).close()
        from torch.distributed import TCPStore

        store = TCPStore(host, port, is_master=False, timeout=timeout, wait_for_workers=False)
        return store.add(f"torchtune_speech/error/{attempt}", 1) == 1
    except (ImportError, KeyError, ValueError, OSError, RuntimeError):
        return rank == "0"

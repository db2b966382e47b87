"""The same work on many items, wherever it is done: any callable like the built-in ``map`` says where.

``map(function, items)`` gives the results in the order of the items: the built-in, the ``map`` of a pool of processes
or threads, ``imap`` of a pool of multiprocessing or of ``ray.util.multiprocessing``. The library takes what it is
given; :func:`process_map` is there for the command line, which can be given none.
"""

import multiprocessing
import os
import pickle
import random
import secrets
import signal
import threading
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import numpy as np
import torch

from mlcomp.checks import check_whole

T = TypeVar("T")
R = TypeVar("R")

Map = Callable[..., Iterable[Any]]  # map(function, items) → the results, in the order of the items

_BORN = secrets.token_hex(8)  # of this process, and of its forks

HOW = (
    "Another process finds a function or class by its module: write it in a file that can be imported there, and "
    "bind its options by functools.partial. A lambda, a function inside of a function, and what a notebook's cell "
    'defines have no such address. A script that starts processes does so below `if __name__ == "__main__":`'
)


def check_map(map: Map, *needed: Any) -> None:
    """Send what the work will need through ``map`` once, before any is done.

    Raises:
        TypeError: ``map`` cannot be called.
        ValueError: it does not work: something cannot be sent, or is not known to a worker; the pool is closed.
    """
    if not callable(map):
        raise TypeError(f"map must be a callable like the built-in, such as pool.map; got {type(map).__name__}")
    try:
        answers = list(map(_do, [_Job("the first item", _nothing, needed)]))
    except Exception as problem:
        raise ValueError(f"map does not work: {type(problem).__name__}: {problem}. {HOW}") from problem
    if not (len(answers) == 1 and isinstance(answers[0], _Answer) and answers[0].problem is None):
        raise ValueError(f"map(function, items) must give the results in order, and for one item gave {answers!r}")


def mapped(function: Callable[[T], R], items: Mapping[str, T], map: Map) -> Generator[R, None, None]:
    """Yield ``function(item)`` of each item in order, as soon as it and all before it are there.

    In a worker the function finds the caller's default dtype, and gradients recorded or not as they are here. Threads
    of this process draw from a global generator in no fixed order: a function for these has a seed of its own.

    Args:
        function: of a module; its result depends on the item alone.
        items: name → item; pickled where ``map`` sends them to another process.
    Raises:
        Exception: what the function raises for the first item for which it does; message or note says for which.
        ValueError: ``map`` does not keep the order; the function has drawn from a global generator of random numbers
            in another process.
        RuntimeError: ``map`` itself fails (a worker has died), or ends too soon.
    Guarantee: at its end, and at an error or interrupt, what ``map`` returned is closed if it can be: pools of
        concurrent.futures then begin nothing more.
    """
    with closing(_answers(map, [_Job(name, function, item) for name, item in items.items()])) as answers:
        for name in items:
            answer = next(answers, None)
            if answer is None:
                raise RuntimeError(f"map ended before {name!r}")
            if answer.name != name:
                raise ValueError(
                    f"map must keep the order, and gave {answer.name!r} before {name!r}: imap, not imap_unordered"
                )
            if answer.problem is not None:
                if repr(name) not in str(answer.problem):
                    answer.problem.add_note(f"raised for {name!r}")
                raise answer.problem
            yield answer.result


@contextmanager
def process_map(workers: int) -> Iterator[Map]:
    """Yield the built-in ``map`` for one worker, and for more the ``map`` of as many new processes.

    Each of these has as many threads of torch as this process, but no more than its share of the cores.

    Args:
        workers: 1, …, as many as this process may use cores.
    Raises:
        ValueError: another number of workers.
    Guarantee: no worker outlives the block, or this process. What ends by itself waits for nothing; where an error or
        an interrupt ends the block, or somebody this process, they stop in the middle of an item.
    """
    check_whole("workers", workers, 1)
    cores = _cores()
    if workers > cores:
        raise ValueError(f"workers must be at most {cores}, the cores that this process may use, got {workers}")
    if workers == 1:
        yield map
        return
    new = multiprocessing.get_context("spawn")  # a forked one has torch without the threads that it may wait for
    end, held = new.Pipe(duplex=False)  # its other end is this process's alone, and closed with it
    threads = max(1, min(torch.get_num_threads(), cores // workers))
    pool = ProcessPoolExecutor(workers, mp_context=new, initializer=_begin, initargs=(end, threads))
    try:
        yield pool.map
        pool.shutdown()
    finally:
        held.close()
        pool.shutdown(cancel_futures=True)
        end.close()


def _cores() -> int:
    """Return how many cores this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)  # where a system has it
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def _begin(end: Connection, threads: int) -> None:
    """Make a new process a worker: the terminal's Ctrl-C is for its parent, with whose end it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with, args=(end,), daemon=True).start()


def _end_with(end: Connection) -> None:
    try:
        end.recv()
    except (EOFError, OSError):
        os._exit(1)


class Sent:
    """A value that is pickled as plain bytes: pools of processes would move a model's tensors to shared memory.

    What a script itself defines is left to the pool, which may know more of it than its name.
    """

    def __init__(self, value: Any) -> None:
        self.value = value

    def __reduce__(self) -> tuple:
        try:
            data = pickle.dumps(self.value)
        except Exception:
            return Sent, (self.value,)
        return (Sent, (self.value,)) if b"__main__" in data else (_received, (data,))


def _received(data: bytes) -> Sent:
    return Sent(pickle.loads(data))


def _process() -> tuple[int, str]:
    """Return what no other process has: on another machine one may have the same number, and a fork the same name."""
    return os.getpid(), _BORN


@dataclass
class _Job:
    """What is sent: an item, and the caller's settings that a worker does not have."""

    name: str
    function: Callable[[Any], Any]
    item: Any
    process: tuple[int, str] = field(default_factory=_process)
    dtype: torch.dtype = field(default_factory=torch.get_default_dtype)
    gradients: bool = field(default_factory=torch.is_grad_enabled)


@dataclass
class _Answer:
    name: str
    result: Any
    problem: Exception | None


def _nothing(needed: Any) -> None:
    """Stand for the work in :func:`check_map`."""


def _answers(map: Map, jobs: Sequence[_Job]) -> Generator[_Answer, None, None]:
    """Yield what ``map`` returns: an error of the function is an answer, so what is raised is an error of ``map``."""
    results, at = None, 0
    try:
        results = iter(map(_do, jobs))
        for answer in results:
            if isinstance(answer, Exception):  # as Ray's imap tells of a worker that has died
                raise answer
            yield answer
            at += 1
    except Exception as problem:
        what = f"{type(problem).__name__}: {problem}"
        raise RuntimeError(f"map failed at {jobs[at].name!r} or at one after it: {what}") from problem
    finally:
        close = getattr(results, "close", None)
        if close is not None:
            close()


def _do(job: _Job) -> _Answer:
    """Do one item's work, with the caller's settings; an error is an answer, too."""
    elsewhere = job.process != _process()
    before = _generators() if elsewhere else None
    try:
        with torch.set_grad_enabled(job.gradients), _default_dtype(job.dtype):
            result = job.function(job.item)
        if elsewhere and _generators() != before:
            raise ValueError(
                "random numbers were drawn from a global generator, so that the result would depend on the worker: "
                "give a seed or a torch.Generator, as in functools.partial(method, seed=0)"
            )
        return _Answer(job.name, result, None)
    except Exception as problem:
        return _Answer(job.name, None, _portable(problem) if elsewhere else problem)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    if dtype == before:  # always in the caller's process, whose other threads must not notice anything
        yield
        return
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _generators() -> tuple:
    """Return the state of the global generators of torch (CPU), NumPy and Python."""
    numpys = np.random.get_state(legacy=False)  # noqa: NPY002 (looked at, not drawn from)
    return torch.default_generator.get_state().numpy().tobytes(), pickle.dumps(numpys), random.getstate()


def _portable(problem: Exception) -> Exception:
    """Return the error with the worker's traceback as a note; one that pickle cannot carry becomes a RuntimeError."""
    trace = "".join(traceback.format_exception(problem))
    try:
        again = pickle.loads(pickle.dumps(problem))
        whole = type(again) is type(problem) and str(again) == str(problem)
    except Exception:
        whole = False
    found = problem if whole else RuntimeError(f"{type(problem).__name__}: {problem}")
    found.add_note(f"in a worker:\n{trace}")
    return found

"""A student's process as the grader sees it: requests out, raw values back, under limits of time and size."""

import os
import selectors
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from mlcomp.grading import wire
from mlcomp.grading.limits import Limits

_POLL = 0.25


class KernelDied(Exception):
    """The process is gone, or had to be ended; the message says why."""


class Kernel:
    """One process that runs one submission. Use as a context manager: leaving it ends everything it started."""

    def __init__(
        self, command: list[str], limits: Limits, *, env: dict[str, str], cwd: Path, fds: tuple[int, ...] = ()
    ) -> None:
        """``command`` is the start of a command line; the number of the reply descriptor is appended. ``fds`` are the
        descriptors that it needs besides.
        """
        self.limits = limits
        self.deadline = time.monotonic() + limits.start + limits.submission
        self.cause: str | None = None
        self._printed = bytearray()
        self._total = 0
        read, write = os.pipe()
        self._process = subprocess.Popen(
            [*command, str(write)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(write, *fds),
            env=env,
            cwd=cwd,
            start_new_session=True,
        )
        os.close(write)
        assert self._process.stdin is not None and self._process.stdout is not None  # both are pipes
        self._streams = (self._process.stdin, self._process.stdout)
        self._in, self._out, self._reply = self._streams[0].fileno(), self._streams[1].fileno(), read
        for fd in (self._in, self._out, self._reply):
            os.set_blocking(fd, False)

    def __enter__(self) -> "Kernel":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Wait until the process answers."""
        self.request({"op": "run", "code": "", "seconds": self.limits.start}, self.limits.start)

    def run(self, code: str) -> tuple[dict[str, Any], str]:
        """Run a cell; return the reply ({} or an error) and what was printed."""
        self._printed.clear()
        reply = self.request({"op": "run", "code": code, "seconds": self.limits.cell}, self.limits.cell)
        return reply, self.printed()

    def printed(self) -> str:
        """Return what was printed since the last cell began, shortened."""
        text = self._printed.decode(errors="replace")
        return text if len(text) < self.limits.shown else text[: self.limits.shown] + "\n… (shortened)"

    def request(self, message: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Send a request and return the reply.

        Raises:
            KernelDied: no reply in time, too much output or memory, or the process ended; also ever after.
        """
        if self.cause:
            raise KernelDied(self.cause)
        end = min(time.monotonic() + seconds + self.limits.grace, self.deadline)
        try:
            return self._exchange(wire.pack(message), end)
        except (KernelDied, wire.WireError, OSError) as error:
            self.cause = str(error) or type(error).__name__
            self.close()
            raise KernelDied(self.cause) from error

    def _exchange(self, outgoing: bytes, end: float) -> dict[str, Any]:
        incoming = bytearray()
        next_look = time.monotonic() + _POLL
        with selectors.DefaultSelector() as selector:
            selector.register(self._in, selectors.EVENT_WRITE)
            selector.register(self._out, selectors.EVENT_READ)
            selector.register(self._reply, selectors.EVENT_READ)
            while True:
                now = time.monotonic()
                if now > end:
                    raise KernelDied("did not stop when its time was up" if end < self.deadline else "out of time")
                if now > next_look:
                    next_look = now + _POLL
                    self._watch_memory()
                for key, _ in selector.select(min(_POLL, end - now + 0.01)):
                    if key.fd == self._in:
                        outgoing = outgoing[os.write(self._in, outgoing[:65536]) :]
                        if not outgoing:
                            selector.unregister(self._in)
                    elif key.fd == self._out:
                        if not self._drain():
                            selector.unregister(self._out)
                    else:
                        data = os.read(self._reply, 1 << 20)
                        if not data:
                            raise KernelDied(f"the process ended{self._last_words()}")
                        incoming += data
                        message = _complete(incoming)
                        if message is not None:
                            self._drain()
                            return message

    def _drain(self) -> bool:
        """Read what was printed; return whether there may be more later."""
        while True:
            try:
                data = os.read(self._out, 1 << 16)
            except BlockingIOError:
                return True
            if not data:
                return False
            self._total += len(data)
            if self._total > self.limits.output:
                raise KernelDied(f"printed more than {self.limits.output >> 20} MiB")
            if len(self._printed) < 4 * self.limits.shown:
                self._printed += data

    def _watch_memory(self) -> None:
        used = resident(self._process.pid)
        if used > self.limits.memory:
            raise KernelDied(f"used more than {self.limits.memory >> 20} MiB of memory")

    def _last_words(self) -> str:
        try:
            self._drain()
        except KernelDied:
            pass
        text = self.printed().strip()
        return f": {text.splitlines()[-1][:300]}" if text else ""

    def close(self) -> None:
        """End the process and everything it started; safe to call twice."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()
        for stream in self._streams:
            try:
                stream.close()
            except OSError:  # unwritten bytes to a dead process
                pass
        if self._reply >= 0:
            os.close(self._reply)
            self._reply = -1
        self.cause = self.cause or "the process was closed"


def _complete(incoming: bytearray) -> dict[str, Any] | None:
    """Return the message once all of it is there; raise WireError for one that is too large or more than one."""
    if len(incoming) < wire.HEADER.size:
        return None
    text, binary = wire.HEADER.unpack_from(incoming)
    if text > wire.MAX_TEXT or text + binary > wire.MAX_FRAME:
        raise wire.WireError("the reply is too large")
    size = wire.HEADER.size + text + binary
    if len(incoming) < size:
        return None
    if len(incoming) > size:
        raise wire.WireError("more than one reply to one request")
    body = bytes(incoming[wire.HEADER.size :])
    return wire.unpack(body[:text], body[text:])


def resident(root: int) -> int:
    """Return the memory that a process and its descendants hold in bytes; 0 where there is no /proc.

    Limits of the operating system hold for each process; this one is for all together. Memory that processes share
    counts whole and once, as it stays after a process has let go of its pages.

    Raises:
        KernelDied: a process does not let its memory be seen.
    """
    parents, private, mapped = {}, {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            status = (entry / "status").read_text()
        except OSError:  # it ended meanwhile
            continue
        fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        pid = int(entry.name)
        parents[pid] = int(fields.get("PPid", "0"))
        private[pid] = 1024 * int(fields.get("RssAnon", "0 kB").split()[0])
        mapped[pid] = 1024 * int(fields.get("RssShmem", "0 kB").split()[0])
    below = [pid for pid in parents if _descends(pid, root, parents)]
    shared: dict[str, int] = {}
    for pid in below:
        for area, size in _shared(pid).items():
            shared[area] = max(size, shared.get(area, 0))
    return sum(private[pid] for pid in below) + max(sum(mapped[pid] for pid in below), sum(shared.values()))


def _descends(pid: int, root: int, parents: dict[int, int]) -> bool:
    while pid not in (0, root):
        pid = parents.get(pid, 0)
    return pid == root


def _shared(pid: int) -> dict[str, int]:
    """Return the areas of memory without a file that a process may share with others: device and inode → bytes."""
    try:
        maps = Path("/proc", str(pid), "maps").read_text(errors="replace")
    except PermissionError as error:
        raise KernelDied("hid its memory from the grader") from error
    except OSError:  # it ended meanwhile
        return {}
    areas: dict[str, int] = {}
    for line in maps.splitlines():
        addresses, rights, _, device, inode, *name = line.split(maxsplit=5)
        if rights.endswith("s") and name and name[0].startswith(("/dev/zero (deleted)", "/memfd:", "/SYSV")):
            first, last = (int(address, 16) for address in addresses.split("-"))
            areas[f"{device} {inode}"] = areas.get(f"{device} {inode}", 0) + last - first
    return areas

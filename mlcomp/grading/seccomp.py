"""The system calls that a submission does without: a seccomp filter in the kernel's own format, given to bubblewrap.

A process in a namespace of its own would have all privileges there and could mount memory by the gigabyte. Memory
that belongs to no process (memfd, System V segments) would escape the watch over the sandbox's processes.
"""

import errno
import os
import platform
import struct
from collections.abc import Iterator
from contextlib import contextmanager

# linux/audit.h, linux/bpf_common.h, linux/seccomp.h, linux/sched.h
_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCH, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
_NEW_NAMESPACE = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_X32 = 0x40000000  # numbers from here on are x86_64's second set of calls

# name: numbers on x86_64 and aarch64
_CLONE, _CLONE3 = (56, 220), (435, 435)
_DENIED = {
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "perf_event_open": (298, 241),
    "io_uring_setup": (425, 425),
    "ptrace": (101, 117),
}


def is_known() -> bool:
    """Whether there is a filter for this machine's processor."""
    return platform.machine() in _ARCHITECTURE


@contextmanager
def filter_fd() -> Iterator[int]:
    """Open a descriptor from which bubblewrap reads the filter, once."""
    read, write = os.pipe()
    try:
        with open(write, "wb") as file:
            file.write(_program(platform.machine()))
        yield read
    finally:
        os.close(read)


def _program(machine: str) -> bytes:
    """Return the filter: an error for the calls above and for clone with a new namespace, all others allowed."""
    column = list(_ARCHITECTURE).index(machine)
    denied, missing = _ERROR | errno.EPERM, _ERROR | errno.ENOSYS
    code = [(_LOAD, 0, 0, _ARCH), (_EQUAL, 1, 0, _ARCHITECTURE[machine]), (_RETURN, 0, 0, _KILL)]
    code += [(_LOAD, 0, 0, _NUMBER), *_answer(_AT_LEAST, _X32, missing)]
    code += _answer(_EQUAL, _CLONE3[column], missing)  # its flags lie in memory; the C library takes clone then
    for numbers in _DENIED.values():
        code += _answer(_EQUAL, numbers[column], denied)
    code += [(_EQUAL, 1, 0, _CLONE[column]), (_RETURN, 0, 0, _ALLOW)]
    code += [(_LOAD, 0, 0, _FIRST_ARGUMENT), *_answer(_ANY_BIT, _NEW_NAMESPACE, denied), (_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def _answer(test: int, value: int, verdict: int) -> list[tuple[int, int, int, int]]:
    """Return the instructions that give ``verdict`` if the loaded number passes the test, and go on if not."""
    return [(test, 0, 1, value), (_RETURN, 0, 0, verdict)]

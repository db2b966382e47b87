import ctypes
import sys
from pathlib import Path

import pytest
import torch

from mlcomp.layerwise.heap import give_back


def resident():
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:")]
    return 1024 * int(line.split()[1])


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="only glibc has to be asked"
)
def test_freed_memory_between_what_is_kept_goes_back_to_the_system():
    size = 100_000  # below what glibc takes from the system each by itself
    pieces = [torch.zeros(size, dtype=torch.uint8) for _ in range(400)]
    kept = pieces[::10]
    del pieces
    held = resident()
    give_back()
    # Nine of ten are free, but for the pages that they share with their neighbours.
    assert held - resident() > 0.7 * 360 * size
    assert all(not piece.any() for piece in kept)


def test_another_c_library_is_left_alone(monkeypatch):
    asked = []

    class Library:
        def __getattr__(self, name):
            asked.append(name)
            raise AttributeError(name)

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library())
    monkeypatch.setattr(sys, "platform", "linux")
    give_back()
    assert asked == ["malloc_trim"]
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("opened"))
    give_back()

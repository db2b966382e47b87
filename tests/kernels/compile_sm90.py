"""Compile for sm_90, without a GPU, exactly what the public functions launch; print facts about the machine code.

Run in a process of its own, without TRITON_INTERPRET: a driver that names sm_90 and launches nothing takes the place
of the GPU's, and CPU tensors of the real shapes (never written, so they take no memory) go through the real
functions.
"""

import json
import re
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from mlcomp.kernels import launch


class NoGpu:
    """A driver for compiling only."""

    def is_active(self):
        return True

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


def facts(kernel):
    """Return registers, spills and instruction counts of a compiled kernel."""
    bin_dir = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(kernel.asm["cubin"])
        cubin.flush()
        usage = subprocess.run(
            [bin_dir / "cuobjdump", "--dump-resource-usage", cubin.name], capture_output=True, text=True, check=True
        ).stdout
        sass = subprocess.run([bin_dir / "nvdisasm", cubin.name], capture_output=True, text=True, check=True).stdout
    # "/*0030*/ @P0 LDG.E.128 R4, ..." → LDG.E.128
    names = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", sass)
    counts = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    registers, stack, local = (int(re.search(rf"{key}:(\d+)", usage)[1]) for key in ("REG", "STACK", "LOCAL"))
    shared, warps = kernel.metadata.shared, kernel.metadata.num_warps
    return {
        "registers": registers, "stack": stack, "local": local, "shared": shared, "warps": warps, "sass": counts
    }  # fmt: skip


def compiled(call):
    """Return the kernels that ``call`` would have launched, by name."""
    found = {}
    run = JITFunction.run

    def compile_only(self, *args, grid, warmup, **kwargs):
        name, kernel = self.__name__, run(self, *args, grid=grid, warmup=True, **kwargs)
        found[f"{name}#{len(found)}"] = facts(kernel)
        return kernel

    JITFunction.run = compile_only
    try:
        call()
    finally:
        JITFunction.run = run
    return found


def main(cases):
    triton.runtime.driver.set_active(NoGpu())
    launch.check_devices = lambda **tensors: None  # CPU tensors stand in for the GPU's
    torch.set_num_threads(1)
    result = {}
    for case in cases:
        module, _, name = case.rpartition(":")
        result[name] = compiled(getattr(import_module(module), name))
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])

"""What the kernel files share: Triton, with a clear error where it is missing, and the checks before a launch.

A kernel is decorated with ``@triton.jit`` and ``@no_type_check``: the second keeps the shape checker of the tests,
which wraps every function of the package, from wrapping code that Triton compiles from its source.
"""

from torch import Tensor

from mlcomp.checks import check_tensor
from mlcomp.kernels.without_triton import unavailable

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError(
        f"the kernels need Triton. {unavailable()} The references in mlcomp.formats, mlcomp.quant and mlcomp.obs "
        "do without."
    ) from error

__all__ = ["INTERPRETED", "check_devices", "tl", "triton"]

INTERPRETED = bool(triton.knobs.runtime.interpret)


def check_devices(**tensors: Tensor) -> None:
    """Raise unless all tensors lie on one device that the kernel can run on."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            check_tensor(name, tensor)  # raises
    devices = {name: str(tensor.device) for name, tensor in tensors.items()}
    if len(set(devices.values())) > 1:
        raise ValueError(f"all tensors must be on one device, got {devices}")
    kind = next(iter(tensors.values())).device.type
    if INTERPRETED and kind != "cpu":
        raise ValueError(f"Triton's interpreter is on, so the tensors must be on the CPU, got {devices}")
    if not INTERPRETED and kind != "cuda":
        raise ValueError(
            f"the kernel runs on a GPU, got {devices}; on a machine without one call "
            f"mlcomp.kernels.interpret_without_gpu() before anything imports Triton"
        )
    for name, tensor in tensors.items():
        check_tensor(name, tensor)

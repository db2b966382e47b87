"""Timing: medians with quantiles, a cold cache, CUDA graphs beside plain launches, and the limits of this machine."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Case:
    """One operation at one shape.

    Attributes:
        operation, shape, dtype: what the table shows.
        versions: functions without arguments by name; the kernel's name is "kernel", the others are baselines.
        check: raises AssertionError unless the versions agree.
        nbytes: the fewest bytes that must move through memory.
        work: operations (a multiply-add counts two), at the rate named by ``unit``.
        unit: "bf16", "int8" or "fp32".
        graph: names of versions that a CUDA graph can hold: those that never wait for the GPU.
    """

    operation: str
    shape: str
    dtype: str
    versions: dict[str, Callable[[], object]]
    check: Callable[[], None]
    nbytes: float
    work: float
    unit: str
    graph: tuple[str, ...] = ()


@dataclass(frozen=True)
class Limits:
    """Measured ceilings of a machine: bytes a second of a copy (read plus write), operations a second by unit."""

    bandwidth: float
    rate: dict[str, float] = field(default_factory=dict)

    def seconds(self, case: Case) -> tuple[float, str]:
        """Return the least time that a case can take, and what bounds it."""
        moving, working = case.nbytes / self.bandwidth, case.work / self.rate[case.unit]
        return (moving, "bytes") if moving >= working else (working, case.unit)


@dataclass(frozen=True)
class Timing:
    """Seconds: median, 20 % and 80 % quantiles."""

    median: float
    low: float
    high: float


class Timer:
    """Measures functions on one device."""

    def __init__(self, device: torch.device, seconds: float = 0.4):
        """Take the time to spend on each measurement."""
        self.device, self.seconds = device, seconds
        if device.type == "cuda":
            size = 4 * torch.cuda.get_device_properties(device).L2_cache_size
            self._flush = torch.ones(size // 4, device=device)

    def __call__(self, function: Callable[[], object]) -> Timing:
        """Time plain calls."""
        if self.device.type == "cpu":
            return self._on_cpu(function)
        for _ in range(2):
            function()
        return self._on_gpu(function)

    def graph(self, function: Callable[[], object]) -> Timing:
        """Time replays of a CUDA graph: the work on the GPU without the launches."""
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                function()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            function()
        return self._on_gpu(graph.replay)

    def _on_gpu(self, function: Callable[[], object]) -> Timing:
        torch.cuda.synchronize()
        begin = time.perf_counter()
        function()
        torch.cuda.synchronize()
        count = int(min(200, max(5, self.seconds / (time.perf_counter() - begin + 2e-4))))
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
        for start, end in events:
            # Reading fills the cache with other data and leaves nothing to be written back; it also gives the CPU
            # time to prepare the launch.
            self._flush.sum()
            start.record()
            function()
            end.record()
        torch.cuda.synchronize()
        return _summary([start.elapsed_time(end) / 1e3 for start, end in events])

    def _on_cpu(self, function: Callable[[], object]) -> Timing:
        function()
        times, begin = [], time.perf_counter()
        while len(times) < 3 or time.perf_counter() - begin < self.seconds:
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
        return _summary(times)


def _summary(times: list[float]) -> Timing:
    low, median, high = torch.tensor(times, dtype=torch.float64).quantile(torch.tensor([0.2, 0.5, 0.8]).double())
    return Timing(float(median), float(low), float(high))


def limits(timer: Timer) -> Limits:
    """Measure a large copy and large matrix products in each unit."""
    device = timer.device
    on_gpu = device.type == "cuda"
    source = torch.ones(2**29 if on_gpu else 2**24, device=device)
    target = torch.empty_like(source)
    bandwidth = 2 * source.nbytes / timer(lambda: target.copy_(source)).median
    del source, target
    n = 8192 if on_gpu else 512
    x = torch.randn(n, n, device=device)
    rate = {"fp32": 2 * n**3 / timer(lambda: x @ x).median}
    half, whole = x.bfloat16(), (x * 40).clamp(-127, 127).to(torch.int8)
    rate["bf16"] = 2 * n**3 / timer(lambda: half @ half).median
    rate["int8"] = 2 * n**3 / timer(lambda: torch._int_mm(whole, whole.T)).median
    if on_gpu:
        # The library's int8 product does not reach the tensor cores' rate, which is twice that of bf16 (data sheet).
        rate["int8"] = max(rate["int8"], 2 * rate["bf16"])
    return Limits(bandwidth, rate)


def close(got: torch.Tensor, want: torch.Tensor, bound: float) -> None:
    """Raise unless the root mean square of the error is at most ``bound`` of that of ``want``."""
    error = float((got.double() - want.double()).norm() / want.double().norm())
    assert error <= bound, f"relative error {error:.2e}, allowed {bound:.2e}"

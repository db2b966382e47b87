import csv
import importlib

import pytest
import torch

from benchmarks.record import RESULTS
from mlcomp.kernels.roofline import DEVICE, KERNELS, counts, measured_seconds, picture_of_kernels
from tools.inventory import modules


@pytest.fixture(scope="module")
def rows():
    with RESULTS.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_kernel_is_counted():
    kernels = {
        m.path.stem for m in modules() if m.name.startswith("mlcomp.kernels.") and "\nREFERENCE" in m.path.read_text()
    }
    assert {k.operation for k in KERNELS} == kernels and len(KERNELS) == len(kernels)


def test_limits_are_those_of_the_committed_measurements(rows):
    for kernel in KERNELS:
        for row in rows:
            if (row["device"], row["operation"], row["shape"]) == (DEVICE, kernel.operation, kernel.shape):
                if row["dtype"] == "float32":
                    continue  # the same shape in another type
                limit = max(
                    kernel.nbytes / float(row["copy_gb_s"]) / 1e9, kernel.work / float(row["rate_t_s"]) / 1e12
                )
                assert 1e6 * limit == pytest.approx(float(row["limit_us"]), rel=0.005), row  # ceilings are rounded


SMALL = {
    "nf4_matmul": (0, {"out": 512, "inp": 512, "size": 4}),
    "two_four_matmul": (0, {"out": 512, "inp": 512, "size": 4}),
    "sparse_gated_mlp": (0, {"out": 512, "inp": 256, "size": 4}),
    "xnor_matmul": (1, {"out": 512, "inp": 512, "tokens": 8}),
    "onebit_matmul": (1, {"out": 512, "inp": 512, "tokens": 4, "size": 4}),
    "llm_int8": (1, {"out": 256, "inp": 256, "tokens": 16, "size": 4}),
    "soft_target_loss": (0, {"out": 64, "inp": 4096, "size": 4}),
    "gptq": (0, {"out": 64, "inp": 128}),
    "sparsegpt": (0, {"out": 64, "inp": 128}),
    "quantized_sparsegpt": (0, {"out": 64, "inp": 128}),
}


@pytest.mark.parametrize("name", SMALL)
def test_kernels_that_were_not_measured_are_counted_as_in_their_benchmark(name):
    number, sizes = SMALL[name]
    case = list(importlib.import_module(f"benchmarks.kernels.{name}").cases(torch.device("cpu")))[number]
    nbytes, work, _ = counts(name, **sizes)
    assert nbytes == pytest.approx(case.nbytes, rel=2e-3)  # a few bytes of constants are not counted
    assert work == pytest.approx(case.work)


def test_every_kernel_is_either_measured_or_tested_here(rows):
    assert set(measured_seconds(rows)) | set(SMALL) == {k.operation for k in KERNELS}


def test_the_least_median_of_the_kernel_alone_counts():
    row = {"device": DEVICE, "version": "kernel", "operation": "obq", "shape": "4096×128, 4 bits", "median_us": "7"}
    others = [row | {"version": "reference"}, row | {"shape": "1×1"}, row | {"device": "CPU"}]
    assert measured_seconds([row, row | {"median_us": "5"}, *(r | {"median_us": "1"} for r in others)]) == {
        "obq": pytest.approx(5e-6)
    }


def test_the_picture_names_all_and_has_a_disk_for_what_was_measured():
    axes = picture_of_kernels({"gptq": 1.0, "xnor_matmul": 1e-5}).axes[0]
    words = {text.get_text().split()[0]: text for text in axes.texts}
    assert {k.operation for k in KERNELS} <= set(words)
    assert words["gptq"].get_style() == "normal" and words["obq"].get_style() == "italic"
    marks = [line for line in axes.lines if line.get_marker() == "o"]
    assert len(marks) == len(KERNELS) + 2
    highest = {k.operation: k for k in KERNELS}["gptq"]
    assert highest.work / highest.limit == pytest.approx(51.6e12)  # bound by its operations

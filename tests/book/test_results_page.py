import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "book" / "_ext"))

import results_page

ROW = {
    "date": "2030-01-02", "commit": "abc", "device": "GPU X", "torch": "1", "triton": "2", "operation": "fast",
    "shape": "2×3", "dtype": "bf16", "version": "kernel", "mode": "graph", "median_us": "2000", "q20_us": "1900",
    "q80_us": "2100", "limit_us": "1000", "bound": "bytes", "share": "0.5", "ratio": "1", "copy_gb_s": "3",
    "rate_t_s": "4",
}  # fmt: skip


def test_says_what_was_never_measured_on_a_gpu():
    text = "\n".join(results_page.page([ROW, {**ROW, "operation": "slow", "device": "CPU Y"}], ["fast", "slow"]))
    assert "**Never measured on a GPU:** `slow`." in text
    assert "2.00 ms" in text and "0.50" in text and "abc of 2030-01-02" in text
    assert text.index("## GPU X") < text.index("## CPU Y")
    assert "Every kernel" in results_page.page([ROW], ["fast"])[0]


def test_the_newest_row_of_a_measurement_counts(tmp_path):
    path = tmp_path / "k.csv"
    lines = [",".join(ROW), ",".join(ROW.values()), ",".join({**ROW, "median_us": "7"}.values())]
    path.write_text("\n".join(lines) + "\n")
    (row,) = results_page.measurements(path)
    assert row["median_us"] == "7"


def test_kernels_are_found_and_their_committed_results_too():
    names = results_page.kernels()
    assert {"absmax_int8", "exact_obs", "w4a16_matmul"} <= set(names)
    assert {row["operation"] for row in results_page.measurements()} <= set(names)

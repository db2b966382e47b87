import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from mlcomp.data.committed_table import read_table

sys.path.insert(0, str(Path(__file__).parents[2] / "book" / "_ext"))

import results_page

ROOT = Path(__file__).parents[2]

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


def rows(*versions, **others):
    """One row for each (version, mode, median in µs); T* is 1000 µs."""
    return [{**ROW, "version": v, "mode": mode, "median_us": str(us), **others} for v, mode, us in versions]


def test_a_kernel_is_compared_with_the_fastest_that_others_have_each_in_its_better_mode():
    measured = rows(
        ("kernel", "launch", 4000), ("kernel", "graph", 2000), ("kernel, float64", "graph", 100),
        ("slow", "graph", 9000), ("rival", "launch", 5000), ("rival", "graph", 6000), ("copy", "graph", 10),
    )  # fmt: skip
    (pair,) = results_page.compared(measured)
    assert (pair.operation, pair.shape, pair.rival) == ("fast", "2×3", "rival")
    assert (pair.share, pair.rival_share, pair.ratio) == (0.5, 0.2, 2.5)
    assert results_page.compared(rows(("kernel", "graph", 1))) == []  # nobody to compare with


def test_the_type_is_named_where_an_operation_has_several():
    both = rows(("kernel", "graph", 1), ("rival", "graph", 2))
    other = rows(("kernel", "graph", 1), ("rival", "graph", 2), dtype="fp32")
    assert [c.shape for c in results_page.compared(both)] == ["2×3"]
    assert [c.shape for c in results_page.compared(both + other)] == ["2×3 bf16", "2×3 fp32"]


@pytest.fixture(scope="module")
def svg():
    pairs = results_page.compared([r for r in results_page.measurements() if not r["device"].startswith("CPU")])
    return results_page.picture(pairs, "GPU <X>"), pairs


def test_the_picture_says_all_rows_and_takes_the_colour_of_the_page(svg):
    text, pairs = svg
    root = ET.fromstring(text)  # well-formed
    words = [node.text for node in root.iter() if node.tag.endswith("text")]
    assert {c.operation for c in pairs} <= set(words) and {c.shape for c in pairs} <= set(words)
    assert "currentColor" in text and results_page.TEXT not in text and "background" not in text
    assert not re.search(r"\n\s*\n", text)  # a blank line would end the block of HTML
    # A mark for each kernel and each rival, and one of each in the legend.
    assert text.count(results_page.KERNEL) >= len(pairs) + 1 and text.count(results_page.RIVAL) >= len(pairs) + 1
    told = root.get("aria-label")
    assert root.get("role") == "img" and "GPU <X>" in told
    assert all(f"{c.operation} {c.shape}: {c.share:.2f}" in told and c.rival in told for c in pairs)


def test_marks_stand_where_their_shares_are(svg):
    """A picture of two known shares: the two marks of a row are as far apart as the scale says."""
    pair = results_page.Compared("op", "1×1", 0.75, "rival", 0.25, 3.0)
    text = results_page.picture([pair], "GPU")
    uses = re.findall(r'<use xlink:href="#\w+" x="([\d.]+)" y="([\d.]+)" style="([^"]*)"', text)
    (rival,), (kernel,) = (
        [float(x) for x, y, style in uses if colour in style and float(y) > 2 * results_page.ROW]
        for colour in (results_page.RIVAL, results_page.KERNEL)
    )
    # The axis is 0.32 of the width for 1.02; six decimals are written.
    assert kernel - rival == pytest.approx(0.5 / 1.02 * 0.32 * results_page.WIDTH, abs=1e-3)


def test_the_picture_stands_above_the_tables_of_its_gpu():
    measured = rows(("kernel", "graph", 2000), ("rival", "graph", 5000))
    text = "\n".join(results_page.page([*measured, *({**r, "device": "CPU Y"} for r in measured)], ["fast"]))
    assert text.count("<svg") == 1
    assert text.index("## GPU X") < text.index("<svg") < text.index("### fast") < text.index("## CPU Y")


def test_the_roofline_stands_with_the_gpu_whose_ceilings_it_draws():
    measured = results_page.measurements()
    text = results_page.roofline([row for row in measured if row["device"] == results_page.DEVICE])
    root = ET.fromstring(text)
    assert "absmax_int8" in root.get("aria-label") and "currentColor" in text and results_page.TEXT not in text
    assert not re.search(r"\n\s*\n", text)  # a blank line would end the block of HTML
    words = " ".join(node.text or "" for node in root.iter() if node.tag.endswith("text"))
    assert all(name in words for name in results_page.kernels())
    assert results_page.ROOF in results_page.page(measured, [])
    assert results_page.ROOF not in results_page.page([ROW], [])


def test_the_table_beside_the_authors_is_that_of_the_committed_run():
    rows = read_table(ROOT / "benchmarks" / "results" / "obs_family.csv")
    pairs = [
        [
            ours["case"], ours["layer"].replace("x", " × "), f"{float(ours['cpu_s']):.3g}",
            f"{float(theirs['cpu_s']):.3g}", f"{float(theirs['ratio']):.1f}", f"{float(ours['error']):.5f}",
            f"{float(theirs['error']):.5f}",
        ]
        for ours, theirs in zip(rows[::2], rows[1::2], strict=True)
    ]  # fmt: skip
    page = (ROOT / "book" / "results.md").read_text()
    lines = [
        line.strip("| ").split(" | ")
        for line in page.splitlines()
        if re.match(r"\| (ExactOBS|OBQ|GPTQ|Sparse)", line)
    ]
    assert lines == pairs and len(pairs) == 10

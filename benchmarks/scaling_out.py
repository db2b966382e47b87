"""The tables of the page *Many layers at once*: what was measured, and what follows for 70 billion weights.

Run: python -m benchmarks.scaling_out (``benchmarks.workers`` does so, too, when it records)
"""

import csv
import heapq
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "workers.csv"
PAGE = ROOT / "book" / "scaling_out.md"

BLOCKS, WORKERS, NETWORK = 80, 64, 1.25e9  # of Llama 2 70B; single cores; bytes a second of 10 Gbit/s
SHAPES = {  # (out, inp) of a block's layers
    "q": (8192, 8192),
    "k": (1024, 8192),
    "v": (1024, 8192),
    "o": (8192, 8192),
    "gate": (28672, 8192),
    "up": (28672, 8192),
    "down": (8192, 28672),
}
RULES = {  # case → how its work grows, in words and in numbers
    "gptq, wide": ("inp³ + out · inp²", lambda out, inp: inp**3 + out * inp**2),
    "aqlm": ("out · inp²", lambda out, inp: out * inp**2),
    "obq": ("out · inp³", lambda out, inp: out * inp**3),
    "exact_obs": ("out · inp³", lambda out, inp: out * inp**3),
}


def newest(path=RESULTS):
    """Return the last row of each case."""
    with path.open(newline="", encoding="utf-8") as file:
        return {row["case"]: row for row in csv.DictReader(file)}


def markdown(head, rows):
    """Return a table."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def measured(rows):
    """Return what was measured: a line a case."""
    head = ["method, layer", "work", "shipping", "sent", "back", "bound", "1 worker", "2 workers"]
    lines = []
    for case, row in rows.items():
        cpu = [f"{1e3 * float(row[key]):,.1f} ms" for key in ("work_cpu_s", "ship_cpu_s")]
        size = [f"{float(row[key]):.2f} MB" for key in ("sent_mb", "back_mb")]
        ratios = [f"{float(row[key]):.2f}" for key in ("bound_2", "ratio_1", "ratio_2")]
        lines.append([f"{case.partition(',')[0]} {row['layer'].replace('x', '×')}", *cpu, *size, *ratios])
    about = next(iter(rows.values()))
    when = f"{about['date']}, {about['machine']}, torch {about['torch']}. "
    start = f"A worker takes {float(about['start_cpu_s']):.1f} CPU seconds to start, and {about['worker_mb']} MB."
    load = float(about["load"])
    busy = f" Other work ran beside (load {load:.1f}), so the last two columns say nothing." if load > 1 else ""
    return f"{markdown(head, lines)}\n{when}{start}{busy}\n"


def shipped():
    """Return what is sent of each layer of a block, and what the worker needs for it."""
    lines, total = [], 0
    for name, (out, inp) in SHAPES.items():
        weight, hessian = 4 * out * inp / 1e9, 4 * inp**2 / 1e9
        total += weight + hessian
        need = 3 * weight + 6 * hessian
        lines.append([name, f"{out} × {inp}", *(f"{x:.2f}" for x in (weight, hessian, weight + hessian, need))])
    whole = BLOCKS * total
    lines.append([f"{BLOCKS} blocks", "", "", "", f"{whole:.0f}", ""])
    seconds = whole * 1e9 / NETWORK
    told = f"Over a network of 10 Gbit/s, {whole:.0f} GB take {seconds / 60:.0f} minutes.\n"
    return markdown(["layer", "shape", "W [GB]", "H [GB]", "sent [GB]", "memory [GB]"], lines) + "\n" + told


def makespan(hours, workers):
    """Return how long workers take who each begin the longest item left as soon as they are free."""
    busy = [0.0] * workers
    for item in sorted(hours, reverse=True):
        heapq.heapreplace(busy, busy[0] + item)
    return max(busy)


def worked(rows):
    """Return the time of each method, from its measured layer by its rule."""
    head = ["method", "grows as", "measured", "one core", "down alone", "a block at once", "all at once"]
    lines = []
    for case, (words, rule) in RULES.items():
        row = rows[case]
        size = [int(n) for n in row["layer"].split("x")]
        unit = float(row["work_cpu_s"]) / rule(*size)
        days = {name: unit * rule(*shape) / 86400 for name, shape in SHAPES.items()}
        block = list(days.values())
        seen = f"{1e3 * float(row['work_cpu_s']):,.0f} ms at {row['layer'].replace('x', '×')}"
        whole = [BLOCKS * sum(block), BLOCKS * makespan(block, WORKERS), makespan(BLOCKS * block, WORKERS)]
        one, by_block, at_once = (f"{x:,.0f} days" if x > 10 else f"{x:.1f} days" for x in whole)
        name, share = case.partition(",")[0], f"{days['down'] / sum(block):.0%}"
        lines.append([name, words, seen, one, share, by_block, at_once])
    return markdown(head, lines)


def tables(rows):
    """Return name → text, as the page holds it."""
    return {"measured": measured(rows), "shipped": shipped(), "worked": worked(rows)}


def write(page=PAGE, path=RESULTS):
    """Put the tables into the page, between their marks."""
    text = page.read_text(encoding="utf-8")
    for name, table in tables(newest(path)).items():
        begin, end = (f"<!-- {name}: {word} -->\n" for word in ("begin", "end"))
        before, _, rest = text.partition(begin)
        text = before + begin + table + end + rest.partition(end)[2]
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()

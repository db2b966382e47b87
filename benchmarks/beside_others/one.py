"""One run in a process of its own: python -m benchmarks.beside_others.one NAME --subject FOLDER --files FOLDER

The last line of its output is JSON: the seconds of the compression alone, the peak memory while it lasted (model and
libraries included), the bytes of the weights that it wrote, perplexity on held-out text, and what became of the
linear layers.
"""

import argparse
import json
import os
import threading
import time
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn

from benchmarks.beside_others import subject
from benchmarks.beside_others.runs import RUNS
from mlcomp.metrics import perplexity
from mlcomp.quant import rtn

INTERVAL = 0.1  # seconds between two looks at the child processes


class Peak:
    """The largest memory of this process and its children while the block runs, in bytes.

    The kernel's own high-water mark counts for this process. Children are looked at ten times a second, and added
    to what this process holds at that moment.
    """

    def __init__(self) -> None:
        self.bytes, self._done = 0, threading.Event()
        self._watch = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "Peak":
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
        self._watch.start()
        return self

    def __exit__(self, *problem: object) -> None:
        self._done.set()
        self._watch.join()
        self.bytes = max(self.bytes, _status("VmHWM"))

    def _look(self) -> None:
        while not self._done.wait(INTERVAL):
            children = 0
            for child in psutil.Process().children(recursive=True):
                try:
                    children += child.memory_info().rss
                except psutil.Error:  # it has just ended
                    continue
            if children:
                self.bytes = max(self.bytes, children + _status("VmRSS"))


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"the kernel tells no {field}")


def layers(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, object]:
    """Return how many linear layers were compressed, which were left, and two shares over those compressed.

    ``zeros``: weights that are zero. ``as_rounded``: weights that are where our plain rounding puts them, within a
    hundredth of a step.
    """
    left, total, zeros, same = [], 0, 0, 0
    for name, weight in weights.items():
        found = subject.weight_of(model.get_submodule(name), weight.shape[1])
        if torch.equal(found, weight):
            left.append(name)
            continue
        plain = rtn(weight, **subject.UNIFORM)
        tolerance = plain.step.repeat_interleave(subject.GROUP, dim=1) / 100
        total += weight.numel()
        zeros += int((found == 0).sum())
        same += int(((found - plain.dequantize()).abs() < tolerance).sum())
    return {
        "layers": len(weights) - len(left),
        "left": " ".join(left) if len(left) < len(weights) else "all",
        "zeros": round(zeros / max(total, 1), 4),
        "as_rounded": round(same / max(total, 1), 4),
    }


def measure(name: str, folder: Path, files: Path) -> dict[str, object]:
    """Run it; return what was measured."""
    model, tokenizer = subject.load(folder)
    ready = RUNS[name].prepare(model, tokenizer, subject.load_tokens(folder, "calibration"))
    with Peak() as peak:
        start = time.perf_counter()
        model = ready.compress()
        seconds = time.perf_counter() - start
    files.mkdir(parents=True, exist_ok=True)
    ready.save(model, files)
    weights = subject.linear_weights(subject.load(folder)[0])  # only now: a copy of the model would count in the peak
    return {
        "seconds": round(seconds, 2),
        "peak_mb": round(peak.bytes / 1e6),
        "file_mb": round(subject.nbytes(files) / 1e6, 1),
        "perplexity": round(perplexity(model, subject.load_tokens(folder, "held_out")), 3),
        **layers(model, weights),
    }


def main() -> None:
    """Measure one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=RUNS)
    parser.add_argument("--subject", type=Path, required=True)
    parser.add_argument("--files", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = measure(options.name, options.subject, options.files)
    print(json.dumps(found | {"load": os.getloadavg()[0]}), flush=True)


if __name__ == "__main__":
    main()

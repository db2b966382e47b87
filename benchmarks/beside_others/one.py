"""One run in a process of its own: python -m benchmarks.beside_others.one NAME --subject FOLDER --files FOLDER

The last line of its output is JSON: the seconds of the compression alone, the peak memory while it lasted (model and
libraries included), the bytes of the weights that it wrote, perplexity on held-out text, and what became of the
linear layers.
"""

import argparse
import json
import shutil
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


class Watch:
    """What it took while the block ran: ``seconds``, ``peak`` bytes of memory, and ``others``, how busy the rest was.

    The peak is that of this process and its children: the kernel's own high-water mark of this one; children are
    looked at ten times a second, and added to what this process holds at that moment. ``others`` is the number of
    cores that other programs kept busy, on average.
    """

    def __init__(self) -> None:
        self.seconds, self.peak, self.others = 0.0, 0, 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "Watch":
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
        self._thread.start()
        self._busy, self._own, self._start = _busy(), _own(), time.perf_counter()
        return self

    def __exit__(self, *problem: object) -> None:
        self.seconds = time.perf_counter() - self._start
        others = _busy() - self._busy - (_own() - self._own)
        self.others = max(others, 0.0) / max(self.seconds, 1e-3)
        self._done.set()
        self._thread.join()
        self.peak = max(self.peak, _status("VmHWM"))

    def _look(self) -> None:
        while not self._done.wait(INTERVAL):
            children = 0
            for child in psutil.Process().children(recursive=True):
                try:
                    children += child.memory_info().rss
                except psutil.Error:  # it has just ended
                    continue
            if children:
                self.peak = max(self.peak, children + _status("VmRSS"))


def _busy() -> float:
    """Return the seconds that all cores together have worked."""
    times = psutil.cpu_times()
    return times.user + times.nice + times.system


def _own() -> float:
    """Return the processor seconds of this process and of its children that have ended."""
    times = psutil.Process().cpu_times()
    return times.user + times.system + times.children_user + times.children_system


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"the kernel tells no {field}")


def layers(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, object]:
    """Return how many linear layers were compressed, which were left, and two shares over those compressed.

    ``zeros``: weights that are zero. ``as_rounded``: weights that are where our plain rounding puts them, within a
    fiftieth of a step.
    """
    left, total, zeros, same = [], 0, 0, 0
    for name, weight in weights.items():
        found = subject.weight_of(model.get_submodule(name), weight.shape[1])
        if torch.equal(found, weight):
            left.append(name)
            continue
        plain = rtn(weight, **subject.UNIFORM)
        tolerance = plain.step.repeat_interleave(subject.GROUP, dim=1) / 50
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
    model, tokenizer = subject.load(folder), subject.load_tokenizer(folder)
    ready = RUNS[name].prepare(model, tokenizer, subject.load_tokens(folder, "calibration"))
    with Watch() as watch:
        model = ready.compress()
    found = {
        "seconds": round(watch.seconds, 2),
        "others": round(watch.others, 2),
        "peak_mb": round(watch.peak / 1e6),
        "perplexity": round(perplexity(model, subject.load_tokens(folder, "held_out")), 3),
    }
    # The weights are read only now: a copy of the model would count in the peak.
    found |= layers(model, subject.linear_weights(subject.load(folder)))
    ready.save(model, files)
    found |= {"file_mb": round(subject.nbytes(files) / 1e6, 1), "exported_mb": ""}
    if ready.export is not None:
        exported = files.with_name(f"{files.name}-exported")
        ready.export(model, exported)
        found["exported_mb"] = round(subject.nbytes(exported) / 1e6, 1)
        shutil.rmtree(exported)
    return found


def main() -> None:
    """Measure one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=RUNS)
    parser.add_argument("--subject", type=Path, required=True)
    parser.add_argument("--files", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(json.dumps(measure(options.name, options.subject, options.files)), flush=True)


if __name__ == "__main__":
    main()

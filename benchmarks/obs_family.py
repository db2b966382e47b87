"""ExactOBS, OBQ, GPTQ and SparseGPT beside the code that their authors published, at equal errors.

Run: python -m benchmarks.obs_family --authors FOLDER [--cases NAME …] [--threads N] [--no-record]

FOLDER holds the authors' repositories, which are not part of this one: OBC/trueobs.py, gptq/gptq.py and
sparsegpt/sparsegpt.py of github.com/IST-DASLab, each beside its quant.py. They run as they are, in float32, but for
torch.cuda.synchronize, which there is nothing for on a CPU. Where they take rows at a time, that is ROWS.

Both get the same weight and the same H, which is not timed. Each round runs ours, theirs and ours again, so that what
else the machine does falls on both; rounds go on for SECONDS, one at least. Times are the process's CPU seconds, the
median of the rounds; "ratio" is theirs over ours, the median of the ratios of the rounds.
"""

import argparse
import contextlib
import importlib
import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from types import ModuleType
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.record import common_options, origin, show_and_keep, timed
from mlcomp.data import make_layer
from mlcomp.metrics import relative_error
from mlcomp.obs import exact_obs, gptq, layer_hessian, obq, sparsegpt

RESULTS = Path(__file__).parent / "results" / "obs_family.csv"
ROWS = 4  # of the authors' ExactOBS and OBQ at a time: more leave the cache, and take longer on a CPU
SECONDS = 20.0  # of wall time for each case
BITS = 4
FILES = {"OBC": "trueobs", "gptq": "gptq", "sparsegpt": "sparsegpt"}  # repository → its module


def authors(folder: Path) -> dict[str, ModuleType]:
    """Return the authors' modules by repository.

    Raises:
        FileNotFoundError: one of them is missing.
    """
    for repository, name in FILES.items():
        for file in (folder / repository / f"{name}.py", folder / repository / "quant.py"):
            if not file.is_file():
                raise FileNotFoundError(f"{file} is missing: it belongs to github.com/IST-DASLab/{repository}")
    modules = {}
    for repository, name in FILES.items():
        # Each has a quant.py of its own, which it imports by that name.
        with mock.patch.object(sys, "path", [str(folder / repository), *sys.path]), mock.patch.dict(sys.modules):
            sys.modules.pop("quant", None)
            with contextlib.redirect_stdout(io.StringIO()):  # one says that its CUDA extension is missing
                modules[repository] = importlib.import_module(name)
    return modules


@contextmanager
def on_a_cpu() -> Iterator[None]:
    """Let the authors' code run where there is no GPU, and keep what it prints for itself."""
    quiet = contextlib.redirect_stdout(io.StringIO())
    with mock.patch.object(torch.cuda, "synchronize", lambda: None), quiet:
        yield


class Theirs:
    """The authors' methods, as functions of the weight."""

    def __init__(self, modules: dict[str, ModuleType], hessian: Tensor):
        self._modules, self._hessian = modules, hessian

    def _solver(self, repository: str, kind: str, weight: Tensor, bits: int | None = None):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        layer.weight.data = weight.clone()
        module = self._modules[repository]
        solver = getattr(module, kind)(layer)
        solver.H = self._hessian.to(solver.H.dtype, copy=True)
        if bits is not None:
            solver.quantizer = module.Quantizer()
            solver.quantizer.configure(bits, perchannel=True, sym=False)
        return solver

    def unstructured(self, weight: Tensor) -> Tensor:
        solver = self._solver("OBC", "TrueOBS", weight)
        solver.prepare_unstr(parallel=ROWS)
        return solver.prune_unstr([0.5])[0]

    def blocks(self, weight: Tensor) -> Tensor:
        solver = self._solver("OBC", "TrueOBS", weight)
        solver.prepare_blocked(size=4, parallel=ROWS)
        return solver.prune_blocked([0.5])[0]

    def two_four(self, weight: Tensor) -> Tensor:
        solver = self._solver("OBC", "TrueOBS", weight)
        solver.nmprune(2, 4, parallel=ROWS)
        return solver.layer.weight.data

    def obq(self, weight: Tensor) -> Tensor:
        solver = self._solver("OBC", "TrueOBS", weight, BITS)
        solver.quantize(parallel=ROWS)
        return solver.layer.weight.data

    def gptq(self, weight: Tensor) -> Tensor:
        solver = self._solver("gptq", "GPTQ", weight, BITS)
        solver.fasterquant()
        return solver.layer.weight.data

    def sparsegpt(self, weight: Tensor) -> Tensor:
        solver = self._solver("sparsegpt", "SparseGPT", weight)
        solver.fasterprune(0.5)
        return solver.layer.weight.data

    def sparsegpt_two_four(self, weight: Tensor) -> Tensor:
        solver = self._solver("sparsegpt", "SparseGPT", weight)
        solver.fasterprune(0.0, prunen=2, prunem=4)
        return solver.layer.weight.data


# name → the shapes (out, inp), ours as a function of W and H, theirs
Ours = Callable[[Tensor, Tensor], Tensor]
CASES: dict[str, tuple[tuple[tuple[int, int], ...], Ours, Callable[[Theirs, Tensor], Tensor]]] = {
    "GPTQ 4 bits": (((576, 576), (576, 1536)), lambda w, h: gptq(w, h, bits=BITS).dequantize(), Theirs.gptq),
    "SparseGPT 50 %": (((576, 576), (576, 1536)), lambda w, h: sparsegpt(w, h, sparsity=0.5), Theirs.sparsegpt),
    "SparseGPT 2:4": (
        ((576, 576), (576, 1536)),
        lambda w, h: sparsegpt(w, h, pattern=(2, 4)),
        Theirs.sparsegpt_two_four,
    ),
    "ExactOBS 50 %, blocks of 4": (
        ((576, 576),),
        lambda w, h: exact_obs(w, h, sparsity=0.5, block_size=4),
        Theirs.blocks,
    ),
    "ExactOBS 2:4": (((576, 576),), lambda w, h: exact_obs(w, h, pattern=(2, 4)), Theirs.two_four),
    "ExactOBS 50 %": (((576, 576),), lambda w, h: exact_obs(w, h, sparsity=0.5), Theirs.unstructured),
    "OBQ 4 bits": (((576, 576),), lambda w, h: obq(w, h, bits=BITS).dequantize(), Theirs.obq),
}


def compare(case: str, shape: tuple[int, int], modules: dict[str, ModuleType]) -> Iterator[dict[str, object]]:
    """Yield a record of ours and one of theirs."""
    _, ours, theirs = CASES[case]
    weight, x, held_out = make_layer(*shape, 2 * max(1024, shape[1]), seed=0)
    hessian = layer_hessian(x)
    published = Theirs(modules, hessian)
    times: dict[str, list[float]] = {"mlcomp": [], "authors": []}
    spent = 0.0
    while spent < SECONDS:
        mine, wall, before = timed(lambda: ours(weight, hessian))
        with on_a_cpu():
            found, longer, cpu = timed(lambda: theirs(published, weight))
        _, again, after = timed(lambda: ours(weight, hessian))
        times["mlcomp"].append((before + after) / 2)
        times["authors"].append(cpu)
        spent += wall + longer + again
    ratio = median(b / a for a, b in zip(*times.values(), strict=True))
    for version, result in (("mlcomp", mine), ("authors", found)):
        yield {
            "case": case,
            "layer": f"{shape[0]}x{shape[1]}",
            "version": version,
            "rounds": len(times[version]),
            "cpu_s": round(median(times[version]), 4),
            "ratio": round(ratio, 2) if version == "authors" else 1.0,
            "error": round(float(relative_error(weight, result, x)), 6),
            "held_out_error": round(float(relative_error(weight, result, held_out)), 6),
            "zeros": round(float((result == 0).double().mean()), 4),
        }


def main(argv: list[str] | None = None) -> None:
    """Print the table and append it to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--authors", type=Path, required=True, metavar="FOLDER", help="the authors' repositories")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="NAME")
    options = common_options(parser, RESULTS, argv)
    try:
        modules = authors(options.authors)
    except FileNotFoundError as problem:
        parser.error(str(problem))
    source = origin(seed=0)
    print(source)
    print(
        f"{'case':28}{'layer':10}{'version':10}{'rounds':>7}{'CPU s':>10}{'ratio':>8}{'error':>10}{'held-out':>10}"
        f"{'zeros':>8}"
    )
    rows = (row for case in options.cases for shape in CASES[case][0] for row in compare(case, shape, modules))
    form = "{:28}{:10}{:10}{:>7}{:>10}{:>8}{:>10}{:>10}{:>8}"
    show_and_keep(rows, form, source, None if options.no_record else RESULTS)


if __name__ == "__main__":
    main()

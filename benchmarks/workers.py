"""What it costs, and when it pays, to compress layers in other processes: ``compress(…, map=pool.map)``.

Run: python -m benchmarks.workers [--cases NAME …] [--repeat N] [--no-record]

Eight equal linear layers on noise that passes through them, all from the dense model (sequential=False), one thread
of torch in this process and in each worker. The workers are running when a case begins; what it takes to start one
stands in "start_cpu_s", "worker_mb" is its memory before any layer, and "load" what else ran when this began.

The wall seconds (the least of --repeat) want a quiet machine. What the load of the machine hardly moves are the CPU
seconds of the work, and of pickling and unpickling, both for one layer, the bytes, and "bound_2": the ratio that two
workers would reach if this process did all the shipping, and each of them half the work.
"""

import argparse
import multiprocessing
import os
import pickle
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import torch
from torch import nn

from benchmarks.record import append, common_options, origin
from benchmarks.scaling_out import RESULTS, write
from mlcomp.layerwise import compress
from mlcomp.obs import exact_obs, gptq, obq
from mlcomp.quant import aqlm, rtn
from mlcomp.workers import check_map

LAYERS = 8
SEED = 0
CASES = {  # name → method, width of the layers
    "rtn": (partial(rtn, bits=4), 256),
    "gptq": (partial(gptq, bits=4), 256),
    "gptq, wide": (partial(gptq, bits=4), 1024),
    "obq": (partial(obq, bits=4), 256),
    "exact_obs": (partial(exact_obs, sparsity=0.5), 256),
    "aqlm": (partial(aqlm, code_bits=6, max_rounds=2), 256),
}


def network(width):
    """Return the layers, and the batches of four inputs for each weight of a row."""
    generator = torch.Generator().manual_seed(SEED)
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        model = nn.Sequential(*(part for _ in range(LAYERS) for part in (nn.Linear(width, width), nn.SELU())))
    return model, list(torch.randn(4 * width, width, generator=generator).split(512))


def pool(workers):
    """Return new processes with one thread of torch each."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=torch.set_num_threads, initargs=(1,))


class Scale:
    """Does what a pool of one process does, in this one, and weighs it: a map."""

    def __init__(self):
        self.sent = self.back = 0
        self.work = self.ship = 0.0

    def __call__(self, function, items):
        for item in items:
            begin = time.process_time()
            data = pickle.dumps(item)
            there = pickle.loads(data)
            ready = time.process_time()
            result = function(there)
            done = time.process_time()
            back = pickle.dumps(result)
            result = pickle.loads(back)
            self.ship += ready - begin + time.process_time() - done
            self.work += done - ready
            self.sent, self.back = self.sent + len(data), self.back + len(back)
            yield result


def wall(method, width, map, repeat):
    """Return the least wall seconds of compressing the network, and what the model became."""
    best = float("inf")
    for _ in range(repeat):
        model, batches = network(width)
        begin = time.perf_counter()
        result, _ = compress(
            model, batches, method, sequential=False, layers_per_pass=LAYERS, progress=False, map=map
        )
        best = min(best, time.perf_counter() - begin)
    return best, result.state_dict()


def measure(case, pools, repeat):
    """Return the figures of one case."""
    method, width = CASES[case]
    scale, begin = Scale(), time.process_time()
    model, batches = network(width)
    weighed, _ = compress(model, batches, method, sequential=False, layers_per_pass=LAYERS, progress=False, map=scale)
    rest = time.process_time() - begin - scale.work - scale.ship
    walls = {}
    for workers, map_ in ({0: map} | pools).items():
        walls[workers], found = wall(method, width, map_, repeat)
        assert all(torch.equal(found[key], weight) for key, weight in weighed.state_dict().items())
    return {
        "case": case,
        "layer": f"{width}x{width}",
        "layers": LAYERS,
        "work_cpu_s": round(scale.work / LAYERS, 4),
        "ship_cpu_s": round(scale.ship / LAYERS, 4),
        "sent_mb": round(scale.sent / LAYERS / 1e6, 3),
        "back_mb": round(scale.back / LAYERS / 1e6, 3),
        "rest_cpu_s": round(rest, 3),
        "bound_2": round((rest + scale.work) / (rest + scale.ship + scale.work / 2), 2),
        "wall_s": round(walls[0], 3),
        "wall_1_s": round(walls[1], 3),
        "wall_2_s": round(walls[2], 3),
        "ratio_1": round(walls[0] / walls[1], 2),
        "ratio_2": round(walls[0] / walls[2], 2),
    }


def started():
    """Return the machine's load, and what a worker takes to start with this library in it: CPU seconds and MB."""
    load = round(os.getloadavg()[0], 1)
    with pool(1) as one:
        check_map(one.map, *(method for method, _ in CASES.values()))
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    size = used.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return {"start_cpu_s": round(used.ru_utime + used.ru_stime, 2), "worker_mb": round(size), "load": load}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="NAME")
    parser.add_argument("--repeat", type=int, default=3)
    options = common_options(parser, RESULTS, argv)
    torch.set_num_threads(1)
    source, start = origin(seed=SEED), started()
    print(source, start)
    rows = []
    with pool(1) as one, pool(2) as two:
        for kind in (one.map, two.map):  # until all of them run
            list(kind(time.sleep, [0.5, 0.5]))
        for case in options.cases:
            row = measure(case, {1: one.map, 2: two.map}, options.repeat) | start
            print(row, flush=True)
            rows.append(source | row)
    if not options.no_record:
        append(rows, RESULTS)
        write()


if __name__ == "__main__":
    main()

"""``mapped`` by several kinds of ``map``, and what uses it in real worker processes, one and two of them."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from mlcomp import workers
from mlcomp.budget import Level, build_database
from mlcomp.deploy import compress_model
from mlcomp.generate import Pipeline, sample_rationales
from mlcomp.layerwise import collect_hessians, compress
from mlcomp.layerwise.task import LayerTask
from mlcomp.obs import gptq
from mlcomp.prune import magnitude
from mlcomp.workers import check_map, mapped, process_map
from tests.generate.models import END, Table
from tests.generate.test_pipeline import PROMPTS, SAMPLING, MadeUp, pieces

ITEMS = {"one": 1, "two": 2, "three": 3}


def double(x):
    return 2 * x


def settings(x):
    return torch.get_default_dtype(), torch.is_grad_enabled()


def refuse_two(x):
    if x == 2:
        raise KeyError("no two")
    return x


class OfTwo(Exception):
    """An error that pickle can store and not make again."""

    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


def refuse_strangely(x):
    raise OfTwo("this", "that")


def draw(x, kind):
    return {"torch": lambda: torch.rand(()), "numpy": np.random.rand, "python": random.random}[kind]()


def die(x):
    os._exit(1)


def about_itself(x):
    return os.getpid(), torch.get_num_threads()


def sleep(path):
    """Say who sleeps, and wake up long after the test's end."""
    path.with_suffix(f".{os.getpid()}").touch()
    time.sleep(600)


def half(weight, hessian):
    return magnitude(weight, sparsity=0.5)


def refuse_wide(weight, hessian, **options):
    if weight.shape[1] == 12:
        raise RuntimeError("the memory is full")
    return weight


def draws(weight, hessian):
    return torch.rand_like(weight)


def pool(workers):
    """As the page *Many layers at once* says: new processes, one thread of torch each."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=torch.set_num_threads, initargs=(1,))


@pytest.fixture(scope="module")
def pools():
    with pool(1) as one, pool(2) as two:
        yield {1: one.map, 2: two.map}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# What the maps below do is what some pool does, without its processes.


def whole_list(function, items):
    return [function(item) for item in items]


def out_of_order(function, items):
    return reversed([function(item) for item in items])


def too_few(function, items):
    return [function(item) for item in items][:-1]


def test_results_come_in_order_and_one_by_one():
    seen = []

    def slow(x):
        seen.append(x)
        return double(x)

    found = mapped(slow, ITEMS, map)
    assert next(found) == 2 and seen == [1]
    assert list(found) == [4, 6] and list(mapped(double, ITEMS, whole_list)) == [2, 4, 6]
    assert list(mapped(double, {}, map)) == []


def test_an_error_of_the_function_names_the_item_and_stays_what_it_is():
    for kind in (map, whole_list):
        found = mapped(refuse_two, ITEMS, kind)
        assert next(found) == 1
        with pytest.raises(KeyError, match="no two") as caught:
            next(found)
        assert caught.value.__notes__ == ["raised for 'two'"]


def test_a_map_that_does_not_keep_the_order_or_ends_too_soon():
    with pytest.raises(ValueError, match="keep the order, and gave 'three' before 'one'"):
        list(mapped(double, ITEMS, out_of_order))
    with pytest.raises(RuntimeError, match="ended before 'three'"):
        list(mapped(double, ITEMS, too_few))


@pytest.mark.parametrize("raised", [True, False])  # or handed out as a result
def test_an_error_of_the_map_says_where(raised):
    def broken(function, items):
        yield function(items[0])
        if raised:
            raise BrokenProcessPool("a process is gone")
        yield BrokenProcessPool("a process is gone")

    found = mapped(double, ITEMS, broken)
    assert next(found) == 2
    with pytest.raises(RuntimeError, match="map failed at 'two' or at one after it: BrokenProcessPool"):
        next(found)


@pytest.mark.parametrize("how", ["error", "interrupt", "close"])
def test_what_the_map_returned_is_closed(how):
    closed, held = [], []

    def one_by_one(function, items):
        try:
            for item in items:
                if how == "interrupt" and item.name == "two":
                    raise KeyboardInterrupt
                yield function(item)
        finally:
            closed.append(how)

    def watched(function, items):
        held.append(one_by_one(function, items))  # somebody else has it, too: it does not close by being forgotten
        return held[-1]

    found = mapped(refuse_two if how == "error" else double, ITEMS, watched)
    next(found)
    if how == "close":
        found.close()
    else:
        with pytest.raises(KeyError if how == "error" else KeyboardInterrupt):
            next(found)
    assert closed == [how]


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ("a pool", TypeError, "map"),
        (lambda function: [], ValueError, "map does not work: TypeError"),
        (lambda function, items: 3, ValueError, "map does not work: TypeError"),
        (lambda function, items: [], ValueError, "for one item gave \\[\\]"),
        (lambda function, items: list(items), ValueError, "for one item gave"),
    ],
)
def test_no_map(bad, error, message):
    with pytest.raises(error, match=message):
        check_map(bad)


@pytest.mark.slow
def test_a_thread_has_the_callers_settings(pools):
    with torch.no_grad(), ThreadPoolExecutor(2) as threads:
        assert list(mapped(settings, ITEMS, threads.map)) == [(torch.float32, False)] * 3
    torch.set_default_dtype(torch.float64)
    try:
        assert list(mapped(settings, ITEMS, pools[2])) == [(torch.float64, True)] * 3
    finally:
        torch.set_default_dtype(torch.float32)
    assert list(mapped(settings, ITEMS, pools[2])) == [(torch.float32, True)] * 3


@pytest.mark.slow
def test_errors_come_back_from_a_process(pools):
    with pytest.raises(KeyError, match="no two") as caught:
        list(mapped(refuse_two, ITEMS, pools[2]))
    assert "in refuse_two" in caught.value.__notes__[0] and "raised for 'two'" in caught.value.__notes__[1]
    with pytest.raises(RuntimeError, match="OfTwo: this and that"):
        list(mapped(refuse_strangely, ITEMS, pools[2]))


@pytest.mark.parametrize("kind", ["torch", "numpy", "python"])
def test_drawing_from_a_global_generator_is_told(pools, kind):
    with pytest.raises(ValueError, match=r"functools\.partial\(method, seed=0\)"):
        list(mapped(partial(draw, kind=kind), ITEMS, pools[1]))


def test_what_a_worker_cannot_find_is_told_before_any_work(pools):
    calls = []

    def spy(weight, hessian):
        calls.append(weight)
        return weight

    for method in (spy, lambda weight, hessian: weight):
        with pytest.raises(ValueError, match=r"map does not work: .*functools\.partial"):
            compress(net(), data(), method, map=pools[1], progress=False)
    assert not calls


@pytest.mark.slow
def test_a_worker_that_dies_is_told():
    with pool(1) as one:
        with pytest.raises(RuntimeError, match="map failed at 'one' or at one after it: BrokenProcessPool"):
            list(mapped(die, ITEMS, one.map))
        with pytest.raises(ValueError, match="map does not work: BrokenProcessPool"):
            check_map(one.map)


# process_map


@pytest.fixture
def two_cores(monkeypatch):
    monkeypatch.setattr(workers, "_cores", lambda: 2)


def test_one_worker_is_the_built_in_map(two_cores):
    with process_map(1) as one:
        assert one is map


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_workers_share_the_cores(two_cores, threads):
    torch.set_num_threads(threads)
    with process_map(2) as two:
        found = list(two(about_itself, range(8)))
    assert os.getpid() not in dict(found) and set(dict(found).values()) == {1}
    assert all(gone(process) for process, _ in found)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (0, "workers must be a whole number of at least 1, got 0"),
        (-2, "got -2"),
        (3, "workers must be at most 2, the cores that this process may use, got 3"),
    ],
)
def test_a_number_of_workers_that_makes_no_sense(two_cores, number, message):
    with pytest.raises(ValueError, match=message), process_map(number):
        raise AssertionError("nothing runs")


def gone(process):
    """Return whether the process has ended: one that nobody has asked for its exit status, too."""
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def sleepers(folder, number=2):
    """Return the processes that sleep, once all do."""
    deadline = time.monotonic() + 120
    while len(found := list(folder.glob("item.*"))) < number:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return [int(path.suffix[1:]) for path in found]


linux = pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="looks for processes in /proc")


@linux
@pytest.mark.slow
@pytest.mark.parametrize("problem", [KeyboardInterrupt, ValueError])
def test_an_error_or_interrupt_stops_workers_in_the_middle_of_an_item(two_cores, tmp_path, problem):
    with pytest.raises(problem), process_map(2) as two:
        waiting = two(sleep, [tmp_path / "item"] * 4)
        found = sleepers(tmp_path)
        begin = time.monotonic()
        raise problem
    assert time.monotonic() - begin < 60 and all(gone(process) for process in found)
    assert waiting is not None and len(list(tmp_path.iterdir())) == 2


@linux
@pytest.mark.slow
def test_a_ctrl_c_of_the_terminal_is_for_the_parent(two_cores, request):
    # New processes inherit that a signal is ignored, as it may be here, but no handler.
    request.addfinalizer(partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with process_map(2) as two:
        before = dict(two(about_itself, range(8)))
        for process in before:
            os.kill(process, signal.SIGINT)
        after = dict(two(about_itself, range(8)))
    assert after.keys() & before.keys()


@pytest.mark.slow
@linux
def test_no_worker_outlives_a_process_that_was_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom mlcomp import workers\nfrom tests.test_workers import sleep\n"
        'if __name__ == "__main__":\n    workers._cores = lambda: 2\n    with workers.process_map(2) as two:\n'
        "        list(two(sleep, [Path(sys.argv[1])] * 2))\n"
    )
    path = {"PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, script, tmp_path / "item"], env=os.environ | path)
    found = sleepers(tmp_path)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 60
    while not all(gone(process) for process in found):
        assert time.monotonic() < deadline
        time.sleep(0.02)


# compress


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(self.q(x) * self.k(x) + self.v(x))))


def net():
    torch.manual_seed(0)
    return nn.Sequential(*(Block() for _ in range(2)))


def data():
    return list(torch.randn(64, 8, generator=torch.Generator().manual_seed(1)).split(32))


three_bits = partial(gptq, bits=3)


def compressed(method=three_bits, **options):
    """Return all that compress returns, but for the seconds, as what can be compared to the bit."""
    model, report = compress(net(), data(), method, progress=False, **options)
    weights = {name: weight.tolist() for name, weight in model.state_dict().items()}
    packed = {name: str([part.tensors for part in parts]) for name, parts in report.results.items()}
    return weights, [replace(row, seconds=0.0) for row in report.rows], packed


def kept(folder):
    """Return what a resume folder holds, but for the seconds."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["facts"])
            facts.get("row", {})["seconds"] = 0
            found[path.name] = facts, {key: file.get_tensor(key).tolist() for key in file.keys()}
    return found, (folder / "manifest.json").read_text()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("sequential", [True, False])
def test_a_models_layers_do_not_depend_on_the_number_of_workers(pools, tmp_path, workers, sequential):
    options = {"sequential": sequential, "held_out": data()[:1]}
    here = compressed(**options, resume=tmp_path / "here")
    there = compressed(**options, resume=tmp_path / "there", map=pools[workers])
    assert there == here and len(here[1]) == len(here[2]) == 10
    assert kept(tmp_path / "there") == kept(tmp_path / "here")
    # What one map has begun another one finishes.
    for path in sorted((tmp_path / "there").glob("*.safetensors"))[:6]:
        path.unlink()
    assert compressed(**options, resume=tmp_path / "there") == here


@pytest.mark.parametrize("kind", ["process", "thread", "here"])
def test_a_layer_that_fails_is_named_and_those_before_it_are_kept(pools, tmp_path, kind):
    with ThreadPoolExecutor(2) as threads:
        kinds = {"process": pools[2], "thread": threads.map, "here": map}
        with pytest.raises(RuntimeError, match=r"^the memory is full") as caught:
            compressed(refuse_wide, map=kinds[kind], resume=tmp_path / "folder")
    assert "raised for '0.down'" in caught.value.__notes__
    assert len(list((tmp_path / "folder").glob("*.safetensors"))) == 4  # q, k, v and up


def test_an_interrupt_leaves_what_is_finished(tmp_path):
    def interrupted(function, items):
        for item in items:
            if item.name == "0.up":
                raise KeyboardInterrupt
            yield function(item)

    model = net()
    with pytest.raises(KeyboardInterrupt):
        compress(model, data(), half, map=interrupted, resume=tmp_path / "folder", progress=False)
    assert len(list((tmp_path / "folder").glob("*.safetensors"))) == 3
    torch.testing.assert_close(model.state_dict(), net().state_dict(), rtol=0, atol=0)
    assert compressed(half, resume=tmp_path / "folder") == compressed(half)


def test_a_method_that_draws_is_refused_in_a_worker(pools):
    with pytest.raises(ValueError, match="global generator"):
        compressed(draws, map=pools[2])


# compress_model


class Spy:
    """Another map, and the names of the layers that it was given; ``method`` takes the place of theirs."""

    def __init__(self, map, method=None):
        self.map, self.method, self.names = map, method, []

    def __call__(self, function, jobs):
        layers = [job for job in jobs if isinstance(job.item, LayerTask)]
        self.names += [job.name for job in layers]
        if self.method is not None:
            changed = [replace(job, item=replace(job.item, method=self.method)) for job in layers]
            jobs = changed or jobs
        return self.map(function, jobs)


by_gptq = partial(compress_model, method="gptq", bits=3, group_size=4, data=data(), progress=False)


@pytest.mark.parametrize("sequential", [True, False])
def test_a_model_by_its_method_does_not_depend_on_the_number_of_workers(pools, sequential):
    there = Spy(pools[2])
    one = by_gptq(net(), sequential=sequential)
    two = by_gptq(net(), sequential=sequential, map=there)
    assert there.names == [row.name for row in one.report.rows] and len(there.names) == 10
    assert [replace(row, seconds=0.0) for row in two.report.rows] == [
        replace(row, seconds=0.0) for row in one.report.rows
    ]
    torch.testing.assert_close(two.model.state_dict(), one.model.state_dict(), rtol=0, atol=0)
    assert two.agreement == one.agreement and two.nbytes_after == one.nbytes_after


def test_a_model_whose_worker_fails_goes_on_from_the_layer_that_is_named(pools, tmp_path):
    failing = Spy(pools[2], refuse_wide)
    with pytest.raises(RuntimeError, match=r"^the memory is full") as caught:
        by_gptq(net(), out=tmp_path / "kept", map=failing)
    assert "raised for '0.down'" in caught.value.__notes__
    assert any("in a worker" in note for note in caught.value.__notes__)
    assert len(list((tmp_path / "kept/.resume").glob("*.safetensors"))) == 4
    rest = Spy(pools[1])
    by_gptq(net(), out=tmp_path / "kept", map=rest)
    assert len(rest.names) == 6 and not (tmp_path / "kept/.resume").exists()


def test_a_map_that_does_not_work_is_told_before_the_model_is_opened(tmp_path):
    with pytest.raises(ValueError, match="map does not work"):
        by_gptq("no such model", map=lambda function, items: 3, out=tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


# build_database

LEVELS = (Level(), Level(sparsity=0.5), Level(pattern=(2, 4)), Level(bits=3), Level(pattern=(2, 4), bits=4))


def refuse_wide_at(weight, hessian, *, sparsity):
    return refuse_wide(weight, hessian)


def no_method(weight, hessian, *, sparsity):
    if weight.shape[1] == 12:
        raise ValueError("no")
    return weight


def draws_at(weight, hessian, *, sparsity):
    return torch.rand_like(weight)


def database(**options):
    model = net()[0]
    hessians = collect_hessians(model, data())
    names = ("down", "q", "v", "up", "k")  # in no model's order
    return build_database(model, {name: hessians[name] for name in names}, progress=False, **options)


def all_of(made):
    return {name: [vars(e) | {"weight": e.weight.tolist()} for e in made.layers[name]] for name in made.layers}


@pytest.mark.parametrize("number", [1, 2])
def test_a_database_does_not_depend_on_the_number_of_workers(pools, tmp_path, number):
    here = database(levels=LEVELS, resume=tmp_path / "here")
    there = database(levels=LEVELS, resume=tmp_path / "there", map=pools[number])
    assert all_of(there) == all_of(here) and list(there.layers) == ["down", "q", "v", "up", "k"]
    assert kept(tmp_path / "there") == kept(tmp_path / "here") and len(kept(tmp_path / "here")[0]) == 5
    for name in ("q", "up"):
        (tmp_path / "there" / f"{name}.safetensors").unlink()
    seen = []

    def others(function, jobs):
        seen.extend(job.name for job in jobs)
        return pools[number](function, jobs)

    assert all_of(database(levels=LEVELS, resume=tmp_path / "there", map=others)) == all_of(here)
    assert seen[-2:] == ["q", "up"] and len(seen) == 3  # the first shows that the map works


def test_a_database_whose_worker_fails_names_the_layer_and_keeps_those_before_it(pools, tmp_path):
    half = {"levels": [Level(sparsity=0.5)], "map": pools[2]}
    with pytest.raises(RuntimeError, match="the memory is full") as caught:
        database(prune=refuse_wide_at, **half)
    assert "raised for 'down'" in caught.value.__notes__
    with pytest.raises(ValueError, match="layer 'down': no"):
        database(prune=no_method, **half)
    with pytest.raises(ValueError, match="global generator"):
        database(prune=draws_at, **half)
    with pytest.raises(ValueError, match=r"map does not work: .*functools\.partial"):
        database(prune=lambda weight, hessian, *, sparsity: weight, **half)

    def interrupted(function, jobs):
        for job in jobs:
            if job.name == "up":
                raise KeyboardInterrupt
            yield function(job)

    with pytest.raises(KeyboardInterrupt):
        database(levels=LEVELS, resume=tmp_path / "folder", map=interrupted)
    kept = {path.stem for path in (tmp_path / "folder").glob("*.safetensors")}
    assert kept == {"down", "q", "v"}
    assert all_of(database(levels=LEVELS, resume=tmp_path / "folder")) == all_of(database(levels=LEVELS))


# sampling


def ask(folder, map):
    return Pipeline(folder).generate("ask", MadeUp(), PROMPTS, seed=3, sampling=SAMPLING, batch=2, map=map)


def sampled(map):
    prompts = torch.tensor([[0, 1], [2, 2], [1, 0]])
    return sample_rationales(Table(), prompts, samples=5, length=4, end=END, seed=2, map=map).tolist()


@pytest.mark.parametrize("workers", [1, 2])
def test_samples_do_not_depend_on_the_number_of_workers(pools, tmp_path, workers):
    assert sampled(pools[workers]) == sampled(map)
    assert ask(tmp_path / "there", pools[workers]) == ask(tmp_path / "here", map)
    made = pieces(tmp_path / "here")
    assert len(made) == 4 and pieces(tmp_path / "there") == made


@pytest.fixture
def ray_nodes():
    """Where Ray is installed, the extra ``cluster``: two nodes of one core, as two machines are, and Ray itself."""
    ray = pytest.importorskip("ray", reason='needs Ray: pip install -e ".[cluster]"')
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes.add_node(num_cpus=1)
    nodes.wait_for_nodes()
    ray.init(address=nodes.address, log_to_driver=False)
    yield ray
    ray.shutdown()
    nodes.shutdown()


@pytest.mark.parametrize("number", [1, 2])
def test_by_rays_pool(ray_nodes, tmp_path, number):
    from ray.util.multiprocessing import Pool

    def node_of(x):
        time.sleep(0.2)
        return ray_nodes.get_runtime_context().get_node_id()

    with Pool(number, ray_remote_args={"num_cpus": 1}) as rays:
        assert len(set(rays.map(node_of, range(4 * number), chunksize=1))) == number
        assert compressed(map=rays.imap) == compressed()
        with pytest.raises(RuntimeError, match=r"^the memory is full") as caught:
            compressed(refuse_wide, map=rays.imap, resume=tmp_path / "folder")
        assert "raised for '0.down'" in caught.value.__notes__
        assert len(list((tmp_path / "folder").glob("*.safetensors"))) == 4
        assert list(mapped(lambda x: 2 * x, ITEMS, rays.imap)) == [2, 4, 6]
        assert sampled(rays.imap) == sampled(map)
        assert all_of(database(levels=LEVELS, map=rays.imap)) == all_of(database(levels=LEVELS))
        there = by_gptq(net(), map=rays.imap).model.state_dict()
        torch.testing.assert_close(there, by_gptq(net()).model.state_dict(), rtol=0, atol=0)
        with pytest.raises(RuntimeError, match="map failed at 'one' or at one after it: ActorDiedError"):
            list(mapped(die, ITEMS, rays.imap))

"""Hashes of settings: equal in another process, another wherever the result could be another."""

import collections
import copy
import dataclasses
import enum
import functools
import importlib
import json
import os
import re
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from mlcomp.fingerprint import hash_batches, hash_model, hash_values
from mlcomp.obs import gptq
from mlcomp.prune import keep_zeros
from mlcomp.quant import rtn
from mlcomp.references import installed

SCALE = 3
CALLS = 0
OFFSETS = {"low": 1, "high": 2}


def deepest(x):
    return x * SCALE


def helper(x):
    return deepest(x) + 1


def method(x):
    return helper(x)


def counts(x):
    global CALLS
    CALLS += 1
    return rtn(x, bits=4)


def even(n):
    return n == 0 or odd(n - 1)


def odd(n):
    return n != 0 and even(n - 1)


class Base:
    def scaled(self, x):
        return x * SCALE


class Method(Base):
    limit = 5

    def __init__(self, bits):
        self.bits = bits

    def __call__(self, x):
        return self.scaled(x) + self.bits + super().scaled(x)

    def run(self, x):
        return self(x)


@dataclasses.dataclass
class Options:
    bits: int = 4
    names: list = dataclasses.field(default_factory=list)


class Mode(enum.Enum):
    FAST = 1
    EXACT = 2


def remade(source, **names):
    """Return the function f that ``source`` defines, as a cell of a notebook would."""
    namespace = {"__name__": "__main__", **names}
    exec(source, namespace)
    return namespace["f"]


def test_a_changed_global_helper_of_a_helper_or_base_class_is_another_method(monkeypatch):
    things = [method, helper, Method(2), Method(2).run, functools.partial(method, x=1), Method]
    before = [hash_values(thing) for thing in things]
    assert before == [hash_values(thing) for thing in things] and len(set(before)) == len(before)
    monkeypatch.setitem(globals(), "SCALE", 4)
    assert all(a != hash_values(thing) for a, thing in zip(before, things, strict=True))
    monkeypatch.setitem(globals(), "SCALE", 3)
    assert before == [hash_values(thing) for thing in things]
    monkeypatch.setitem(globals(), "deepest", lambda x: x * SCALE - 1)
    changed = [a != hash_values(thing) for a, thing in zip(before, things, strict=True)]
    assert changed == [True, True, False, False, True, False]
    monkeypatch.setattr(Base, "scaled", lambda self, x: x)
    assert hash_values(Method(2)) != before[2] and hash_values(Method(2).run) != before[3]


SOURCES = [  # @ is 2, or 10
    "def f(x): return x + @",
    "def f(x, k=@): return x + k",
    "def f(x, *, k=@): return x + k",
    "def f(x): return (lambda y: y + @)(x)",
    "def f(x):\n def g():\n  return [y * @ for y in x]\n return g()",
    "def f(x): return x in {'a', '@'}",
    "def m(k):\n def g(x): return x + k\n return g\nf = m(@)",
    "def f(x): return x.name_@()",
    "K = [@]\ndef f(x): return x + K[0]",
    "class C:\n k = @\ndef f(x): return x + C.k",
    "class C:\n @property\n def k(self): return @\ndef f(x): return C().k",
    "def f(x): return x\nf.k = @",
    "from math import log@ as g\ndef f(x): return g(x)",
    "import math\ndef f(x): return math.log@(x)",
    "def f(x):\n try:\n  return x.y\n except E@: return 0",
    "import functools\n@functools.cache\ndef g(x): return x + @\ndef f(x): return g(x)",
    "import functools\nclass C:\n @functools.cached_property\n def k(self): return @\ndef f(x): return C().k",
    "import contextlib\n@contextlib.contextmanager\ndef g():\n yield @\ndef f(x): return g()",
    "import re\nP = re.compile('a{@}')\ndef f(x): return P.match(x)",
    "class R:\n def __reduce__(self): return 'r'\n def k(self): return @\nr = R()\ndef f(x): return r.k()",
    "import torch\n@torch.no_grad()\ndef f(x): return x * @",
]


@pytest.mark.parametrize("source", SOURCES)
def test_code_that_computes_something_else_has_another_hash(source):
    fill = functools.partial(re.sub, r"@(?=\W|\d|$)", string=source)
    assert hash_values(remade(fill("2"))) == hash_values(remade("# moved\n\n" + fill("2")))
    assert hash_values(remade(fill("2"))) != hash_values(remade(fill("10")))


USES = [
    "import {m} as a\ndef f(x): return a.BITS",
    "import {m}\ndef f(x): return {m}.inner(x)",
    "from {m} import inner\ndef f(x): return inner(x)",
    "def f(x):\n from {m} import inner\n return inner(x)",
    "def f(x):\n import {m}\n return {m}.inner(x)",
]


@pytest.mark.parametrize("number", range(len(USES)))
def test_a_module_beside_the_script_counts_by_what_is_taken_from_it(number, tmp_path, monkeypatch):
    name = f"beside_the_script_{number}"
    (tmp_path / f"{name}.py").write_text("BITS = 4\nUNUSED = 1\ndef inner(x): return x + BITS\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    function = remade(USES[number].format(m=name))
    before, module = hash_values(function), importlib.import_module(name)
    module.UNUSED = 2
    assert (hash_values(function) == before) == (number < 4)  # `import` inside a function brings the whole module
    module.UNUSED, module.BITS = 1, 3
    assert hash_values(function) != before


def test_what_a_function_assigns_itself_is_its_state():
    def made():
        calls = 0
        limit = 3

        def function(x):
            nonlocal calls
            calls += 1
            return x + limit

        return function

    function, before = made(), hash_values(counts)
    counts(torch.ones(2, 2))
    assert CALLS > 0 and hash_values(counts) == before
    before = hash_values(function)
    function(1)
    assert hash_values(function) == before


@functools.singledispatch
def generic(x):
    return x * SCALE


def test_a_cache_that_has_filled_is_no_other_function(monkeypatch):
    before = hash_values([generic, functools.cache(helper)])
    generic(1)
    generic(2.0)
    cached = functools.cache(helper)
    cached(3)
    assert hash_values([generic, cached]) == before
    monkeypatch.setitem(globals(), "SCALE", 4)
    assert hash_values([generic, cached]) != before


def test_functions_that_call_each_other_and_objects_that_hold_themselves():
    assert hash_values(even) != hash_values(odd)
    ring = [1]
    ring.append(ring)
    other = [2]
    other.append(other)
    assert hash_values(ring) == hash_values(ring) != hash_values(other)


def test_containers_are_told_apart_by_contents_not_by_order_without_meaning():
    assert hash_values({"a": 1, "b": [2]}) == hash_values({"b": [2], "a": 1}) != hash_values({"a": [2], "b": 1})
    assert hash_values({3, "x", (1, 2)}) == hash_values({(1, 2), "x", 3}) != hash_values({(2, 1), "x", 3})
    ordered = collections.OrderedDict
    assert hash_values(ordered(a=1, b=2)) != hash_values(ordered(b=2, a=1))
    a = [1, 2]
    assert hash_values([a, a]) == hash_values([a, [1, 2]])  # it does not matter who shares what
    different = [
        1,
        1.0,
        True,
        "1",
        b"1",
        None,
        (),
        (1,),
        (1, 1),
        ("1",),
        {},
        {1},
        {1: 1},
        0.0,
        -0.0,
        Mode.FAST,
        Mode.EXACT,
    ]
    different += [float("nan"), [[1], 2], [1, [2]], Options(), Options(3), Options(names=[1]), slice(1, 2), 1j]
    different += [np.arange(3), np.arange(3.0), np.arange(3)[:, None], np.float64(1), torch.arange(3), torch.float32]
    different += [
        torch.zeros(2),
        torch.zeros(2, dtype=torch.float64),
        torch.zeros(1, 2),
        torch.zeros(0),
        Options,
        Mode,
    ]
    different += [
        torch.nn.functional.gelu,
        torch.relu,
        len,
        "a".join,
        "b".join,
        [].append,
        gptq,
        rtn,
        torch,
        np,
        Mode,
    ]
    different += [torch.finfo(torch.half), torch.finfo(torch.float), np.exp, np.log, int | None, int | str]
    different += [torch.ops.aten.add, torch.ops.aten.mul, torch.channels_last, torch.device("cpu"), torch.Size([2])]
    assert len({hash_values(value) for value in different}) == len(different) - 1  # Mode stands there twice


def test_tensors_of_every_form():
    x = torch.randn(4, 6)
    assert hash_values(x.T) == hash_values(x.T.contiguous()) != hash_values(x)
    assert hash_values(nn.Parameter(x)) == hash_values(x)
    moved = x.clone()
    moved[3, 5] = torch.nextafter(x[3, 5], torch.tensor(9.0))
    assert hash_values(moved) != hash_values(x)
    for dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.bool, torch.complex64, torch.int64):
        assert hash_values(x.to(dtype)) == hash_values(x.to(dtype)) != hash_values(x)
    assert hash_values(x.to_sparse()) == hash_values(x.to_sparse()) != hash_values((2 * x).to_sparse())
    with pytest.raises(ValueError, match="no plain values"):
        hash_values({"w": torch.empty(2, device="meta")})


def net(act=nn.ReLU, p=0.1, width=4):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), act(), nn.Dropout(p), nn.BatchNorm1d(width), nn.Linear(width, 4))


class Scaled(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor, self.lock, self.inner = factor, threading.Lock(), nn.Linear(2, 2)

    def forward(self, x):
        return self.inner(x) * self.factor


def test_a_model_is_what_it_computes():
    torch.manual_seed(0)
    scaled = Scaled(2)
    base = hash_model(net())
    assert base == hash_model(copy.deepcopy(net()).eval().requires_grad_(False))
    changed = [net(nn.Tanh), net(p=0.2), net(width=5), nn.Sequential(net()), scaled, nn.Sequential(*reversed(net()))]
    changed += [net() for _ in range(6)]
    changed[-1][0].weight.data[1, 1] += 1
    changed[-2][3].running_mean += 1
    changed[-3][3].eps = 1e-3
    changed[-4].register_forward_hook(lambda module, args, out: out + 1)
    changed[-5][0].weight = changed[-5][4].weight
    changed[-6][0].bias = None
    hashes = [hash_model(model) for model in changed]
    assert base not in hashes and len(set(hashes)) == len(changed)
    other = copy.copy(scaled)
    other.factor = 3
    assert hash_model(scaled) == hash_model(copy.copy(scaled)) != hash_model(other)  # the lock counts by its type


def test_a_tie_is_part_of_the_model():
    torch.manual_seed(0)
    tied = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    tied[1].weight = tied[0].weight
    assert hash_model(tied) != hash_model(copy.deepcopy(tied).apply(_untie))


def _untie(module):
    if isinstance(module, nn.Linear):
        module.weight = nn.Parameter(module.weight.detach().clone())


def test_what_library_functions_hold_counts():
    model = net()
    model[0].weight.data[:2] = 0
    before = hash_values(keep_zeros(model, ["0"]))
    assert before == hash_values(keep_zeros(model, ["0"]))
    model[0].weight.data[:3] = 0
    assert hash_values(keep_zeros(model, ["0"])) != before
    assert hash_values(torch.no_grad()(method)) != hash_values(torch.no_grad()(counts))


def test_a_wrapper_with_the_name_of_a_library_function_is_no_library_function(monkeypatch):
    @functools.wraps(gptq)
    def wrapper(weight, hessian):
        return gptq(weight, hessian, bits=SCALE)

    before = hash_values(wrapper)
    monkeypatch.setitem(globals(), "SCALE", 2)
    assert hash_values(gptq) != before != hash_values(wrapper)


def test_installed_code_counts_with_version_and_source(monkeypatch, tmp_path):
    before = hash_values(functools.partial(gptq, bits=3))
    monkeypatch.setattr(sys.modules["mlcomp"], "__version__", "99")
    installed.cache_clear()
    assert hash_values(functools.partial(gptq, bits=3)) != before
    monkeypatch.undo()
    installed.cache_clear()
    assert hash_values(functools.partial(gptq, bits=3)) == before
    changed = tmp_path / "gptq.py"
    changed.write_text("changed")
    monkeypatch.setattr(sys.modules[gptq.__module__], "__file__", str(changed))
    installed.cache_clear()
    assert hash_values(functools.partial(gptq, bits=3)) != before
    installed.cache_clear()


def test_what_has_no_description_is_refused_with_its_place_and_the_way_out(tmp_path):
    lock = threading.Lock()

    def locked(x):
        with lock:
            return x

    with pytest.raises(ValueError, match=r"lock \(entry 'method', captured lock.*partial.*__getstate__"):
        hash_values({"method": locked})
    with (tmp_path / "x").open("w") as file, pytest.raises(ValueError, match=r"TextIOWrapper.*after a restart"):
        hash_values([file])
    with pytest.raises(ValueError, match="generator"):
        hash_values(x for x in ())
    deep = []
    for _ in range(3000):
        deep = [deep]
    with pytest.raises(ValueError, match="nested too deeply"):
        hash_values(deep)


class Stream(IterableDataset):
    def __init__(self, seed):
        self.seed = seed

    def __iter__(self):
        yield from torch.randn(10, 3, generator=torch.Generator().manual_seed(self.seed))


def test_batches_need_no_length():
    first = hash_batches(DataLoader(Stream(1), batch_size=4))
    assert (
        first
        == hash_batches(DataLoader(Stream(1), batch_size=4))
        != hash_batches(DataLoader(Stream(2), batch_size=4))
    )
    assert first != hash_batches(DataLoader(Stream(1), batch_size=5))
    assert hash_batches([{"ids": torch.ones(2), "mask": None}]) == hash_batches(
        ({"mask": None, "ids": torch.ones(2)},)
    )
    assert hash_batches(None) == hash_batches([])


ANOTHER = """
import json, torch
from tests import test_fingerprint as t
options, two = t.Options(names=["a"]), t.Method(2)
things = [t.method, t.counts, t.even, t.odd, two, two.run, options, t.Options, t.Mode.FAST, t.Mode, t.Stream(1)]
things += [{"a", "b", "c", 3, ("x", t.rtn)}, {name: t.method for name in {"p", "q", "r"}}, frozenset({t.even, t.odd})]
things += [t.remade("def f(x): return x in {'one', 'two', 'three'}")]
models = [t.net(), t.net(t.nn.GELU)]
print(json.dumps([*map(t.hash_values, things), *map(t.hash_model, models)]))
"""


@pytest.mark.slow
def test_another_process_with_another_hash_seed_finds_the_same():
    command = [sys.executable, "-c", ANOTHER]
    runs = [subprocess.Popen(command, env=os.environ | {"PYTHONHASHSEED": s}, stdout=subprocess.PIPE) for s in "15"]
    said = [json.loads(run.communicate(timeout=120)[0]) for run in runs]
    assert said[0] == said[1] and len(set(said[0])) == len(said[0])


def test_a_large_model_is_hashed_at_the_speed_of_its_bytes():
    """64 MB, which take a tenth of a second on a quiet core."""
    model = nn.Linear(4096, 4096, bias=False)
    start = time.process_time()
    hash_model(model)
    assert time.process_time() - start < 2

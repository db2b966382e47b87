"""A kernel has the name and the leading arguments of its reference, a test and a benchmark."""

import ast
import importlib
import inspect

import pytest

from tools.inventory import ROOT, modules

KERNELS = [m for m in modules() if m.name.startswith("mlcomp.kernels.") and "REFERENCE" in m.path.read_text()]


def constant(module, name: str):
    for node in module.tree.body:
        if isinstance(node, ast.Assign) and any(getattr(target, "id", None) == name for target in node.targets):
            return ast.literal_eval(node.value)
    return None


def test_every_public_kernel_module_names_its_reference():
    """Modules without Triton code of their own (helpers) are exempt."""
    jitted = [m for m in modules() if m.name.startswith("mlcomp.kernels.") and "@triton.jit" in m.path.read_text()]
    operations = [m for m in jitted if m.path.stem in {node.name for node in m.public}]
    assert [m.name for m in operations if constant(m, "REFERENCE") is None] == []


@pytest.mark.parametrize("module", KERNELS, ids=lambda m: m.name)
def test_kernel_mirrors_its_reference(module):
    home, _, name = constant(module, "REFERENCE").rpartition(".")
    reference = getattr(importlib.import_module(home), name)
    assert name == module.path.stem
    (kernel,) = [node for node in module.public if node.name == name]
    leading = [p.name for p in inspect.signature(reference).parameters.values() if p.kind == p.POSITIONAL_OR_KEYWORD]
    assert [arg.arg for arg in kernel.args.args][: len(leading)] == leading


@pytest.mark.parametrize("module", KERNELS, ids=lambda m: m.name)
def test_kernel_has_test_and_benchmark(module):
    assert module.test.exists()
    assert (ROOT / "benchmarks" / f"{module.path.stem}.py").exists() or list(
        (ROOT / "benchmarks").glob(f"*/{module.path.stem}.py")
    )

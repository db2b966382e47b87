"""A kernel is a drop-in for its reference: name, leading arguments, defaults; and it has a test and a benchmark."""

import ast
import importlib
import inspect

import pytest

from mlcomp.kernels import interpret_without_gpu
from tools.inventory import ROOT, modules

KERNELS = [m for m in modules() if m.name.startswith("mlcomp.kernels.") and "REFERENCE" in m.path.read_text()]
# Arguments with a default of their own, and why the same call gives the same result all the same.
OWN_DEFAULT = {"max_bytes": "bounds the working memory, never the result; thousands of rows run at once on a GPU"}


def constant(module, name: str):
    for node in module.tree.body:
        if isinstance(node, ast.Assign) and any(getattr(target, "id", None) == name for target in node.targets):
            return ast.literal_eval(node.value)
    return None


def reference_of(module):
    home, _, name = constant(module, "REFERENCE").rpartition(".")
    return getattr(importlib.import_module(home), name)


def differences(kernel, reference) -> list[str]:
    """Return the arguments that both functions have, but not of the same kind or not with the same default."""
    theirs, found = inspect.signature(reference).parameters, []
    for name, mine in inspect.signature(kernel).parameters.items():
        if name in theirs:
            own = theirs[name].default if name in OWN_DEFAULT else mine.default
            if mine.kind != theirs[name].kind or own != theirs[name].default:
                found.append(name)
    return found


def test_every_public_kernel_module_names_its_reference():
    """Modules without Triton code of their own (helpers) are exempt."""
    jitted = [m for m in modules() if m.name.startswith("mlcomp.kernels.") and "@triton.jit" in m.path.read_text()]
    operations = [m for m in jitted if m.path.stem in {node.name for node in m.public}]
    assert [m.name for m in operations if constant(m, "REFERENCE") is None] == []


@pytest.mark.parametrize("module", KERNELS, ids=lambda m: m.name)
def test_kernel_mirrors_its_reference(module):
    reference = reference_of(module)
    assert reference.__name__ == module.path.stem
    (kernel,) = [node for node in module.public if node.name == module.path.stem]
    leading = [p.name for p in inspect.signature(reference).parameters.values() if p.kind == p.POSITIONAL_OR_KEYWORD]
    assert [arg.arg for arg in kernel.args.args][: len(leading)] == leading


@pytest.mark.parametrize("module", KERNELS, ids=lambda m: m.name)
def test_the_same_call_means_the_same(module):
    """An argument that kernel and reference share has one default and one kind."""
    interpret_without_gpu()
    kernel = getattr(importlib.import_module(module.name), module.path.stem)
    assert differences(kernel, reference_of(module)) == []


def test_the_comparison_sees_another_default_and_another_kind():
    def reference(x, dim=None, *, scope="global", max_bytes=1): ...

    def kernel(x, dim, *, scope="row", fast=True, max_bytes=2): ...

    def loose(x, dim=None, scope="global", max_bytes=1): ...

    assert differences(reference, reference) == []
    assert differences(kernel, reference) == ["dim", "scope"]
    assert differences(loose, reference) == ["scope", "max_bytes"]


@pytest.mark.parametrize("module", KERNELS, ids=lambda m: m.name)
def test_kernel_has_test_and_benchmark(module):
    assert module.test.exists()
    assert (ROOT / "benchmarks" / f"{module.path.stem}.py").exists() or list(
        (ROOT / "benchmarks").glob(f"*/{module.path.stem}.py")
    )

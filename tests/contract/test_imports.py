"""Imports point one way, and `import mlcomp` is light."""

import subprocess
import sys

import pytest

from tools.inventory import modules

# A package may import what stands in its row, and the shared modules at the root; nothing imports kernels.
MAY_IMPORT = {
    "sources": {"sources"},
    "formats": {"sources", "formats"},
    "quant": {"sources", "formats", "quant"},
    "prune": {"sources", "formats", "prune"},
    "obs": {"sources", "formats", "quant", "prune", "obs"},
    "distill": {"sources", "formats", "quant", "prune", "obs", "distill"},
    "models": {"models", "data"},
    "data": {"data"},
}
PACKAGES = {*MAY_IMPORT, "kernels", "grading"}
HEAVY = ["triton", "transformers", "matplotlib", "sklearn", "nbgrader", "IPython"]


def package_of(name: str) -> str | None:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[0] == "mlcomp" and parts[1] in PACKAGES else None


def wrong_way(module) -> list[str]:
    home = package_of(module.name)
    used = {package_of(name) for name in module.imports()} - {None}
    if home in MAY_IMPORT:
        return sorted(used - MAY_IMPORT[home])
    if home is None:  # shared modules at the root serve every package
        return sorted(used & {"kernels", "grading"})
    return []


@pytest.mark.parametrize("module", modules(), ids=lambda m: m.name)
def test_imports_point_one_way(module):
    assert wrong_way(module) == []


def test_the_scan_sees_a_wrong_import(tmp_path, monkeypatch):
    from tools import inventory

    monkeypatch.setattr(inventory, "ROOT", tmp_path)
    path = tmp_path / "mlcomp" / "formats" / "bad.py"
    path.parent.mkdir(parents=True)
    path.write_text("def f():\n    from mlcomp.obs import obq\n    import mlcomp.kernels.fwht\n")
    assert wrong_way(inventory.Module(path)) == ["kernels", "obs"]


def in_fresh_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_import_is_light():
    loaded = in_fresh_python(f"import mlcomp, sys; print([m for m in {HEAVY} if m in sys.modules])")
    assert loaded == "[]"


def test_library_imports_without_the_extras():
    """The core packages work where only the core requirements are installed, and without Triton (macOS)."""
    code = f"""
import sys
for name in {[*HEAVY, "accelerate", "gguf", "hypothesis", "beartype", "scipy"]}:
    sys.modules[name] = None  # an import of it raises ImportError
import mlcomp, mlcomp.formats, mlcomp.quant, mlcomp.prune, mlcomp.obs, mlcomp.layerwise, mlcomp.metrics
import mlcomp.sources, mlcomp.models, mlcomp.data, mlcomp.assets
print("imported")
"""
    assert in_fresh_python(code) == "imported"

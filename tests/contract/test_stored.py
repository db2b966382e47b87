"""Whatever a method returns for a layer can be kept in a file."""

import importlib

from mlcomp.formats.stored import KINDS
from tools.inventory import modules

# Classes with a weight and a size that have no stored form, and why.
NO_RESULT: dict[str, str] = {
    "mlcomp.quant.scalar.nf4_matmul:PackedNF4": "the stored form of DoubleQuantized, as the kernel reads it",
}


def test_every_result_class_of_the_library_has_a_stored_form():
    """What has a weight and a size can be kept: a class that is added later stands here, or its reason does."""
    known = set(KINDS.values())
    found = set()
    for module in modules():
        if module.path.name == "__init__.py" or module.name.startswith("mlcomp.kernels."):
            continue
        for node in module.public:
            thing = getattr(importlib.import_module(module.name), node.name, None)
            if isinstance(thing, type) and hasattr(thing, "dequantize") and hasattr(thing, "nbytes"):
                found.add(f"{thing.__module__}:{thing.__name__}")
    assert found - known == set(NO_RESULT)
    assert known <= found
    for home in known:
        name, _, thing = home.partition(":")
        assert hasattr(getattr(importlib.import_module(name), thing), "stored")

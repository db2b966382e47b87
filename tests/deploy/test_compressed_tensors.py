"""What is written is read by transformers with compressed-tensors, which share no code with it."""

from functools import partial

import pytest
import torch
from torch import nn

from mlcomp.deploy import export_compressed_tensors
from mlcomp.layerwise import compress
from mlcomp.models.quiet import quiet_transformers
from mlcomp.obs import obq, sparsegpt
from mlcomp.quant import adaround, gptq, ldlq, rtn

transformers = pytest.importorskip("transformers", reason="needs the extra deploy")
pytest.importorskip("compressed_tensors", reason="needs the extra deploy")

TOKENS = torch.arange(24).reshape(2, 12) * 5 % 61
SIZES = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


def llama(tmp_path, dtype=torch.float32, **options) -> nn.Module:
    """Return a model that was loaded: one made by ``.to(bfloat16)`` has other position encodings."""
    return loaded(tmp_path, transformers.LlamaConfig(**SIZES, **HEADS, **options), dtype)


def loaded(tmp_path, config, dtype=torch.float32, kind="AutoModelForCausalLM") -> nn.Module:
    auto = getattr(transformers, kind)
    with quiet_transformers():
        auto.from_config(config).to(dtype).save_pretrained(tmp_path / "dense")
        return auto.from_pretrained(tmp_path / "dense").eval()


def blocks(name: str, module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and "head" not in name


def compressed(model: nn.Module, method) -> tuple[nn.Module, dict]:
    """Return the compressed model, and each layer's result by its name; ``method`` may depend on the name."""
    results = {}

    def keeping(name, weight, hessian):
        results[name] = (method[name] if isinstance(method, dict) else method)(weight, hessian)
        return results[name]

    names = [name for name, module in model.named_modules() if blocks(name, module)]
    methods = {name: partial(keeping, name) for name in names if not isinstance(method, dict) or name in method}
    return compress(model, [TOKENS], methods, progress=False)[0], results


def read(folder, kind="AutoModelForCausalLM") -> nn.Module:
    with quiet_transformers():
        return getattr(transformers, kind).from_pretrained(folder).eval()


@torch.no_grad()
def difference(model: nn.Module, other: nn.Module) -> float:
    """Return the largest difference of what two models put out first, logits or hidden states."""
    (a, *_), (b, *_) = (m(input_ids=TOKENS, return_dict=False) for m in (model, other))
    assert a.dtype == b.dtype and a.std() > 1e-3
    return float((a.double() - b.double()).abs().max())


def plain_rtn(weight, hessian, **options):
    return rtn(weight, **options)


GPTQ = partial(gptq, bits=4, group_size=16)
METHODS = {
    "rtn a row": partial(plain_rtn, bits=4, symmetric=True),
    "rtn affine": partial(plain_rtn, bits=4, group_size=16),
    "rtn affine a row": partial(plain_rtn, bits=8),
    "rtn 8 bits": partial(plain_rtn, bits=8, group_size=8, symmetric=True),
    "rtn 3 bits": partial(plain_rtn, bits=3, group_size=16, symmetric=True),
    "rtn 2 bits affine": partial(plain_rtn, bits=2, group_size=16),
    "gptq": partial(GPTQ, symmetric=True),
    "gptq by activation": partial(GPTQ, order="activation", static_groups=True),
    "obq": partial(obq, bits=4, group_size=16),
    "ldlq": partial(ldlq, bits=4),
    "adaround": lambda w, h: adaround(w, torch.linalg.cholesky(h + h.trace() * torch.eye(len(h))), bits=4, steps=3),
    "sparsegpt and 4 bits": partial(sparsegpt, pattern=(2, 4), bits=4, group_size=16, symmetric=True),
}


@pytest.mark.parametrize("method", METHODS)
def test_plain_transformers_reads_the_same_model(tmp_path, method):
    model, results = compressed(llama(tmp_path), METHODS[method])
    done = export_compressed_tensors(model, results, tmp_path / "out")
    assert set(done.packed) == set(results) and len(results) == 14 and done.left == ("lm_head",)
    assert difference(model, read(tmp_path / "out")) == 0.0

"""The runs of other libraries: each is prepared (imports, options), then compresses, and then writes its own files.

All get the same model in float32 and the same calibration tokens. Where a library can, it rounds to 4 bits in groups
of 64, symmetric, with float32 scales and a damping of 0.01, and leaves the output head alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.beside_others.subject import BITS, DAMP, GROUP


@dataclass(frozen=True)
class Prepared:
    """A run that is ready: ``compress()`` is what is timed; ``save(model, folder)`` writes what it returned.

    The folder is not there yet. ``export(model, folder)`` writes it once more, in the format of compressed-tensors.
    """

    compress: Callable[[], nn.Module]
    save: Callable[[nn.Module, Path], Any]
    export: Callable[[nn.Module, Path], Any] | None = None


def save_pretrained(model: nn.Module, folder: Path, **options: Any) -> None:
    """Write a transformers model."""
    model.save_pretrained(folder, **options)


def dense(model: nn.Module, tokenizer: Any, batches: list[Tensor]) -> Prepared:
    """Run the calibration text through the model, and leave it as it is."""

    def run() -> nn.Module:
        with torch.no_grad():
            for batch in batches:
                model(batch)
        return model

    return Prepared(run, save_pretrained)


def llm_compressor(model: nn.Module, tokenizer: Any, batches: list[Tensor], *, recipe: Callable) -> Prepared:
    """llm-compressor: a recipe of one modifier, applied by ``oneshot``."""
    from llmcompressor import oneshot

    modifier = recipe()
    samples = [{"input_ids": x[0], "attention_mask": torch.ones_like(x[0])} for x in batches]
    loader = torch.utils.data.DataLoader(samples, batch_size=1)

    def compress() -> nn.Module:
        oneshot(model=model, dataset=loader, recipe=modifier, num_calibration_samples=len(samples))
        return model

    return Prepared(compress, partial(save_pretrained, save_compressed=True))


def _scheme() -> dict:
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    weights = QuantizationArgs(num_bits=BITS, type="int", symmetric=True, strategy="group", group_size=GROUP)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    return {"config_groups": {"group_0": scheme}, "ignore": ["lm_head"]}


def rtn_modifier() -> Any:
    """Round to nearest."""
    from llmcompressor.modifiers.quantization import QuantizationModifier

    return QuantizationModifier(**_scheme())


def gptq_modifier(**options: Any) -> Any:
    """GPTQ; by default in the order of the activations, with grids fitted beforehand."""
    from llmcompressor.modifiers.gptq import GPTQModifier

    return GPTQModifier(**_scheme(), dampening_frac=DAMP, **options)


def sparsegpt_modifier(mask_structure: str) -> Any:
    """SparseGPT: half of the weights, anywhere ("0:0") or two in every four ("2:4")."""
    from llmcompressor.modifiers.pruning import SparseGPTModifier

    # The plain name is not heeded: the layer it is compared with is called "lm_head.", with nothing after the dot.
    left = ["re:.*lm_head"]
    return SparseGPTModifier(
        sparsity=0.5, mask_structure=mask_structure, dampening_frac=DAMP, targets=["Linear"], ignore=left
    )


def torchao(model: nn.Module, tokenizer: Any, batches: list[Tensor]) -> Prepared:
    """torchao's integer weights of any number of bits, which it holds in int8 on a CPU."""
    from torchao.quantization import IntxWeightOnlyConfig, PerGroup, quantize_

    config = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(GROUP), scale_dtype=torch.float32)

    def compress() -> nn.Module:
        quantize_(model, config, filter_fn=lambda module, name: isinstance(module, nn.Linear) and name != "lm_head")
        return model

    def save(model: nn.Module, folder: Path) -> None:
        folder.mkdir(parents=True)
        torch.save(model.state_dict(), folder / "model.pt")

    return Prepared(compress, save)


def quanto(model: nn.Module, tokenizer: Any, batches: list[Tensor]) -> Prepared:
    """optimum-quanto's qint4: affine, in groups that it chooses from the width of the layer."""
    from optimum.quanto import freeze, qint4, quantize
    from safetensors.torch import save_file

    def compress() -> nn.Module:
        quantize(model, weights=qint4, exclude="lm_head")
        freeze(model)
        return model

    def save(model: nn.Module, folder: Path) -> None:
        state = {name: x.contiguous() for name, x in model.state_dict().items() if name != "lm_head.weight"}
        folder.mkdir(parents=True)
        save_file(state, folder / "model.safetensors")

    return Prepared(compress, save)


def hqq(model: nn.Module, tokenizer: Any, batches: list[Tensor]) -> Prepared:
    """HQQ, which looks at no data: affine, with a real zero point; its own search for the zero points."""
    from hqq.core.quantize import BaseQuantizeConfig
    from hqq.models.hf.base import AutoHQQHFModel

    config = BaseQuantizeConfig(nbits=BITS, group_size=GROUP, axis=1)

    def compress() -> nn.Module:
        AutoHQQHFModel.quantize_model(model, quant_config=config, compute_dtype=torch.float32, device="cpu")
        return model

    return Prepared(compress, lambda model, folder: AutoHQQHFModel.save_quantized(model, str(folder)))


def neural_compressor(model: nn.Module, tokenizer: Any, batches: list[Tensor]) -> Prepared:
    """neural-compressor's GPTQ."""
    from neural_compressor.torch.quantization import GPTQConfig, convert, prepare

    config = GPTQConfig(bits=BITS, use_sym=True, group_size=GROUP, percdamp=DAMP)

    def compress() -> nn.Module:
        ready = prepare(model, config)
        for x in batches:
            ready(input_ids=x)
        return convert(ready)

    return Prepared(compress, lambda model, folder: model.save(str(folder)))


def auto_round(model: nn.Module, tokenizer: Any, batches: list[Tensor], *, iters: int) -> Prepared:
    """auto-round: the rounding of each block is trained by signed gradient descent."""
    from auto_round import AutoRound

    made = AutoRound(
        model,
        tokenizer=tokenizer,
        scheme="W4A16",
        bits=BITS,
        group_size=GROUP,
        sym=True,
        iters=iters,
        nsamples=len(batches),
        seqlen=batches[0].shape[1],
        dataset=[{"input_ids": x, "attention_mask": torch.ones_like(x)} for x in batches],
        device_map="cpu",
        amp=False,  # by default it turns the whole model into bfloat16 on a CPU that has it
        enable_torch_compile=False,
    )

    def compress() -> nn.Module:
        return made.quantize()[0]

    return Prepared(compress, lambda model, folder: made.save_quantized(str(folder), format="auto_round"))

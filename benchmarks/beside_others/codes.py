"""Our codes beside another library's: python -m benchmarks.beside_others.codes RUN --subject FOLDER --files FOLDER

Both libraries see the same layer with the same inputs. The others take a block's inputs from the model whose blocks
before it are compressed already, and within the block from the original layers; so this walks through the model block
by block, with *their* compressed blocks in front. Their weights come from the file that they wrote, by their own
reader. The last line of the output is JSON, one entry for each block.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.beside_others import subject
from benchmarks.beside_others.ours import METHODS
from mlcomp.layerwise import collect_hessians, output_error
from mlcomp.layerwise.inputs import first_calls
from mlcomp.layerwise.plan import call_method
from mlcomp.quant import Quantized

# Another library's run → our method with the same settings.
PAIRS = {
    "llmcompressor_rtn": "rtn",
    "llmcompressor_gptq_natural": "gptq_static",
    "llmcompressor_gptq": "gptq_static_activation",
    "neural_compressor_gptq": "gptq_static",
    "llmcompressor_sparsegpt_50": "sparsegpt_50",
    "llmcompressor_sparsegpt_2_4": "sparsegpt_2_4",
}


def read(run: str, files: Path, model: nn.Module) -> nn.Module:
    """Return the model that a run wrote, read by its own library; ``model`` may be changed."""
    if run.startswith("neural_compressor"):
        from neural_compressor.torch.quantization import load

        return load(str(files), original_model=model)
    written = subject.load(files)  # transformers asks compressed-tensors, which is llm-compressor's
    written(torch.zeros(1, 1, dtype=torch.long))  # unpacks the weights
    return written


def agreement(theirs: Tensor, result: Quantized | Tensor) -> tuple[float, float]:
    """Return the share of weights with the same code, and the largest relative difference of two steps.

    Of a pruned weight: the share that both keep or both remove, and 0. A code is the same where the two values differ
    by less than a fiftieth of a step; two values of the same code, not 0, are to each other as their steps.
    """
    if isinstance(result, Tensor):
        return float(((theirs == 0) == (result == 0)).float().mean()), 0.0
    step = result.step.repeat_interleave(subject.GROUP, dim=1)
    ours = result.dequantize()
    same = (theirs - ours).abs() < step / 50
    ratios = (theirs / ours)[same & (ours != 0)]
    return float(same.float().mean()), float((ratios - 1).abs().max())


def walk(
    model: nn.Module, theirs: dict[str, Tensor], batches: list[Tensor], method: Callable
) -> Iterator[dict[str, object]]:
    """Yield the figures of each block; ``model`` is compressed by ``theirs`` on the way."""
    # Without a cache: it would hand the keys of one text to the next.
    calls = list(first_calls(model, "model.layers.0", [{"input_ids": x, "use_cache": False} for x in batches]))
    states, options = [args[0] for args, _ in calls], calls[0][1]
    for number, block in enumerate(model.model.layers):
        inputs = [{"hidden_states": state, **options} for state in states]
        hessians = collect_hessians(block, inputs)
        shares, weights, errors = [], [], []
        for name, hessian in hessians.items():
            layer, compressed = block.get_submodule(name), theirs[f"model.layers.{number}.{name}"]
            weight = layer.weight.detach().clone()
            result = call_method(method, weight, hessian)
            shares.append(agreement(compressed, result))
            weights.append(weight.numel())
            found = result if isinstance(result, Tensor) else result.dequantize()
            errors.append([output_error(weight[None], x[None], hessian[None]) for x in (compressed, found)])
            layer.weight.data.copy_(compressed)
        with torch.no_grad():
            states = [block(**each) for each in inputs]
        same = sum(share * n for (share, _), n in zip(shares, weights, strict=True)) / sum(weights)
        theirs_error, our_error = (sum(column) / len(errors) for column in zip(*errors, strict=True))
        yield {
            "block": number,
            "same": round(same, 6),
            "least_same": round(min(share for share, _ in shares), 6),
            "step_difference": f"{max(difference for _, difference in shares):.1e}",
            "error_theirs": round(theirs_error, 6),
            "error_ours": round(our_error, 6),
        }


def main() -> None:
    """Compare one pair."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", choices=PAIRS)
    parser.add_argument("--subject", type=Path, required=True)
    parser.add_argument("--files", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = subject.load(options.subject)
    saved = read(options.run, options.files, subject.load(options.subject))
    theirs = {
        name: subject.weight_of(saved.get_submodule(name), weight.shape[1])
        for name, weight in subject.linear_weights(model).items()
        if name != "lm_head"
    }
    batches = subject.load_tokens(options.subject, "calibration")
    print(json.dumps(list(walk(model, theirs, batches, METHODS[PAIRS[options.run]]))), flush=True)


if __name__ == "__main__":
    main()

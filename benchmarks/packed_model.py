"""A language model dense and packed: bytes alive, peak memory, and tokens a second, in one run.

Run: python -m benchmarks.packed_model [--bits 4] [--group-size 64] [--prompt 128] [--tokens 32] [--device cpu|cuda]
     [--folder SAVED] [--threads N] [--no-record]

SmolLM2 is rounded to nearest and saved twice, what is not rounded in float32 and in float16; each version then loads
a folder in a process of its own. "dense" decodes once, "packed" at every call, "packed, rest float16" does so from
the other folder, "kernels" (GPU) multiplies by Triton. On a GPU all of them compute in float16. Decoding is greedy
with a cache of keys and values. The peak is that of the process (CPU) or of the allocator (GPU) from the loading on;
"alive" is what parameters and buffers hold.
"""

import argparse
import functools
import multiprocessing
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from benchmarks.record import append, common_options, origin
from mlcomp.layerwise import compress, load, save
from mlcomp.quant import rtn

RESULTS = Path(__file__).parent / "results" / "packed_model.csv"
REPEATS = 3
HALF = "packed, rest float16"


def saved_model(folder: Path, bits: int, group_size: int) -> None:
    """Round SmolLM2 to nearest and write it into ``folder``, and once more with the rest in float16 beside it."""
    from mlcomp.models import smollm2

    model, _ = smollm2()
    method = functools.partial(rtn, bits=bits, group_size=group_size)
    batch = torch.arange(8)[None]  # the method does not look at inputs
    result, report = compress(model, [batch], method, sequential=False, progress=False, layers_per_pass=1)
    save(result, report.results, folder)
    save(result, report.results, narrow(folder), dtype=torch.float16)


def narrow(folder: Path) -> Path:
    """Return where the same model lies with the rest in float16."""
    return folder.with_name(f"{folder.name}-float16")


def measure(version: str, folder: str, device: str, prompt: int, tokens: int, threads: int) -> dict[str, object]:
    """Load one version and run it; return its numbers and the tokens that it chose."""
    torch.set_num_threads(threads)
    model = load(folder, packed=version != "dense")
    if device == "cuda":
        model = model.half().to(device)
    if version == "kernels":
        from mlcomp.kernels.with_kernels import with_kernels

        model = with_kernels(model)
    held = {id(tensor): tensor.nbytes for tensor in (*model.parameters(), *model.buffers())}
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, model.config.vocab_size, (1, prompt), generator=generator).to(device)
    with torch.inference_mode():
        prefill = [timed(lambda: model(ids), device)[1] for _ in range(REPEATS + 1)][1:]  # the first one warms up
        (chosen, _), seconds = timed(lambda: decoded(model, ids, tokens), device)
    return {
        "version": version,
        "alive_mb": sum(held.values()) / 1e6,
        "peak_mb": peak_bytes(device) / 1e6,
        "prefill_tokens_s": prompt / statistics.median(prefill),
        "decode_tokens_s": tokens / seconds,
        "chosen": chosen,
    }


def timed(function, device: str):
    """Return what the function returns, and the seconds until the device has done it."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = function()
    if device == "cuda":
        torch.cuda.synchronize()
    return result, time.perf_counter() - start


def decoded(model, ids: torch.Tensor, tokens: int):
    """Return the likeliest tokens after the last token of a prompt, one by one, and the cache."""
    cache = model(ids[:, :-1], use_cache=True).past_key_values if ids.shape[1] > 1 else None
    last, chosen = ids[:, -1:], []
    for _ in range(tokens):
        out = model(last, past_key_values=cache, use_cache=True)
        last, cache = out.logits[:, -1:].argmax(-1), out.past_key_values
        chosen.append(int(last))
    return chosen, cache


def peak_bytes(device: str) -> int:
    """Return the largest memory so far: of the GPU's allocator, or of this process (Linux)."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def main(argv: list[str] | None = None) -> None:
    """Measure all versions, print a table, and append the rows to the CSV."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.packed_model", description=__doc__.splitlines()[0])
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=128, help="tokens of the prompt")
    parser.add_argument("--tokens", type=int, default=32, help="tokens to decode")
    parser.add_argument("--folder", type=Path, help="a saved model to measure instead")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    options = common_options(parser, RESULTS, argv)
    about = origin(seed=0, device=torch.device(options.device)) | {"threads": torch.get_num_threads()}
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch) / "model"
        if options.folder is None:
            saved_model(folder, options.bits, options.group_size)
        versions = {"dense": folder, "packed": folder}
        if options.folder is None:
            versions[HALF] = narrow(folder)
        if options.device == "cuda":
            versions["kernels"] = folder
        rows, first = [], None
        for version, home in versions.items():
            size = (home / "model.safetensors").stat().st_size / 1e6
            arguments = (version, str(home), options.device, options.prompt, options.tokens, about["threads"])
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                found = pool.submit(measure, *arguments).result()
            chosen = found.pop("chosen")
            first = first or chosen
            numbers = {key: value if isinstance(value, str) else f"{value:.1f}" for key, value in found.items()}
            rows.append(
                about
                | {"model": "smollm2" if options.folder is None else folder.name, "bits": options.bits}
                | {"group_size": options.group_size, "prompt": options.prompt, "tokens": options.tokens}
                | {"file_mb": f"{size:.1f}"}
                | numbers
                | {"same_tokens": sum(a == b for a, b in zip(chosen, first, strict=True))}
            )
            print(*(f"{key} {rows[-1][key]}" for key in (*numbers, "file_mb", "same_tokens")), sep=", ", flush=True)
    if not options.no_record:
        append(rows, RESULTS)


if __name__ == "__main__":
    main()

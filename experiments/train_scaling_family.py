"""Train the family of byte-level language models of the scaling-law notebook: six widths, one text, one recipe.

    python experiments/train_scaling_family.py --device cuda --out DIR      # under two minutes on a GPU
    python experiments/train_scaling_family.py --steps 1500 --batch 16 --out DIR    # on a CPU

The text is the prose of Python itself, from the running interpreter: its language reference, and the docstrings and
comments of its standard library (about 3 MB), without the lines that also stand in the held-out text. Weights go to
``DIR/byte_lm_<width>.safetensors`` in float16, numbers to ``DIR/scaling_family.json``. Nothing is downloaded.
"""

import argparse
import ast
import hashlib
import io
import json
import math
import sys
import sysconfig
import time
import tokenize
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))  # for benchmarks, which is no part of the installed package

from benchmarks.record import origin
from mlcomp.compare import bits_per_byte
from mlcomp.data import python_reference, reference_bytes
from mlcomp.data.committed_table import write_results
from mlcomp.models.byte_lm import CONTEXT, WIDTHS, ByteLM, byte_lm
from mlcomp.resume import replacing

LR, WARM_UP, WEIGHT_DECAY, CLIP, SEED = 8e-3, 0.05, 0.1, 1.0, 0
LEAST = 30  # a line of so many characters that stands in the held-out text is left out of the training text


def training_text() -> str:
    """Return the training text of this version of Python: a paragraph only once, no line of the held-out text."""
    held_out = {line.strip() for line in bytes(reference_bytes().tolist()).decode().splitlines()}
    seen, parts = set(), []
    for text in (python_reference("calibration"), python_reference("held_out"), *library_prose()):
        for paragraph in text.split("\n\n"):
            lines = [x for x in paragraph.splitlines() if len(x.strip()) < LEAST or x.strip() not in held_out]
            paragraph = "\n".join(lines).rstrip()
            key = " ".join(paragraph.split())
            if len(key) >= LEAST and key not in seen:
                seen.add(key)
                parts.append(paragraph)
    return "\n\n".join(parts)


def library_prose() -> list[str]:
    """Return docstrings and comments of each file of the standard library, tests left out, files in sorted order."""
    root = Path(sysconfig.get_path("stdlib"))
    texts = []
    for name in sorted(sys.stdlib_module_names - {"pydoc_data"}):
        for path in sorted((root / name).rglob("*.py")) or [root / f"{name}.py"]:
            tested = any("test" in part for part in path.relative_to(root).parts)
            if path.is_file() and not tested:
                texts.append(prose(path.read_text(encoding="utf-8", errors="ignore")))
    return texts


def prose(source: str) -> str:
    """Return the docstrings of a file, then its comments, each run of comment lines a paragraph."""
    try:
        nodes = list(ast.walk(ast.parse(source)))
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (SyntaxError, tokenize.TokenError):  # templates and files of another Python
        return ""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    parts = [ast.get_docstring(node) or "" for node in nodes if isinstance(node, documented)]
    last = -1
    for token in tokens:
        if token.type == tokenize.COMMENT:
            text = token.string.lstrip("#!").strip()
            parts.append(text) if token.start[0] != last + 1 else parts.append(parts.pop() + "\n" + text)
            last = token.start[0]
    return "\n\n".join(parts)


class Loss(nn.Module):
    """The mean loss of a batch in nats, as one module, so that CUDA can capture it as one graph."""

    def __init__(self, model: ByteLM, device: str) -> None:
        super().__init__()
        self.model, self.device = model, device

    def forward(self, windows: Tensor) -> Tensor:
        """Return the loss of predicting each next byte of ``windows`` (n, CONTEXT + 1)."""
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda", cache_enabled=False):
            logits = self.model(windows[:, :-1])
        return F.cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten())


def learning_rate(step: int, steps: int, width: int) -> float:
    """Return the rate of a step: linear warm-up, then a cosine to a twentieth; the peak falls with √width."""
    peak = LR * math.sqrt(32 / width)
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (0.525 + 0.475 * math.cos(math.pi * (step - warm) / (steps - warm)))


def train(width: int, text: Tensor, steps: int, batch: int, graphs: bool) -> tuple[ByteLM, list[list[float]]]:
    """Return the trained model and its curve of (step, training bits per byte)."""
    device = text.device.type
    model = byte_lm(width, pretrained=False, seed=SEED).train().to(device)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    gains = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": gains, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.98), fused=device == "cuda")
    # Drawn on the CPU, so that every device sees the same batches.
    generator = torch.Generator().manual_seed(SEED)
    starts = torch.randint(len(text) - CONTEXT, (steps, batch), generator=generator).to(device)
    window = torch.arange(CONTEXT + 1, device=device)
    loss_of = Loss(model, device)
    if graphs:
        # Graphs are captured on a stream of their own; PyTorch waits for it, and warns all the same.
        torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
        loss_of = torch.cuda.make_graphed_callables(loss_of, (text[starts[0][:, None] + window].long(),))
    curve, total, since = [], torch.zeros((), device=device), 0
    start = time.perf_counter()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, width)
        loss = loss_of(text[starts[step][:, None] + window].long())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        total, since = total + loss.detach(), since + 1
        if (step + 1) % max(1, steps // 10) == 0:
            curve.append([step + 1, round(float(total) / since / math.log(2), 4)])
            total, since = torch.zeros((), device=device), 0
            print(f"width {width}: step {step + 1}, {curve[-1][1]:.3f} bits per byte, "
                  f"{time.perf_counter() - start:.1f} s", flush=True)  # fmt: skip
    return model.cpu().eval(), curve


def main() -> None:
    """Train each width, widest first; write weights and numbers after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=64, help="sequences of 256 bytes a step")
    parser.add_argument("--no-graphs", action="store_true", help="do without CUDA graphs")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    raw = training_text().encode()
    text = torch.frombuffer(bytearray(raw), dtype=torch.uint8).to(options.device)
    result = {
        "recipe": {
            "steps": options.steps, "batch": options.batch, "context": CONTEXT, "lr_at_width_32": LR,
            "warm_up": WARM_UP, "weight_decay": WEIGHT_DECAY, "clip": CLIP, "seed": SEED,
        },
        "training_bytes": len(raw),
        "training_sha256": hashlib.sha256(raw).hexdigest(),
        "origin": origin(seed=SEED, device=text.device),
        "graphs": options.device == "cuda" and not options.no_graphs,
        "models": {},
    }  # fmt: skip
    print(f"{len(raw):,} bytes of text, {result['origin']['device']}", flush=True)
    held_out = reference_bytes()
    for width in sorted(options.widths, reverse=True):
        start = time.perf_counter()
        model, curve = train(width, text, options.steps, options.batch, result["graphs"])
        seconds = time.perf_counter() - start
        model.half()
        path = options.out / f"byte_lm_{width}.safetensors"
        with replacing(path) as draft:
            save_file(model.state_dict(), draft)
        model.float().to(options.device)
        result["models"][str(width)] = {
            "parameters": sum(p.numel() for p in model.parameters()),
            "file_bytes": path.stat().st_size,
            "held_out_bits_per_byte": bits_per_byte(model, held_out),
            "training_bits_per_byte": bits_per_byte(model, text[: len(held_out)].long().cpu()),
            "curve": curve,
            "seconds": round(seconds, 1),
        }
        print(width, json.dumps(result["models"][str(width)]), flush=True)
        write_results(result, options.out / "scaling_family.json")


if __name__ == "__main__":
    main()

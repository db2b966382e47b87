"""The tables of the page *Which method?*: `{cases}`, `{at-bits}`, `{side-by-side}` and `{how-made}`.

Each figure comes from a committed table of measurements, and so does what is said about how it was made.
"""

import csv
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import ClassVar

import yaml
from docutils import nodes
from docutils.parsers.rst import directives
from method_index import Generated

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

CASES, LIBRARIES = ROOT / "book" / "cases.yml", ROOT / "book" / "libraries.yml"
TABLES = ROOT / "mlcomp" / "data" / "tables"
# What whole_model.csv calls its methods → as people say it.
NAMES = {
    "rtn": "round to nearest", "gptq": "GPTQ", "gptq_mse": "GPTQ, best clip, activation order",
    "gptq_g64": "GPTQ, groups of 64", "quip": "QuIP", "quip_sharp": "QuIP#", "spqr": "SpQR", "aqlm": "AQLM",
}  # fmt: skip
# Table → the model, what was measured, what it was calibrated on; what the rows themselves do not say.
MADE = {
    "every_method": (
        "MiniLM, a sentence encoder: 36 linear layers, 10.6 million weights",
        "mean cosine with the dense model's vectors on 128 other sentences",
        "128 sentences of Python's reference; 512 stretches of 64 tokens where blocks or the network are trained",
    ),
    "whole_model": (
        "SmolLM2-135M, a language model: 210 linear layers",
        "perplexity on 3 000 tokens of other text",
        "16 stretches of 128 tokens of Python's reference",
    ),
    "pruning_taxonomy": (
        "a perceptron on 5 000 MNIST digits, 235 thousand weights",
        "accuracy on 1 000 other digits, mean of three seeds",
        "the training images",
    ),
    "gptq_and_sparsegpt": (
        "SmolLM2-135M, a language model: 210 linear layers",
        "perplexity on 16 stretches of 256 tokens of other text",
        "16 stretches of 128 tokens of Python's reference",
    ),
    "sparse_activations": (
        "SmolLM2-135M, a language model: 30 gated MLPs",
        "perplexity on 12 stretches of 256 tokens of other text",
        "stretches of Python's reference, for the thresholds",
    ),
    "sparse_mnist": (
        "a perceptron on 5 000 MNIST digits, 266 thousand weights",
        "accuracy on 1 000 other digits, mean of three seeds",
        "the training images",
    ),
    "distillation": (
        "a perceptron with 16 hidden units on MNIST digits",
        "accuracy on 1 000 other digits, mean of the seeds",
        "4 000 images, of which 100 have labels, and a trained teacher",
    ),
    "qlora_smollm2": (
        "SmolLM2-135M, a language model: 210 linear layers",
        "perplexity on other pages of the text that it was trained on",
        "40 stretches of 128 tokens of Python's reference",
    ),
    "llm_pruner_smollm2": (
        "SmolLM2-135M, a language model; a sixth of all parameters removed",
        "perplexity on 4 096 tokens of other text, mean of the seeds; the least seconds of them",
        "10 stretches of 64 tokens of Python's reference, and 40 of 128 for the recovery",
    ),
    "structured_pruning_of_byte_lm": (
        "a language model over bytes, 48 wide: four blocks",
        "bits a byte of other text, after 16 seconds of all together",
        "text of the model's own kind, no labels",
    ),
    "weak_supervision": (
        "logistic regression on scikit-learn's digits",
        "accuracy on held-out digits, mean of twenty splits",
        "labels of 2 images a class, and the other images without",
    ),
    "onebit_byte_lm": (
        "a language model over bytes, 64 wide: sixteen matrices",
        "nats a byte on 128 windows of other text, mean of three seeds; the least seconds of them",
        "150 batches of Python's reference, and the outputs of the dense model",
    ),
    "minillm_byte_lm": (
        "a language model over bytes, 16 wide, taught by one that is 64 wide",
        "KL(student ‖ teacher) a byte on the student's answers to 512 other prompts, mean of three seeds",
        "prompts from Python's reference, and the teacher's probabilities",
    ),
    "in_context_distillation": (
        "a decoder of three blocks, 32 wide, taught by one that is 48 wide",
        "accuracy on the labels of symbols in new sequences, mean of three seeds",
        "sequences of labelled symbols, and the teacher's probabilities",
    ),
    "instruction_distillation": (
        "a decoder of two blocks, 48 wide, taught by one that is 64 wide",
        "right responses to 500 new questions, mean of three seeds",
        "the teacher's responses, as many tokens of them for every student",
    ),
    "rationales": (
        "a decoder of two blocks, 64 wide, taught by one of its size",
        "right answers to 500 new products in a group of ten elements, mean of three seeds",
        "what the teacher writes about 1 000 other products",
    ),
    "tiny_and_large_nets": (
        "a convolutional network on MNIST digits of 14×14 pixels, with 2, 4 and 8 channels, or twice as many",
        "accuracy on 1 000 other digits, mean of three seeds",
        "the training images",
    ),
    "aqlm_smollm2": (
        "the first two blocks of SmolLM2-135M",
        "perplexity on other text",
        "48 stretches of 128 tokens of Python's reference",
    ),
}


@dataclass(frozen=True)
class Measured:
    """One row of a table: what it gives, what it took, and on what machine."""

    size: str
    quality: str
    seconds: float
    machine: str


def table(name: str) -> list[dict[str, str]]:
    """Return the rows of a committed CSV."""
    with (TABLES / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def quoted() -> list[Path]:
    """Return the files of the tables that this page quotes."""
    return [path for name in MADE for path in TABLES.glob(f"{name}.*")]


def find(name: str, **key: str) -> dict[str, str]:
    """Return the last row of a table with these entries.

    Raises:
        KeyError: there is none.
    """
    return rows_of(name, **key)[-1]


def rows_of(name: str, **key: str) -> list[dict[str, str]]:
    """Return all rows of a table with these entries.

    Raises:
        KeyError: there is none.
    """
    found = [row for row in table(name) if all(row[column] == value for column, value in key.items())]
    if not found:
        raise KeyError(f"{name}.csv has no row with {key}")
    return found


def every_method(**key: str) -> Measured:
    """Return a row of MiniLM's table."""
    row = find("every_method", **key)
    quality = f"cosine {float(row['similarity']):.3f}, {float(row['recall_at_10']):.0%} of the neighbours kept"
    seconds = float(row["seconds"]) + float(row["hessian_seconds"])
    return Measured(f"{float(row['bits_per_weight']):.2f}", quality, seconds, row["device"])


def whole_model(**key: str) -> Measured:
    """Return a row of SmolLM2's table."""
    row = find("whole_model", **key)
    size, quality = f"{float(row['bits_per_weight']):.2f}", _perplexity("whole_model", row)
    return Measured(size, quality, float(row["total_seconds"]), machine(row))


def pruning_taxonomy(row: str, sparsity: str) -> Measured:
    """Return a row of the comparison of when to prune; its size is a share of zeros."""
    rows = json.loads((TABLES / "pruning_taxonomy.json").read_text(encoding="utf-8"))
    dense, found = rows["rows"]["dense"]["accuracy"]["0"], rows["rows"][row]
    quality = f"accuracy {mean(found['accuracy'][sparsity]):.1%} (dense {mean(dense):.1%})"
    origin = next(iter(rows["origins"].values()))
    return Measured(f"{float(sparsity):.0%} zeros", quality, mean(found["seconds"][sparsity]), machine(origin))


def gptq_and_sparsegpt(method: str) -> Measured:
    """Return a row of the language model with zeros."""
    row = find("gptq_and_sparsegpt", method=method, draw="0")
    size, quality = f"{float(row['bits_per_weight']):.2f}", _perplexity("gptq_and_sparsegpt", row)
    return Measured(size, quality, float(row["seconds"]), machine(row))


def sparse_activations(method: str, sparsity: str) -> Measured:
    """Return a row of the language model that skips neurons; its size is a share of zeros."""
    row = find("sparse_activations", method=method, sparsity=sparsity)
    size, quality = f"{float(row['zeros']):.0%} of activations 0", _perplexity("sparse_activations", row)
    return Measured(size, quality, float(row["seconds"]), machine(row))


def sparse_mnist(method: str, density: str) -> Measured:
    """Return the mean over seeds of a network that was sparse from the start."""
    rows = [row for row in table("sparse_mnist") if row["part"] == "starts"]
    found = [row for row in rows if (row["method"], row["density"]) == (method, density)]
    dense = [row for row in rows if row["method"] == "dense"]
    quality = f"accuracy {_mean(found, 'accuracy'):.1%} (dense {_mean(dense, 'accuracy'):.1%})"
    return Measured(f"{1 - float(density):.0%} zeros", quality, _each(rows, found), machine(found[0]))


def distillation(method: str) -> Measured:
    """Return the mean over seeds of the perceptron that a teacher taught on images without labels."""
    rows = table("distillation")
    ours = [row for row in rows if row["student"] == "perceptron"]
    found = [row for row in ours if (row["part"], row["method"]) == ("unlabelled", method)]
    few = [row for row in ours if (row["part"], row["images"], row["method"]) == ("scratch", "100", "labels")]
    quality = f"accuracy {_mean(found, 'accuracy'):.1%} (100 labels alone {_mean(few, 'accuracy'):.1%})"
    return Measured("as it is", quality, _each(rows, found), machine(found[0]))


def _perplexity(name: str, row: dict[str, str]) -> str:
    """Return a row's perplexity beside the dense model's in the same table."""
    dense = find(name, method="dense")
    return f"perplexity {float(row['perplexity']):.1f} (dense {float(dense['perplexity']):.1f})"


def qlora_smollm2(base: str, steps: str) -> Measured:
    """Return the mean over seeds of a language model that was trained beside frozen codes, and before."""
    after, before = (rows_of("qlora_smollm2", base=base, steps=n) for n in (steps, "0"))
    quality = f"perplexity {_mean(after, 'reference'):.1f} (before training {_mean(before, 'reference'):.1f})"
    size = {"nf4": "4.13 bits, and the corrections", "dense": "16 bits, and the corrections"}[base]
    return Measured(size, quality, _mean(after, "seconds"), machine(after[0]))


def llm_pruner_smollm2(part: str, method: str, steps: str) -> Measured:
    """Return the mean over seeds of a pruned language model, recovered or not; its seconds are the least.

    Rows of the recovery have the seconds of one run, those of the strategies the seconds of all strategies.
    """
    found = rows_of("llm_pruner_smollm2", part=part, method=method, steps=steps)
    dense = find("llm_pruner_smollm2", part="strategies", method="dense")
    quality = f"perplexity {_mean(found, 'reference'):.1f} (dense {float(dense['reference']):.1f})"
    rows = table("llm_pruner_smollm2")
    seconds = min(float(row["seconds"]) if part == "recovery" else _each(rows, [row]) for row in found)
    return Measured(f"{int(found[0]['parameters']) / 1e6:.0f} M parameters", quality, seconds, machine(found[0]))


def structured_pruning_of_byte_lm(part: str, method: str) -> Measured:
    """Return the mean over seeds of a small language model without some heads and hidden units."""
    found, whole = (rows_of("structured_pruning_of_byte_lm", part=part, method=name) for name in (method, "whole"))
    left = _mean(found, "weights") / _mean(whole, "weights")
    quality = f"{_mean(found, 'after'):.2f} bits a byte (whole {_mean(whole, 'after'):.2f})"
    seconds = _mean(found, "method_seconds") + _mean(found, "finetune_seconds")
    return Measured(f"{left:.0%} of the weights", quality, seconds, machine(found[0]))


def weak_supervision(method: str, labels: str) -> Measured:
    """Return the mean over splits of a classifier that labels images for itself."""
    found, alone = (
        rows_of("weak_supervision", part="selves", labels=labels, method=name) for name in (method, "supervised")
    )
    quality = f"accuracy {_mean(found, 'accuracy'):.1%} (labels alone {_mean(alone, 'accuracy'):.1%})"
    return Measured("as it is", quality, _each(table("weak_supervision"), found), machine(found[0]))


def onebit_byte_lm(part: str) -> Measured:
    """Return a one-bit language model; its seconds are the least, since other work ran beside some of the seeds."""
    found, dense, plain = (rows_of("onebit_byte_lm", part=p) for p in (part, "untrained", "without norm"))
    quality = (
        f"{_mean(found, 'after'):.2f} nats a byte (dense {float(dense[0]['after']):.2f}; without its normalization "
        f"{_mean(plain, 'after'):.2f})"
    )
    return Measured("1 bit, and the scales", quality, min(float(row["seconds"]) for row in found), machine(found[0]))


def minillm_byte_lm(part: str) -> Measured:
    """Return a small language model that learned from its own outputs, beside word level in the same seconds."""
    found, start, words = (
        _mean(rows_of("minillm_byte_lm", part=p), "reverse_byte")
        for p in (part, "start", "word level, equal seconds")
    )
    quality = f"{found:.2f} nats a byte from the teacher (before {start:.2f}, word level {words:.2f})"
    rows = rows_of("minillm_byte_lm", part=part)
    return Measured("as it is", quality, _mean(rows, "cpu_seconds"), machine(rows[0]))


def in_context_distillation(method: str) -> Measured:
    """Return a small decoder that was taught to learn in context, beside written labels alone."""
    found, hard = (rows_of("in_context_distillation", part="students", method=name) for name in (method, "hard"))
    teacher = rows_of("in_context_distillation", part="untaught", method="teacher")
    right, alone, best = (_mean(rows, "shots_4") for rows in (found, hard, teacher))
    quality = f"{right:.1%} right after four examples (teacher {best:.1%}, written labels alone {alone:.1%})"
    return Measured("as it is", quality, _each(table("in_context_distillation"), found), machine(found[0]))


def instruction_distillation(kinds: str, phrasings: str) -> Measured:
    """Return a small decoder that learned responses, beside one that saw eight kinds in as many tokens."""
    key = {"part": "students", "phrasings": phrasings, "learned": "response"}
    found, few = (rows_of("instruction_distillation", n_kinds=n, **key) for n in (kinds, "8"))
    seen, new, of_few = _mean(found, "seen"), _mean(found, "kinds"), _mean(few, "kinds")
    quality = f"{seen:.0%} of known kinds right, {new:.0%} of new ones (taught eight kinds {of_few:.0%})"
    return Measured("as it is", quality, _each(table("instruction_distillation"), found), machine(found[0]))


def rationales(rationales: str) -> Measured:
    """Return a student of what a teacher writes, steps and answer, beside one of the answers alone."""
    key = {"part": "students_1000", "kind": "noisy"}
    found = rows_of("rationales", method="sampled", rationales=rationales, **key)
    alone = rows_of("rationales", method="label-only", **key)
    quality = f"{_mean(found, 'greedy'):.1%} right (taught answers alone {_mean(alone, 'greedy'):.1%})"
    return Measured("as it is", quality, _each(table("rationales"), found), machine(found[0]))


def tiny_and_large_nets(part: str, method: str, length: str) -> Measured:
    """Return the mean over seeds of a small network, beside those that its part compares it with."""
    size, others = {
        "net_aug": ("as it is", {"plain": "plain", "plain with equal FLOPs": "plain, equal FLOPs"}),
        "pruning": ("half of the channels", {"pruned and tuned": "L1, tuned E", "all channels": "big"}),
    }[part]
    found = rows_of("tiny_and_large_nets", part=part, method=method, length=length)
    beside = ", ".join(
        f"{name} {_mean(rows_of('tiny_and_large_nets', part=part, method=other, length=length), 'held_out'):.1%}"
        for name, other in others.items()
    )
    quality = f"accuracy {_mean(found, 'held_out'):.1%} ({beside})"
    return Measured(size, quality, _mean(found, "seconds"), machine(found[0]))


def _each(rows: list[dict[str, str]], found: list[dict[str, str]]) -> float:
    """Return the seconds of one run: the table has those of a whole part of a seed, the same in all its rows."""
    part, seed = found[0]["part"], found[0]["seed"]
    together = [row for row in rows if (row["part"], row["seed"]) == (part, seed)]
    return float(found[0]["seconds"]) / len(together)


def _mean(rows: list[dict[str, str]], column: str) -> float:
    return mean(float(row[column]) for row in rows)


READ = {
    "every_method": every_method,
    "whole_model": whole_model,
    "pruning_taxonomy": pruning_taxonomy,
    "gptq_and_sparsegpt": gptq_and_sparsegpt,
    "sparse_activations": sparse_activations,
    "sparse_mnist": sparse_mnist,
    "distillation": distillation,
    "qlora_smollm2": qlora_smollm2,
    "llm_pruner_smollm2": llm_pruner_smollm2,
    "structured_pruning_of_byte_lm": structured_pruning_of_byte_lm,
    "weak_supervision": weak_supervision,
    "onebit_byte_lm": onebit_byte_lm,
    "minillm_byte_lm": minillm_byte_lm,
    "in_context_distillation": in_context_distillation,
    "instruction_distillation": instruction_distillation,
    "rationales": rationales,
    "tiny_and_large_nets": tiny_and_large_nets,
}


def machine(row: dict[str, str]) -> str:
    """Return what a row says of where it was run."""
    threads = f", {row['threads']} of them used" if row.get("threads") else ""
    return f"{row['machine']}{threads}" if "cores" in row["machine"] else row["machine"]


def took(seconds: float) -> str:
    """Return a time as one says it."""
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"


class Cases(Generated):
    """A row for each case of ``book/cases.yml``."""

    def run(self) -> list[nodes.Node]:
        """Let the rows be filtered."""
        children = super().run()
        for found in (table for child in children for table in child.findall(nodes.table)):
            found["classes"] += ["filterable", "cases"]
        return children

    def lines(self) -> list[str]:
        """Return the table."""
        self.watch(CASES, LIBRARIES, *quoted())
        lines = [
            "| You want | You have | Take | Stored | What it gave | What it took | In a library for large models |",
            "|---|---|---|---|---|---|---|",
        ]
        for case in yaml.safe_load(CASES.read_text(encoding="utf-8")):
            ((name, key),) = case["measured"].items()
            told = READ[name](**key)
            model = MADE[name][0].partition(",")[0]
            lines.append(
                f"| **{case['want']}**<br>faster on: {case['hardware']} | {case['have']} "
                f"| [{case['take']}](/lectures/{case['notebook']}.ipynb) "
                f"| {stored(told.size)} | {told.quality}<br>{model} "
                f"| {took(told.seconds)} | {elsewhere(case)} |"
            )
        return lines


def stored(size: str) -> str:
    """Return a size with its unit: a number alone is of bits a weight."""
    return f"{size} bits a weight" if re.fullmatch(r"[\d.]+", size) else size


def elsewhere(case: dict) -> str:
    """Return which other library has a case's method, and its name there."""
    libraries = yaml.safe_load(LIBRARIES.read_text(encoding="utf-8"))
    return "<br>".join(
        f"[{libraries[key]['name']}]({libraries[key]['url']})<br>`{path.rpartition('.')[2]}`"
        for key, path in case.get("elsewhere", {}).items()
    )


class AtBits(Generated):
    """All methods on the whole language model whose codes have as many bits as the argument says, the best first."""

    required_arguments = 1

    def lines(self) -> list[str]:
        """Return a sentence and the table."""
        self.watch(TABLES / "whole_model.csv")
        dense = float(find("whole_model", method="dense")["perplexity"])
        rows = {row["method"]: row for row in table("whole_model") if row["bits"] == self.arguments[0]}
        best = sorted(rows.values(), key=lambda row: float(row["perplexity"]))
        close = [row for row in best if float(row["bits_per_weight"]) < float(self.arguments[0]) + 0.1]
        first, second = close[:2]
        lines = [
            f"Of those that store hardly more than {self.arguments[0]} bits a weight, **{name_of(first)}** is best: "
            f"perplexity {number(first['perplexity'])} where the dense model has {dense:.1f}, for "
            f"{took(float(first['total_seconds']))} of one core. Next comes {name_of(second)} with "
            f"{number(second['perplexity'])}, for {took(float(second['total_seconds']))}.",
            "",
            "| Method | Bits a weight, all told | Perplexity | × dense | Time, one core |",
            "|---|---:|---:|---:|---:|",
        ]
        for row in best:
            ratio = float(row["perplexity"]) / dense
            lines.append(
                f"| {name_of(row)} | {float(row['bits_per_weight']):.2f} | {number(row['perplexity'])} "
                f"| {number(ratio, 2)} | {took(float(row['total_seconds']))} |"
            )
        return lines


def name_of(row: dict[str, str]) -> str:
    """Return the name of a row of the whole model's table."""
    return NAMES.get(row["method"], row["method"])


def number(value: str | float, digits: int = 1) -> str:
    """Return a number, as a power of ten where it is far too large to matter."""
    if float(value) < 1000:
        return f"{float(value):.{digits}f}"
    first, power = f"{float(value):.1e}".split("e")
    return f"{first}·10{str(int(power)).translate(str.maketrans('0123456789', '⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


class SideBySide(Generated):
    """Chosen rows of MiniLM's table: ``:rows:`` is ``method | setting``, several separated by semicolons."""

    option_spec: ClassVar = {"rows": directives.unchanged_required}

    def lines(self) -> list[str]:
        """Return the table."""
        self.watch(TABLES / "every_method.csv")
        lines = ["| Method | Options | Bits a weight | What it gave | What it took |", "|---|---|---:|---|---:|"]
        for part in self.options["rows"].split(";"):
            method, setting = (text.strip() for text in part.split("|"))
            told = every_method(method=method, setting=setting)
            lines.append(f"| {method} | {setting} | {told.size} | {told.quality} | {took(told.seconds)} |")
        return lines


class HowMade(Generated):
    """For each table that this page quotes: model, measure, calibration, machine, and the runs."""

    def lines(self) -> list[str]:
        """Return the table."""
        self.watch(*quoted())
        lines = ["| Table | Model | What is measured | Calibration | Machine | Run |", "|---|---|---|---|---|---|"]
        for name, (model, measure, calibration) in MADE.items():
            if name == "pruning_taxonomy":
                rows = json.loads((TABLES / f"{name}.json").read_text(encoding="utf-8"))["origins"].values()
            else:
                rows = table(name)
            machines = sorted({row["device"] if "device" in row else machine(row) for row in rows})
            runs = sorted({f"{row['date']}, commit {row['commit']}, torch {row['torch']}" for row in rows})
            cells = (f"`{name}`", model, measure, calibration, "<br>".join(machines), "<br>".join(runs))
            lines.append(f"| {' | '.join(cells)} |")
        return lines


def setup(app) -> dict:
    """Register the directives with Sphinx."""
    for name, directive in (
        ("cases", Cases),
        ("at-bits", AtBits),
        ("side-by-side", SideBySide),
        ("how-made", HowMade),
    ):
        app.add_directive(name, directive)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

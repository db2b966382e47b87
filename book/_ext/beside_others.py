"""The tables of the page *Beside other libraries*, made from the committed measurements, and `{beside}` for a figure.

`{beside-others} bits` and `{beside-others} zeros` are the runs; `{beside-codes}` the agreement of codes;
`{beside-recipes}` GPTQ's options one by one; `{beside-left}` what each library leaves alone; `{not-beside}` the
libraries that were not run; `{beside-made}` where the numbers come from.
"""

import csv
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import mean

import which_method
import yaml
from docutils import nodes
from method_index import Generated
from sphinx.util.docutils import SphinxRole
from which_method import LIBRARIES, TABLES, machine, took

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

RUNS, CODES = TABLES / "beside_others.csv", TABLES / "beside_others_codes.csv"
RECIPES = TABLES / "four_bit_recipes.csv"
LISTED = ROOT / "benchmarks" / "beside_others" / "runs.py"
QUIET = 0.2  # cores that other programs may have used; above it the time of a run says little
PRUNING = ("SparseGPT",)
NOT_YET = "(not measured yet)"


def megabytes(value: str) -> str:
    """Return a size in MB with a thin space between thousands, in one piece."""
    return f"{round(float(value)):,}\u00a0MB".replace(",", "\u202f")


# Column → how it is said.
SAID: dict[str, Callable[[str], str]] = {
    "seconds": lambda value: took(float(value)),
    "peak_mb": megabytes,
    "file_mb": megabytes,
    "perplexity": lambda value: f"{float(value):.2f}",
    "zeros": lambda value: f"{float(value):.1%}",
    "as_rounded": lambda value: f"{float(value):.2%}",
    "moved": lambda value: f"{float(value):.2%}",
}

# Recipe → what it changes.
CHANGES = {
    "dense": "the dense model",
    "rtn": "rounding, symmetric, steps in float32",
    "rtn_affine_mse": "rounding, affine, steps in float16, of least squared error: `rtn`'s recipe",
    "natural": "GPTQ, symmetric, natural order, grids fitted on the way",
    "natural_static": "GPTQ, symmetric, natural order, grids fitted beforehand",
    "by_activation": "+ order by activation",
    "affine": "+ affine, steps in float16",
    "affine_mse": "+ least squared error: **`gptq`'s recipe**",
    "affine_mse_natural": "the recipe in natural order, grids fitted on the way",
    "affine_mse_on_the_way": "the recipe, grids fitted on the way",
    "affine_mse_dense_inputs": "the recipe, inputs from the dense model",
    "affine_mse_damp_0.1": "the recipe with ten times the damping",
}


def measured(path: Path = RUNS) -> dict[str, dict[str, str]]:
    """Return run → its last row; nothing where nothing was measured yet."""
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {row["run"]: row for row in csv.DictReader(file)}


def compared(path: Path = CODES) -> dict[str, list[dict[str, str]]]:
    """Return run → the rows of its blocks, of the last comparison."""
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = {(row["run"], row["block"]): row for row in csv.DictReader(file)}
    found = defaultdict(list)
    for row in sorted(rows.values(), key=lambda row: int(row["block"])):
        found[row["run"]].append(row)
    return found


def registered(pruning: bool | None = None) -> dict[str, bool]:
    """Return run → whether it is optional, in the benchmark's order; those that prune, those that do not, or all."""
    from benchmarks.beside_others.runs import RUNS as runs

    asked = (True, False) if pruning is None else (pruning,)
    return {name: run.optional for name, run in runs.items() if (run.method in PRUNING) in asked}


def libraries() -> dict[str, dict[str, str]]:
    """Return what ``book/libraries.yml`` says."""
    return yaml.safe_load(LIBRARIES.read_text(encoding="utf-8"))


def linked(about: dict[str, str]) -> str:
    """Return a library's name as a link to its page, if it has one of its own."""
    return f"[{about['name']}]({about['url']})" if "url" in about else about["name"]


def table(rows: dict[str, dict[str, str]], pruning: bool) -> list[str]:
    """Return the runs that prune, or the others, below the dense model; ours in bold."""
    lines = [
        "| Library | Method | Setting | Perplexity | Time | Peak memory | File |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    named = libraries()
    for name in [name for name in {"dense": False} | registered(pruning) if name in rows]:
        row = rows[name]
        mark = "**" if row["library"] == "mlcomp" else ""
        library = "" if row["method"] == "dense" else f"{mark}{named[row['library']]['name']}{mark}"
        setting = row["setting"].removeprefix("4 bits, ").removeprefix("groups of 64, ")  # said above the table
        time = "" if row["method"] == "dense" else took(float(row["seconds"])) + ("\\*" if busy(row) else "")
        lines.append(
            f"| {library} | {row['method']} | {setting} | {SAID['perplexity'](row['perplexity'])} | {time} "
            f"| {megabytes(row['peak_mb'])} | {megabytes(row['file_mb'])}{exported(row)} |"
        )
    if any("\\*" in line for line in lines):
        lines += ["", "\\* while other programs kept the machine busy: the time is too long."]
    missing = [f"`{name}`" for name, optional in registered(pruning).items() if name not in rows and not optional]
    if missing:
        lines += ["", f"**Not run yet:** {', '.join(missing)}."]
    return lines


def exported(row: dict[str, str]) -> str:
    """Return the size of the file in the other format, where one was written."""
    return f"<br>({megabytes(row['exported_mb'])} exported)" if row["exported_mb"] else ""


def busy(row: dict[str, str]) -> bool:
    """Return whether other programs were busy while a run was timed."""
    return float(row["others"]) > QUIET


class BesideOthers(Generated):
    """The runs; the argument is "bits" or "zeros"."""

    required_arguments = 1

    def lines(self) -> list[str]:
        """Return the table."""
        self.watch(RUNS, LIBRARIES, LISTED)
        return table(measured(), pruning=self.arguments[0] == "zeros")


class BesideCodes(Generated):
    """The agreement of codes, a row for each comparison."""

    def lines(self) -> list[str]:
        """Return the table."""
        self.watch(CODES, RUNS, LIBRARIES)
        runs, named = measured(), libraries()
        lines = [
            "| With | Method, setting | The same, mean | worst layer | Steps differ by | Error, theirs | ours |",
            "|---|---|---:|---:|---:|---:|---:|",
        ]
        for name, rows in compared().items():
            about = runs[name]
            same, theirs, ours = (mean(float(r[key]) for r in rows) for key in ("same", "error_theirs", "error_ours"))
            least = min(float(row["least_same"]) for row in rows)
            step = "" if about["method"] in PRUNING else f"{max(float(row['step_difference']) for row in rows):.0e}"
            lines.append(
                f"| {named[about['library']]['name']} | {about['method']}, {about['setting']} | {same:.2%} "
                f"| {least:.2%} | {step} | {theirs:.4f} | {ours:.4f} |"
            )
        return lines


class BesideRecipes(Generated):
    """Perplexity of each recipe, on each draw of calibration text."""

    def lines(self) -> list[str]:
        """Return the table."""
        self.watch(RECIPES)
        rows = which_method.table(RECIPES.stem)
        draws = sorted({row["draw"] for row in rows})
        lines = [
            f"| | Bits a weight | {' | '.join(f'Draw {int(draw) + 1}' for draw in draws)} | Mean |",
            f"|---|---:|{'---:|' * len(draws)}---:|",
        ]
        for name, change in CHANGES.items():
            found = {row["draw"]: row for row in rows if row["recipe"] == name}
            values = [f"{float(found[draw]['perplexity']):.2f}" if draw in found else "" for draw in draws]
            average = mean(float(row["perplexity"]) for row in found.values())
            bits = float(next(iter(found.values()))["bits_per_weight"])
            lines.append(f"| {change} | {bits:.2f} | {' | '.join(values)} | {average:.2f} |")
        return lines


class BesideLeft(Generated):
    """What each library left alone, as measured, and how it is chosen and told."""

    def lines(self) -> list[str]:
        """Return the table."""
        self.watch(RUNS, LIBRARIES)
        found = defaultdict(set)
        for row in measured().values():
            if row["method"] != "dense":
                found[row["library"]].add((row["layers"], row["left"]))
        named = libraries()
        lines = ["| Library | Layers compressed | left | how that is chosen, and told |", "|---|---:|---|---|"]
        for library, sets in found.items():
            about = named[library]
            for layers, left in sorted(sets):
                shown = ", ".join(f"`{name}`" for name in left.split())
                lines.append(f"| {linked(about)} | {layers} | {shown} | {about['left']} |")
        return lines


class NotBeside(Generated):
    """The libraries that were not run, and why."""

    def lines(self) -> list[str]:
        """Return a list."""
        self.watch(LIBRARIES)
        return [f"- **{linked(about)}**. {about['out']}" for about in libraries().values() if "out" in about]


class BesideMade(Generated):
    """Versions and machine of the measurements."""

    def lines(self) -> list[str]:
        """Return the table."""
        self.watch(RUNS, LIBRARIES)
        named = libraries()
        runs = defaultdict(set)
        for row in measured().values():
            name = named.get(row["library"], {"name": row["library"]})["name"]
            runs[name].add(
                f"{row['version']} | {row['date']}, commit {row['commit']}, torch {row['torch']}, "
                f"Python {row['python']} | {machine(row)}"
            )
        lines = ["| Library | Version | Run | Machine |", "|---|---|---|---|"]
        return lines + [f"| {name} | {made} |" for name, sets in runs.items() for made in sorted(sets)]


def figure(text: str) -> str:
    """Return what `{beside}` stands for.

    "run column" is a number of the table of runs, "run column / other" how many times the other's it is, "run codes"
    the mean share of equal codes. "moved" is the share of weights that are not where plain rounding puts them.
    """
    name, column, *rest = text.split()
    rows = measured()
    if column == "codes":
        blocks = compared().get(name)
        return f"{mean(float(row['same']) for row in blocks):.2%}" if blocks else NOT_YET
    others = [name, *rest[1:]]
    if any(other not in rows for other in others):
        return NOT_YET
    if column == "moved":
        return SAID["moved"](str(1 - float(rows[name]["as_rounded"])))
    values = [rows[other][column] for other in others]
    if len(values) == 1:
        return SAID[column](values[0])
    return f"{float(values[0]) / float(values[1]):.1f}"


class Beside(SphinxRole):
    """A figure of the table in a sentence."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Return the text."""
        for path in (RUNS, CODES):
            self.env.note_dependency(str(path))
        return [nodes.Text(figure(self.text))], []


def setup(app) -> dict:
    """Register the directives and the role with Sphinx."""
    for name, directive in (
        ("beside-others", BesideOthers),
        ("beside-codes", BesideCodes),
        ("beside-recipes", BesideRecipes),
        ("beside-left", BesideLeft),
        ("not-beside", NotBeside),
        ("beside-made", BesideMade),
    ):
        app.add_directive(name, directive)
    app.add_role("beside", Beside())
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

"""The library's compressors by name, with their options: found by looking, so a new method is there by itself.

A compressor is a public function of mlcomp.quant, mlcomp.prune or mlcomp.obs that has its module's name and takes a
layer: (weight), (weight, input_norm) or (weight, hessian). Options are what its signature has beside these and what
can be written as a word.
"""

import ast
import difflib
import importlib
import inspect
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Generator, Tensor

import mlcomp
from mlcomp.deploy.recipes import RECIPES

PACKAGES = ("mlcomp.quant", "mlcomp.prune", "mlcomp.obs")
LEADING = (["weight"], ["weight", "input_norm"], ["weight", "hessian"])
PATTERN = tuple[int, int]
# What a target of pruning may be; a recipe's gives way to whichever of them is given.
TARGETS = ("sparsity", "pattern")
# What a recipe says of groups; it does not hold where the whole row has one grid.
GROUPED = ("group_size", "static_groups")


@dataclass(frozen=True)
class Compressor:
    """A method for :func:`mlcomp.layerwise.compress`.

    Attributes:
        name: of the function, which is its module's, too.
        function: takes the weight, and inputs' norms or the Hessian.
        options: name → parameter of its signature, those that can be given.
        seeded: it draws random numbers, from a seed or a generator.
    """

    name: str
    function: Callable[..., Any]
    options: Mapping[str, inspect.Parameter]
    seeded: bool

    @property
    def takes_inputs(self) -> bool:
        """Whether the function looks at the inputs, beside the weight."""
        return len(_leading(self.function)) > 1

    @property
    def title(self) -> str:
        """The first line of what its module says."""
        return module_title(inspect.getdoc(inspect.getmodule(self.function)) or "")

    @property
    def rows(self) -> list[str]:
        """The rows of the syllabus that it belongs to."""
        return syllabus(inspect.getdoc(inspect.getmodule(self.function)) or "")

    def usage(self) -> list[str]:
        """Return each option as it is written on the command line, with its type and default."""
        return [f"--{name.replace('_', '-')} {_type_of(p)}{_default(p)}" for name, p in self.options.items()]

    def told(self) -> str:
        """Return the options' names in a sentence, and where they are explained."""
        names = ", ".join(usage.split()[0] for usage in self.usage())
        return f"Its options: {names}; `mlcomp methods {self.name}` explains them"

    def described(self) -> list[tuple[str, str]]:
        """Return each option as in :meth:`usage`, and what the function's docstring says of it."""
        arguments = inspect.signature(self.function).parameters
        meanings = _arguments(inspect.getdoc(self.function) or "", arguments)
        return [(told, meanings.get(name, "")) for told, name in zip(self.usage(), self.options, strict=True)]


def module_title(doc: str) -> str:
    """Return the first sentence of a module's docstring, without the full stop."""
    return doc.split("\n\n")[0].replace("\n", " ").split(". ")[0].rstrip(".")


def syllabus(doc: str) -> list[str]:
    """Return the rows that the line ``Syllabus:`` of a module's docstring names."""
    found = re.search(r"Syllabus:([^\n]*)", doc)
    return re.findall(r"\b[1-5]\.\d\d\b", found[1]) if found else []


def _arguments(doc: str, names: Iterable[str]) -> dict[str, str]:
    """Return argument → its meaning, from the section ``Args:`` of a docstring, where a line may hold several."""
    section = re.search(r"^Args:\n((?: .*\n?|\n)*)", doc, re.MULTILINE)
    words = " ".join((section[1] if section else "").split())
    known = "|".join(map(re.escape, names))
    # "name: meaning. other, third: meaning. …"
    parts: list[str] = re.split(rf"(?:^|(?<=[.;] ))((?:(?:{known}), )*(?:{known})): ", words)
    found: dict[str, str] = {}
    for entry, meaning in zip(parts[1::2], parts[2::2], strict=True):
        # Roles and code marks are for the page; a terminal shows the words.
        text = re.sub(r":\w+:`~?([^`]*)`", r"\1", meaning).replace("``", "").strip()
        found |= dict.fromkeys(entry.split(", "), text)
    return found


@cache
def compressors() -> dict[str, Compressor]:
    """Return every compressor by its name, in the order of the alphabet."""
    found = {}
    for package in map(importlib.import_module, PACKAGES):
        for name in package.__all__:
            function = getattr(package, name)
            if inspect.isfunction(function) and function.__module__.rpartition(".")[2] == name:
                parameters = inspect.signature(function).parameters.values()
                if _leading(function) in LEADING and not _returns_indices(function):
                    found[name] = _compressor(name, function, [p for p in parameters if p.kind is p.KEYWORD_ONLY])
    return dict(sorted(found.items()))


def _returns_indices(function: Callable[..., Any]) -> bool:
    """Return whether what comes back is a tensor of whole numbers (an order of channels), and no weight."""
    kinds = getattr(inspect.signature(function).return_annotation, "dtypes", ())
    return any(str(kind).startswith("int") for kind in kinds)


def _leading(function: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]


def _compressor(name: str, function: Callable[..., Any], parameters: list[inspect.Parameter]) -> Compressor:
    random = {p.name for p in parameters if p.name == "seed" or Generator in _kinds(p)}
    options = {p.name: p for p in parameters if p.name not in random and _type_of(p)}
    return Compressor(name, function, options, bool(random))


def _kinds(parameter: inspect.Parameter) -> tuple[Any, ...]:
    annotation = parameter.annotation
    return get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)


def _type_of(parameter: inspect.Parameter) -> str:
    """Return the types that an option may have, as words; none if it cannot be written."""
    words = {int: "INT", float: "NUMBER", str: "WORD", bool: "yes|no", torch.dtype: "DTYPE", PATTERN: "N:M"}
    return "|".join(words[kind] for kind in _kinds(parameter) if kind in words)


def _default(parameter: inspect.Parameter) -> str:
    if parameter.default is parameter.empty:
        return ""
    value = parameter.default
    return f" (default {str(value).removeprefix('torch.') if value is not None else 'none'})"


def find_compressor(name: str) -> Compressor:
    """Return the compressor of a name; capitals and "-" for "_" do not matter.

    Raises:
        ValueError: there is none; the message names the nearest.
    """
    known = compressors()
    key = str(name).strip().lower().replace("-", "_")
    if key not in known:
        near = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
        meant = f"did you mean {' or '.join(near)}? " if near else ""
        raise ValueError(f"there is no method {name!r}; {meant}There are {', '.join(known)}")
    return known[key]


def bind(compressor: Compressor, options: Mapping[str, Any], *, seed: int) -> partial[Any]:
    """Return the method with its options, those of its recipe where none are given, ready for ``compress``.

    Args:
        options: name → value, or a word as on the command line ("4", "2:4", "none", "yes", "float16").
        seed: of the method's random numbers; each layer starts from it anew, so a run can be resumed at any layer.
    Raises:
        ValueError: an unknown option, a word of another type, or an option without a default that is missing.
    """
    unknown = [name for name in options if name not in compressor.options]
    if unknown:
        near = difflib.get_close_matches(unknown[0], compressor.options, n=1, cutoff=0.6)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"{compressor.name} has no option {unknown[0]!r}{meant or '.'} {compressor.told()}")
    given = {name: read_option(name, value, compressor.options[name]) for name, value in options.items()}
    recipe = dict(RECIPES.get(compressor.name, {}))
    if "group_size" in given:
        recipe = {name: value for name, value in recipe.items() if name not in GROUPED or given["group_size"]}
    if any(given.get(name) is not None for name in TARGETS):
        recipe = {name: value for name, value in recipe.items() if name not in TARGETS}
    values = recipe | given
    missing = [n for n, p in compressor.options.items() if p.default is p.empty and n not in values]
    if missing:
        told = ", ".join(f"{name} (--{name.replace('_', '-')} …)" for name in missing)
        raise ValueError(f"{compressor.name} needs {told}. {compressor.told()}")
    if "group_size" in recipe and "group_size" not in given:
        fitted = _fitted if compressor.takes_inputs else _fitted_alone
        return partial(fitted, function=compressor.function, **values)
    if not compressor.seeded:
        return partial(compressor.function, **values)
    if "seed" in inspect.signature(compressor.function).parameters:
        return partial(compressor.function, seed=seed, **values)
    drawing = _drawing if compressor.takes_inputs else _drawing_alone
    return partial(drawing, function=compressor.function, seed=seed, **values)


def _fitted_alone(weight: Tensor, *, function: Callable[..., Any], **options: Any) -> Any:
    return function(weight, **_fitting(weight, options))


def _fitted(weight: Tensor, hessian: Tensor, *, function: Callable[..., Any], **options: Any) -> Any:
    return function(weight, hessian, **_fitting(weight, options))


def _fitting(weight: Tensor, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options without the groups of a recipe where these do not divide a layer's inputs."""
    fits = weight.shape[1] % options["group_size"] == 0
    return {name: value for name, value in options.items() if fits or name not in GROUPED}


def _drawing_alone(weight: Tensor, *, function: Callable[..., Any], seed: int, **options: Any) -> Any:
    return function(weight, generator=_generator(weight, seed), **options)


def _drawing(weight: Tensor, hessian: Tensor, *, function: Callable[..., Any], seed: int, **options: Any) -> Any:
    return function(weight, hessian, generator=_generator(weight, seed), **options)


def _generator(weight: Tensor, seed: int) -> Generator:
    return torch.Generator(weight.device).manual_seed(seed)


def read_option(name: str, value: Any, parameter: inspect.Parameter) -> Any:
    """Return what a word means for an option; a value that is no word, or is meant to be one, as it is.

    Raises:
        ValueError: the word means nothing for it.
    """
    kinds = _kinds(parameter)
    if not isinstance(value, str) or str in kinds:
        return value
    word = value.strip().lower()
    if word in ("none", "null") and type(None) in kinds:
        return None
    for kind in (bool, int, float, torch.dtype, PATTERN):
        if kind in kinds and (read := _READ[kind](word)) is not None:
            return read
    none = "|none" if type(None) in kinds else ""
    raise ValueError(f"--{name.replace('_', '-')} takes {_type_of(parameter)}{none}, got {value!r}")


def _whole(word: str) -> int | None:
    return int(word) if re.fullmatch(r"[+-]?\d+", word) else None


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


def _pattern(word: str) -> tuple[int, int] | None:
    found = re.fullmatch(r"(\d+):(\d+)", word)
    return (int(found[1]), int(found[2])) if found else None


def _dtype(word: str) -> torch.dtype | None:
    found = getattr(torch, word.removeprefix("torch."), None)
    return found if isinstance(found, torch.dtype) else None


_READ: dict[Any, Callable[[str], Any]] = {
    bool: lambda word: {"yes": True, "true": True, "on": True, "no": False, "false": False, "off": False}.get(word),
    int: _whole,
    float: _number,
    torch.dtype: _dtype,
    PATTERN: _pattern,
}


def other_methods() -> Iterator[tuple[str, str, list[str]]]:
    """Yield (module without "mlcomp.", its first line, its rows) of all that has rows and is no compressor."""
    root = Path(mlcomp.__file__).parent
    here = {function.function.__module__ for function in compressors().values()}
    for path in sorted(root.rglob("*.py")):
        name = ".".join(path.relative_to(root.parent).with_suffix("").parts)
        doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        if name not in here and syllabus(doc):
            yield name.removeprefix("mlcomp."), module_title(doc), syllabus(doc)

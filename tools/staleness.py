"""What a notebook's outputs depend on: the modules that it imports, and what these import in turn.

Comments and docstrings do not count, but for modules whose source the notebook shows. Committed tables and drawings
that the code names count, too, and so do the trained weights in the package where the small networks are used.
"""

import ast
import hashlib
import io
import re
import tokenize
from functools import cache
from pathlib import Path

from tools.inventory import ROOT, Module, home

# Networks whose weights count only where they are used; those of the others count wherever one of them is.
ALONE = ("in_context_teacher", "vit")


def digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def file_of(name: str) -> Path | None:
    """Return the file of module ``name``; None for what is no module of the library."""
    path = ROOT.joinpath(*name.split("."))
    found = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return found if name.split(".")[0] == "mlcomp" and found.exists() else None


@cache
def late_homes(package: str) -> dict[str, str]:
    """Return name → module of what a face hands on from above, from the table that it gives to `handed_on`."""
    for node in ast.walk(Module(ROOT.joinpath(*package.split("."), "__init__.py")).tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "handed_on":
            return ast.literal_eval(node.args[1])
    return {}


def imported(tree: ast.Module) -> set[str]:
    """Return the library's modules in which the names are written that the code imports."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                inner, face = f"{node.module}.{alias.name}", file_of(node.module)
                if face is None:
                    continue
                if face.name == "__init__.py":
                    written = home(node.module, alias.name)
                    written = late_homes(node.module).get(alias.name, written)
                    found.add(inner if written == node.module and file_of(inner) else written)
                else:
                    found.add(node.module)
    return {name for name in found if file_of(name)}


@cache
def imports_of(name: str) -> frozenset[str]:
    return frozenset(imported(Module(file_of(name)).tree))


def closure(names: set[str]) -> set[str]:
    """Return ``names`` and all that they import, directly or through others."""
    found, waiting = set(), set(names)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting |= imports_of(name)
    return found


@cache
def bare(path: Path) -> str:
    """Return the file's code without comments, docstrings and blank lines."""
    text = path.read_text(encoding="utf-8")
    lines = text.split("\n")
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node, clean=False) is not None:
                first = node.body[0]
                lines[first.lineno - 1 : first.end_lineno] = [""] * (first.end_lineno - first.lineno + 1)
    return "\n".join(line.rstrip() for line in lines if line.strip())


def library_hash(code: str) -> str:
    """Return a digest of everything in the library on which the outputs of ``code`` depend."""
    python = re.sub(r"^(\s*)[%!].*$", r"\1pass", code, flags=re.MULTILINE)  # lines for IPython or the shell
    direct = imported(ast.parse(python))
    shown = direct if "show_source(" in code else set()
    parts = []
    for name in sorted(closure(direct)):
        path = file_of(name)
        parts.append(f"{name} {path.read_text(encoding='utf-8') if name in shown else bare(path)}")
    tables = [p for p in sorted((ROOT / "mlcomp" / "data" / "tables").iterdir()) if p.stem in code]
    tables += [p for p in sorted((ROOT / "mlcomp" / "data" / "drawings").glob("*.svg")) if f'"{p.stem}"' in code]
    if "mlcomp.models.pretrained" in closure(direct):
        weights = sorted((ROOT / "mlcomp" / "models" / "weights").glob("*.safetensors"))
        tables += [p for p in weights if p.stem not in ALONE or f"mlcomp.models.{p.stem}" in closure(direct)]
    parts += [f"{p.name} {hashlib.sha256(p.read_bytes()).hexdigest()}" for p in tables]
    return digest(*parts)

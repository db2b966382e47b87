"""How the terms of the glossary are found in a text: by the pages that link them, and by the lint of definitions."""

import functools
import re

from tools import inventory


def form_pattern(form: str) -> str:
    """Return the regular expression of a word: names keep their capitals, other words don't, and take a plural."""
    escaped = re.escape(form).replace(r"\ ", r"\s+")
    if re.search(r"[A-Z0-9:].*[A-Z0-9:#]", form):
        return escaped + ("s?" if form[-1].isalpha() else "")
    return f"(?i:{escaped}{'' if form.endswith('s') else 's?'})"


@functools.cache
def finder() -> tuple[re.Pattern[str], list[str]]:
    """Return the expression that finds any term, and the slug of each of its groups."""
    forms = [(form, term.slug) for term in inventory.glossary() if not term.common for form in term.forms]
    forms.sort(key=lambda item: -len(item[0]))  # "inverse Hessian" before "Hessian"
    groups = "|".join(f"({form_pattern(form)})" for form, _ in forms)
    return re.compile(rf"(?<![\w:.#/-])(?:{groups})(?![\w:#/-])"), [slug for _, slug in forms]

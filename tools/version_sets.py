"""Print the versions that the weekly run installs instead of constraints.txt, as a constraints file for pip.

    python tools/version_sets.py lowest           # the lowest version that each requirement of pyproject.toml allows
    python tools/version_sets.py colab FREEZE     # those that Colab has, from its published list of packages

Requirements without a bound stay free in the first. The second holds only what pyproject.toml names, and leaves out
what is too old there: the set-up cell of a notebook upgrades that on Colab, too.
"""

import argparse
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENT = re.compile(r"([A-Za-z][\w.-]*)(?:(>=|==)([\w.]+))?(; .*)?")
FROZEN = re.compile(r"([A-Za-z][\w.-]*)==([\d.]+(?:\.post\d+)?)(?:\+[\w.]+)?")


def requirements(project: dict) -> list[tuple[str, str, str, str]]:
    """Return (name, comparison, version, marker) of each requirement, extras included; no version: empty strings."""
    lines = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    found = []
    for line in lines:
        if line.startswith(f"{project['name']}["):  # an extra that holds other extras
            continue
        if not (match := REQUIREMENT.fullmatch(line)):
            raise ValueError(f"no single bound of the form name>=version or name==version: {line!r}")
        found.append(tuple(part or "" for part in match.groups()))
    return found


def lowest(project: dict) -> list[str]:
    """Return name==bound for each requirement that has a bound; of two bounds, the higher one."""
    bounds: dict[tuple[str, str], str] = {}
    for name, _, version, marker in requirements(project):
        if version:
            bounds[name, marker] = max(bounds.get((name, marker), "0"), version, key=number)
    return sorted(f"{name}=={version}{marker}" for (name, marker), version in bounds.items())


def colab(project: dict, freeze: str) -> list[str]:
    """Return name==version for what Colab has of our requirements, in a version that they allow."""
    there = {plain(m[1]): m[2] for line in freeze.splitlines() if (m := FROZEN.fullmatch(line.strip()))}
    refused, named = set(), set()
    for name, comparison, version, _ in requirements(project):
        have = there.get(plain(name))
        named |= {plain(name)} if have else set()
        if have and version and (number(have) < number(version) if comparison == ">=" else have != version):
            refused.add(plain(name))
    return [f"{name}=={there[name]}" for name in sorted(named - refused)]


def number(version: str) -> tuple[int, ...]:
    """Return the whole numbers of a version, in order, for comparing."""
    return tuple(int(part) for part in re.findall(r"\d+", version))


def plain(name: str) -> str:
    """Return a package's name as an index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=("lowest", "colab"))
    parser.add_argument("freeze", nargs="?", type=Path, help="Colab's list of packages")
    options = parser.parse_args()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    if options.set == "colab" and options.freeze is None:
        parser.error("colab needs the file of Colab's packages")
    print("\n".join(lowest(project) if options.set == "lowest" else colab(project, options.freeze.read_text())))


if __name__ == "__main__":
    main()

"""`{api}`: every name that the library hands out, once, in the package where it lives."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from method_index import Generated  # noqa: E402  (the folders are put on the path above)

from tools import inventory  # noqa: E402


class Api(Generated):
    """A section for each package, from the docstrings."""

    def lines(self) -> list[str]:
        """Return the sections; names that a package hands on from another one are linked to their home."""
        self.watch(*(m.path for m in inventory.modules()))
        api = inventory.api()
        kernels = api.pop("mlcomp.kernels")
        owner = {module: package for package, homes in api.items() for module in homes}
        lines = []
        for package, homes in api.items():
            lines += ["", f"## {inventory.PACKAGES[package.removeprefix('mlcomp.')]}", ""]
            own = [name for names in homes.values() for name in names]
            face = inventory.Module(ROOT / package.replace(".", "/") / "__init__.py")
            homes = {name: owner.get(inventory.home(package, name), package) for name in face.exports}
            guests = {name: home for name, home in homes.items() if home != package}
            if guests:
                links = ", ".join(f"{{py:obj}}`{name} <{home}.{name}>`" for name, home in guests.items())
                lines += [f"`{package}` hands on, too: {links}.", ""]
            lines += self.members(package, own)
        lines += ["", "## Kernels", "", "A kernel is imported by itself and takes the place of its reference.", ""]
        for module, names in kernels.items():
            lines += self.members(module, names)
        return lines

    @staticmethod
    def members(module: str, names: list[str]) -> list[str]:
        """Return the directive that documents ``names`` of ``module``."""
        options = [f"   :members: {', '.join(names)}", "   :imported-members:"]
        return ["```{eval-rst}", f".. automodule:: {module}", *options, "```", ""]


def setup(app) -> dict:
    """Register the directive; where Triton cannot be had, the kernels are documented without it."""
    app.add_directive("api", Api)
    if importlib.util.find_spec("triton") is None:
        app.config.autodoc_mock_imports = ["triton"]
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

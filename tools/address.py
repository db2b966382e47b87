"""Where this book is published: the one place that reads the setting `repository` of _config.yml.

Both addresses are empty until they exist. What needs one then leaves the link out, and the page says so.
"""

from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
COLAB = "https://colab.research.google.com/github"


@dataclass(frozen=True)
class Address:
    """The address of the repository and of the built site, without a slash at the end; None where it is not set."""

    repository: str | None
    site: str | None
    branch: str

    def blob(self, path: str) -> str | None:
        """Return the address of a file of the repository, to read."""
        return f"{self.repository}/blob/{self.branch}/{path}" if self.repository else None

    def colab(self, path: str) -> str | None:
        """Return the address that opens a notebook of the repository on Colab, which knows GitHub only."""
        if not self.repository or not self.repository.startswith("https://github.com/"):
            return None
        return f"{COLAB}/{self.repository.removeprefix('https://github.com/')}/blob/{self.branch}/{path}"


def address(root: Path = ROOT) -> Address:
    """Return what the configuration of the book in ``root`` says."""
    setting = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))["repository"]
    given = {name: (setting[name] or "").rstrip("/") or None for name in ("url", "site")}
    for name, value in given.items():
        if value and not value.startswith("https://"):
            raise ValueError(f"repository.{name} in _config.yml is no address that starts with https://: {value!r}")
    return Address(given["url"], given["site"], setting["branch"])

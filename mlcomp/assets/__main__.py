"""``python -m mlcomp.assets``: fetch everything, or the assets named, before a journey for instance."""

import sys

from mlcomp.assets.cache import ASSETS, AssetError, fetch


def main(names: list[str]) -> None:
    """Fetch the named assets, or all, and print where they are."""
    for name in names or sorted(ASSETS):
        print(f"{name}: {fetch(name)} ({ASSETS[name].licence})", flush=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (AssetError, ValueError) as error:
        sys.exit(f"mlcomp.assets: {error}")

"""Optional dependencies: imported where they are used, with a clear error where they are missing."""

import importlib
from types import ModuleType


def how_to_get(extra: str) -> str:
    """Return how to add an optional extra; this package is on no index, so pip needs the wheel or a clone."""
    return (
        f'in a clone: pip install -e ".[{extra}]"; elsewhere: pip install "mlcomp_book-….whl[{extra}]", with the '
        "wheel from the book's page 'How to work with this book'"
    )


def need(module: str, extra: str | None) -> ModuleType:
    """Return the imported ``module``, which comes with the optional extra ``extra`` of the package.

    Without an extra it is a library of which only the release that fits the installed torch is of use.

    Raises:
        ImportError: it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise  # the module is there, but something it needs is not: its own message is the better one
        name = module.partition(".")[0]
        how = f"pip install {name}, from where your torch came" if extra is None else how_to_get(extra)
        raise ImportError(f"this needs {name}, which is not installed ({how})") from error

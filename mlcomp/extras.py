"""Optional dependencies: imported where they are used, with a clear error where they are missing."""

import importlib
from types import ModuleType


def need(module: str, extra: str) -> ModuleType:
    """Return the imported ``module``, which comes with the optional extra ``extra`` of the package.

    Raises:
        ImportError: it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise  # the module is there, but something it needs is not: its own message is the better one
        raise ImportError(
            f'this needs {module.partition(".")[0]}, which is not installed: pip install "mlcomp-book[{extra}]"'
        ) from error

"""What the book's notebooks share: numbers of a run quoted in the text, and the library's source on the page."""

import inspect
from collections.abc import Callable

from IPython.display import Code, display


def glue(name: str, value: object) -> None:
    """Keep ``value`` with the notebook, so that the text can quote it as ``{glue:text}`name```.

    The same record as ``myst_nb.glue`` stores, without needing Sphinx where the notebook runs (Colab).

    Args:
        name: unique in the notebook.
        value: a string or a number; round it first, it is quoted as it prints.
    """
    record = {"application/papermill.record/text/plain": repr(value)}
    display(record, raw=True, metadata={"scrapbook": {"name": name, "mime_prefix": "application/papermill.record/"}})


def show_source(*objects: Callable) -> None:
    """Display the source of functions or classes as it is in the library, highlighted."""
    display(Code("\n\n".join(inspect.getsource(thing).rstrip() for thing in objects), language="python"))

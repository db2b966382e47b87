"""What the book's notebooks share: numbers of a run quoted in the text, and the library's source on the page."""

import inspect
import re
from collections.abc import Callable
from typing import Any

from IPython.display import HTML, Code, display

# What matplotlib's player takes from an icon font on the network, as characters that common fonts have.
_ICONS = {
    "fa-minus": "−",
    "fa-fast-backward": "|◀",
    "fa-step-backward": "‹",
    "fa-play fa-flip-horizontal": "◀",
    "fa-pause": "||",
    "fa-play": "▶",
    "fa-step-forward": "›",
    "fa-fast-forward": "▶|",
    "fa-plus": "+",
}


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


def show_animation(animation: Any, *, fps: float) -> None:
    """Display a matplotlib animation as a player that works in the static page, without a kernel and offline.

    Args:
        animation: a ``matplotlib.animation.Animation``; close its figure afterwards, or it is shown once more.
        fps: frames a second.
    """
    player = animation.to_jshtml(fps=fps, default_mode="once")
    player = re.sub(r"<link[^>]*font-awesome[^>]*>", "", player)
    player = re.sub(r'<i class="fa ([^"]*)"></i>', lambda icon: _ICONS[icon[1]], player)
    display(HTML(player))

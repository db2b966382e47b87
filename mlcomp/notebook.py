"""What the book's notebooks share: sentences with numbers of the run, figures with words, checks of answers."""

import html
import inspect
import re
from collections.abc import Callable
from importlib.resources import files
from typing import Any

from IPython.display import HTML, SVG, Code, Markdown, display
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

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


def say(text: str) -> None:
    """Display a sentence of Markdown, whose numbers are those of the run wherever the notebook is read."""
    display(Markdown(inspect.cleandoc(text)))


def show(figure: Figure, alt: str) -> None:
    """Display a figure once, together with what it shows in words.

    Args:
        figure: it is closed afterwards.
        alt: one or two sentences for those who cannot see it: what the axes are, and what there is to see. They are
            stored with the output, where Jupyter's exports and the book find them.
    """
    display(figure, metadata={"image/png": {"alt": alt}})
    plt.close(figure)


def show_drawing(name: str, alt: str) -> None:
    """Display one of the schematic drawings that come with the library, `mlcomp/data/drawings/<name>.svg`.

    Raises:
        FileNotFoundError: when there is no such drawing; the message names those that there are.
    """
    folder = files("mlcomp") / "data" / "drawings"
    file = folder / f"{name}.svg"
    if not file.is_file():
        known = ", ".join(sorted(f.name.removesuffix(".svg") for f in folder.iterdir() if f.name.endswith(".svg")))
        raise FileNotFoundError(f"there is no drawing {name!r}; there are: {known}")
    words = f'<svg role="img" aria-label="{html.escape(alt)}" '
    drawing = file.read_text(encoding="utf-8").replace("<svg ", words, 1)
    display(SVG(drawing), metadata={"image/svg+xml": {"alt": alt}})


def show_source(*objects: Callable) -> None:
    """Display the source of functions or classes as it is in the library, highlighted."""
    display(Code("\n\n".join(inspect.getsource(thing).rstrip() for thing in objects), language="python"))


def show_animation(animation: Any, *, fps: float, alt: str) -> None:
    """Display a matplotlib animation as a player that works in the static page, without a kernel and offline.

    Args:
        animation: a ``matplotlib.animation.Animation``; close its figure afterwards, or it is shown once more.
        fps: frames a second.
        alt: what moves and what there is to see, for those who cannot see it.
    """
    player = animation.to_jshtml(fps=fps, default_mode="once")
    player = re.sub(r"<link[^>]*font-awesome[^>]*>", "", player)
    player = re.sub(r'<i class="fa ([^"]*)"></i>', lambda icon: _ICONS[icon[1]], player)
    words = html.escape(alt)
    player = player.replace("<img ", f'<img alt="{words}" ', 1).replace(
        '<input id="_anim_slider', '<input aria-label="frame" id="_anim_slider', 1
    )
    display(HTML(player))


class _NotAnsweredError(Exception):
    """A stub still returns its dots."""


def your_turn(*answers: Any) -> Callable[[Callable[..., None]], None]:
    """Check what a reader has written in the cell above, at once; the check is handed the answers, and asserts.

    Used as a decorator on the check::

        @your_turn(scale_of)
        def check(scale_of):
            assert scale_of(w, 3).shape == (1, 1), "One scale for each row: keep the dimension."

    It displays "Not answered yet" while an answer is, or returns, the dots of the stub, the message of the first
    assertion that fails, or "Right". It raises nothing, so a notebook runs through with its stubs unanswered.
    """

    def filled(answer: Any) -> Any:
        if answer is ... or answer is None:
            raise _NotAnsweredError
        return answer

    def watched(answer: Any) -> Any:
        if not callable(answer):
            return answer
        return lambda *args, **kwargs: filled(answer(*args, **kwargs))

    def run(check: Callable[..., None]) -> None:
        try:
            check(*(watched(filled(answer)) for answer in answers))
        except _NotAnsweredError:
            say("**Not answered yet.** Put your code where the dots are, and run that cell and this one.")
        except AssertionError as error:
            say(f"**Not yet.** {str(error) or 'The result is not the one that was asked for.'}")
        except Exception as error:  # a slip in the reader's code is named, and the notebook goes on
            say(f"**Not yet.** Your code stops with {type(error).__name__}: {error}")
        else:
            say("**Right.**")

    return run

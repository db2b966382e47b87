import matplotlib
import pytest

matplotlib.use("agg")
from matplotlib import pyplot as plt
from matplotlib.animation import FuncAnimation

from mlcomp import notebook
from mlcomp.quant import rtn


@pytest.fixture
def shown(monkeypatch):
    """Collect what a notebook would display."""
    calls = []
    monkeypatch.setattr(notebook, "display", lambda data, **options: calls.append((data, options)))
    return calls


def test_animation_needs_nothing_from_the_network(shown):
    fig, ax = plt.subplots(figsize=(1, 1))
    (line,) = ax.plot([0], [0])
    notebook.show_animation(FuncAnimation(fig, lambda i: [line], frames=2), fps=1.0, alt="a point that <stays>")
    plt.close(fig)
    html = shown[0][0].data
    assert "<link" not in html and "http" not in html.replace("http://www.w3.org/", "")
    assert "fa fa-" not in html
    assert html.count('alt="a point that &lt;stays&gt;"') == 1
    assert all(icon in html for icon in ("▶", "||", "|◀", "▶|"))  # a button without a face can't be found


def test_source_is_the_library_s_own(shown):
    notebook.show_source(rtn)
    assert shown[0][0].data.startswith("@isolated\ndef rtn(") and "Guarantee:" in shown[0][0].data


def test_a_sentence_is_markdown_without_the_indentation_of_the_code(shown):
    notebook.say("""
        It costs **1.5** %.
        A second line.""")
    assert shown[0][0].data == "It costs **1.5** %.\nA second line."


def test_a_figure_carries_its_words_and_is_closed(shown):
    fig, _ = plt.subplots(figsize=(1, 1))
    notebook.show(fig, "an empty pair of axes")
    assert shown[0] == (fig, {"metadata": {"image/png": {"alt": "an empty pair of axes"}}})
    assert not plt.fignum_exists(fig.number)


def test_a_drawing_is_named_and_has_words(shown):
    notebook.show_drawing("rounding_to_a_grid", 'a "grid"')
    data, options = shown[0]
    assert (
        'aria-label="a &quot;grid&quot;"' in data.data and options["metadata"]["image/svg+xml"]["alt"] == 'a "grid"'
    )
    with pytest.raises(FileNotFoundError, match=r"there are: .*rounding_to_a_grid"):
        notebook.show_drawing("no_such", "…")


def double(x):
    return 2 * x


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda x: ..., "Not answered yet"),
        (lambda x: None, "Not answered yet"),
        (double, "Right."),
        (lambda x: x, "Twice, not once."),
        (lambda x: x.y, "stops with AttributeError"),
    ],
)
def test_an_answer_is_told_what_is_wrong_with_it_and_nothing_is_raised(shown, answer, said):
    @notebook.your_turn(answer)
    def check(double):
        assert double(3) == 6, "Twice, not once."

    assert check is None and len(shown) == 1 and said in shown[0][0].data


@pytest.mark.parametrize(("answer", "said"), [(..., "Not answered yet"), (2, "Right."), (3, "result is not the one")])
def test_an_answer_may_be_a_value(shown, answer, said):
    @notebook.your_turn(answer)
    def check(answer):
        if answer != 2:
            raise AssertionError

    assert said in shown[0][0].data

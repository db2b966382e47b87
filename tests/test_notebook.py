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
    notebook.show_animation(FuncAnimation(fig, lambda i: [line], frames=2), fps=1.0)
    plt.close(fig)
    html = shown[0][0].data
    assert "<link" not in html and "http" not in html.replace("http://www.w3.org/", "")
    assert "fa fa-" not in html
    assert all(icon in html for icon in ("▶", "||", "|◀", "▶|"))  # a button without a face can't be found


def test_source_is_the_library_s_own(shown):
    notebook.show_source(rtn)
    assert shown[0][0].data.startswith("@isolated\ndef rtn(") and "Guarantee:" in shown[0][0].data


def test_glue_leaves_the_record_that_the_book_reads(shown):
    notebook.glue("some-number", 1.5)
    data, options = shown[0]
    assert data == {"application/papermill.record/text/plain": "1.5"} and options["raw"]
    assert options["metadata"]["scrapbook"]["name"] == "some-number"

import sys

import pytest

from mlcomp.kernels import unavailable, without_triton
from mlcomp.kernels.without_triton import show_kernel, with_triton


@pytest.fixture
def shown(monkeypatch):
    """Collect what a notebook would display."""
    calls = []
    monkeypatch.setattr("IPython.display.display", calls.append)
    return calls


@pytest.fixture
def missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)  # as if it were not installed


def test_it_is_there_where_it_can_be_found():
    pytest.importorskip("triton")
    assert unavailable() == ""


@pytest.mark.parametrize(
    ("system", "reason"), [("linux", "not installed (in a clone"), ("darwin", "Triton runs on Linux")]
)
def test_why_it_is_missing_is_said(missing, monkeypatch, system, reason):
    monkeypatch.setattr(sys, "platform", system)
    assert reason in unavailable()


def test_without_triton_the_stored_result_is_shown_and_nothing_runs(missing, shown):
    @with_triton(stored="Both gave 100 codes.")
    def compare():
        raise AssertionError("this must not run")

    (text,) = shown
    assert text.data.startswith("Both gave 100 codes. *(Stored: this cell needs Triton. ")


def test_with_triton_the_cell_runs_and_the_stored_result_must_be_its_own(monkeypatch, shown):
    monkeypatch.setattr(without_triton, "unavailable", lambda: "")
    with_triton(stored="2 codes.")(lambda: f"{1 + 1} codes.")
    assert [text.data for text in shown] == ["2 codes."]
    with pytest.raises(AssertionError, match=r"'3 codes\.' is not what came out: '2 codes\.'"):
        with_triton(stored="3 codes.")(lambda: "2 codes.")


def test_the_source_of_a_kernel_is_shown_without_importing_it(missing, shown):
    show_kernel("absmax_int8", "absmax_int8", "_kernel")
    text = shown[0].data
    assert text.startswith("@isolated\ndef absmax_int8(") and "@triton.jit\n" in text and "def _kernel(" in text
    with pytest.raises(ValueError, match=r"mlcomp\.kernels\.absmax_int8 defines no nothing; it has absmax_int8"):
        show_kernel("absmax_int8", "nothing")

import json
from dataclasses import replace

import pytest

from mlcomp.grading.report import Report, Result, page, printable, table, tidy

RESULT = Result("q", "Question", False, 0, 2, "message", "")
REPORT = Report("lecture2/x", "a", "b", 1, True, 0.1, "", (RESULT,), ())


@pytest.mark.parametrize(
    "steering", ["\x1b[2J", "\x9b31m", "\r", "\x07", "\u202e", "\u200b", "\u2028", "\ud83d", "\t"]
)
def test_what_steers_a_terminal_is_escaped(steering):
    shown = printable(f"a{steering}ü 王\nb")
    assert steering not in shown and shown.isprintable() is False  # the line break alone
    assert shown.replace("\n", "").isprintable() and shown.startswith("a\\") and shown.endswith("ü 王\nb")


def test_a_message_of_a_student_does_not_steer_the_terminal_of_the_table():
    report = replace(REPORT, problem="\x1b]0;x\x07", results=(replace(RESULT, message="\x1b[1A22 of 22"),))
    assert "\x1b" not in table(report) and "\\x1b[1A22 of 22" in table(report)


def test_a_report_file_is_ascii_and_comes_back():
    report = replace(REPORT, problem="ü \x1b \u202e")
    assert report.to_json().isascii() and "\x1b" not in report.to_json()
    assert Report.from_json(report.to_json()) == report
    assert json.loads(report.to_json())["problem"] == report.problem


def test_a_tidy_text_fits_every_file():
    assert tidy("a\udc80b", 10) == "a?b"
    assert tidy("abc", 3) == "abc" and tidy("abcd", 3) == "abc\n… (shortened)"


def test_the_page_has_a_policy_before_anything_of_the_student():
    text = page(replace(REPORT, problem="<script>1</script>"))
    assert text.index("default-src 'none'") < text.index("&lt;script&gt;") and "<script" not in text

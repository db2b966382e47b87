import csv
import json
import math

import pytest

from mlcomp.layerwise import CompressionReport, LayerRow
from mlcomp.layerwise.report import LeftOut


def row(name, error=0.25, held_out=None, status="compressed") -> LayerRow:
    return LayerRow(name, (4, 8), status, error, held_out, 10, 128, 32, 0.5, 1.5)


@pytest.fixture
def report():
    rows = (row("a", held_out=0.1), row("b", error=math.inf, held_out=math.inf), row("<c>", status="skipped: tied"))
    return CompressionReport(rows, (LeftOut("e", (5, 4), 80, "an embedding"),), 1000)


def test_json_gives_an_equal_report(report, tmp_path):
    path = tmp_path / "report.json"
    report.to_json(path)
    assert CompressionReport.from_json(path) == report
    # Strict JSON, which other languages read: no bare Infinity.
    json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(word))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"kind": "x"}', '{"kind": "mlcomp compression report"}'])
def test_a_file_of_something_else_is_named(text, tmp_path):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(ValueError, match=r"r\.json holds no compression report"):
        CompressionReport.from_json(tmp_path / "r.json")


def test_a_row_with_a_field_too_many_is_refused(report, tmp_path):
    path = tmp_path / "r.json"
    report.to_json(path)
    content = json.loads(path.read_text())
    content["rows"][0]["colour"] = "red"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="colour"):
        CompressionReport.from_json(path)


def test_csv_has_a_line_for_each_layer(report, tmp_path):
    report.to_csv(tmp_path / "r.csv")
    with (tmp_path / "r.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["name"] for line in lines] == ["a", "b", "<c>"]
    assert lines[0]["shape"] == "4x8" and float(lines[0]["bits_per_weight"]) == 8.0
    assert float(lines[1]["error"]) == math.inf and lines[2]["held_out_error"] == ""


def test_csv_and_frame_have_the_same_columns(report, tmp_path):
    pytest.importorskip("pandas")
    report.to_csv(tmp_path / "r.csv")
    assert (tmp_path / "r.csv").read_text().splitlines()[0].split(",") == list(report.to_frame().columns)


def test_a_report_without_layers_is_written_too(tmp_path):
    empty = CompressionReport(())
    empty.to_csv(tmp_path / "r.csv")
    empty.to_json(tmp_path / "r.json")
    empty.to_html(tmp_path / "r.html")
    assert CompressionReport.from_json(tmp_path / "r.json") == empty


def test_the_page_needs_no_other_file_and_shows_all_layers(report, tmp_path):
    report.to_html(tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert "<svg" in page and "&lt;c&gt;" in page and "<c>" not in page and "an embedding" in page
    assert "src=" not in page and "<link" not in page


def test_what_is_written_is_there_whole_or_not_at_all(report, tmp_path, monkeypatch):
    path = tmp_path / "r.csv"
    path.write_text("before")
    monkeypatch.setattr("os.fsync", lambda file: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        report.to_csv(path)
    assert path.read_text() == "before" and [p.name for p in tmp_path.iterdir()] == ["r.csv"]

"""Tables that tests of the exercises print at the end of a run, with or without xdist."""

import json


def pytest_terminal_summary(terminalreporter):
    tables = {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            for name, value in getattr(report, "user_properties", []):
                if name == "table" and report.when == "call":
                    table, *columns = json.loads(value)
                    tables.setdefault(table, []).append(columns)
    for table, rows in tables.items():
        terminalreporter.section(table)
        widths = [min(60, max(len(row[i]) for row in rows)) for i in range(len(rows[0]))]
        for row in rows:
            terminalreporter.write_line("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip())

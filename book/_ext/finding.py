"""What pages that help to find things share: their style, and the filter of their tables where one is used."""

from docutils import nodes


def filterable(node: nodes.Node) -> bool:
    """Return whether a node is a table whose rows can be filtered, or the HTML of one."""
    return isinstance(node, nodes.table | nodes.raw) and "filterable" in node["classes"]


def add_filter(app, page, template, context, doctree) -> None:
    """Load the filter's script on pages that have such a table."""
    if doctree is not None and next(iter(doctree.findall(filterable)), None):
        app.add_js_file("filter.js")


def setup(app) -> dict:
    """Register with Sphinx."""
    app.add_css_file("finding.css")
    app.connect("html-page-context", add_filter)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

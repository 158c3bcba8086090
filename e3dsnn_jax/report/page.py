"""The page: sections of text, tables and figures as one HTML file of its own.

Nothing is fetched: plotly, the figures' data, style and script all stand in the file,
and its content policy forbids the browser to ask any network.
"""

import html
import json
import math
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, NamedTuple

from plotly.offline import get_plotlyjs

from e3dsnn_jax.report.plots import Plot


class Paragraph(NamedTuple):
    """Text; words between backquotes are shown as code."""

    text: str


class Table(NamedTuple):
    """Rows of text below a title."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    folded: bool = False
    """Whether it is closed until somebody opens it."""


Part = Paragraph | Table | Plot


class Section(NamedTuple):
    """A part of the page with a place in its navigation."""

    anchor: str
    title: str
    parts: tuple[Part, ...]


class Fact(NamedTuple):
    """One number at the top of the page."""

    value: str
    meaning: str


_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:"
)


def render_page(
    title: str, subtitle: str, facts: Sequence[Fact], sections: Sequence[Section]
) -> str:
    """The whole page as HTML.

    Args:
      title: Of the page.
      subtitle: A line below it.
      facts: Numbers to see first.
      sections: What follows, in this order.
    """
    plots = {
        part.name: {"data": part.data, "layout": part.layout, "choice": _choice(part)}
        for section in sections
        for part in section.parts
        if isinstance(part, Plot)
    }
    links = "".join(
        f'<a href="#{section.anchor}">{html.escape(section.title)}</a>'
        for section in sections
    )
    cards = "".join(
        f"<div><b>{html.escape(fact.value)}</b>{html.escape(fact.meaning)}</div>"
        for fact in facts
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{html.escape(title)}</title>
<link rel="icon" href="data:,">
<style>
{_resource("page.css")}</style>
</head>
<body>
<header>
<h1>{html.escape(title)}</h1>
<p>{html.escape(subtitle)}</p>
<div class="facts">{cards}</div>
</header>
<nav>{links}</nav>
<main>
{"".join(map(_render_section, sections))}</main>
<script id="plots" type="application/json">{to_script_json(plots)}</script>
<script>{get_plotlyjs()}</script>
<script>
{_resource("page.js")}</script>
</body>
</html>
"""


def to_script_json(value: Any) -> str:
    """JSON that can stand in a script element: no NaN, and no `<` that could end it."""
    text = json.dumps(_finite(value), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    # Six digits are more than a screen shows.
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def _choice(plot: Plot) -> dict[str, Any] | None:
    if plot.choice is None:
        return None
    fields = plot.choice._asdict()
    return {
        name: fields[name]
        for name in ("names", "updates", "traces", "captions", "start")
    }


def _resource(name: str) -> str:
    return files("e3dsnn_jax.report").joinpath(name).read_text(encoding="utf-8")


def _render_section(section: Section) -> str:
    parts = "".join(map(_render_part, section.parts))
    return (
        f'<section id="{section.anchor}">\n<h2>{html.escape(section.title)}</h2>\n'
        f'<div class="parts">\n{parts}</div>\n</section>\n'
    )


def _render_part(part: Part) -> str:
    if isinstance(part, Paragraph):
        return f"<p>{_with_code(part.text)}</p>\n"
    if isinstance(part, Table):
        return _render_table(part)
    caption = part.caption and f"<figcaption>{html.escape(part.caption)}</figcaption>"
    wide = ' class="wide"' if part.wide else ""
    return (
        f'<figure id="{part.name}"{wide}>{caption}{_render_legend(part)}'
        f"{_render_choice(part)}"
        f'<div class="plot" style="height:{part.height}px"></div>'
        f"{_render_line(part)}</figure>\n"
    )


def _render_legend(plot: Plot) -> str:
    entries = "".join(
        f'<span><i style="background:{colour}"></i>{html.escape(name)}</span>'
        for name, colour in plot.legend
    )
    return entries and f'<p class="legend">{entries}</p>'


def _render_choice(plot: Plot) -> str:
    choice = plot.choice
    if choice is None:
        return ""
    last = len(choice.names) - 1
    if choice.kind == "slider":
        control = (
            f'<input type="range" autocomplete="off" min="0" max="{last}" step="1" '
            f'value="{choice.start}">'
            f"<output>{html.escape(choice.names[choice.start])}</output>"
        )
    else:
        options = "".join(
            f'<option value="{place}"{" selected" * (place == choice.start)}>'
            f"{html.escape(name)}</option>"
            for place, name in enumerate(choice.names)
        )
        control = f'<select autocomplete="off">{options}</select>'
    return (
        f'<div class="choice"><label>{html.escape(choice.label)} {control}</label>'
        '<button type="button" data-move="-1" aria-label="previous">&lsaquo;</button>'
        '<button type="button" data-move="1" aria-label="next">&rsaquo;</button></div>'
    )


def _render_line(plot: Plot) -> str:
    if plot.choice is None or not plot.choice.captions:
        return ""
    text = plot.choice.captions[plot.choice.start]
    return f'<p class="line" aria-live="polite">{html.escape(text)}</p>'


def _render_table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in table.head)
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
        for row in table.rows
    )
    body = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    title = html.escape(table.title)
    if table.folded:
        return f"<details><summary>{title}</summary>{body}</details>\n"
    return f'<div class="table"><h3>{title}</h3>{body}</div>\n'


def _with_code(text: str) -> str:
    pieces = html.escape(text).split("`")
    if len(pieces) % 2 == 0:  # a backquote without its partner is just a character
        return "`".join(pieces)
    return "".join(
        f"<code>{piece}</code>" if place % 2 else piece
        for place, piece in enumerate(pieces)
    )

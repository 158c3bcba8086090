"""Figures as plotly's JSON, built by hand: what a page embeds and a browser draws.

Names stand on numbered axes, never as categories, which plotly would merge, sort or
take for dates. Text is escaped, because plotly reads it as HTML.
"""

import html
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

BLUE, ORANGE, GREEN, GREY = "#2f6db3", "#d9722b", "#3f8f5b", "#8a8a8a"
PALETTE = (BLUE, ORANGE, "#8fb4da", "#f0b98d", GREY, GREEN)

_SCALE = ("#f8faf5", "#dcefd3", "#a9dcc0", "#64bcc4", "#3a8fbd", "#2a5c9e", "#182f63")
COLOURS = [[place / (len(_SCALE) - 1), c] for place, c in enumerate(_SCALE)]
"""From light to dark, so that a print in grey still orders the values."""

_ROW = 19
_FRAME = 130


class Choice(NamedTuple):
    """A slider or a list beside a figure, and what each of its places changes."""

    kind: Literal["slider", "list"]
    label: str
    names: Sequence[str]
    updates: Sequence[dict[str, Any]]
    """For each place, the attributes of the traces that change, as `Plotly.restyle`
    takes them: a list with an entry a trace."""
    traces: Sequence[int]
    """The traces that change."""
    start: int = 0
    captions: Sequence[str] = ()
    """For each place, a line below the figure."""


class Plot(NamedTuple):
    """One figure of the page."""

    name: str
    """Unique on the page."""
    caption: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    height: int
    """In pixels."""
    choice: Choice | None = None
    wide: bool = False
    """Whether it takes the whole width of a large screen."""
    legend: tuple[tuple[str, str], ...] = ()
    """Names and colours to explain above the figure."""


def escape(text: str) -> str:
    """Text as plotly shows it literally."""
    return html.escape(text, quote=False)


def shorten(name: str, length: int = 24) -> str:
    """A name of at most so many characters, escaped."""
    return escape(name if len(name) <= length else name[: length - 1] + "…")


def layer_labels(layers: Sequence[str]) -> list[str]:
    """Names of layers without the last word that all of them share."""
    endings = {name.rpartition("/")[2] for name in layers}
    if len(endings) == 1 and all("/" in name for name in layers) and len(layers) > 1:
        return [name.rpartition("/")[0] for name in layers]
    return list(layers)


def named_axis(names: Sequence[str], title: str, **options: Any) -> dict[str, Any]:
    """An axis with a name at each of 0, 1, 2, ..."""
    return {
        "title": {"text": title, "standoff": 10},
        "tickmode": "array",
        "tickvals": list(range(len(names))),
        "ticktext": [shorten(name) for name in names],
        "tickfont": {"size": 11 if len(names) <= 30 else 9},
        "showgrid": False,
        "zeroline": False,
        "automargin": True,
        **options,
    }


def value_axis(title: str, **options: Any) -> dict[str, Any]:
    """An axis of numbers."""
    return {
        "title": {"text": title, "standoff": 10},
        "gridcolor": "#e9ebee",
        "zeroline": False,
        "automargin": True,
        **options,
    }


def lines(
    name: str,
    caption: str,
    series: Sequence[dict[str, Any]],
    *,
    x_title: str,
    y_title: str,
    height: int = 320,
    choice: Choice | None = None,
    wide: bool = False,
    **y_options: Any,
) -> Plot:
    """Lines over numbers.

    Args:
      name: Of the figure.
      caption: Its title.
      series: Traces, with at least `x`, `y` and `name`.
      x_title: What the horizontal axis shows.
      y_title: What the vertical axis shows, with its unit.
      height: In pixels.
      choice: A slider or list.
      wide: Whether it takes the whole width.
      y_options: Further attributes of the vertical axis.
    """
    layout = {"xaxis": value_axis(x_title), "yaxis": value_axis(y_title, **y_options)}
    data = [{"type": "scatter", "mode": "lines", **trace} for trace in series]
    return Plot(name, caption, data, layout, height, choice, wide)


def bars(
    name: str,
    caption: str,
    names: Sequence[str],
    series: Sequence[tuple[str, Sequence[float], str]],
    *,
    x_title: str,
    hover: str,
    texts: Sequence[str] = (),
    wide: bool = False,
    **x_options: Any,
) -> Plot:
    """Horizontal bars, stacked where there are several series, first name on top.

    Args:
      name: Of the figure.
      caption: Its title.
      names: One a row.
      series: Name, values and colour of each part of the bars.
      x_title: What the horizontal axis shows, with its unit.
      hover: plotly's template for the text at the pointer.
      texts: A label at the end of each bar of the first series.
      wide: Whether it takes the whole width.
      x_options: Further attributes of the horizontal axis.
    """
    rows = list(range(len(names)))
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": escape(part),
            "y": rows,
            "x": list(values),
            "marker": {"color": colour},
            "hovertemplate": hover,
        }
        for part, values, colour in series
    ]
    if texts:
        data[0] |= {
            "text": list(texts),
            "textposition": "outside",
            "cliponaxis": False,
            "textfont": {"size": 10},
        }
    layout = {
        "barmode": "stack",
        "bargap": 0.25,
        "xaxis": value_axis(x_title, rangemode="tozero", **x_options),
        "yaxis": named_axis(names, "", autorange="reversed"),
        "showlegend": False,
        "margin": {"t": 4},
    }
    height = 64 + _ROW * len(names)
    # Beside the figure: plotly's own legend does not wrap again when paper is narrower.
    legend = tuple((part, colour) for part, _, colour in series[1:] and series)
    return Plot(name, caption, data, layout, max(height, 160), None, wide, legend)


def heat_map(
    name: str,
    caption: str,
    values: Float[np.ndarray, "rows columns"],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    x_title: str,
    y_title: str,
    colour_title: str,
    hover: str,
    top: float = 1.0,
    texts: list[list[str]] | None = None,
    show_texts: bool = False,
    choice: Choice | None = None,
    wide: bool = False,
) -> Plot:
    """A table of numbers as colours from 0 to `top`; NaN stays empty.

    Args:
      name: Of the figure.
      caption: Its title.
      values: The numbers.
      rows: Name of each row.
      columns: Name of each column.
      x_title: What columns are.
      y_title: What rows are.
      colour_title: What colours are, with their unit.
      hover: plotly's template for the text at the pointer.
      top: The number of the darkest colour.
      texts: A text a cell for `hover` and for the cells.
      show_texts: Whether cells show them.
      choice: A slider or list.
      wide: Whether it takes the whole width.
    """
    trace: dict[str, Any] = {
        "type": "heatmap",
        "z": values.tolist(),
        "zmin": 0,
        "zmax": top,
        "colorscale": COLOURS,
        "xgap": 1,
        "ygap": 1,
        "hoverongaps": False,
        "hovertemplate": hover + "<extra></extra>",
        "colorbar": {
            "orientation": "h",
            "thickness": 9,
            "len": 0.9,
            "x": 0.5,
            "y": 1.0,
            "yanchor": "bottom",
            "ypad": 4,
            "tickfont": {"size": 10},
            "title": {"text": colour_title, "side": "top", "font": {"size": 11}},
            "outlinewidth": 0,
        },
    }
    if texts is not None:
        trace["text"] = texts
        trace |= {"texttemplate": "%{text}"} if show_texts else {}
    layout = {
        "xaxis": named_axis(columns, x_title, tickangle=-90),
        "yaxis": named_axis(rows, y_title, autorange="reversed"),
        "margin": {"t": 8},
    }
    longest = max((min(len(column), 24) for column in columns), default=0)
    height = _FRAME + 6 * longest + _ROW * len(rows)
    return Plot(name, caption, [trace], layout, max(height, 300), choice, wide)

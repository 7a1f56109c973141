"""A report on one or several runs: one HTML file that needs nothing else, not even a network.

Curves in `plots.py`, tables in `tables.py`; here is the page around them. Its content security
policy forbids the browser to load anything.
"""

import html
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dist_bert.common import files
from dist_bert.tools.report import tables
from dist_bert.tools.report.curves import MAX_RAW_POINTS, mean_length
from dist_bert.tools.report.plots import AXES, borders, color_of, figures, plotly_source
from dist_bert.tools.report.run_history import RunHistory, read_histories

_STYLE = """
@page { size: A4 landscape; margin: 10mm; }
body { font: 14px/1.45 system-ui, sans-serif; color: #222; max-width: 1040px; margin: 1.2em auto;
       padding: 0 12px; -webkit-print-color-adjust: exact; print-color-adjust: exact; }
h1 { font-size: 1.5em; margin: 0 0 .5em; }
h2 { font-size: 1.15em; margin: 1.8em 0 .5em; border-bottom: 1px solid #ccc; }
h3 { font-size: 1em; margin: 1.2em 0 .4em; }
table { border-collapse: collapse; font-size: 13px; break-inside: auto; }
tr { break-inside: avoid; }
th, td { padding: 2px 14px 2px 0; text-align: left; vertical-align: top;
         border-bottom: 1px solid #eee; overflow-wrap: anywhere; }
th { border-bottom-color: #999; }
.figures td { font-variant-numeric: tabular-nums; }
.best, td b { font-weight: 700; color: #006b4a; }
.text { font-style: italic; margin: 1em 0 .2em; }
.note { color: #555; font-size: 13px; }
.bar { position: sticky; top: 0; z-index: 2; background: #fffffff0; border-bottom: 1px solid #ccc;
       padding: 6px 0; display: flex; flex-wrap: wrap; gap: 2px 20px; }
.bar label { margin-right: 9px; white-space: nowrap; }
.swatch { display: inline-block; width: 18px; height: 4px; vertical-align: middle; }
.plots { display: flex; flex-wrap: wrap; gap: 8px; margin-top: 8px; }
.plot { break-inside: avoid; }
@media print { .bar { position: static; border: 0; } h2, h3, .bar, .text { break-after: avoid; }
               .modebar { display: none; } }
"""
# Draws all figures anew for whatever is chosen in the bar; plotly keeps what has not changed.
_SCRIPT = """
const figures = JSON.parse(document.getElementById("figures").textContent);
const borders = JSON.parse(document.getElementById("borders").textContent);
const titles = JSON.parse(document.getElementById("axes").textContent);
const chosen = name => Array.from(
  document.querySelectorAll(`input[name=${name}]:checked`), input => input.value);
function draw() {
  const [axis] = chosen("axis"), runs = chosen("run"), kinds = chosen("kind");
  const shown = borders.filter(
    border => runs.includes(String(border.run)) && kinds.includes("phase"));
  const shapes = shown.map(border => ({type: "line", x0: border[axis], x1: border[axis],
    yref: "paper", y0: 0, y1: 1, line: {color: border.color, width: 1, dash: "dash"}}));
  const annotations = shown.map(border => ({text: border.name, x: border[axis], xanchor: "left",
    yref: "paper", y: 1, yanchor: "top", textangle: 90, showarrow: false,
    font: {size: 9, color: border.color}}));
  figures.forEach((figure, i) => {
    const traces = figure.data.map(trace => ({...trace, x: trace.meta[axis],
      visible: runs.includes(String(trace.meta.run)) && kinds.includes(trace.meta.kind)}));
    const layout = {...figure.layout, shapes, annotations, uirevision: axis,
      xaxis: {...figure.layout.xaxis, title: {text: titles[axis], standoff: 4}}};
    Plotly.react(`plot-${i}`, traces, layout, {displaylogo: false,
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"]});
  });
}
for (const input of document.querySelectorAll(".bar input")) input.onchange = draw;
draw();
"""
_KINDS = {
    "mean": "means",
    "raw": "raw",
    "validation": "validation (dotted)",
    "restart": "restarts ▲",
    "skipped": "skipped steps ✕",
    "phase": "phases ┆",
}


def write_report(run_dirs: Sequence[str], output: str | Path) -> None:
    """Writes the report of some runs, side by side.

    Raises:
        UserError: a folder is no run, or plotly is not installed.
    """
    files.write_bytes(output, page(read_histories(run_dirs)).encode())


def page(histories: Sequence[RunHistory]) -> str:
    """The whole HTML page."""
    drawn = figures(histories)
    plots = "".join(f'<div class="plot" id="plot-{i}"></div>' for i in range(len(drawn)))
    title = html.escape(f"Training report: {', '.join(history.name for history in histories)}")
    body = [
        f"<h1>{title}</h1>",
        tables.summary(histories),
        f"<h2>Curves</h2>{_bar(histories)}",
        f'<div class="plots">{plots}</div>{_how_drawn(histories)}',
    ]
    if any(history.phases for history in histories):
        body.append(_of_each("Phases", histories, tables.phases))
    body.append(_of_each("Validations", histories, tables.validations))
    if any(history.predictions for history in histories):
        body.append(_of_each("Answers to the same texts", histories, tables.predictions))
    body += [
        _of_each("Starts", histories, tables.starts),
        "<h2>Configuration</h2>" if len(histories) == 1 else "<h2>Settings that differ</h2>",
        tables.differences(histories),
        f"<h2>Versions at the latest start</h2>{tables.versions(histories)}",
        _of_each("Nodes of the latest start", histories, tables.nodes),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\';'
        " script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:\">\n"
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head><body>\n"
        + "\n".join(body)
        + f"\n{_data('figures', drawn)}\n{_data('borders', borders(histories))}"
        + f"\n{_data('axes', AXES)}"
        + f"\n<script>{plotly_source()}</script>\n<script>{_SCRIPT}</script>\n</body></html>\n"
    )


def _bar(histories: Sequence[RunHistory]) -> str:
    """What is shown: the axis, the kinds of curves, the runs with their colors."""
    axes = [_choice("radio", "axis", axis, html.escape(axis), axis == "step") for axis in AXES]
    are_there = {
        "restart": any(history.resumed_steps for history in histories),
        "skipped": any(len(history.skipped_steps) for history in histories),
        "validation": any(history.validation for history in histories),
        "phase": any(history.phases for history in histories),
    }
    kinds = [
        _choice("checkbox", "kind", kind, text, is_chosen=True)
        for kind, text in _KINDS.items()
        if are_there.get(kind, True)
    ]
    runs = [
        _choice(
            "checkbox",
            "run",
            str(run),
            f'<span class="swatch" style="background:{color_of(run)}"></span> '
            + html.escape(history.name),
            is_chosen=True,
        )
        for run, history in enumerate(histories)
    ]
    groups = (f"<span>{''.join(group)}</span>" for group in (["x: ", *axes], kinds, runs))
    return f'<div class="bar">{"".join(groups)}</div>'


def _choice(kind: str, name: str, value: str, label: str, is_chosen: bool) -> str:
    checked = " checked" if is_chosen else ""
    return f'<label><input type="{kind}" name="{name}" value="{value}"{checked}> {label}</label>'


def _how_drawn(histories: Sequence[RunHistory]) -> str:
    """What the curves are made of, said on the page."""
    lines = []
    for history in histories:
        num_rows = len(history.train["step"])
        raw = "every step"
        if num_rows > MAX_RAW_POINTS:
            raw = (
                f"the lowest and the highest of every {-(-num_rows * 2 // MAX_RAW_POINTS):,} steps"
            )
        lines.append(
            f"{html.escape(history.name)}: means of {mean_length(num_rows):,}, raw is {raw}"
        )
    return (
        '<p class="note">Thick: means over steps in a row. Thin: raw. '
        f"{'; '.join(lines)} (steps without a value left out)."
        " Hours are the sum of the step times: validation, saving, starts and what a kill lost are"
        " not in them. Scores of validations are of the first held-out samples of the run, or of"
        " its phase.</p>"
    )


def _of_each(title: str, histories: Sequence[RunHistory], make: Callable[[RunHistory], str]) -> str:
    """A section with what `make` makes of each run; nothing of a run that has nothing."""
    parts = [f"<h2>{title}</h2>"]
    for history in histories:
        if made := make(history):
            parts += [f"<h3>{html.escape(history.name)}</h3>"] if len(histories) > 1 else []
            parts.append(made)
    return "\n".join(parts)


def _data(name: str, value: Any) -> str:
    """JSON inside the page; nothing in it can end the element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{text}</script>'

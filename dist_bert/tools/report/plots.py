"""The curves of a report as plotly figures: all runs in each, every point with three places on x.

A trace's `meta` says whose it is (`run`), what (`kind`: mean, raw, validation, restart, skipped)
and where its points lie on each axis (`step`, `tokens`, `hours`); the page's script picks from it.
So it does from `borders`: where the phases of recipes begin.
The only home of plotly; it comes with the extra `pictures`.
"""

import dataclasses
import html
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_bert.common.errors import UserError
from dist_bert.common.pictures import COLORS
from dist_bert.tools.report.curves import means, raw_rows
from dist_bert.tools.report.run_history import Columns, RunHistory, column

AXES = {"step": "optimizer step", "tokens": "tokens", "hours": "hours of training steps"}
MAX_MARKERS = 60  # of validations; more would hide the curve
_SHARE = ".0%"
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")  # of the data sets of a run, in turns


@dataclasses.dataclass(frozen=True)
class Panel:
    """What one figure shows: a metric of the steps and, if it has one, of the validations.

    A metric that ends in a slash is one for each data set of a recipe.
    """

    title: str
    metric: str
    validation: str = ""
    tick_format: str = ""
    is_log: bool = False
    only_where_it_varies: bool = False


PANELS = (
    Panel("MLM loss (nats a masked token)", "train/mlm_loss", "validation/mlm_loss"),
    Panel("MLM accuracy", "train/mlm_accuracy", "validation/mlm_accuracy", _SHARE),
    Panel("NSP loss (nats a sample)", "train/nsp_loss", "validation/nsp_loss"),
    Panel("NSP accuracy", "train/nsp_accuracy", "validation/nsp_accuracy", _SHARE),
    Panel("Loss that is trained on (MLM + NSP)", "train/loss", "validation/loss"),
    Panel("Validation MLM loss of each data set", "validation/mlm_loss/"),
    Panel("Epochs of each data set", "progress/epochs/"),
    Panel("Samples of a step", "progress/batch_size", only_where_it_varies=True),
    Panel(
        "Share of tokens masked (none: as stored)",
        "progress/masked_lm_prob",
        tick_format=".1%",
        only_where_it_varies=True,
    ),
    Panel("Learning rate", "train/lr", tick_format=".1e"),
    Panel("Gradient norm before clipping", "train/grad_norm", is_log=True),
    Panel("Tokens per second, all ranks", "throughput/tokens_per_second", tick_format=",.3~s"),
    Panel("MFU", "throughput/mfu", tick_format=".1%"),
    Panel("Share of time waiting for data", "throughput/data_wait_fraction", tick_format=".1%"),
    Panel("Slowest rank over the median", "ranks/slowest_share"),
    Panel("Peak memory of rank 0 (GiB)", "memory/peak_gib"),
    Panel("Loss scale", "train/loss_scale", is_log=True),
    Panel("Skipped steps so far", "train/skipped_steps"),
)


def color_of(run: int) -> str:
    """The color of a run in all figures; more runs than colors take turns."""
    return COLORS[run % len(COLORS)]


def figures(histories: Sequence[RunHistory]) -> list[dict[str, Any]]:
    """One figure, as plotly's JSON, for each panel that any of the runs has values for.

    Raises:
        UserError: plotly is not installed.
    """
    try:
        import plotly.graph_objects as go
    except ModuleNotFoundError:
        raise UserError(
            "report: needs the package plotly, which draws it; install it: pip install plotly"
        ) from None
    shown = []
    for panel in PANELS:
        having = [(i, h) for i, h in enumerate(histories) if _has_values(panel, h)]
        if having:
            traces = [trace for run, history in having for trace in _traces(panel, run, history)]
            figure = go.Figure([go.Scatter(trace) for trace in traces], _layout(panel))
            shown.append(figure.to_plotly_json())
    return shown


def borders(histories: Sequence[RunHistory]) -> list[dict[str, Any]]:
    """The first step of each phase that has begun: its run, color, name, and place on each axis."""
    return [
        {
            "run": run,
            "color": color_of(run),
            "name": html.escape(phase.name),
            **{axis: float(history.train[axis][phase.rows[0]]) for axis in AXES},
        }
        for run, history in enumerate(histories)
        for phase in history.phases
        if len(phase.rows)
    ]


def plotly_source() -> str:
    """Plotly's JavaScript, 5 MB."""
    from plotly.offline import get_plotlyjs

    source: str = get_plotlyjs()
    return source


def _has_values(panel: Panel, history: RunHistory) -> bool:
    """Whether there is something to see: no skipped steps are no curve of zeros."""
    if panel.metric == "train/skipped_steps":
        return bool(len(history.skipped_steps))
    if panel.metric == "train/loss" and "train/nsp_loss" not in history.train:
        return False  # it is the MLM loss
    if panel.metric.endswith("/"):
        return bool(_of_data_sets(panel, history))
    if panel.only_where_it_varies:
        return len(np.unique(column(history.train, panel.metric))) > 1  # NaN: as stored
    return not np.isnan(column(history.train, panel.metric)).all()


def _of_data_sets(panel: Panel, history: RunHistory) -> dict[str, tuple[str, Columns]]:
    """By the names of data sets: the metric of each, and the columns that have it."""
    return {
        name.removeprefix(panel.metric): (name, columns)
        for columns in (history.train, history.validation)
        for name in columns
        if name.startswith(panel.metric)
    }


def _traces(panel: Panel, run: int, history: RunHistory) -> Iterator[dict[str, Any]]:
    train = history.train
    if panel.metric.endswith("/"):
        yield from _data_set_traces(panel, run, history)
        return
    values = train[panel.metric]
    color, name = color_of(run), html.escape(history.name)
    rows = raw_rows(values)
    yield {
        **_points(run, "raw", values[rows], {axis: train[axis][rows] for axis in AXES}),
        "name": name,
        "mode": "lines",
        "line": {"color": color, "width": 1},
        "opacity": 0.28,
        "hoverinfo": "skip",
    }
    smooth, *places = means(values, *(train[axis] for axis in AXES))
    yield {
        **_points(run, "mean", smooth, dict(zip(AXES, places, strict=True))),
        "name": name,
        "mode": "lines",
        "line": {"color": color, "width": 2},
    }
    if panel.validation in history.validation:
        yield _validation(panel, run, history)
    step_places = (
        ("restart", history.resumed_steps, "triangle-up", "resumed at step {:,.0f}"),
        ("skipped", history.skipped_steps, "x-thin", "step {:,.0f} skipped"),
    )
    for kind, steps, symbol, says in step_places:
        if len(steps):
            yield {
                **_points(run, kind, *_on_curve(train, steps, smooth, places[0])),
                "name": name,
                "mode": "markers",
                "marker": {
                    "symbol": symbol,
                    "size": 9,
                    "color": color,
                    "line": {"width": 1.5, "color": color if kind == "skipped" else "black"},
                },
                "text": [says.format(step) for step in steps],
                "hovertemplate": "%{text}<extra>" + name + "</extra>",
            }


def _validation(panel: Panel, run: int, history: RunHistory) -> dict[str, Any]:
    rows = history.validation
    color, name = color_of(run), html.escape(history.name)
    return {
        **_points(run, "validation", rows[panel.validation], {axis: rows[axis] for axis in AXES}),
        "name": f"{name}, validation",
        "mode": "lines+markers" if len(rows["step"]) <= MAX_MARKERS else "lines",
        "line": {"color": color, "width": 1.5, "dash": "dot"},
        "marker": {"color": "white", "size": 6, "line": {"color": color, "width": 1.5}},
    }


def _data_set_traces(panel: Panel, run: int, history: RunHistory) -> Iterator[dict[str, Any]]:
    """A curve for each data set, with its name at the end."""
    kind = "validation" if panel.metric.startswith("validation/") else "mean"
    for number, (data_set, (metric, columns)) in enumerate(_of_data_sets(panel, history).items()):
        rows = raw_rows(columns[metric])
        places = {axis: columns[axis][rows] for axis in AXES}
        yield {
            **_points(run, kind, columns[metric][rows], places),
            "name": f"{html.escape(history.name)}, {html.escape(data_set)}",
            "mode": "lines+markers+text" if kind == "validation" else "lines+text",
            "text": [""] * (len(rows) - 1) + [html.escape(data_set)],
            "textposition": "top left",
            "line": {"color": color_of(run), "width": 2, "dash": _DASHES[number % len(_DASHES)]},
            "marker": {"color": color_of(run), "size": 5},
        }


def _on_curve(
    train: Columns, steps: Sequence[int] | NDArray[Any], smooth: Any, smooth_steps: Any
) -> tuple[Any, Columns]:
    """Heights and places of marks: on the smooth curve."""
    at = np.asarray(steps, dtype=np.float64)
    places = {axis: np.interp(at, train["step"], train[axis]) for axis in ("tokens", "hours")}
    return np.interp(at, smooth_steps, smooth), {"step": at, **places}


def _points(run: int, kind: str, values: NDArray[np.float64], places: Columns) -> dict[str, Any]:
    axes = {
        "step": _numbers(places["step"], 1),
        "tokens": _numbers(places["tokens"], 0),
        "hours": _numbers(places["hours"], 6),  # of an hour, 4 ms
    }
    return {"x": axes["step"], "y": _numbers(values), "meta": {"run": run, "kind": kind, **axes}}


def _numbers(values: NDArray[np.float64], digits: int | None = None) -> list[float | int | None]:
    """For JSON, which has no NaN; whole numbers take less room without `.0`."""
    rounded = values if digits is None else np.round(values, digits)
    return [
        None if np.isnan(v) else int(v) if v == int(v) else v
        for v in (float(value) for value in rounded)
    ]


def _layout(panel: Panel) -> dict[str, Any]:
    axis = {"gridcolor": "#e6e6e6", "zeroline": False, "linecolor": "#999", "ticks": "outside"}
    return {
        "title": {"text": panel.title, "font": {"size": 14}, "x": 0.02, "xanchor": "left"},
        "font": {"family": "system-ui, sans-serif", "size": 11, "color": "#222"},
        "width": 500,  # two of them fit on a laptop and on a page
        "height": 280,
        "margin": {"l": 62, "r": 12, "t": 36, "b": 40},
        "showlegend": False,
        "hovermode": "x unified",
        "plot_bgcolor": "white",
        "paper_bgcolor": "white",
        "template": None,
        "xaxis": {**axis, "rangemode": "tozero"},
        "yaxis": {
            **axis,
            "tickformat": panel.tick_format,
            **({"type": "log", "dtick": "D2"} if panel.is_log else {}),  # D2: at 1, 2 and 5
        },
    }

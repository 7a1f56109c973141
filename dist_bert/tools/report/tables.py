"""The tables of a report, as HTML. All text of runs is escaped: a piece may be `<script>`."""

import html
import json
import math
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_bert.common.text_tables import number
from dist_bert.distributed import environment
from dist_bert.tokenizer.config import bare_piece
from dist_bert.tools.report.curves import mean_length, spread
from dist_bert.tools.report.run_history import PhaseRecord, RunHistory, column

MAX_VALIDATION_ROWS = 25
MAX_PREDICTION_STEPS = 8
_MAX_HOSTS = 8  # named of those that are alike
_OWN_KEYS = ("run.output_dir", "versions.")  # differ by nature; have a table of their own
_START_COLUMNS = {
    "time": "started",
    "step": "from step",
    "world_size": "ranks",
    "zero_stage": "ZeRO",
    "precision": "precision",
    "micro_batch_size": "micro-batch",
    "accumulation_steps": "micro-steps",
}


def cell(text: object, kind: str = "") -> str:
    """One cell of a row; `kind` is a CSS class."""
    marked = f' class="{kind}"' if kind else ""
    return f"<td{marked}>{html.escape(str(text))}</td>"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """A table of cells that `cell` has made, under a header of plain text."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    body = "\n".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f'<table class="{kind}"><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>'


def summary(histories: Sequence[RunHistory]) -> str:
    """The figures at which each run stands: a row a figure, a column a run."""
    columns = [_standing(history) for history in histories]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [[cell(name), *(cell(column.get(name, "")) for column in columns)] for name in names]
    return table(["", *(history.name for history in histories)], rows, "figures")


def validations(history: RunHistory) -> str:
    """The validations of one run, the best ones bold."""
    scores = history.validation
    if not scores:
        return "<p>No validation so far.</p>"
    loss, accuracy = (column(scores, f"validation/mlm_{kind}") for kind in ("loss", "accuracy"))
    columns = {
        "MLM loss": (loss, np.nanargmin, "{:.4f}"),
        "perplexity": (np.exp(loss), np.nanargmin, "{:,.1f}"),
        "MLM accuracy": (accuracy, np.nanargmax, "{:.2%}"),
    }
    if "validation/nsp_loss" in scores:
        columns["NSP loss"] = (column(scores, "validation/nsp_loss"), np.nanargmin, "{:.4f}")
        accuracy = column(scores, "validation/nsp_accuracy")
        columns["NSP accuracy"] = (accuracy, np.nanargmax, "{:.2%}")
    earlier = scores["step"] < history.comparable_since
    best = {
        name: _best(np.where(earlier, np.nan, values), pick)
        for name, (values, pick, _) in columns.items()
    }
    shown = sorted({*spread(len(loss), MAX_VALIDATION_ROWS), *best.values()} - {-1})
    rows = [
        [cell(f"{scores['step'][i]:,.0f}"), cell(_count(scores["tokens"][i]))]
        + [
            cell(form.format(values[i]), "best" if i == best[name] else "")
            for name, (values, _, form) in columns.items()
        ]
        for i in shown
    ]
    left_out = len(loss) - len(shown)
    note = f"<p>{left_out:,} more validations are not shown.</p>" if left_out else ""
    if earlier.any():
        note += "<p>Each phase has data of its own: the best ones are of the last phase.</p>"
    return table(["step", "tokens", *columns], rows, "figures") + note


def phases(history: RunHistory) -> str:
    """What each phase of a run with a recipe was, up to its last step; nothing without one."""
    rows = [
        {"phase": phase.name, **(_made(history, phase) if len(phase.rows) else _to_come(phase))}
        for phase in history.phases
    ]
    names = list(dict.fromkeys(name for row in rows for name in row))
    return table(names, [[cell(row.get(n, "")) for n in names] for row in rows], "figures")


def _made(history: RunHistory, phase: PhaseRecord) -> dict[str, str]:
    """A phase that has begun."""
    train, (first, last) = history.train, phase.rows[[0, -1]]

    def span(metric: str, form: str) -> str:
        ends = [form.format(column(train, metric)[row]) for row in (first, last)]
        return " to ".join(dict.fromkeys(ends))

    def gained(metric: str) -> str:
        counts = column(train, metric)
        return _count(counts[last] - (counts[first - 1] if first else 0.0))

    epochs = {
        name.removeprefix("progress/epochs/"): column(train, name)[last]
        for name in train
        if name.startswith("progress/epochs/") and not np.isnan(train[name][last])
    }
    scores = history.validation
    steps = train["step"][[first, last]]
    own = column(scores, "validation/mlm_loss")[
        np.flatnonzero((column(scores, "step") >= steps[0]) & (column(scores, "step") <= steps[1]))
    ]
    return {
        "steps": f"{steps[0]:,.0f} to {steps[1]:,.0f}",
        "samples": gained("progress/samples"),
        "tokens": gained("progress/tokens"),
        "samples of a step": span("progress/batch_size", "{:,.0f}"),
        "masked": span("progress/masked_lm_prob", "{:.1%}").replace("nan%", "as stored"),
        "lr": span("train/lr", "{:.2e}"),
        "data sets": _weights(phase),
        "epochs at its end": ", ".join(f"{name} {value:.2f}" for name, value in epochs.items()),
        "validation MLM loss": f"{own[-1]:.4f}" if len(own) else "",
    }


def _to_come(phase: PhaseRecord) -> dict[str, str]:
    return {
        "steps": f"not begun: {phase.settings['steps']:,} steps",
        "samples of a step": f"{phase.settings['train_batch_size']:,}",
        "data sets": _weights(phase),
    }


def _weights(phase: PhaseRecord) -> str:
    """The data sets of a phase, and the share that each has."""
    weights: dict[str, float] = phase.settings["shards"]
    if len(weights) == 1:
        return next(iter(weights))
    shares = (f"{weight / sum(weights.values()):.1%} {place}" for place, weight in weights.items())
    return f"{', '.join(shares)} (by {phase.settings['weights_by']})"


def predictions(history: RunHistory) -> str:
    """How the answers to each fixed text change with the steps; the right ones stand out."""
    by_text: dict[str, list[dict[str, Any]]] = {}
    for row in history.predictions:
        by_text.setdefault(row["text"], []).append(row)
    parts = []
    for text, rows in by_text.items():
        expected = rows[-1]["expected"]
        shown = [rows[i] for i in spread(len(rows), MAX_PREDICTION_STEPS)]
        header = [
            "step",
            *(f"[MASK] {i}: {bare_piece(piece)}" for i, piece in enumerate(expected, start=1)),
        ]
        body = [
            [
                cell(f"{row['step']:,}"),
                *(_answers(answers, piece) for answers, piece in zip(
                    row["answers"], expected, strict=True
                )),
            ]
            for row in shown
        ]  # fmt: skip
        parts.append(f'<p class="text">{html.escape(text)}</p>{table(header, body, "answers")}')
    return "\n".join(parts)


def starts(history: RunHistory) -> str:
    """Every start of one run: when, from where, on what."""
    if history.starts is None:
        return "<p>This run does not record its starts (no starts.jsonl).</p>"
    rows, before = [], None
    for start in history.starts:
        versions = start.get("versions", {})
        changed = {n: v for n, v in versions.items() if before is None or before.get(n) != v}
        rows.append(
            [cell(_shown(start.get(key))) for key in _START_COLUMNS]
            + [cell((start.get("commit") or "")[:10])]
            + [cell(" ".join(f"{n} {v}" for n, v in changed.items()) or "as before")]
        )
        before = versions
    return table([*_START_COLUMNS.values(), "commit", "versions"], rows, "figures")


def differences(histories: Sequence[RunHistory]) -> str:
    """Of several runs the settings that differ, of one run all of them, folded."""
    configs = [_flat(history.config) for history in histories]
    keys = list(dict.fromkeys(key for config in configs for key in config))
    if len(histories) == 1:
        rows = [[cell(key), cell(configs[0][key])] for key in keys]
        return f"<details><summary>{len(rows)} settings</summary>{table(['', ''], rows)}</details>"
    rows = [
        [cell(key), *(cell(config.get(key, "not set")) for config in configs)]
        for key in keys
        if not key.startswith(_OWN_KEYS) and len({config.get(key) for config in configs}) > 1
    ]
    if not rows:
        return "<p>The runs have the same settings.</p>"
    return table(["", *(history.name for history in histories)], rows)


def versions(histories: Sequence[RunHistory]) -> str:
    """Versions at the latest start of each run."""
    columns = [history.config.get("versions", {}) for history in histories]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [[cell(name), *(cell(column.get(name, "")) for column in columns)] for name in names]
    return table(["", *(history.name for history in histories)], rows)


def nodes(history: RunHistory) -> str:
    """The nodes of the latest start, folded: alike ones as one column; what differs above."""
    if not history.nodes:
        return "<p>This run does not record its nodes (no environment.json).</p>"
    columns = []
    for kind in environment.kinds(history.nodes):
        hosts = kind.pop("hosts")
        gpus: Counter[str] = Counter(kind.pop("gpus"))
        some = ", ".join(hosts[:_MAX_HOSTS])
        left_out = len(hosts) - _MAX_HOSTS
        columns.append(
            {
                "nodes": f"{len(hosts):,}",
                "ranks": f"{len(kind.pop('ranks')):,}",
                "hosts": some + (f" and {left_out:,} more" if left_out > 0 else ""),
                "gpus": ", ".join(f"{count} x {name}" for name, count in gpus.items()),
                **{f"${name}": value for name, value in kind.pop("variables").items()},
                **{name: value or "none" for name, value in kind.items()},
            }
        )
    names = dict.fromkeys(name for column in columns for name in column)
    order = sorted(names, key=lambda name: name.startswith("$"))
    rows = [[cell(n), *(cell(column.get(n) or "none") for column in columns)] for n in order]
    num_ranks = sum(len(node["ranks"]) for node in history.nodes)
    differing = environment.differences(history.nodes)
    told = f"<p>They differ: {html.escape('; '.join(differing))}</p>" if differing else ""
    return (
        f"{told}<details><summary>{len(history.nodes):,} nodes, {num_ranks:,} ranks</summary>"
        f"{table(['', *('' for _ in columns)], rows)}</details>"
    )


def _standing(history: RunHistory) -> dict[str, str]:
    train = history.train
    is_done = history.step >= history.num_train_steps
    standing = {
        "state": "finished" if is_done else history.interruption or "not finished",
        "last written": f"{datetime.fromtimestamp(history.written, UTC):%Y-%m-%d %H:%M} UTC",
        "steps": f"{history.step:,} of {history.num_train_steps:,}",
        "tokens": _count(train["tokens"][-1]),
        "samples": _count(column(train, "progress/samples")[-1]),
        "hours of training steps": number(float(train["hours"][-1])),
    }
    last = mean_length(len(train["step"]))
    for kind, form in (("loss", "{:.4f}"), ("accuracy", "{:.2%}")):
        values = column(train, f"train/mlm_{kind}")
        standing[f"training MLM {kind}"] = f"{_mean(values[-last:], form)} (last {_steps(last)})"
    if history.validation:
        standing |= _validation_standing(history)
    seconds = column(train, "throughput/step_seconds")
    for name, metric, form in (
        ("tokens a second", "throughput/tokens_per_second", "{:,.0f}"),
        ("MFU", "throughput/mfu", "{:.1%}"),
        ("time waiting for data", "throughput/data_wait_fraction", "{:.1%}"),
    ):
        if metric in train:
            standing[name] = form.format(np.nansum(train[metric] * seconds) / np.nansum(seconds))
    restarts = "not recorded" if history.starts is None else f"{len(history.resumed_steps):,}"
    return {**standing, "restarts": restarts, "skipped steps": f"{len(history.skipped_steps):,}"}


def _validation_standing(history: RunHistory) -> dict[str, str]:
    scores = history.validation
    loss = column(scores, "validation/mlm_loss")
    best = _best(np.where(scores["step"] < history.comparable_since, np.nan, loss), np.nanargmin)
    standing = {
        "validation MLM loss": f"{loss[-1]:.4f}",
        "best validation MLM loss": f"{loss[best]:.4f} at step {scores['step'][best]:,.0f}",
        "validation MLM perplexity": f"{math.exp(loss[-1]):,.1f}",
        "validation MLM accuracy": f"{column(scores, 'validation/mlm_accuracy')[-1]:.2%}",
    }
    if "validation/nsp_accuracy" in scores:
        standing["validation NSP accuracy"] = f"{scores['validation/nsp_accuracy'][-1]:.2%}"
    return standing


def _answers(answers: Sequence[dict[str, Any]], expected: str) -> str:
    marked = []
    for answer in answers:
        text = f"{html.escape(bare_piece(answer['piece']))} {answer['probability']:.0%}"
        marked.append(f"<b>{text}</b>" if answer["piece"] == expected else text)
    return f"<td>{' · '.join(marked)}</td>"


def _flat(value: Any, name: str = "") -> dict[str, str]:
    """A nested configuration as `section.key` -> JSON."""
    if not isinstance(value, dict):
        return {name: _shown(value)}
    flat: dict[str, str] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{name}.{key}" if name else key)
    return flat


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _best(values: NDArray[np.float64], pick: Any) -> int:
    return -1 if np.isnan(values).all() else int(pick(values))


def _mean(values: NDArray[np.float64], form: str) -> str:
    return "all skipped" if np.isnan(values).all() else form.format(np.nanmean(values))


def _count(value: float) -> str:
    return "" if math.isnan(value) else f"{value:,.0f}"


def _steps(count: int) -> str:
    return "step" if count == 1 else f"{count:,} steps"

"""The report: parsed back, its figures are the metrics; nothing is loaded, nothing is markup."""

import json
import math
import os
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dist_bert.common.errors import UserError
from dist_bert.distributed.environment import nodes
from dist_bert.tools.report import tables as report_tables
from dist_bert.tools.report.curves import (
    MAX_MEANS,
    MAX_RAW_POINTS,
    means,
    num_means,
    raw_rows,
    spread,
    stretches,
)
from dist_bert.tools.report.page import page, write_report
from dist_bert.tools.report.run_history import read_histories, read_history
from tests.support.processes import run_script
from tests.unit.distributed.test_environment import ranks_of

ROOT = Path(__file__).parents[3]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
NASTY = "</script><script>alert(1)</script>"
START = {
    "time": "2026-11-24T09:00:00+00:00",
    "world_size": 3,
    "zero_stage": 2,
    "precision": "bf16",
    "micro_batch_size": 7,
    "accumulation_steps": 5,
    "commit": "0123456789abcdef",
    "versions": {"torch": "2.12", "numpy": "2.4"},
}


def train_row(step: int, has_pairs: bool = True, num_skipped: int = 0) -> dict[str, float]:
    row = {
        "step": step,
        "train/loss": 9.0 / step + 0.5,
        "train/mlm_loss": 9.0 / step,
        "train/mlm_accuracy": 1 - 1 / (step + 1),
        "train/lr": 1e-4 * step,
        "train/grad_norm": 1.0 + step,
        "train/skipped_steps": num_skipped,
        "progress/samples": 105 * step,
        "progress/tokens": 3_001 * step,
        "throughput/step_seconds": 36.0,
        "throughput/tokens_per_second": 3_001 / 36,
        "throughput/mfu": 0.25,
        "throughput/data_wait_fraction": 0.01,
        "memory/peak_gib": 3.5,
    }
    pairs = {"train/nsp_loss": 0.5, "train/nsp_accuracy": 0.75}
    return {**row, **pairs} if has_pairs else row


def validation_row(step: int, has_pairs: bool = True) -> dict[str, float]:
    row = {"step": step, "validation/loss": 8.0 / step + 0.5, "validation/mlm_loss": 8.0 / step}
    row["validation/mlm_accuracy"] = 1 - 1 / (step + 2)
    pairs = {"validation/nsp_loss": 0.5, "validation/nsp_accuracy": 0.625}
    return {**row, **pairs} if has_pairs else row


def write_run(
    folder: Path,
    rows: list[dict[str, float]],
    *,
    config: dict[str, Any] | None = None,
    starts: list[dict[str, Any]] | None = None,
    predictions: list[dict[str, Any]] | None = None,
    of_nodes: list[dict[str, Any]] | None = None,
) -> Path:
    folder.mkdir(parents=True)
    config = config or {"run": {"num_train_steps": 40, "output_dir": str(folder)}}
    (folder / "config.json").write_text(json.dumps(config))
    if of_nodes is not None:
        (folder / "environment.json").write_text(json.dumps({"nodes": of_nodes}))
    for name, objects in (
        ("metrics.jsonl", rows),
        ("starts.jsonl", starts),
        ("predictions.jsonl", predictions),
    ):
        if objects is not None:
            lines = "".join(json.dumps(value) + "\n" for value in objects)
            (folder / name).write_text(lines)
    return folder


class Page(HTMLParser):
    """Scripts by id, all tags with their attributes, and the cells of all tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts: dict[str, str] = {}
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        self._open = tag

    def handle_data(self, data: str) -> None:
        if self.get_starttag_text() and self._open == "script":
            name = self.tags[-1][1].get("id") or str(len(self.tags))
            self.scripts[name] = self.scripts.get(name, "") + data
            return
        self.text += data
        if self.rows and self.rows[-1] and self._open in ("td", "th", "b"):
            self.rows[-1][-1] += data

    def row(self, name: str) -> list[str]:
        return next(row[1:] for row in self.rows if row[:1] == [name])

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "td", "th"):
            self._open = ""


def traces_of(figures: list[dict[str, Any]], title: str) -> dict[tuple[int, str], dict[str, Any]]:
    figure = next(f for f in figures if f["layout"]["title"]["text"].startswith(title))
    return {(trace["meta"]["run"], trace["meta"]["kind"]): trace for trace in figure["data"]}


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A run that was resumed twice and skipped two steps, and one without pairs or validations."""
    folder = tmp_path_factory.mktemp("runs")
    rows: list[dict[str, float]] = []
    num_skipped = 0
    for step in range(1, 41):
        num_skipped += step in (12, 13)
        row = train_row(step, num_skipped=num_skipped)
        if step in (12, 13):  # as a step is written whose loss is not finite
            row = {n: v for n, v in row.items() if "loss" not in n and "acc" not in n}
        rows.append(row)
        if step % 10 == 0:
            rows.append(validation_row(step))
    predictions = [
        {
            "step": step,
            "text": f"a [MASK] & {NASTY}",
            "expected": ["▁cat"],
            "answers": [
                [
                    {"piece": "<unk>" if step < 30 else "▁cat", "probability": 0.5},
                    {"piece": NASTY, "probability": 0.25},
                    {"piece": "▁" if step < 20 else "cat", "probability": 0.125},
                ]
            ],
        }
        for step in (10, 20, 30, 40)
    ]
    later = {**START, "versions": {"torch": "2.13", "numpy": "2.4"}, "commit": None}
    base = write_run(
        folder / "base",
        rows,
        config={
            "run": {"num_train_steps": 40, "output_dir": "a", "seed": 42},
            "deepspeed": {"optimizer": {"params": {"lr": 0.5}}},
            "versions": {"torch": "2.13"},
        },
        starts=[{**START, "step": 0}, {**START, "step": 8}, {**later, "step": 25}],
        predictions=predictions,
        of_nodes=nodes(
            [
                *(facts for n in range(1, 19) for facts in ranks_of(f"node{n}", 2)),
                *ranks_of(NASTY, 3, torch="2.12.0", driver=None, gpus=[]),
            ]
        ),
    )
    other = write_run(
        folder / "<i>other</i>",
        [train_row(step, has_pairs=False) for step in range(1, 31)],
        config={
            "run": {"num_train_steps": 50, "output_dir": "b", "seed": 42},
            "deepspeed": {"optimizer": {"params": {"lr": 0.25}}, "zero": {"stage": 3}},
            "versions": {"torch": "2.12"},
        },
    )
    return [str(base), str(other)]


@pytest.fixture(scope="module")
def parsed(two_runs: list[str]) -> Page:
    return Page(page(read_histories(two_runs)))


@pytest.fixture(scope="module")
def figures(parsed: Page) -> list[dict[str, Any]]:
    value: list[dict[str, Any]] = json.loads(parsed.scripts["figures"])
    return value


def test_the_figures_hold_the_metrics(figures: list[dict[str, Any]]) -> None:
    traces = traces_of(figures, "MLM loss")
    steps = [step for step in range(1, 41) if step not in (12, 13)]
    raw = traces[0, "raw"]
    assert raw["y"] == [9.0 / step for step in steps]
    assert raw["x"] == raw["meta"]["step"] == steps
    assert raw["meta"]["tokens"] == [3_001 * step for step in steps]
    assert raw["meta"]["hours"] == pytest.approx([step / 100 for step in steps])
    smooth = traces[0, "mean"]
    assert len(smooth["y"]) == num_means(38) == 16
    assert smooth["y"][:2] == pytest.approx([(9 + 4.5) / 2, (3 + 2.25) / 2])
    assert smooth["meta"]["step"][:2] == [1.5, 3.5]
    assert smooth["meta"]["tokens"][0] == pytest.approx(4_501.5, abs=0.51)
    validation = traces[0, "validation"]
    assert validation["y"] == [0.8, 0.4, 8 / 30, 0.2]
    assert validation["meta"]["step"] == [10, 20, 30, 40]
    assert validation["meta"]["tokens"] == [30_010, 60_020, 90_030, 120_040]
    assert validation["meta"]["hours"] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert traces[1, "raw"]["y"] == [9.0 / step for step in range(1, 31)]
    assert traces_of(figures, "Learning rate")[0, "raw"]["y"] == [1e-4 * s for s in range(1, 41)]
    assert set(traces_of(figures, "MFU")[1, "mean"]["y"]) == {0.25}


def test_only_what_a_run_has_is_drawn(figures: list[dict[str, Any]]) -> None:
    assert (1, "validation") not in traces_of(figures, "MLM loss")
    assert {run for run, _ in traces_of(figures, "NSP loss")} == {0}
    assert {run for run, _ in traces_of(figures, "Skipped steps")} == {0}
    titles = [figure["layout"]["title"]["text"] for figure in figures]
    assert "Loss scale" not in titles and len(titles) == len(set(titles)) == 12


def test_restarts_and_skipped_steps_are_marked_on_the_curve(figures: list[dict[str, Any]]) -> None:
    traces = traces_of(figures, "MLM loss")
    restarts = traces[0, "restart"]
    assert restarts["meta"]["step"] == [8, 25]
    smooth = traces[0, "mean"]
    on_curve = np.interp([8, 25], smooth["meta"]["step"], smooth["y"])
    assert restarts["y"] == pytest.approx(on_curve, rel=1e-2)
    assert restarts["y"] == pytest.approx([9 / 8, 9 / 25], rel=0.05)
    assert restarts["meta"]["tokens"] == [8 * 3_001, 25 * 3_001]
    assert traces[0, "skipped"]["meta"]["step"] == [12, 13]
    assert 9 / 14 < traces[0, "skipped"]["y"][0] < 9 / 11
    assert not {(1, "restart"), (1, "skipped")} & traces.keys()


def test_the_figures_at_the_top(parsed: Page) -> None:
    assert parsed.row("state") == ["finished", "not finished"]
    assert parsed.row("steps") == ["40 of 40", "30 of 50"]
    assert parsed.row("tokens") == ["120,040", "90,030"]
    assert parsed.row("samples") == ["4,200", "3,150"]
    assert parsed.row("hours of training steps") == ["0.400", "0.300"]
    assert parsed.row("validation MLM loss") == ["0.2000", ""]
    assert parsed.row("best validation MLM loss") == ["0.2000 at step 40", ""]
    assert parsed.row("validation MLM perplexity") == [f"{math.exp(0.2):.1f}", ""]
    assert parsed.row("validation NSP accuracy") == ["62.50%", ""]
    assert parsed.row("tokens a second") == ["83", "83"]
    assert parsed.row("MFU") == ["25.0%", "25.0%"]
    assert parsed.row("restarts") == ["2", "not recorded"]
    assert parsed.row("skipped steps") == ["2", "0"]
    last = (9 / 38 + 9 / 39 + 9 / 40) / 3
    assert parsed.row("training MLM loss")[0] == f"{last:.4f} (last 3 steps)"


def test_the_tables_below(parsed: Page) -> None:
    assert parsed.row("deepspeed.optimizer.params.lr") == ["0.5", "0.25"]
    assert parsed.row("deepspeed.zero.stage") == ["not set", "3"]
    assert parsed.row("run.num_train_steps") == ["40", "50"]
    names = [row[0] for row in parsed.rows if row]
    assert "run.seed" not in names and "run.output_dir" not in names
    assert parsed.row("torch") == ["2.13", "2.12"]
    starts = [row for row in parsed.rows if row[:1] == [START["time"]]]
    assert [row[1:] for row in starts] == [
        ["0", "3", "2", "bf16", "7", "5", "0123456789", "torch 2.12 numpy 2.4"],
        ["8", "3", "2", "bf16", "7", "5", "0123456789", "as before"],
        ["25", "3", "2", "bf16", "7", "5", "", "torch 2.13"],
    ]
    assert parsed.row("20") == ["60,020", "0.4000", "1.5", "95.45%", "0.5000", "62.50%"]


def test_nodes_that_are_alike_are_one_column(parsed: Page) -> None:
    assert f"They differ: {NASTY}: torch 2.12.0, others 2.13.0; {NASTY}: driver" in parsed.text
    assert "19 nodes, 39 ranks" in parsed.text
    assert "no environment.json" in parsed.text, "of the other run"
    assert parsed.row("nodes") == ["18", "1"]
    ranks = [row[1:] for row in parsed.rows if row[:1] == ["ranks"]]
    assert ranks == [["36", "3"]]
    hosts = ", ".join(f"node{number}" for number in range(1, 9))
    assert parsed.row("hosts") == [f"{hosts} and 10 more", NASTY]
    assert parsed.row("gpus") == ["2 x NVIDIA H100 80GB HBM3", "none"]
    assert parsed.row("driver") == ["570.1", "none"]
    assert parsed.row("$OMP_NUM_THREADS") == ["7", "7"] and parsed.row("$HOST") == ["none", NASTY]


def test_answers_change_with_the_steps_and_are_no_markup(parsed: Page, two_runs: list[str]) -> None:
    answers = [row for row in parsed.rows if len(row) == 2 and "·" in row[1]]
    others = f"{NASTY} 25% · cat 12%"  # a piece inside a word: not the answer
    assert answers == [
        ["10", f"<unk> 50% · {NASTY} 25% · ▁ 12%"],
        ["20", f"<unk> 50% · {others}"],
        ["30", f"cat 50% · {others}"],
        ["40", f"cat 50% · {others}"],
    ]
    assert "[MASK] 1: cat" in parsed.text and f"a [MASK] & {NASTY}" in parsed.text
    made = report_tables.predictions(read_history(two_runs[0], "base"))
    assert made.count("<b>cat 50%</b>") == 2 == made.count("<b>")
    assert not [tag for tag, _ in parsed.tags if tag in ("i", "unk")]
    # Figures, borders, axes, plotly, our own: none of a run's making.
    assert sum(tag == "script" for tag, _ in parsed.tags) == 5


def test_nothing_is_loaded_from_anywhere(parsed: Page) -> None:
    for tag, attributes in parsed.tags:
        assert not {"src", "href", "data", "action", "background"} & attributes.keys(), tag
    assert not [tag for tag, _ in parsed.tags if tag in ("link", "iframe", "img", "object", "base")]
    (policy,) = [a["content"] for _, a in parsed.tags if "http-equiv" in a]
    assert policy is not None and policy.startswith("default-src 'none';")
    assert "http" not in policy and "url(" not in parsed.text  # the style is in it
    sources = [text for text in parsed.scripts.values() if "plotly.js v" in text]
    assert len(sources) == 1, "plotly's JavaScript, once"


def test_a_single_run_shows_its_whole_configuration(two_runs: list[str]) -> None:
    single = Page(page([read_history(two_runs[0], "base")]))
    assert single.row("run.seed") == ["42"] and "settings" in single.text
    assert ("details", {}) in single.tags


def test_a_run_that_is_still_training(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [train_row(step) for step in range(1, 6)])
    metrics = run / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + json.dumps(train_row(6))[:-7])
    history = read_history(run, "run")
    assert history.step == 5 and history.validation == {} and history.starts is None
    parsed = Page(page([history]))
    assert parsed.row("steps") == ["5 of 40"] and "No validation so far." in parsed.text
    (run / "interrupted").write_text("stopped at step 5 of 40: SIGTERM\n")
    assert Page(page([read_history(run, "run")])).row("state") == [
        "stopped at step 5 of 40: SIGTERM"
    ]


def test_a_run_whose_steps_were_all_skipped(tmp_path: Path) -> None:
    rows = [
        {n: v for n, v in train_row(s, num_skipped=s).items() if "loss" not in n and "acc" not in n}
        for s in (1, 2, 3)
    ]
    run = write_run(tmp_path / "run", [*rows, {"step": 3, "validation/nsp_loss": 0.5}])
    parsed = Page(page([read_history(run, "run")]))
    assert parsed.row("training MLM loss") == ["all skipped (last step)"]
    assert parsed.row("skipped steps") == ["3"]


def phase_settings(shards: dict[str, float], steps: int) -> dict[str, Any]:
    return {"shards": shards, "weights_by": "samples", "steps": steps, "train_batch_size": 24}


@pytest.fixture
def recipe_run(tmp_path: Path) -> Path:
    """Steps 1 to 4 of one phase, 5 to 9 of a mixture, and one that has not begun."""
    rows: list[dict[str, float]] = []
    for step in range(1, 10):
        is_first = step < 5
        row = {**train_row(step), "progress/phase": 1 if is_first else 2}
        row["progress/batch_size"] = 12 if step < 3 else 24
        row["progress/epochs/<b>books</b>"] = 0.25 * step
        if is_first:
            row["progress/masked_lm_prob"] = 0.35 - 0.05 * step
        else:
            row["progress/epochs/wiki"] = 0.5 * (step - 4)
        rows.append(row)
        if step in (2, 6, 8):
            rows.append(validation_row(step) | ({} if is_first else {
                "validation/mlm_loss/<b>books</b>": 10.0 / step,
                "validation/mlm_loss/wiki": 20.0 / step,
            }))  # fmt: skip
    rows[2]["validation/mlm_loss"] = 0.001  # of other data: no later one has to beat it
    settings = {
        "first": phase_settings({"data/books": 2.0}, 4),
        "<i>mixed</i>": phase_settings({"data/books": 3.0, "data/wiki": 1.0}, 5_000),
        "last": phase_settings({"data/wiki": 1.0}, 1_003),
    }
    config = {"run": {"num_train_steps": 12, "output_dir": "a"}, "phases": settings}
    return write_run(tmp_path / "recipe", rows, config=config)


def test_the_phases_of_a_recipe_have_a_table(recipe_run: Path) -> None:
    parsed = Page(page([read_history(recipe_run, "recipe")]))
    header = next(row for row in parsed.rows if row[:1] == ["phase"])
    first, mixed, last = (
        dict(zip(header[1:], parsed.row(name), strict=True))
        for name in ("first", "<i>mixed</i>", "last")
    )
    assert first == {
        "steps": "1 to 4", "samples": "420", "tokens": "12,004", "samples of a step": "12 to 24",
        "masked": "30.0% to 15.0%", "lr": "1.00e-04 to 4.00e-04", "data sets": "data/books",
        "epochs at its end": "<b>books</b> 1.00", "validation MLM loss": "0.0010",
    }  # fmt: skip
    assert mixed == {
        "steps": "5 to 9", "samples": "525", "tokens": "15,005", "samples of a step": "24",
        "masked": "as stored", "lr": "5.00e-04 to 9.00e-04",
        "data sets": "75.0% data/books, 25.0% data/wiki (by samples)",
        "epochs at its end": "<b>books</b> 2.25, wiki 2.50", "validation MLM loss": "1.0000",
    }  # fmt: skip
    assert {name: text for name, text in last.items() if text} == {
        "steps": "not begun: 1,003 steps", "samples of a step": "24", "data sets": "data/wiki",
    }  # fmt: skip
    assert not [tag for tag, _ in parsed.tags if tag == "i"]


def test_the_best_validation_is_one_of_the_last_phase(recipe_run: Path) -> None:
    history = read_history(recipe_run, "recipe")
    parsed = Page(page([history]))
    assert parsed.row("best validation MLM loss") == ["1.0000 at step 8"]
    assert report_tables.validations(history).count('<td class="best">1.0000</td>') == 1
    assert "the best ones are of the last phase" in parsed.text


def test_curves_show_phases_and_data_sets(recipe_run: Path, two_runs: list[str]) -> None:
    parsed = Page(page(read_histories([two_runs[0], str(recipe_run)])))
    assert [(b["run"], b["name"], b["step"], b["tokens"]) for b in json.loads(
        parsed.scripts["borders"]
    )] == [(1, "first", 1, 3_001), (1, "&lt;i&gt;mixed&lt;/i&gt;", 5, 15_005)]  # fmt: skip
    kinds = [a["value"] for _, a in parsed.tags if a.get("name") == "kind"]
    assert kinds == ["mean", "raw", "validation", "restart", "skipped", "phase"]
    drawn = json.loads(parsed.scripts["figures"])
    assert {run for run, _ in traces_of(drawn, "Samples of a step")} == {1}
    masked = traces_of(drawn, "Share of tokens masked")[1, "raw"]
    assert masked["x"] == [1, 2, 3, 4] and masked["y"] == pytest.approx([0.3, 0.25, 0.2, 0.15])
    for title, kind, ys in (
        ("Epochs of each", "mean", [[0.25 * s for s in range(1, 10)], [0.5, 1.0, 1.5, 2.0, 2.5]]),
        ("Validation MLM loss of each", "validation", [[10 / 6, 10 / 8], [20 / 6, 20 / 8]]),
    ):
        figure = next(f for f in drawn if f["layout"]["title"]["text"].startswith(title))
        assert [trace["y"] for trace in figure["data"]] == [pytest.approx(y) for y in ys]
        assert [t["text"][-1] for t in figure["data"]] == ["&lt;b&gt;books&lt;/b&gt;", "wiki"]
        assert {trace["meta"]["kind"] for trace in figure["data"]} == {kind}
    assert figure["data"][1]["meta"]["step"] == [6, 8]


def test_a_run_without_a_recipe_has_nothing_of_phases(parsed: Page) -> None:
    assert json.loads(parsed.scripts["borders"]) == []
    assert "phase" not in [a["value"] for _, a in parsed.tags if a.get("name") == "kind"]
    assert "Phases" not in parsed.text and "last phase" not in parsed.text


def test_folders_that_are_no_run(tmp_path: Path) -> None:
    empty = write_run(tmp_path / "empty", [])
    (tmp_path / "folder").mkdir()
    for run, problem in (
        (tmp_path / "folder", "is not a run (has no config.json)"),
        (tmp_path / "nowhere", "is not a run (has no config.json)"),
        (empty, "no step is written down yet"),
    ):
        with pytest.raises(UserError, match=re.escape(problem)):
            read_histories([str(run)])
    with pytest.raises(UserError, match="is given twice"):
        read_histories([str(empty), f"{empty}/"])


def test_damaged_lines_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = write_run(tmp_path / "run", [train_row(step) for step in (1, 2, 3, 4)])
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines()
    lines[1:3] = ["no json", '{"step": 3, "train/loss": Infinity, "train/lr": "low"}']
    path.write_text("\n".join(lines) + "\n")
    (run / "predictions.jsonl").write_bytes(b'{"step": 4}\n\x00\n')
    history = read_history(run, "run")
    assert history.train["step"].tolist() == [1, 4] and history.predictions == []
    assert "metrics.jsonl: 2 damaged lines are skipped, the first is line 2" in caplog.text
    assert "predictions.jsonl: 2 damaged lines are skipped, the first is line 1" in caplog.text
    assert "Infinity" not in page([history])


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = [str(write_run(tmp_path / part / "run", [train_row(1)])) for part in "ab"]
    runs.append(str(write_run(tmp_path / "third", [train_row(1)])))
    assert [history.name for history in read_histories(runs)] == [*runs[:2], "third"]


def test_long_runs_lose_no_extreme_and_no_mean() -> None:
    num_rows = 7 * MAX_RAW_POINTS + 13
    values = np.random.default_rng(5).normal(size=num_rows)
    values[[77, 9_991]] = 50.0, -50.0
    values[1_000:1_003] = np.nan
    shown = raw_rows(values)
    assert MAX_RAW_POINTS / 2 < len(shown) <= MAX_RAW_POINTS and {77, 9_991} <= set(shown.tolist())
    assert (np.diff(shown) > 0).all() and not np.isnan(values[shown]).any()
    good = np.flatnonzero(~np.isnan(values))
    edges = stretches(len(good), MAX_RAW_POINTS // 2)
    for start, stop in ((edges[3], edges[4]), (edges[-2], edges[-1])):
        inside = good[start:stop]
        mine = shown[(shown >= inside[0]) & (shown <= inside[-1])]
        assert values[mine].min() == values[inside].min()
        assert values[mine].max() == values[inside].max()
    places = np.arange(num_rows, dtype=float)
    smooth, at = means(values, places)
    assert len(smooth) == len(at) == MAX_MEANS
    edges = stretches(len(good), MAX_MEANS)
    assert smooth[17] == pytest.approx(values[good[edges[17] : edges[18]]].mean())
    assert at[17] == pytest.approx(good[edges[17] : edges[18]].mean())
    assert np.average(smooth, weights=np.diff(edges)) == pytest.approx(values[good].mean())


def test_few_rows_are_shown_as_they_are() -> None:
    values = np.array([3.0, np.nan, 1.0])
    assert raw_rows(values).tolist() == [0, 2]
    assert [part.tolist() for part in means(values, np.array([5.0, 6.0, 7.0]))] == [[3, 1], [5, 7]]
    assert [part.tolist() for part in means(np.full(2, np.nan), np.zeros(2))] == [[], []]
    assert spread(3, 8) == [0, 1, 2] and spread(1, 8) == [0] and spread(100, 3) == [0, 50, 99]


def test_many_validations_and_predictions_are_thinned_out_and_said(tmp_path: Path) -> None:
    rows = [row for step in range(1, 101) for row in (train_row(step), validation_row(step))]
    rows[79]["validation/mlm_loss"] = 0.001  # the best one is shown in any case
    run = write_run(tmp_path / "run", rows)
    made = report_tables.validations(read_history(run, "run"))
    shown = Page(made)
    assert shown.row("1") and shown.row("100") and shown.row("40")[1] == "0.0010"
    assert '<td class="best">0.0010</td>' in made
    assert f"{100 - (len(shown.rows) - 1)} more validations are not shown" in made
    assert len(shown.rows) - 1 <= report_tables.MAX_VALIDATION_ROWS + 2


def test_without_plotly_one_line_says_how_to_get_it(two_runs: list[str], tmp_path: Path) -> None:
    (tmp_path / "plotly").mkdir()
    (tmp_path / "plotly/__init__.py").write_text("raise ModuleNotFoundError('plotly')")
    made = run_script(
        sys.executable, "launch/report.py", *two_runs, "--output", tmp_path / "report.html",
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
    )  # fmt: skip
    assert made.returncode == 2 and made.stderr == (
        "error: report: needs the package plotly, which draws it; install it: pip install plotly\n"
    )
    assert not (tmp_path / "report.html").exists()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_a_browser_draws_it_without_complaint(two_runs: list[str], tmp_path: Path) -> None:
    output = tmp_path / "report.html"
    write_report(two_runs, output)
    shown = run_script(
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
        "--disable-background-networking", "--disable-component-update",
        f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr",
        "--virtual-time-budget=5000", "--dump-dom", output.as_uri(),
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    console = [line for line in shown.stderr.splitlines() if "CONSOLE" in line]
    assert console == [], "neither an error nor something that the page's policy refused"
    dom = shown.stdout[shown.stdout.index("<body>") :]
    drawn = re.findall(r'<div class="plot js-plotly-plot" id="plot-(\d+)"', dom)
    assert drawn == [str(i) for i in range(12)]
    assert dom.count('class="scatterlayer mlayer"') == 12
    # Lines of both runs in the first figure: raw, means, and the validations of one.
    first = dom[dom.index('id="plot-0"') : dom.index('id="plot-1"')]
    assert first.count('class="js-line"') == 5

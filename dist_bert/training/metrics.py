"""Where a run's numbers go: TensorBoard and `metrics.jsonl`, by rank 0 alone, x = optimizer step.

Answers to fixed sentences go to TensorBoard and `predictions.jsonl`. After a resume nothing doubles
back: rows after the checkpoint are dropped from the files, and TensorBoard purges them. A
disk that is full between two checkpoints does not end a run: what is missing is written when there
is room again. Names: docs/architecture.md.
"""

import html
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dist_bert.checkpoint.run_dir import METRICS_NAME, PREDICTIONS_NAME, TENSORBOARD_NAME
from dist_bert.common.files import Appender, json_line
from dist_bert.common.json_lines import drop_rows_after, read_rows

Prediction = dict[str, Any]  # text, expected, answers: a row of predictions.jsonl

_LOG = logging.getLogger("dist_bert")
PREDICTION_KEYS = ("text", "expected", "answers")  # of a row, besides its step


class MetricsWriter:
    """Writes scalars and texts of one run."""

    def __init__(self, run_dir: str | Path, resumed_step: int) -> None:
        """Opens all files.

        Args:
            run_dir: the run's folder.
            resumed_step: last optimizer step that stays; 0 for a fresh run.
        """
        from dist_bert.training.board import Board  # 2 s: not for ranks that write nothing

        metrics, predictions = Path(run_dir) / METRICS_NAME, Path(run_dir) / PREDICTIONS_NAME
        drop_rows_after(metrics, resumed_step, only_numbers=True)
        drop_rows_after(predictions, resumed_step, needed=PREDICTION_KEYS)
        self._rows, self._predictions = Appender(metrics), Appender(predictions)
        self._board = Board(Path(run_dir) / TENSORBOARD_NAME, resumed_step + 1)
        self._is_late = False  # something waits for room on the disk

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """One row of the file and one point on each curve."""
        self._rows.write(f"{json.dumps({'step': step, **values})}\n".encode())
        for name, value in values.items():
            self._board.scalar(step, name, value)

    def mark(self, step: int, name: str, value: float) -> None:
        """A point on a curve of TensorBoard alone: what is no metric of a step."""
        self._board.scalar(step, name, value)

    def predictions(self, step: int, rows: Sequence[dict[str, Any]], markdown: str) -> None:
        """Answers to the fixed sentences: rows of their file, and a table for TensorBoard."""
        for row in rows:
            self._predictions.write(json_line({"step": step, **row}).encode())
        self.text(step, "predictions", markdown)

    def text(self, step: int, name: str, markdown: str) -> None:
        """A text for TensorBoard's text page."""
        self._board.text(step, name, markdown)

    def flush(self) -> None:
        """Makes everything written so far visible to readers, or warns that it has to wait."""
        self._tell([file.flush() for file in self._files])

    def close(self) -> None:
        """Ends all files."""
        self._tell([file.close() for file in self._files])

    @property
    def _files(self) -> tuple[Appender, ...]:
        return self._rows, self._predictions, self._board.file

    def _tell(self, problems: Sequence[str]) -> None:
        """Says once that the disk is full, and once that it is no longer."""
        problem = next(filter(None, problems), "")
        if problem and not self._is_late:
            _LOG.warning(
                "%s: training continues; the missing rows are written as soon as possible", problem
            )
        elif self._is_late and not problem:
            dropped = sum(file.num_dropped for file in self._files)
            lost = f"all but {dropped:,} records" if dropped else "nothing is missing"
            _LOG.warning("metrics are written again: %s", lost)
        self._is_late = bool(problem)


def scores_of(metrics: dict[str, float], has_pairs: bool) -> dict[str, float]:
    """The metrics that mean something: samples of a single segment have no next-sentence scores."""
    return {n: value for n, value in metrics.items() if has_pairs or not n.startswith("nsp_")}


def read_metrics(run_dir: str | Path) -> list[dict[str, float]]:
    """The rows of a run's `metrics.jsonl`, oldest first."""
    return read_rows(Path(run_dir) / METRICS_NAME, only_numbers=True)


def as_table(predictions: Sequence[Prediction]) -> str:
    """Predictions as a table of Markdown: a row a mask, bold where the first answer is right."""
    lines = ["| input | answer | model |", "|---|---|---|"]
    for prediction in predictions:
        text = prediction["text"]
        for expected, answers in zip(prediction["expected"], prediction["answers"], strict=True):
            told = [f"{_plain(answer['piece'])} {answer['probability']:.1%}" for answer in answers]
            asked = _plain(expected)
            if answers[0]["piece"] == expected:
                asked = f"**{asked}**"
            lines.append(f"| {_plain(text)} | {asked} | {' · '.join(told)} |")
            text = ""  # once is enough
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Text in which nothing means anything to Markdown or HTML."""
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", html.escape(text, quote=False))

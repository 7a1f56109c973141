"""Where a run's numbers go: TensorBoard and `metrics.jsonl`, by rank 0 alone, x = optimizer step.

Answers to fixed sentences go to TensorBoard and `predictions.jsonl`. After a resume nothing doubles
back: rows after the checkpoint are dropped from the files, and TensorBoard is told to purge them.
Names: docs/architecture.md.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from dist_bert import files
from dist_bert.run_dir import METRICS_NAME, PREDICTIONS_NAME, TENSORBOARD_NAME


class MetricsWriter:
    """Writes scalars and texts of one run."""

    def __init__(self, run_dir: str | Path, resumed_step: int) -> None:
        """Opens all files.

        Args:
            run_dir: the run's folder.
            resumed_step: last optimizer step that stays; 0 for a fresh run.
        """
        from torch.utils.tensorboard import SummaryWriter  # 2 s: not for ranks that write nothing

        self._rows = _open_rows(Path(run_dir) / METRICS_NAME, resumed_step)
        self._predictions = _open_rows(Path(run_dir) / PREDICTIONS_NAME, resumed_step)
        self._board = SummaryWriter(
            str(Path(run_dir) / TENSORBOARD_NAME), purge_step=resumed_step + 1, flush_secs=30
        )

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """One row of the file and one point on each curve."""
        self._rows.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def mark(self, step: int, name: str, value: float) -> None:
        """A point on a curve of TensorBoard alone: what is no metric of a step."""
        self._board.add_scalar(name, value, step)

    def predictions(self, step: int, rows: Sequence[dict[str, Any]], markdown: str) -> None:
        """Answers to the fixed sentences: rows of their file, and a table for TensorBoard."""
        for row in rows:
            self._predictions.write(json.dumps({"step": step, **row}, ensure_ascii=False) + "\n")
        self.text(step, "predictions", markdown)

    def text(self, step: int, name: str, markdown: str) -> None:
        """A text for TensorBoard's text page."""
        self._board.add_text(name, markdown, step)

    def flush(self) -> None:
        """Makes everything written so far visible to readers."""
        self._rows.flush()
        self._predictions.flush()
        self._board.flush()

    def close(self) -> None:
        """Ends all files."""
        self._rows.close()
        self._predictions.close()
        self._board.close()


def scores_of(metrics: dict[str, float], has_pairs: bool) -> dict[str, float]:
    """The metrics that mean something: samples of a single segment have no next-sentence scores."""
    return {n: value for n, value in metrics.items() if has_pairs or not n.startswith("nsp_")}


def read_metrics(run_dir: str | Path) -> list[dict[str, float]]:
    """The rows of a run's `metrics.jsonl`, oldest first."""
    return read_rows(Path(run_dir) / METRICS_NAME)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of lines, without a last one cut off by a kill; none without a file."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes a whole file of lines."""
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    files.write_bytes(path, "".join(lines).encode())


def _open_rows(path: Path, resumed_step: int) -> IO[str]:
    """Opens a file for more rows, without those that come after a step."""
    write_rows(path, [row for row in read_rows(path) if row["step"] <= resumed_step])
    return open(path, "a", encoding="utf-8")

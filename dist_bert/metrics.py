"""Where a run's numbers go: TensorBoard and `metrics.jsonl`, by rank 0 alone, x = optimizer step.

After a resume nothing doubles back: rows after the checkpoint are dropped from the file, and
TensorBoard is told to purge them. Names: docs/architecture.md.
"""

import json
from pathlib import Path

from dist_bert import files
from dist_bert.run_dir import METRICS_NAME, TENSORBOARD_NAME


class MetricsWriter:
    """Writes scalars and texts of one run."""

    def __init__(self, run_dir: str | Path, resumed_step: int) -> None:
        """Opens both files.

        Args:
            run_dir: the run's folder.
            resumed_step: last optimizer step that stays; 0 for a fresh run.
        """
        from torch.utils.tensorboard import SummaryWriter  # 2 s: not for ranks that write nothing

        path = Path(run_dir) / METRICS_NAME
        kept = [json.dumps(row) for row in read_metrics(run_dir) if row["step"] <= resumed_step]
        files.write_bytes(path, "".join(row + "\n" for row in kept).encode())
        self._rows = open(path, "a", encoding="utf-8")  # noqa: SIM115
        self._board = SummaryWriter(
            str(Path(run_dir) / TENSORBOARD_NAME), purge_step=resumed_step + 1, flush_secs=30
        )

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """One row of the file and one point on each curve."""
        self._rows.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def text(self, step: int, name: str, markdown: str) -> None:
        """A text for TensorBoard's text page."""
        self._board.add_text(name, markdown, step)

    def flush(self) -> None:
        """Makes everything written so far visible to readers."""
        self._rows.flush()
        self._board.flush()

    def close(self) -> None:
        """Ends both files."""
        self._rows.close()
        self._board.close()


def scores_of(metrics: dict[str, float], has_pairs: bool) -> dict[str, float]:
    """The metrics that mean something: samples of a single segment have no next-sentence scores."""
    return {n: value for n, value in metrics.items() if has_pairs or not n.startswith("nsp_")}


def read_metrics(run_dir: str | Path) -> list[dict[str, float]]:
    """The rows of a run's `metrics.jsonl`, oldest first, without a last line cut off by a kill."""
    path = Path(run_dir) / METRICS_NAME
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]

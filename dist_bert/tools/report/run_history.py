"""What a run has written down so far, read back for the report; also while it is training.

Rows are read one at a time into columns, so a run of a million steps takes 150 MB, not gigabytes.
No torch. Not for: writing them (`dist_bert.training.metrics`).
"""

import dataclasses
import os
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_bert.checkpoint.run_dir import (
    CONFIG_NAME,
    ENVIRONMENT_NAME,
    INTERRUPTED_NAME,
    METRICS_NAME,
    PREDICTIONS_NAME,
    STARTS_NAME,
)
from dist_bert.common.errors import UserError
from dist_bert.common.json_lines import read_rows, rows_of
from dist_bert.common.redaction import redacted_values
from dist_bert.common.settings import read_json
from dist_bert.training.metrics import PREDICTION_KEYS

Columns = dict[str, NDArray[np.float64]]  # metric -> a value a row, NaN where a row has none
_NAN = float("nan")


@dataclasses.dataclass(frozen=True)
class PhaseRecord:
    """A phase of a run that has a recipe."""

    name: str
    settings: dict[str, Any]
    rows: NDArray[np.int64]  # of the steps that it has made; empty where it has not begun


@dataclasses.dataclass(frozen=True)
class RunHistory:
    """One run's records, oldest first.

    Attributes:
        name: the folder as given, or its last part where that names one run alone.
        config: the resolved configuration.
        train: columns of the rows that steps wrote, with `step`, `tokens` and `hours`.
        validation: the same of the rows that validations wrote.
        starts: objects of starts.jsonl; None where the file is absent (an older run).
        predictions: objects of predictions.jsonl; empty where the file is absent.
        nodes: on which the latest start ran, of environment.json; empty where it is absent.
        interruption: why the last start ended early; empty if it did not, or goes on.
        written: when the metrics were last written, in seconds since 1970.
    """

    name: str
    config: dict[str, Any]
    train: Columns
    validation: Columns
    starts: list[dict[str, Any]] | None
    predictions: list[dict[str, Any]]
    nodes: list[dict[str, Any]]
    interruption: str
    written: float

    @property
    def step(self) -> int:
        """The last optimizer step that is written down."""
        return int(self.train["step"][-1])

    @property
    def num_train_steps(self) -> int:
        """Steps of the whole run."""
        return int(self.config["run"]["num_train_steps"])

    @property
    def resumed_steps(self) -> list[int]:
        """The step that each restart went on from; a start at 0 is the fresh one, or anew."""
        return [int(start["step"]) for start in (self.starts or [])[1:]]

    @property
    def skipped_steps(self) -> NDArray[np.float64]:
        """The steps whose loss or gradient was not finite: their number grew there."""
        counts = np.nan_to_num(column(self.train, "train/skipped_steps"))
        return self.train["step"][np.diff(counts, prepend=0.0) > 0]

    @property
    def phases(self) -> list[PhaseRecord]:
        """The phases of its recipe, in their order; none of a run without one."""
        numbers = column(self.train, "progress/phase")
        return [
            PhaseRecord(name, settings, np.flatnonzero(numbers == number))
            for number, (name, settings) in enumerate(
                self.config.get("phases", {}).items(), start=1
            )
        ]

    @property
    def comparable_since(self) -> int:
        """The first step whose validations are of the same data as the last validation."""
        if not self.validation:
            return 0
        last = self.validation["step"][-1]
        firsts = [int(self.train["step"][p.rows[0]]) for p in self.phases if len(p.rows)]
        return max((first for first in firsts if first <= last), default=0)


def column(columns: Columns, name: str) -> NDArray[np.float64]:
    """A metric's column; NaN where no row has it, as where every step was skipped."""
    return columns[name] if name in columns else np.full(len(columns.get("step", ())), _NAN)


def read_histories(run_dirs: Sequence[str]) -> list[RunHistory]:
    """The histories of several runs, in the order given.

    Raises:
        UserError: a folder is no run, or is given twice.
    """
    paths = [os.path.realpath(run_dir) for run_dir in run_dirs]
    twice = [run_dir for i, run_dir in enumerate(run_dirs) if paths[i] in paths[:i]]
    if twice:
        raise UserError(f"{twice[0]}: is given twice; name each run once")
    last_parts = [os.path.basename(path) for path in paths]
    return [
        read_history(run_dir, last if last_parts.count(last) == 1 else run_dir)
        for run_dir, last in zip(run_dirs, last_parts, strict=True)
    ]


def read_history(run_dir: str | Path, name: str) -> RunHistory:
    """Reads one run.

    Raises:
        UserError: the folder is no run, or the run has no step yet.
    """
    folder = Path(run_dir)
    for needed in (CONFIG_NAME, METRICS_NAME):
        if not (folder / needed).exists():
            raise UserError(
                f"{run_dir}: is not a run (has no {needed}); give the --output_dir of a run of"
                " launch/pretrain.py"
            )
    train, validation = _columns(folder / METRICS_NAME)
    if not train.get("step", np.zeros(0)).size:
        raise UserError(
            f"{run_dir}: no step is written down yet; wait until the run has printed its first"
        )
    _place(train, validation)
    starts, interruption = folder / STARTS_NAME, folder / INTERRUPTED_NAME
    environment = folder / ENVIRONMENT_NAME
    return RunHistory(
        name=name,
        config=redacted_values(read_json(folder / CONFIG_NAME)),
        train=train,
        validation=validation,
        starts=read_rows(starts, ("time",)) if starts.exists() else None,
        predictions=read_rows(folder / PREDICTIONS_NAME, PREDICTION_KEYS),
        nodes=read_json(environment)["nodes"] if environment.exists() else [],
        interruption=interruption.read_text("utf-8").strip() if interruption.exists() else "",
        written=os.path.getmtime(folder / METRICS_NAME),
    )


def _columns(path: Path) -> tuple[Columns, Columns]:
    """The rows of the steps and those of the validations, as columns."""
    train: dict[str, array[float]] = {}
    validation: dict[str, array[float]] = {}
    num_train = num_validation = 0
    for row in rows_of(path, only_numbers=True):
        if any(name.startswith("validation/") for name in row):
            _append(validation, row, num_validation)
            num_validation += 1
        else:
            _append(train, row, num_train)
            num_train += 1
    return (
        {name: np.array(column) for name, column in train.items()},
        {name: np.array(column) for name, column in validation.items()},
    )


def _append(columns: dict[str, "array[float]"], row: Mapping[str, float], num_rows: int) -> None:
    for name in [name for name in row if name not in columns]:  # in their order
        columns[name] = array("d", [_NAN]) * num_rows
    for name, column in columns.items():
        column.append(row.get(name, _NAN))


def _place(train: Columns, validation: Columns) -> None:
    """Adds tokens and hours of both; a validation stands where its step does.

    Hours are the sum of the step times: what validations, saving and starts took is not in them,
    nor what was lost by a kill.
    """
    train["tokens"] = column(train, "progress/tokens")
    train["hours"] = np.cumsum(np.nan_to_num(column(train, "throughput/step_seconds"))) / 3_600
    if validation:
        rows = np.searchsorted(train["step"], validation["step"], side="right") - 1
        for unit in ("tokens", "hours"):
            validation[unit] = np.where(rows < 0, 0.0, train[unit][rows])

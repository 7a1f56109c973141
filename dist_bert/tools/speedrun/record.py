"""What a speed run has shown, as JSON and as a table. No torch."""

import dataclasses
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dist_bert.common.errors import UserError
from dist_bert.common.settings import from_dict, read_json
from dist_bert.common.text_tables import aligned
from dist_bert.inference.confidence import student_t


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One training of the entry.

    Attributes:
        seed: of weights, order of samples and masks.
        seconds: from the start of the training's command to its end.
        mlm_loss: nats a masked token of the held-out samples.
        mlm_accuracy: on the same tokens.
        nsp_accuracy: on the same samples; None for a model without that head.
        tokens: that the training has seen.
    """

    seed: int
    seconds: float
    mlm_loss: float
    mlm_accuracy: float
    nsp_accuracy: float | None
    tokens: int


@dataclasses.dataclass(frozen=True)
class Record:
    """All trainings of an entry, and all that they depend on.

    Attributes:
        date: on which it was measured.
        track: its name.
        machine_class: one of `track.CLASSES`.
        change: what is new in it, in a line.
        target_mlm_loss: of the track.
        validation_sha256: of the held-out samples: times compare only where it is equal.
        attempts: one for each seed.
        recipe: contents of the file, as `model` and `deepspeed_config`.
        model: likewise.
        deepspeed_config: likewise.
        machine: processor and versions.
        commit: of the code; None where there is no checkout.
        has_changes: whether the checkout had changes that no commit has.
    """

    date: str
    track: str
    machine_class: str
    change: str
    target_mlm_loss: float
    validation_sha256: str
    attempts: list[Attempt]
    recipe: dict[str, Any]
    model: dict[str, Any]
    deepspeed_config: dict[str, Any]
    machine: dict[str, Any]
    commit: str | None
    has_changes: bool

    @classmethod
    def read(cls, path: Path) -> "Record":
        """Reads a record's JSON.

        Raises:
            UserError: it is none.
        """
        values = read_json(path)
        given = values.get("attempts")
        if not isinstance(given, list) or not given:
            raise UserError(f"{path}: attempts: must be a list of at least one training")
        attempts = [from_dict(Attempt, each, str(path)) for each in given]
        return from_dict(cls, {**values, "attempts": attempts}, str(path))

    @classmethod
    def read_all(cls, folder: Path) -> "list[Record]":
        """Reads all records of a folder and those in it, at least one.

        Raises:
            UserError: there is none, or a JSON file is none.
        """
        paths = sorted(folder.rglob("*.json"))
        if not paths:
            raise UserError(f"{folder}: has no records; run this in a checkout of dist-bert")
        return [cls.read(path) for path in paths]

    @property
    def mlm_loss(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(attempt.mlm_loss for attempt in self.attempts)

    @property
    def seconds(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(attempt.seconds for attempt in self.attempts)

    @property
    def has_reached(self) -> bool:
        """Whether the mean loss is at most the target."""
        return self.mlm_loss <= self.target_mlm_loss

    def figures(self) -> dict[str, Any]:
        """All of it for a JSON file."""
        return dataclasses.asdict(self)


def table(records: Sequence[Record]) -> str:
    """The records as a Markdown table, those of a track and class together, the latest last."""
    rows = [("track", "class", "date", "change", "seeds", "minutes", "MLM loss", "target", "")]
    rows += [
        (
            record.track,
            record.machine_class.replace("_", " "),
            record.date,
            record.change,
            str(len(record.attempts)),
            f"{record.seconds / 60:.1f}",
            f"{record.mlm_loss:.3f} ± {_half_width([a.mlm_loss for a in record.attempts]):.3f}",
            f"{record.target_mlm_loss:.2f}",
            "reached" if record.has_reached else "missed",
        )
        for record in sorted(records, key=lambda r: (r.track, r.machine_class, r.date))
    ]
    rule = "|".join(["---"] * len(rows[0]))
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], f"|{rule}|", *lines[1:]])


def told(record: Record) -> str:
    """The trainings of a record as lines for the console."""
    rows = [("seed", "seconds", "MLM loss", "accuracy", "NSP", "million tokens")]
    for attempt in record.attempts:
        nsp = "-" if attempt.nsp_accuracy is None else f"{attempt.nsp_accuracy:.1%}"
        rows.append(
            (
                str(attempt.seed),
                f"{attempt.seconds:.0f}",
                f"{attempt.mlm_loss:.3f}",
                f"{attempt.mlm_accuracy:.1%}",
                nsp,
                f"{attempt.tokens / 1e6:.2f}",
            )
        )
    verdict = "reached" if record.has_reached else "missed"
    mean = f"mean {record.mlm_loss:.3f} nats in {record.seconds / 60:.1f} minutes"
    return f"{aligned(rows)}\n{mean}: target {record.target_mlm_loss:.2f} {verdict}"


def _half_width(values: Sequence[float]) -> float:
    """Half of the 95 % interval of a mean, by Student's t; not a number for a single value."""
    count = len(values)
    if count < 2:
        return math.nan
    return student_t(count - 1) * statistics.stdev(values) / math.sqrt(count)

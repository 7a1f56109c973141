"""What scoring a set gives, whatever the task."""

import dataclasses
from typing import Any

from numpy.typing import NDArray


@dataclasses.dataclass(frozen=True)
class ClassScores:
    """How well one class, or one type of entity, is told from all others."""

    name: str
    precision: float  # 0 where nothing was predicted to be of the class
    recall: float  # 0 where nothing is of it
    f1: float
    support: int  # examples, or entities, that are of the class


@dataclasses.dataclass(frozen=True)
class Scores:
    """The scores of a set.

    Attributes:
        values: by name, the most telling one first.
        per_class: one for each class; none for questions.
        confusion: (C, C) counts, row = what is true, column = what was predicted; None where an
            example is not of exactly one class.
        main: names the value by which the best model is chosen.
    """

    values: dict[str, float]
    per_class: list[ClassScores]
    confusion: NDArray[Any] | None
    main: str

    def figures(self) -> dict[str, Any]:
        """All of it as a JSON object."""
        return {
            "main": self.main,
            "values": self.values,
            "per_class": [dataclasses.asdict(scores) for scores in self.per_class],
            "confusion": None if self.confusion is None else self.confusion.tolist(),
        }

"""The result of scoring a set, for all tasks."""

import dataclasses
from typing import Any

from numpy.typing import NDArray


@dataclasses.dataclass(frozen=True)
class ClassScores:
    """Scores of one class, or one type of entity, against all others."""

    name: str
    precision: float  # 0 if the class was never predicted
    recall: float  # 0 if the class does not occur
    f1: float
    support: int  # number of examples, or entities, of the class


@dataclasses.dataclass(frozen=True)
class Scores:
    """The scores of a set.

    Attributes:
        values: by name, the most informative one first.
        per_class: one for each class; none for questions.
        confusion: (C, C) counts, row = true class, column = predicted class; None if examples do
            not have exactly one class.
        main: name of the value that selects the best model.
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

"""Counts bad rows and corrections of a file, with their places."""

from collections import Counter

from dist_bert.common.errors import UserError

_NUM_NAMED = 10


class RowError(Exception):
    """A row that is not an example: a reason for counting, and the problem of this row."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail or reason


def wrong_columns(number: int, usual: int) -> RowError:
    """A row whose number of columns differs from the file's."""
    detail = f"number of columns is {number}, that of the file is {usual}"
    return RowError("wrong number of columns", detail)


class Tally:
    """Counts of one file.

    A row may be an example: a line, a record, a question, a sentence of words.
    """

    def __init__(self, path: str) -> None:
        self.num_rows = 0
        self.bad: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self._path = path
        self._first_bad: list[str] = []
        self._first_notes: list[str] = []

    def count_bad(self, place: str, row: RowError) -> None:
        """Counts a row that is skipped because it is bad.

        Args:
            place: such as "FILE, line 17".
            row: its problem.
        """
        self.bad[row.reason] += 1
        if len(self._first_bad) < _NUM_NAMED:
            self._first_bad.append(f"{place}: {row.detail}")

    def note(self, reason: str, place: str, detail: str = "") -> None:
        """Counts a correction, or an omission due to a setting."""
        self.notes[reason] += 1
        if len(self._first_notes) < _NUM_NAMED:
            self._first_notes.append(f"{place}: {detail or reason}")

    @property
    def first_bad(self) -> list[str]:
        """The first ten places, bad rows first."""
        return (self._first_bad + self._first_notes)[:_NUM_NAMED]

    def check(self, max_bad_share: float) -> None:
        """Checks the final counts.

        Raises:
            UserError: more rows are bad than allowed.
        """
        num_bad = self.bad.total()
        if num_bad > max_bad_share * self.num_rows:
            raise UserError(
                f"{self._first_bad[0]} ({num_bad:,} of {self.num_rows:,} rows of {self._path} are"
                f" bad, more than --max_bad_share {max_bad_share:g} allows)"
            )

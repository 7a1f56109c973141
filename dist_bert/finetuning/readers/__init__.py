"""Reads labelled sets from files: one kind of example per task, for all layouts.

    file --source: unpacked, decoded--> its layout's rows --> examples of the task

A new layout is a function in the module of its task, and a name in `read_config.FORMATS`. Not for:
ids or features (`dist_bert.finetuning.features`).
"""

import dataclasses
from collections import Counter

from dist_bert.common.errors import UserError
from dist_bert.finetuning.examples import TASKS, QuestionExample, TextExample, WordsExample
from dist_bert.finetuning.readers.labels import read_label_list
from dist_bert.finetuning.readers.questions import read_questions
from dist_bert.finetuning.readers.read_config import ReadConfig, check_task
from dist_bert.finetuning.readers.tally import Tally
from dist_bert.finetuning.readers.texts import read_texts
from dist_bert.finetuning.readers.words import read_words, tag_names

__all__ = ["Labelled", "ReadConfig", "read_examples"]


@dataclasses.dataclass(frozen=True)
class Labelled:
    """The examples of a file and information on how it was read.

    Attributes:
        examples: of one kind, in the order of the file.
        layout: how the file was read, such as "CSV with header text,category".
        label_names: of the label list, in its order (for words: tags in IOB2); None without list.
        num_rows: examples, bad rows and those left out for their several labels.
        bad_rows: reason -> number of rows skipped because they could not be read.
        notes: reason -> number of corrections, or of omissions due to a setting.
        first_bad: the first ten of them, bad rows first: "FILE, line 17: problem".
    """

    examples: list[TextExample] | list[QuestionExample] | list[WordsExample]
    layout: str
    label_names: tuple[str, ...] | None
    num_rows: int
    bad_rows: Counter[str]
    notes: Counter[str]
    first_bad: list[str]

    def summary(self) -> list[str]:
        """Lines that report what was read, skipped and corrected."""
        lines = [f"{len(self.examples):,} examples of {self.num_rows:,} rows; {self.layout}"]
        lines += [f"bad rows, {reason}: {number:,}" for reason, number in self.bad_rows.items()]
        lines += [f"note, {reason}: {number:,}" for reason, number in self.notes.items()]
        return lines + self.first_bad


def read_examples(task: str, path: str, config: ReadConfig, is_labelled: bool = True) -> Labelled:
    """Reads the examples of a task.

    Args:
        task: one of `examples.TASKS`.
        path: of a file, packed or not; of parallel files, their paths joined by commas.
        config: how to read it.
        is_labelled: False if labels are to be predicted: they may be absent, and are ignored.

    Raises:
        UserError: a file cannot be read, has no known layout or no examples, or more of it is bad
            than `config.max_bad_share` allows.
    """
    assert task in TASKS, task
    check_task(task, config)
    label_names = names = read_label_list(config.labels) if config.labels else None
    tally = Tally(path)
    examples: list[TextExample] | list[QuestionExample] | list[WordsExample]
    if task == "question_answering":
        examples, layout = read_questions(path, config, is_labelled, tally)
    elif task == "token_classification":
        label_names = tag_names(names) if names else None
        examples, layout = read_words(path, config, names, is_labelled, tally)
    else:
        examples, layout = read_texts(task, path, config, names, is_labelled, tally)
    tally.check(config.max_bad_share)
    if not examples:
        told = "".join(f"; {reason}: {number:,}" for reason, number in tally.notes.items())
        raise UserError(f"{path}: has no examples (read as {layout}{told}); give another file")
    return Labelled(
        examples, layout, label_names, tally.num_rows, tally.bad, tally.notes, tally.first_bad
    )

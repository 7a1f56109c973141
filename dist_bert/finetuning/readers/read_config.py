"""Settings for reading a labelled set. Not for: training on it."""

import dataclasses

from dist_bert.common.errors import UserError
from dist_bert.common.settings import raise_all, setting

_TEXT_FORMATS = ("tsv", "csv", "jsonl", "parallel")
# Task -> layouts for its examples.
FORMATS_OF = {
    "pair_classification": _TEXT_FORMATS,
    "pair_regression": _TEXT_FORMATS,
    "sentence_classification": _TEXT_FORMATS,
    "sentence_regression": _TEXT_FORMATS,
    "question_answering": ("squad", "cmrc", "jsonl"),
    "token_classification": ("conll", "iob2", "jsonl"),
}
FORMATS = ("auto", *dict.fromkeys(name for names in FORMATS_OF.values() for name in names))

# Column separators, by their names for --separator.
SEPARATORS = {"tab": "\t", "comma": ",", "semicolon": ";", "bar": "|"}
_CONTRARY = {("tsv", name) for name in SEPARATORS if name != "tab"} | {("csv", "tab")}

_OF_TEXTS = (
    "separator",
    "header",
    "quoting",
    "text_column",
    "text_b_column",
    "label_column",
    "label_separator",
    "drop_several_labels",
)
_OF_CLASSES = ("label_separator", "drop_several_labels", "labels")
_OF_WORDS = ("token_column", "tag_column", "tag_scheme")
# Task -> settings without effect on it.
_UNUSED = {
    "pair_classification": _OF_WORDS,
    "pair_regression": (*_OF_CLASSES, *_OF_WORDS),
    "sentence_classification": ("text_b_column", *_OF_WORDS),
    "sentence_regression": ("text_b_column", *_OF_CLASSES, *_OF_WORDS),
    "question_answering": (*_OF_TEXTS, "labels", *_OF_WORDS),
    "token_classification": _OF_TEXTS,
}


@dataclasses.dataclass(frozen=True)
class ReadConfig:
    """How to read examples from the files of a labelled set, for training and scoring."""

    format: str = setting(
        "auto",
        "layout: tsv, csv = one example per row; jsonl = one JSON object per line; parallel = files"
        " of equal numbers of lines, given as texts,labels or first,second,labels; squad, cmrc ="
        " question answering; conll = a word and its tag per line; iob2 = the same after a number,"
        " with comments (Universal NER); auto = by content",
        FORMATS,
    )
    separator: str = setting(
        "auto",
        "column separator of a table; auto = by content",
        ("auto", *SEPARATORS),
    )
    header: str = setting(
        "auto", "whether the first row names the columns; auto = by it", ("auto", "true", "false")
    )
    quoting: str = setting(
        "auto",
        "whether to remove quotes around fields; auto = in CSV, not in TSV",
        ("auto", "true", "false"),
    )
    text_column: str = setting(
        "",
        "column of the text (of pairs, the first), by its name in the header, or its number from 0;"
        " empty = by the usual names, or the first column",
    )
    text_b_column: str = setting(
        "", "pairs: column of the second text; empty = by the usual names, or the second column"
    )
    label_column: str = setting(
        "", "column of the label; empty = by the usual names, or the column after the texts"
    )
    label_separator: str = setting(
        "",
        "separator of labels if an example may have several (in JSON lines, a list is also"
        " possible); empty = one label",
    )
    drop_several_labels: bool = setting(
        False, "skip examples with more than one label, for a task with single labels"
    )
    labels: str = setting(
        "",
        "file that lists the labels, one per line or as a JSON list: numbers in the data are"
        " indices from 0, other labels are bad; for words it lists tags",
    )
    token_column: str = setting(
        "", "words: column of the word, a number from 0 (JSON lines: a name); empty = the usual"
    )
    tag_column: str = setting(
        "", "words: column of the tag, likewise; empty = the last (iob2: the third)"
    )
    tag_scheme: str = setting(
        "auto",
        "words: scheme of the tags: iob2 = B- at the start of each name, iob1 = B- only between"
        " adjacent names of a type, bioes = also marks ends and single words (or BILOU, BMES);"
        " auto = by all tags of the file",
        ("auto", "iob1", "iob2", "bioes"),
    )
    max_bad_share: float = setting(
        0.01, "share of rows that may be bad, 0 to 1: they are skipped, counted and reported"
    )

    def __post_init__(self) -> None:
        problems = []
        if not 0.0 <= self.max_bad_share <= 1.0:
            problems.append(f"max_bad_share = {self.max_bad_share}: must be 0 to 1")
        chosen = {
            name: getattr(self, name)
            for name in ("text_column", "text_b_column", "label_column")
            if getattr(self, name)
        }
        if len(set(chosen.values())) < len(chosen):
            told = ", ".join(f"{name} = {value}" for name, value in chosen.items())
            problems.append(f"{told}: must be different columns")
        if (self.format, self.separator) in _CONTRARY:
            problems.append(f"format = {self.format}: has other separators than {self.separator}")
        raise_all("reading", problems)


def check_task(task: str, config: ReadConfig) -> None:
    """Checks that the settings fit the task.

    Raises:
        UserError: a layout of another task, or a setting that would do nothing.
    """
    problems = []
    if config.format not in ("auto", *FORMATS_OF[task]):
        problems.append(
            f"format = {config.format}: must be one of {', '.join(FORMATS_OF[task])} for {task}"
        )
    fields = {field.name: field for field in dataclasses.fields(ReadConfig)}
    problems += [
        f"{name} = {getattr(config, name)}: has no effect on {task}; leave it out"
        for name in _UNUSED[task]
        if getattr(config, name) != fields[name].default
    ]
    raise_all("reading", problems)


def column_number(name: str, value: str, num_columns: int, path: str) -> int:
    """The column of a setting's column number.

    Raises:
        UserError: it is not a number, or the file has fewer columns.
    """
    if not value.isdecimal() or int(value) >= num_columns:
        raise UserError(
            f"{path}: has no column {value!r} (--{name}); it has {num_columns}, counted from 0"
        )
    return int(value)

"""The settings of a data set, resolved by `prepare_shards` and stored in the manifest."""

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dist_bert.common.cli import count, share
from dist_bert.common.errors import UserError
from dist_bert.common.settings import add_flags, from_dict, raise_all, read_json, setting

FORMATS = (
    "auto",
    "text",
    "blank_line",
    "lines",
    "sentences",
    "wikitext",
    "jsonl",
    "parquet",
    "wikiextractor",
    "mediawiki",
    "wet",
    "tar",
    "python_docs",
)
PAIR_OBJECTIVES = ("nsp", "sop", "none")


def _lengths(text: str) -> list[int]:
    """The value of `--sequence_length`, for argparse."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(
            f"{text!r}: must be a whole number, or several with commas between them: 32,128,512"
        )
    return [int(part) for part in parts]


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """How the files of a corpus are read into documents and sentences; identifies a token store."""

    format: str = setting(
        "auto",
        "layout of the input: text = a file is a document; blank_line = documents between blank"
        " lines; lines = the same with one sentence per line; sentences = one sentence per line and"
        " no documents, every 512 lines form one; wikitext = documents under ` = Title = ` lines;"
        " jsonl = a JSON object per line; parquet = a row is a document; wikiextractor ="
        " <doc> elements; mediawiki = an XML dump; wet = Common Crawl's text records; tar = a"
        " member is a document; python_docs = docstrings of modules; auto = by content",
        FORMATS,
    )
    text_field: str = setting(
        "", "JSON lines field or parquet column with the text; empty = text or content"
    )
    languages: str = setting(
        "", "keep documents labelled with one of these languages, comma-separated; empty = all"
    )
    language_field: str = setting(
        "", "field or column with the language, a.b for b inside a; empty = the usual names"
    )
    repair_unicode: bool = setting(False, "repair wrongly decoded text with ftfy")
    min_characters: int = setting(0, "shortest document to keep")
    max_characters: int = setting(0, "longest document to keep; 0 = any length")

    def __post_init__(self) -> None:
        raise_all("preparation", self.problems())

    def problems(self) -> list[str]:
        """All problems with the values."""
        problems = [
            f"{name} = {getattr(self, name)}: must be at least 0"
            for name in ("min_characters", "max_characters")
            if getattr(self, name) < 0
        ]
        if 0 < self.max_characters < self.min_characters:
            problems.append(
                f"max_characters = {self.max_characters}: must be at least min_characters ="
                f" {self.min_characters}, or no document is kept"
            )
        return problems


@dataclasses.dataclass(frozen=True)
class PrepareConfig(TextConfig):
    """Preparation of a data set. Defaults are BERT's published recipe (Devlin et al. 2019, A.2)."""

    deduplicate: bool = setting(False, "keep only the first of documents with exactly equal text")
    validation_share: float = setting(
        0.02, "share of documents held out, chosen by content; 0 to 0.5"
    )
    sequence_length: int = setting(
        128,
        "most tokens of a sample, including special tokens; 8 to 65,535. Several lengths, such as"
        " 32,128,512 (a list in the JSON), make a data set each, in OUTPUT_DIR_32 and so on, from"
        " text that is read and encoded once",
        metavar="N[,N...]",
        parse=_lengths,
    )
    short_sequence_prob: float = setting(
        0.1, "share of samples with a random shorter target length, 0 to 1"
    )
    pair_objective: str = setting(
        "nsp",
        "second segment: nsp = the next or a random one (BERT); sop = the next, or both swapped"
        " (ALBERT); none = no second segment (RoBERTa)",
        PAIR_OBJECTIVES,
    )
    balance_pairs: bool = setting(
        True,
        "make exactly half of the pairs random (or swapped); false = as the published script: for"
        " nsp a little more than half, because a chunk of one sentence has no next one",
    )
    truncate_pairs: bool = setting(
        False,
        "cut off tokens beyond the length, as the published script does for nsp; false = they start"
        " the next pair, and no text is lost",
    )
    masked_lm_prob: float = setting(0.15, "share of tokens to predict, above 0 to 0.5")
    whole_words: bool = setting(True, "mask all pieces of a word together")
    mean_span_length: float = setting(
        0.0, "mask spans of geometric length with this mean, in tokens; 0 = no spans"
    )
    copies: int = setting(
        1, "passes over the training documents, each with new pairs and masks; 1 to 1,000"
    )
    samples_per_shard: int = setting(16_384, "target number; at least 1")
    seed: int = setting(42, "seed of the order of documents, pairs and masks; at least 0")

    def problems(self) -> list[str]:
        """All problems with the values."""
        problems = super().problems()
        problems += [
            f"{name} = {getattr(self, name)}: must be {low} to {high}"
            for name, low, high in (
                ("validation_share", 0, 0.5),
                ("sequence_length", 8, 65_535),
                ("short_sequence_prob", 0, 1),
                ("copies", 1, 1_000),
                ("samples_per_shard", 1, 1 << 31),
                ("seed", 0, (1 << 63) - 1),
            )
            if not low <= getattr(self, name) <= high
        ]
        if not 0.0 < self.masked_lm_prob <= 0.5:
            problems.append(
                f"masked_lm_prob = {self.masked_lm_prob}: must be above 0 and at most 0.5"
            )
        if self.truncate_pairs and self.pair_objective != "nsp":
            problems.append(
                f"truncate_pairs = True: requires pair_objective = nsp, not {self.pair_objective}"
            )
        if self.mean_span_length and not 1.0 < self.mean_span_length <= 20.0:
            problems.append(
                f"mean_span_length = {self.mean_span_length}: must be 0, or above 1 and at most 20"
            )
        return problems

    @property
    def max_text_tokens(self) -> int:
        """Most tokens of a sample's segments: all but [CLS] and a [SEP] after each."""
        return self.sequence_length - (2 if self.pair_objective == "none" else 3)

    @property
    def expected_tokens_per_sample(self) -> float:
        """Expected mean of text tokens per sample, used to plan the shards."""
        return self.max_text_tokens * (1.0 - self.short_sequence_prob / 2)


def resolve_data_sets(
    output_dir: Path, file: str | None, flags: Mapping[str, Any]
) -> dict[Path, PrepareConfig]:
    """The data sets to make, one for each length, in their order: default < JSON file < flag.

    Args:
        output_dir: of a single one; several are made in OUTPUT_DIR_128 and so on.
        file: path of the JSON, or None.
        flags: values from the command line; None means "not given".

    Returns:
        Folder -> its configuration; they differ in `sequence_length` alone.

    Raises:
        UserError: an unknown key, a value of a wrong type or range, a length that is given twice,
            or a folder without a name that a length can be added to.
    """
    values = read_json(file) if file is not None else {}
    values.update({name: value for name, value in flags.items() if value is not None})
    given = values.pop("sequence_length", PrepareConfig.sequence_length)
    lengths = given if isinstance(given, list) else [given]
    if not lengths or any(length in lengths[:n] for n, length in enumerate(lengths)):
        raise UserError(f"sequence_length = {given}: must name each length once, and at least one")
    origin = str(file or "flags")
    configs = [from_dict(PrepareConfig, {**values, "sequence_length": n}, origin) for n in lengths]
    if len(configs) == 1:
        return {output_dir: configs[0]}
    if output_dir.name in ("", ".."):
        raise UserError(
            f"--output_dir {output_dir}: has no name of its own to add the lengths to; give a name"
            " such as data/shards"
        )
    return {
        output_dir.with_name(f"{output_dir.name}_{config.sequence_length}"): config
        for config in configs
    }


def add_input_flags(parser: argparse.ArgumentParser, cls: type[TextConfig]) -> None:
    """Adds the flags of every script that reads a corpus: the files and the settings of `cls`."""
    parser.add_argument(
        "--input", nargs="+", metavar="GLOB", default=[], help="text files; ** for any depth"
    )
    parser.add_argument(
        "--max_bad_share",
        type=share,
        default=0.001,
        metavar="SHARE",
        help="share of the records (lines, JSON objects, pages) of a file, or of a part of a large"
        " one, that may be bad: invalid UTF-8 is replaced, unreadable records are skipped, both are"
        " counted (default: 0.001)",
    )
    parser.add_argument(
        "--preview",
        type=count,
        default=0,
        metavar="N",
        help="show how the first N documents are read, and stop",
    )
    add_flags(parser, cls)


def add_limit_flags(parser: argparse.ArgumentParser) -> None:
    """Adds what a data set may lose, and how many of its pairs may be random."""
    parser.add_argument(
        "--allow_lost_tokens",
        type=share,
        metavar="SHARE",
        help="share of the tokens that may be in no sample; a data set that loses more is not"
        " finished (default: 0.05; 0.2 with --truncate_pairs true)",
    )
    parser.add_argument(
        "--allow_random_next",
        type=share,
        default=0.65,
        metavar="SHARE",
        help="likewise, share of the pairs whose second segment may be random (default: 0.65)",
    )

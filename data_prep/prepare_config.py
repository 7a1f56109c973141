"""The settings of a data set: what `prepare_shards` resolves and the manifest keeps."""

import dataclasses

from dist_bert.config import raise_all, setting

FORMATS = ("auto", "text", "blank_line", "lines", "jsonl", "wikiextractor", "python_docs")
_SPECIAL_TOKENS = 3  # [CLS] A [SEP] B [SEP]


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """Preparation of a data set. Defaults are BERT's published recipe (Devlin et al. 2019, A.2)."""

    format: str = setting(
        "auto",
        "layout of the input: text = a file is a document, blank_line = documents between blank"
        " lines, lines = the same with one sentence a line, jsonl = a JSON object a line,"
        " wikiextractor = <doc> elements, python_docs = docstrings of modules,"
        " auto = wikiextractor, jsonl, python_docs or text by content",
        FORMATS,
    )
    text_field: str = setting(
        "", "field of JSON lines that holds the text; empty = text or content"
    )
    sequence_length: int = setting(
        128, "most tokens of a sample, the 3 special ones included; 8 to 65,535"
    )
    short_sequence_prob: float = setting(
        0.1, "share of samples that aim at a random shorter length, 0 to 1"
    )
    masked_lm_prob: float = setting(0.15, "share of tokens to predict, above 0 to 0.5")
    whole_words: bool = setting(True, "mask all pieces of a word together")
    validation_share: float = setting(
        0.02, "share of documents held out, by their content; 0 to 0.5"
    )
    samples_per_shard: int = setting(16_384, "aimed at; at least 1")
    seed: int = setting(42, "seed of the order of documents, pairs and masks; at least 0")

    def __post_init__(self) -> None:
        problems = [
            f"{name} = {getattr(self, name)}: must be {low} to {high}"
            for name, low, high in (
                ("sequence_length", 8, 65_535),
                ("short_sequence_prob", 0, 1),
                ("validation_share", 0, 0.5),
                ("samples_per_shard", 1, 1 << 31),
                ("seed", 0, (1 << 63) - 1),
            )
            if not low <= getattr(self, name) <= high
        ]
        if not 0.0 < self.masked_lm_prob <= 0.5:
            problems.append(
                f"masked_lm_prob = {self.masked_lm_prob}: must be above 0 and at most 0.5"
            )
        raise_all("preparation", problems)

    @property
    def expected_tokens_per_sample(self) -> float:
        """Tokens of text in a sample on average: shards are cut by it before they are made."""
        most = self.sequence_length - _SPECIAL_TOKENS
        return most * (1.0 - self.short_sequence_prob / 2)

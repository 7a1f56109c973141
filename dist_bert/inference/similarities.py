"""Vectors and their cosine similarities: on the console, in files, as a picture.

Not for: how the vectors are made (`dist_bert.inference.embed`).
"""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_bert.common.errors import UserError
from dist_bert.common.files import write_json
from dist_bert.common.pictures import MAX_ROWS, Panel, shortened, write_tables
from dist_bert.inference.embed import (
    Embedded,
    cosine_similarities,
    embed_sentences,
    embed_word,
    write_npz,
    write_projector,
)
from dist_bert.inference.embed_config import EmbedConfig
from dist_bert.inference.hidden_states import resolve_layer
from dist_bert.inference.text_batches import Text
from dist_bert.inference.trained_run import TrainedRun

MAX_PRINTED = 12  # rows of a table on the console
_POOLED = {
    "mean": "mean of their tokens",
    "all": "mean of their tokens, [CLS] and [SEP]",
    "cls": "[CLS]",
}
Tables = dict[str, NDArray[np.float64]]  # title -> (B, B)


def show_vectors(trained: TrainedRun, texts: Iterator[Text], config: EmbedConfig) -> None:
    """Sentences, or a word in them, as vectors: on the console and in files.

    Raises:
        UserError: there are too many for a picture that is asked for, or a text is refused.
    """
    if config.picture:
        drawn = list(itertools.islice(texts, MAX_ROWS + 1))
        if len(drawn) > MAX_ROWS:
            raise UserError(f"--picture: shows at most {MAX_ROWS} sentences; give fewer")
        texts = iter(drawn)
    layer = resolve_layer(config.layer, trained.config.num_hidden_layers)
    where = f"layer {layer} of {trained.config.num_hidden_layers}"
    if config.word is None:
        embedded = list(embed_sentences(trained, texts, layer, config.pooling))
        what = f"sentences ({_POOLED[config.pooling]})"
    else:
        embedded = list(embed_word(trained, texts, config.word, layer))
        what = f"{config.word!r} in its contexts"
    print(f"{what}: {len(embedded):,} vectors of {trained.config.hidden_size} numbers, {where}")
    if config.npz:
        write_npz(config.npz, embedded)
    if config.projector:
        write_projector(config.projector, f"{what}, {where}", embedded)
        print(f"to look at them: tensorboard --logdir {config.projector}, then Projector")
    cuts = sorted({" ".join(e.tokens) for e in embedded})
    if config.word is not None and len(cuts) > 1:
        print(f"the tokenizer cuts it in {len(cuts)} ways, each with a static vector of its own:")
        print(f"  {', '.join(cuts)}")
    if config.json:
        # indented, every number would be a line
        write_json(config.json, figures(embedded, layer, config), indent=None)
    if len(embedded) > MAX_PRINTED and not config.picture:
        return
    tables = similarities(embedded, where, config.word)
    if len(embedded) <= MAX_PRINTED:
        print_tables(embedded, tables)
    if config.picture:
        draw_similarities(config.picture, what, embedded, tables)


def similarities(embedded: list[Embedded], where: str, word: str | None) -> Tables:
    """Tables by title: of the vectors, and of a word's static vectors."""
    tables = {f"contextual, {where}": cosine_similarities([e.vector for e in embedded])}
    if word is not None:
        static = cosine_similarities([e.static_vector for e in embedded])
        tables["static input embedding"] = static
    return tables


def figures(embedded: list[Embedded], layer: int, config: EmbedConfig) -> dict[str, Any]:
    """All of it for a JSON file; similarities only of a word, whose contexts are few."""
    common = {"layer": layer, "pooling": config.pooling}
    if config.word is None:
        items = [{"text": e.text, "vector": e.vector.tolist()} for e in embedded]
        return {**common, "sentences": items}
    items = [
        {
            "text": e.text,
            "tokens": e.tokens,
            "vector": e.vector.tolist(),
            "static_vector": e.static_vector.tolist(),
        }
        for e in embedded
    ]
    contextual, static = similarities(embedded, "", config.word).values()
    return {
        **common,
        "word": config.word,
        "cosine_similarity": contextual.tolist(),
        "static_cosine_similarity": static.tolist(),
        "sentences": items,
    }


def draw_similarities(path: str, what: str, embedded: list[Embedded], tables: Tables) -> None:
    """The tables side by side, with the sentences before the rows."""
    numbers = [str(number) for number in range(1, len(embedded) + 1)]
    # what is around the marked word; of a sentence without marks, the beginning (-1 and 0)
    labels = [shortened(e.label, e.label.find("«"), e.label.find("»") + 1) for e in embedded]
    write_tables(
        path,
        f"cosine similarity of {what}",
        [f"{label}  {number}" for label, number in zip(labels, numbers, strict=True)],
        [Panel(title, values, numbers) for title, values in tables.items()],
        low=min(0.8, *(math.floor(10 * values.min()) / 10 for values in tables.values())),
        high=1.0,
        bar_label="cosine similarity",
    )


def print_tables(embedded: list[Embedded], tables: Tables) -> None:
    """The sentences, and their similarities side by side."""
    for number, item in enumerate(embedded, start=1):
        print(f"{number:>3}  {item.label}")
    width = max(6 * len(embedded), *map(len, tables)) + 4
    titles = "".join(title.ljust(width) for title in tables)
    print(f"\ncosine similarity\n     {titles.rstrip()}")
    heads = "".join(f"{number:>6}" for number in range(1, len(embedded) + 1))
    print("   " + "".join(heads.ljust(width) for _ in tables).rstrip())
    for row in range(len(embedded)):
        cells = ("".join(f"{value:6.2f}" for value in values[row]) for values in tables.values())
        print(f"{row + 1:>3}" + "".join(part.ljust(width) for part in cells).rstrip())

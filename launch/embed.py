r"""Vectors from a pretrained run: of sentences, of a word in its contexts; who attends to whom.

    python launch/embed.py --checkpoint runs/pretrain --npz vectors.npz "A sentence." "Another one."
    python launch/embed.py --checkpoint runs/pretrain --word bank --picture bank.png \\
        "She sat on the bank of the river." "He put the money into the bank."
    python launch/embed.py --checkpoint runs/pretrain --attention attention.png "A sentence."

With --word, similarities of the word's vectors stand beside those of its input embedding, which is
the same in every sentence.
"""

import argparse
import itertools
import json
import math
from typing import TYPE_CHECKING, Any

from dist_bert.checkpoint.run_dir import BEST_NAME, LATEST_NAME, require_weights
from dist_bert.common.cli import Parser, run
from dist_bert.common.errors import UserError
from dist_bert.common.files import write_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from dist_bert.inference.embed import Embedded
    from dist_bert.inference.text_batches import Text
    from dist_bert.inference.trained_run import TrainedRun

MAX_PRINTED = 12  # rows of a table on the console
AXIS = "attends to (left of the diagonal: what stands before it; right: what follows)"


def main(arguments: argparse.Namespace) -> None:
    """Embeds, prints similarities and writes the files that are asked for."""
    pointer = BEST_NAME if arguments.best else LATEST_NAME
    checkpoint = require_weights(arguments.checkpoint, pointer)
    check(arguments)
    if arguments.dry_run:
        print(json.dumps({**vars(arguments), "checkpoint": str(checkpoint)}, indent=2))
        return
    from dist_bert.inference.text_batches import given_texts, require_utf8
    from dist_bert.inference.trained_run import TrainedRun

    texts = given_texts(arguments.text, arguments.input)
    if arguments.word is not None:
        require_utf8(arguments.word, "--word")
    trained = TrainedRun.load(checkpoint)
    if arguments.attention:
        show_attention(trained, list(itertools.islice(texts, 2)), arguments)
    else:
        show_vectors(trained, texts, arguments)


def check(arguments: argparse.Namespace) -> None:
    """Refuses what does not go together.

    Raises:
        UserError: names the flags.
    """
    for flag in ("picture", "attention"):
        if path := getattr(arguments, flag):
            from dist_bert.common.pictures import check_picture

            check_picture(path, f"--{flag}")
    if arguments.head is not None and not arguments.attention:
        raise UserError(f"--head {arguments.head}: is for --attention FILE.png")
    if arguments.word is not None and arguments.pooling == "cls":
        raise UserError("--pooling cls: is for sentences; a --word is the mean of its own pieces")
    others = [n for n in ("word", "json", "npz", "projector", "picture") if getattr(arguments, n)]
    if arguments.attention and others:
        raise UserError(f"--attention: draws one sentence and no more; leave out --{others[0]}")


def show_vectors(
    trained: "TrainedRun", texts: "Iterator[Text]", arguments: argparse.Namespace
) -> None:
    """Sentences, or a word in them, as vectors: on the console and in files."""
    from dist_bert.inference.embed import embed_sentences, embed_word, write_npz, write_projector
    from dist_bert.inference.hidden_states import resolve_layer

    layer = resolve_layer(arguments.layer, trained.config.num_hidden_layers)
    where = f"layer {layer} of {trained.config.num_hidden_layers}"
    if arguments.word is None:
        embedded = list(embed_sentences(trained, texts, layer, arguments.pooling))
        pooled = "mean of their tokens" if arguments.pooling == "mean" else "[CLS]"
        what = f"sentences ({pooled})"
    else:
        embedded = list(embed_word(trained, texts, arguments.word, layer))
        what = f"{arguments.word!r} in its contexts"
    print(f"{what}: {len(embedded):,} vectors of {trained.config.hidden_size} numbers, {where}")
    if arguments.npz:
        write_npz(arguments.npz, embedded)
    if arguments.projector:
        write_projector(arguments.projector, f"{what}, {where}", embedded)
        print(f"to look at them: tensorboard --logdir {arguments.projector}, then Projector")
    cuts = sorted({" ".join(e.tokens) for e in embedded})
    if arguments.word is not None and len(cuts) > 1:
        print(f"the tokenizer cuts it in {len(cuts)} ways, each with a static vector of its own:")
        print(f"  {', '.join(cuts)}")
    if arguments.json:
        # indented, every number would be a line
        write_json(arguments.json, figures(embedded, layer, arguments), indent=None)
    if len(embedded) <= MAX_PRINTED:
        print_tables(embedded, similarities(embedded, where, arguments.word))
    if arguments.picture:
        draw_similarities(arguments, embedded, what, similarities(embedded, where, arguments.word))


def similarities(
    embedded: "list[Embedded]", where: str, word: str | None
) -> "dict[str, NDArray[np.float64]]":
    """Tables by title: of the vectors, and of a word's static vectors."""
    from dist_bert.inference.embed import cosine_similarities

    tables = {f"contextual, {where}": cosine_similarities([e.vector for e in embedded])}
    if word is not None:
        static = cosine_similarities([e.static_vector for e in embedded])
        tables["static input embedding"] = static
    return tables


def figures(
    embedded: "list[Embedded]", layer: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    """All of it for a JSON file; similarities only of a word, whose contexts are few."""
    common = {"layer": layer, "pooling": arguments.pooling}
    if arguments.word is None:
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
    contextual, static = similarities(embedded, "", arguments.word).values()
    return {
        **common,
        "word": arguments.word,
        "cosine_similarity": contextual.tolist(),
        "static_cosine_similarity": static.tolist(),
        "sentences": items,
    }


def draw_similarities(
    arguments: argparse.Namespace,
    embedded: "list[Embedded]",
    what: str,
    tables: "dict[str, NDArray[np.float64]]",
) -> None:
    """The tables side by side, with the sentences before the rows."""
    from dist_bert.common.pictures import Panel, shortened, write_tables

    numbers = [str(number) for number in range(1, len(embedded) + 1)]
    # what is around the marked word; of a sentence without marks, the beginning (-1 and 0)
    labels = [shortened(e.label, e.label.find("«"), e.label.find("»") + 1) for e in embedded]
    write_tables(
        arguments.picture,
        f"cosine similarity of {what}",
        [f"{label}  {number}" for label, number in zip(labels, numbers, strict=True)],
        [Panel(title, values, numbers) for title, values in tables.items()],
        low=min(0.8, *(math.floor(10 * values.min()) / 10 for values in tables.values())),
        high=1.0,
        bar_label="cosine similarity",
    )


def print_tables(embedded: "list[Embedded]", tables: "dict[str, NDArray[np.float64]]") -> None:
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


def show_attention(
    trained: "TrainedRun", texts: "list[Text]", arguments: argparse.Namespace
) -> None:
    """A picture of who attends to whom in one sentence, and in which direction, as numbers.

    Raises:
        UserError: there are several sentences, or no such layer or head.
    """
    from dist_bert.common.pictures import Panel, write_tables
    from dist_bert.inference.embed import attention_of
    from dist_bert.inference.hidden_states import (
        resolve_layer,
        shares_by_direction,
        shares_on_neighbours,
    )

    if len(texts) != 1:
        raise UserError("--attention: is drawn for one sentence; give just that one")
    num_layers, num_heads = trained.config.num_hidden_layers, trained.config.num_attention_heads
    layer = resolve_layer(arguments.layer, num_layers, lowest=1)
    if arguments.head is not None and not 1 <= arguments.head <= num_heads:
        raise UserError(f"--head {arguments.head}: this model's heads are 1 to {num_heads}")
    tokens, weights = attention_of(trained, texts[0], layer)
    if arguments.head is None:
        chosen, which = weights.mean(0), f"mean of {num_heads} heads"
    else:
        chosen, which = weights[arguments.head - 1], f"head {arguments.head} of {num_heads}"
    where = f"layer {layer} of {num_layers}, {which}"
    shares = shares_by_direction(chosen)
    directions = (
        f"{shares['left']:.1%} to the left, {shares['itself']:.1%} to itself,"
        f" {shares['right']:.1%} to the right, {shares['special']:.1%} to [CLS] and [SEP]"
    )
    print(f"attention, {where}: {directions}")
    on_neighbours = " ".join(f"{share:.1%}" for share in shares_on_neighbours(weights))
    even = f"an even spread gives {2 / len(tokens):.1%}"
    print(f"to the two neighbours, head by head: {on_neighbours} ({even})")
    tokens = [token.lstrip("▁") or "▁" for token in tokens]
    write_tables(
        arguments.attention,
        f"who attends to whom: {where}\n{directions}",
        tokens,
        [Panel("", chosen.numpy(), tokens, "this token", AXIS)],
        low=0.0,
        high=float(chosen.quantile(0.99)),  # a single strong one would leave all others dark
        bar_label="attention weight (a row sums to 1)",
    )


if __name__ == "__main__":
    parser = Parser(description=__doc__)
    parser.add_argument("text", nargs="*", help="sentence")
    parser.add_argument(
        "--input", metavar="FILE", help="file of sentences, one a line; - for stdin"
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="RUN_DIR",
        help="folder of a run or model, or RUN/checkpoints/step-N",
    )
    parser.add_argument(
        "--best",
        action="store_true",
        help="use the checkpoint of the lowest validation loss, not the latest",
    )
    parser.add_argument("--word", help="embed this word, which every sentence must have")
    parser.add_argument(
        "--pooling",
        choices=("mean", "cls"),
        default="mean",
        help="a sentence is the mean of its tokens (default), or the vector of [CLS]",
    )
    parser.add_argument(
        "--layer",
        type=int,
        default=-1,
        help="0 = embeddings, 1 = first; negative from the end (default: -1, the last)",
    )
    parser.add_argument("--json", metavar="FILE", help="write vectors and similarities here")
    parser.add_argument("--npz", metavar="FILE", help="write the vectors here, for numpy")
    parser.add_argument("--projector", metavar="DIR", help="write the vectors for TensorBoard")
    parser.add_argument("--picture", metavar="FILE.png", help="draw the similarities")
    parser.add_argument(
        "--attention", metavar="FILE.png", help="draw who attends to whom in one sentence"
    )
    parser.add_argument("--head", type=int, help="of --attention, from 1 (default: mean of all)")
    parser.add_argument("--dry_run", action="store_true", help="print what would be embedded")
    run(main, parser.parse_args())

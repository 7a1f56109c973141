"""Vectors from a pretrained encoder: of sentences, and of one word in several sentences.

The input embedding of a word is one and the same in every sentence; what the encoder makes of it
depends on the others around it (Ethayarajh 2019, "How Contextual are Contextualized Word
Representations?", https://arxiv.org/abs/1909.00512, from which the comparison is).

Letters: B texts of a batch, T tokens of all of them, S tokens of one text, H hidden, N heads.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dist_bert.common import files
from dist_bert.common.errors import UserError
from dist_bert.inference.hidden_states import attention_weights, hidden_states
from dist_bert.inference.text_batches import Ids, Text, check_length, map_in_batches
from dist_bert.inference.trained_run import TrainedRun
from dist_bert.model.micro_batches import from_sequences
from dist_bert.tokenizer.tokenizer import CLS_ID, SEP_ID

_CONFIG_NAME, _VECTORS_NAME, _METADATA_NAME = (
    "projector_config.pbtxt",  # the name that TensorBoard looks for
    "vectors.tsv",
    "metadata.tsv",
)

Vector = NDArray[np.float32]  # (H,)


@dataclasses.dataclass(frozen=True)
class Embedded:
    """A text, or a word in it, as a vector."""

    text: str
    label: str  # the text for people: around a word as the tokenizer reads it, the word «marked»
    tokens: list[str]  # the pieces whose vectors were averaged
    vector: Vector
    static_vector: Vector  # the mean of the same pieces' input embeddings


@dataclasses.dataclass(frozen=True)
class _Encoded:
    text: Text
    label: str
    ids: Ids
    begin: int  # tokens begin to end - 1 are averaged
    end: int


def embed_sentences(
    run: TrainedRun, texts: Iterable[Text], layer: int, pooling: str = "mean"
) -> Iterator[Embedded]:
    """A vector for every text, in their order.

    Args:
        run: the encoder.
        texts: at most as long as the model's positions; "[MASK]" in them is the mask token.
        layer: 0 = embeddings to the number of layers.
        pooling: `mean` of the text's tokens without [CLS] and [SEP], `all` = with these, or `cls`,
            the vector of [CLS].

    Raises:
        UserError: a text is too long or empty.
    """

    def encode(text: Text) -> _Encoded:
        ids = _sentence(run, text)
        places = {"mean": (1, len(ids) + 1), "all": (0, len(ids) + 2), "cls": (0, 1)}
        begin, end = places[pooling]
        return _Encoded(text, text.text, _whole(run, text, ids), begin, end)

    return _embed(run, texts, layer, encode)


def embed_word(run: TrainedRun, texts: Iterable[Text], word: str, layer: int) -> Iterator[Embedded]:
    """The vector of a word's first occurrence in every text; of several pieces, their mean.

    Args:
        run: the encoder.
        texts: each with the word in it, as a whole word, in the tokenizer's normalisation.
        word: or several words.
        layer: 0 = embeddings to the number of layers.

    Raises:
        UserError: a text does not have the word, or is too long.
    """

    def encode(text: Text) -> _Encoded:
        place = run.tokenizer.find_word(text.text, word)
        if place is None:
            raise UserError(
                f"{text.name}: does not have {word!r} as a word of its own; give sentences that do"
            )
        ids = _whole(run, text, run.tokenizer.encode(text.text))
        return _Encoded(text, _marked(*place.parts), ids, place.begin + 1, place.end + 1)

    return _embed(run, texts, layer, encode)


def cosine_similarities(vectors: Sequence[Vector]) -> NDArray[np.float64]:
    """Of each of B vectors to each: (B, B)."""
    rows = np.stack(vectors).astype(np.float64)  # (B, H)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return np.clip(unit @ unit.T, -1.0, 1.0)  # rounding makes it a little more


def attention_of(run: TrainedRun, text: Text, layer: int) -> tuple[list[str], Tensor]:
    """The tokens of a text, and how much each attends to each in a layer's heads: (N, S, S).

    Args:
        run: the encoder.
        text: at most as long as the model's positions; "[MASK]" in it is the mask token.
        layer: 1 to the number of layers.

    Raises:
        UserError: the text is too long or empty.
    """
    ids = _whole(run, text, _sentence(run, text))
    below = hidden_states(run.model.encoder, from_sequences([ids], run.device), layer - 1)
    weights = attention_weights(run.model.encoder.layers[layer - 1], below)  # type: ignore[arg-type]
    return _pieces(run, ids), weights.cpu()


def _sentence(run: TrainedRun, text: Text) -> Ids:
    """The ids of a text that has some: normalisation may remove all of its characters."""
    ids = run.tokenizer.encode_with_mask(text.text)
    if not ids:
        raise UserError(f"{text.name}: has no token; write a sentence")
    return ids


def _whole(run: TrainedRun, text: Text, ids: Ids) -> Ids:
    """The ids of a text with the special ones around them, if the model can take so many."""
    return check_length([CLS_ID, *ids, SEP_ID], run.config.max_position_embeddings, text.name)


def _marked(before: str, word: str, after: str) -> str:
    """A normalised text with a word marked, for people to read."""
    space = " " if word.startswith(" ") else ""
    return f"{before}{space}«{word.lstrip(' ')}»{after}".strip()


def _embed(
    run: TrainedRun, texts: Iterable[Text], layer: int, encode: Callable[[Text], _Encoded]
) -> Iterator[Embedded]:
    """Averages what a layer gives out over the tokens that `encode` chose."""

    def compute(batch: list[_Encoded]) -> list[Embedded]:
        arguments = from_sequences([encoded.ids for encoded in batch], run.device)
        hidden = hidden_states(run.model.encoder, arguments, layer).float()
        static = run.model.encoder.word_embeddings.weight.detach()[arguments["input_ids"]]
        made, start = [], 0
        for encoded in batch:
            chosen = slice(start + encoded.begin, start + encoded.end)
            start += len(encoded.ids)
            made.append(
                Embedded(
                    encoded.text.text,
                    encoded.label,
                    _pieces(run, encoded.ids[encoded.begin : encoded.end]),
                    hidden[chosen].mean(0).cpu().numpy(),
                    static[chosen].mean(0).cpu().numpy(),
                )
            )
        return made

    return map_in_batches(compute, map(encode, texts), lambda encoded: len(encoded.ids))


def _pieces(run: TrainedRun, ids: Ids) -> list[str]:
    return [run.tokenizer.piece(index) for index in ids]


def write_npz(path: str | Path, embedded: Sequence[Embedded]) -> None:
    """Writes `vectors` and `static_vectors` (B, H) in float32 and `texts` (B,) for np.load."""
    with files.whole_file(path) as file:
        np.savez(
            file,
            vectors=np.stack([item.vector for item in embedded]),
            static_vectors=np.stack([item.static_vector for item in embedded]),
            texts=np.array([item.text for item in embedded]),
        )


def write_projector(folder: str | Path, name: str, embedded: Sequence[Embedded]) -> None:
    """Writes what `tensorboard --logdir FOLDER` shows under Projector.

    Args:
        folder: made if it is missing.
        name: of the set of vectors, as TensorBoard shows it.
        embedded: the points; their labels stand beside them.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = ("\t".join(f"{value:.9g}" for value in item.vector) for item in embedded)
    labels = (" ".join(item.label.split()) for item in embedded)  # a tab would be a new column
    files.write_bytes(folder / _VECTORS_NAME, "".join(f"{row}\n" for row in rows).encode())
    files.write_bytes(folder / _METADATA_NAME, "".join(f"{row}\n" for row in labels).encode())
    config = (
        "embeddings {\n"
        f"  tensor_name: {json.dumps(name, ensure_ascii=False)}\n"
        f'  tensor_path: "{_VECTORS_NAME}"\n'
        f'  metadata_path: "{_METADATA_NAME}"\n'
        "}\n"
    )
    files.write_bytes(folder / _CONFIG_NAME, config.encode())

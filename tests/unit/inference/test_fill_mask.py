"""[MASK] answered: the softmax of logits that are computed here from the weights, padded."""

import dataclasses
import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dist_bert.common.errors import UserError
from dist_bert.inference import text_batches
from dist_bert.inference.fill_mask import compare_texts, fill_mask, fill_masks
from dist_bert.inference.text_batches import Text
from dist_bert.inference.trained_run import TrainedRun
from dist_bert.tokenizer.config import TokenizerConfig
from dist_bert.tokenizer.tokenizer import train_tokenizer
from tests.support.corpus import english_sentences
from tests.support.synthetic import TINY_MODEL, write_run

NUM_PIECES = 151
MODEL = dataclasses.replace(TINY_MODEL, vocab_size=NUM_PIECES + 7)
TEXT = "The old [MASK] was [MASK] and quiet."


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    folder = tmp_path_factory.mktemp("run")
    config = TokenizerConfig(vocab_size=NUM_PIECES)
    tokenizer = train_tokenizer(english_sentences(500, seed=1), folder / "t", config)
    write_run(folder / "run", tokenizer, MODEL, {})
    return TrainedRun.load(folder / "run")


def padded_logits(weights: dict[str, Tensor], ids: list[int], padded_length: int) -> Tensor:
    """(S, V) scores of one text in segment 0, written down from the paper, padding included."""
    hidden_size, num_heads = MODEL.hidden_size, MODEL.num_attention_heads
    input_ids = torch.tensor(ids + [0] * (padded_length - len(ids)))
    is_token = torch.arange(padded_length) < len(ids)

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + MODEL.layer_norm_eps).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    embeddings = weights["encoder.word_embeddings.weight"][input_ids]
    embeddings = embeddings + weights["encoder.position_embeddings.weight"][:padded_length]
    embeddings = embeddings + weights["encoder.token_type_embeddings.weight"][0]
    hidden = norm("encoder.embeddings_norm", embeddings)
    for layer in range(MODEL.num_hidden_layers):
        name = f"encoder.layers.{layer}"
        q, k, v = linear(f"{name}.qkv", hidden).split(hidden_size, dim=-1)
        heads = []
        for columns in torch.arange(hidden_size).chunk(num_heads):
            scores = q[:, columns] @ k[:, columns].T / math.sqrt(len(columns))
            scores = scores.masked_fill(~is_token, -math.inf)
            heads.append(scores.softmax(-1) @ v[:, columns])
        context = linear(f"{name}.attention_output", torch.cat(heads, dim=-1))
        hidden = norm(f"{name}.attention_norm", hidden + context)
        inner = F.gelu(linear(f"{name}.intermediate", hidden))
        hidden = norm(f"{name}.output_norm", hidden + linear(f"{name}.output", inner))
    hidden = norm("mlm_norm", F.gelu(linear("mlm_dense", hidden)))
    table = weights["encoder.word_embeddings.weight"][: MODEL.vocab_size]
    return hidden @ table.T + weights["mlm_bias"]


def test_answers_are_the_softmax_of_the_logits(run: TrainedRun) -> None:
    ids = [2, *run.tokenizer.encode_with_mask(TEXT), 3]
    weights = {name: w.cpu().double() for name, w in run.model.state_dict().items()}
    logits = padded_logits(weights, ids, padded_length=len(ids) + 5)
    masks = fill_mask(run, TEXT, top_k=11)
    places = [i for i, piece in enumerate(ids) if piece == 4]
    assert len(masks) == len(places) == 2
    for answers, place in zip(masks, places, strict=True):
        probabilities = logits[place].softmax(-1)[:NUM_PIECES]
        best = probabilities.topk(11)
        assert [a.probability for a in answers] == pytest.approx(best.values.tolist(), rel=1e-4)
        assert [a.piece for a in answers] == [run.tokenizer.piece(i) for i in best.indices]
    assert masks[0] != masks[1]


def test_more_answers_than_pieces_are_all_pieces(run: TrainedRun) -> None:
    (answers,) = fill_mask(run, "a [MASK]", top_k=1_000)
    assert len(answers) == NUM_PIECES
    assert {answer.piece for answer in answers} == {
        run.tokenizer.piece(i) for i in range(NUM_PIECES)
    }
    assert sum(answer.probability for answer in answers) < 1.0  # the model has 7 rows more
    assert len(fill_mask(run, "a [MASK]", top_k=1)[0]) == 1


@pytest.mark.parametrize("text", ["", "The old mask was quiet.", "[ MASK ]", "[mask]"])
def test_a_text_without_mask_is_refused(run: TrainedRun, text: str) -> None:
    with pytest.raises(UserError, match=r"has no \[MASK\]; write one"):
        fill_mask(run, text, top_k=3)


def test_a_text_too_long_for_the_positions_is_refused(run: TrainedRun) -> None:
    limit = MODEL.max_position_embeddings
    fitting = "[MASK]" * (limit - 2)
    assert len(fill_mask(run, fitting, top_k=1)) == limit - 2
    with pytest.raises(
        UserError, match=rf"has {limit + 1} tokens, the model takes at most {limit}"
    ):
        fill_mask(run, fitting + "[MASK]", top_k=1)


def test_the_same_left_context_is_answered_by_its_right_one(
    run: TrainedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_batches, "_BATCH_TOKENS", 19)  # texts come back in their order
    texts = ["The old [MASK] of a house.", "The old [MASK] was", "The old [MASK] of a house."]
    weights = {name: w.cpu().double() for name, w in run.model.state_dict().items()}
    likelihoods = []
    for text in texts:
        ids = [2, *run.tokenizer.encode_with_mask(text), 3]
        likelihoods.append(padded_logits(weights, ids, len(ids))[ids.index(4)].softmax(-1))
    found = compare_texts(run, [Text.given(text) for text in texts], top_k=3)
    best = [row[:NUM_PIECES].topk(3).indices.tolist() for row in likelihoods]
    columns = list(dict.fromkeys([*best[0], *best[1]]))
    assert found.pieces == [run.tokenizer.piece(index) for index in columns]
    expected = torch.stack([row[columns] for row in likelihoods])
    np.testing.assert_allclose(found.probabilities, expected, rtol=1e-4)
    distance = 0.5 * float((likelihoods[0] - likelihoods[1]).abs().sum())
    assert distance > 1e-3, "the encoder reads to the right, too"
    np.testing.assert_allclose(
        found.distances,
        [[0, distance, 0], [distance, 0, distance], [0, distance, 0]],
        rtol=1e-3,
        atol=1e-6,
    )
    assert found.has_same_left_context


@pytest.mark.parametrize(
    ("first", "second", "is_same"),
    [
        ("The old [MASK]", "The old [MASK] was", True),
        ("[MASK] was", "[MASK] is", True),
        ("The old [MASK]", "The [MASK]", False),
        ("The old [MASK]", "The new [MASK]", False),
    ],
)
def test_the_left_context_is_compared_up_to_the_mask(
    run: TrainedRun, first: str, second: str, is_same: bool
) -> None:
    found = compare_texts(run, [Text.given(first), Text.given(second)], top_k=2)
    assert found.has_same_left_context == is_same


def test_texts_with_several_masks_are_not_compared(run: TrainedRun) -> None:
    texts = [Text("a [MASK]", "file.txt, line 1"), Text(TEXT, "file.txt, line 2")]
    with pytest.raises(UserError, match=r"^file\.txt, line 2: has 2 \[MASK\]; a comparison takes"):
        compare_texts(run, texts, top_k=1)
    with pytest.raises(UserError, match=r"--top_k 0: must be at least 1"):
        compare_texts(run, texts[:1], top_k=0)
    with pytest.raises(UserError, match=r"has no \[MASK\]; write one"):
        compare_texts(run, [Text.given("none")], top_k=1)


def test_batches_answer_as_one_by_one_and_in_order(
    run: TrainedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_batches, "_WINDOW", 7)
    monkeypatch.setattr(text_batches, "_BATCH_TOKENS", 43)
    sentences = english_sentences(17, seed=2)
    texts = [
        f"[MASK] {' '.join(text.split()[: 2 + i % 5])}{' [MASK]' * (i % 3)}"
        for i, text in enumerate(sentences)
    ]
    found = list(fill_masks(run, [Text.given(text) for text in texts], top_k=3))
    assert [text.text for text, _ in found] == texts
    for text, masks in found:
        alone = fill_mask(run, text.text, top_k=3)
        assert len(masks) == len(alone) == text.text.count("[MASK]")
        for mine, theirs in zip(masks, alone, strict=True):
            assert [a.piece for a in mine] == [a.piece for a in theirs]
            probabilities = [a.probability for a in theirs]
            assert [a.probability for a in mine] == pytest.approx(probabilities, rel=1e-4)


def test_answers_come_before_all_texts_are_read(
    run: TrainedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_batches, "_WINDOW", 3)
    read: list[int] = []

    def endless() -> Iterator[Text]:
        for number in itertools.count():
            read.append(number)
            yield Text.given("a [MASK]")

    answers = fill_masks(run, endless(), top_k=1)
    for _ in range(4):
        next(answers)
    assert len(read) == 6  # two windows


def test_a_mistake_names_the_line(run: TrainedRun) -> None:
    texts = [Text("a [MASK]", "file.txt, line 1"), Text("no mask", "file.txt, line 2")]
    with pytest.raises(UserError, match=r"^file\.txt, line 2: has no \[MASK\]; write one"):
        list(fill_masks(run, texts, top_k=1))
    with pytest.raises(UserError, match=r"--top_k 0: must be at least 1"):
        list(fill_masks(run, texts, top_k=0))

"""Vectors of sentences and words against the encoder's own output; files of them, read back."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from dist_bert.common.errors import UserError
from dist_bert.common.pictures import MAX_ROWS
from dist_bert.inference import text_batches
from dist_bert.inference.embed import (
    Embedded,
    attention_of,
    cosine_similarities,
    embed_sentences,
    embed_word,
    write_npz,
    write_projector,
)
from dist_bert.inference.embed_config import EmbedConfig
from dist_bert.inference.hidden_states import attention_weights, hidden_states
from dist_bert.inference.similarities import show_vectors
from dist_bert.inference.text_batches import Text
from dist_bert.inference.trained_run import TrainedRun
from dist_bert.model.micro_batches import from_sequences
from dist_bert.tokenizer.config import TokenizerConfig
from dist_bert.tokenizer.tokenizer import train_tokenizer
from tests.support.corpus import english_sentences
from tests.support.synthetic import TINY_MODEL, write_run

NUM_PIECES = 151
MODEL = dataclasses.replace(TINY_MODEL, vocab_size=NUM_PIECES + 7)
CONTEXTS = ["The old lamp was quiet.", "A lamp, a [lamp] and a Lamp.", "She sold her lamp"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    folder = tmp_path_factory.mktemp("run")
    config = TokenizerConfig(vocab_size=NUM_PIECES, lower_case=True)
    tokenizer = train_tokenizer(english_sentences(500, seed=1), folder / "t", config)
    write_run(folder / "run", tokenizer, MODEL, {})
    return TrainedRun.load(folder / "run")


def given(texts: list[str]) -> list[Text]:
    return [Text.given(text) for text in texts]


def alone(run: TrainedRun, text: str, layer: int) -> tuple[list[int], torch.Tensor]:
    """Ids and vectors of one text, with its special tokens."""
    ids = [2, *run.tokenizer.encode(text), 3]
    return ids, hidden_states(run.model.encoder, from_sequences([ids], run.device), layer).cpu()


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_sentences_are_the_mean_of_their_tokens_or_cls(
    run: TrainedRun, layer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_batches, "_BATCH_TOKENS", 40)
    texts = [" ".join(text.split()[: 1 + i % 4]) for i, text in enumerate(english_sentences(9, 3))]
    means = list(embed_sentences(run, given(texts), layer))
    firsts = list(embed_sentences(run, given(texts), layer, pooling="cls"))
    wholes = list(embed_sentences(run, given(texts), layer, pooling="all"))
    table = run.model.encoder.word_embeddings.weight.detach().cpu()
    for text, mean, first, whole in zip(texts, means, firsts, wholes, strict=True):
        ids, vectors = alone(run, text, layer)
        assert mean.text == first.text == mean.label == text
        np.testing.assert_allclose(mean.vector, vectors[1:-1].mean(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(first.vector, vectors[0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(whole.vector, vectors.mean(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(mean.static_vector, table[ids[1:-1]].mean(0), rtol=1e-5)
        assert mean.tokens == [run.tokenizer.piece(index) for index in ids[1:-1]]
        assert first.tokens == ["[CLS]"]


def test_a_word_is_the_mean_of_its_pieces_at_its_first_place(run: TrainedRun) -> None:
    found = list(embed_word(run, given(CONTEXTS), "LAMP", layer=2))
    for text, item in zip(CONTEXTS, found, strict=True):
        ids, vectors = alone(run, text, 2)
        pieces = [run.tokenizer.piece(index) for index in ids]
        ends = [sum(map(len, pieces[1 : i + 1])) for i in range(len(pieces))]  # behind [CLS]
        begin = "".join(pieces[1:]).index("lamp")
        chosen = [i for i in range(1, len(ids) - 1) if ends[i] > begin and ends[i - 1] < begin + 4]
        np.testing.assert_allclose(item.vector, vectors[chosen].mean(0), rtol=1e-4, atol=1e-5)
        assert "".join(item.tokens).lstrip("▁") == "lamp"
    assert [item.label for item in found] == [
        "the old «lamp» was quiet.", "a «lamp», a [lamp] and a lamp.", "she sold her «lamp»",
    ]  # fmt: skip


def test_one_word_has_one_static_vector_and_many_contextual_ones(run: TrainedRun) -> None:
    found = list(embed_word(run, given(CONTEXTS), "lamp", layer=2))
    static = cosine_similarities([item.static_vector for item in found])
    contextual = cosine_similarities([item.vector for item in found])
    assert found[0].tokens == found[1].tokens == found[2].tokens
    np.testing.assert_allclose(static, np.ones((3, 3)), rtol=1e-6)
    off_diagonal = contextual[~np.eye(3, dtype=bool)]
    assert off_diagonal.max() < 0.999
    assert contextual.diagonal() == pytest.approx(1.0)


def test_a_sentence_without_the_word_is_named(run: TrainedRun) -> None:
    texts = [Text("the lamp", "f, line 1"), Text("two lamps", "f, line 2")]
    with pytest.raises(UserError, match=r"^f, line 2: does not have 'lamp' as a word of its own"):
        list(embed_word(run, texts, "lamp", layer=1))
    with pytest.raises(UserError, match="does not have ' ' as a word"):
        list(embed_word(run, texts, " ", layer=1))
    with pytest.raises(UserError, match=rf"has 43 tokens, the model takes at most {41}"):
        list(embed_sentences(run, given(["[MASK]" * 41]), layer=1))
    with pytest.raises(UserError, match="text ' ': has no token"):
        list(embed_sentences(run, given([" "]), layer=1))


def test_cosine_similarities_by_hand() -> None:
    vectors = [np.array(v, np.float32) for v in ([3.0, 4.0], [4.0, 3.0], [-6.0, -8.0])]
    expected = [[1, 0.96, -1], [0.96, 1, -0.96], [-1, -0.96, 1]]
    np.testing.assert_allclose(cosine_similarities(vectors), expected, atol=1e-7)
    assert math.isclose(cosine_similarities(vectors).max(), 1.0)


def test_attention_is_of_the_layer_that_is_asked_for(run: TrainedRun) -> None:
    text = "the [MASK] lamp"
    ids = [2, *run.tokenizer.encode_with_mask(text), 3]
    for layer in (1, 2):
        tokens, weights = attention_of(run, Text.given(text), layer)
        assert tokens == [run.tokenizer.piece(index) for index in ids] and "[MASK]" in tokens
        below = hidden_states(run.model.encoder, from_sequences([ids], run.device), layer - 1)
        block = run.model.encoder.layers[layer - 1]
        expected = attention_weights(block, below)  # type: ignore[arg-type]
        assert torch.equal(weights, expected.cpu())


def test_words_are_found_as_the_tokenizer_writes_them(tmp_path: Path, run: TrainedRun) -> None:
    tokenizer = run.tokenizer

    def pieces(text: str, word: str) -> tuple[str, ...] | None:
        place = tokenizer.find_word(text, word)
        if place is None:
            return None
        ids = tokenizer.encode(text)[place.begin : place.end]
        joined = "".join(map(tokenizer.text_of, ids)).lstrip(" ")
        assert place.parts[1].lstrip(" ") == joined or "[UNK]" in joined
        before = "".join(map(tokenizer.text_of, tokenizer.encode(text)[: place.begin]))
        assert place.parts[0] == before or "[UNK]" in before
        return place.parts

    assert pieces("lamplight, lamps and a ＬＡＭＰ's light", "Lamp") == (
        " lamplight, lamps and a", " lamp", "'s light",
    )  # fmt: skip
    assert pieces('He said: "Old lamp"', "old lamp") is not None
    assert pieces("relamp lamps", "lamp") is None
    assert pieces("", "lamp") is None and pieces("lamp", "") is None
    chinese = pieces("我去银行取钱", "银行")  # one unknown piece holds it all
    assert chinese is not None and "银行" in chinese[1]


def test_a_piece_is_found_in_bytes_too(tmp_path: Path) -> None:
    config = TokenizerConfig(vocab_size=420, byte_fallback=True)
    path = train_tokenizer(english_sentences(300, seed=4), tmp_path, config)
    from dist_bert.tokenizer.tokenizer import Tokenizer

    tokenizer = Tokenizer(path)
    place = tokenizer.find_word("the 银行 lamp", "银行")
    assert place is not None and place.parts == (" the ", "银行", " lamp")
    assert place.end - place.begin == 6  # three bytes a character
    later = tokenizer.find_word("the 银行 lamp", "lamp")
    assert later is not None and later.parts[0].rstrip(" ") == " the 银行"


# --- files of vectors, read back

ITEMS = [
    Embedded(
        text=f"text\t{number}",
        label=f"a «text»\t{number}",
        tokens=["a", "b"],
        vector=np.array([number / 3, -1e-7, 5.0], np.float32),
        static_vector=np.array([1.0, 2.0, number], np.float32),
    )
    for number in range(4)
]


def test_npz_gives_back_the_vectors(tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz", ITEMS)
    with np.load(tmp_path / "a.npz") as found:
        assert found["vectors"].dtype == np.float32
        np.testing.assert_array_equal(found["vectors"], [item.vector for item in ITEMS])
        np.testing.assert_array_equal(found["static_vectors"], [i.static_vector for i in ITEMS])
        assert found["texts"].tolist() == [item.text for item in ITEMS]
    write_npz(tmp_path / "b.npz", ITEMS)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_tensorboards_projector_finds_vectors_and_labels(tmp_path: Path) -> None:
    projector = pytest.importorskip("tensorboard.plugins.projector.projector_plugin")
    text_format = pytest.importorskip("google.protobuf.text_format")
    write_projector(tmp_path / "p", 'the "word", layer 2 of 3', ITEMS)
    config = projector.ProjectorConfig()
    text_format.Parse((tmp_path / "p/projector_config.pbtxt").read_text(), config)
    (embedding,) = config.embeddings
    assert embedding.tensor_name == 'the "word", layer 2 of 3'
    vectors = projector._read_tensor_tsv_file(str(tmp_path / "p" / embedding.tensor_path))
    np.testing.assert_array_equal(np.asarray(vectors, np.float32), [item.vector for item in ITEMS])
    labels = (tmp_path / "p" / embedding.metadata_path).read_text().splitlines()
    assert labels == [f"a «text» {number}" for number in range(4)]


def test_nothing_is_drawn_of_a_text_without_tokens(run: TrainedRun) -> None:
    empty = Text("\u200b", "texts.txt, line 7")
    with pytest.raises(UserError, match=r"texts\.txt, line 7: has no token"):
        attention_of(run, empty, layer=1)


@pytest.mark.parametrize(
    "pooling,told",
    [
        ("mean", "sentences (mean of their tokens): 1 vectors"),
        ("all", "sentences (mean of their tokens, [CLS] and [SEP]): 1 vectors"),
        ("cls", "sentences ([CLS]): 1 vectors"),
    ],
)
def test_the_console_tells_the_pooling(
    run: TrainedRun, pooling: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    show_vectors(run, iter(given(["a lamp"])), EmbedConfig(pooling=pooling))
    assert capsys.readouterr().out.startswith(told)


def test_too_many_sentences_for_a_picture_are_refused_before_the_work(
    run: TrainedRun, tmp_path: Path
) -> None:
    """A table of all similarities would take the memory of a square."""
    texts = iter(given(["a lamp"] * (MAX_ROWS + 2)))
    config = EmbedConfig(picture=str(tmp_path / "p.png"), npz=str(tmp_path / "v.npz"))
    with pytest.raises(UserError, match=f"--picture: shows at most {MAX_ROWS} sentences"):
        show_vectors(run, texts, config)
    assert list(texts) and not list(tmp_path.iterdir())

"""Text of many scripts, from sentences to pairs: no token is lost, half of the pairs are random.

The texts are English ones with letters, marks and spaces put into the script's.
"""

import itertools
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from data_prep.clauses import PieceBorders, cut_texts
from data_prep.documents import Documents
from data_prep.pairs import draw_pairs
from data_prep.sentences import split_sentences
from dist_bert.tokenizer.config import TokenizerConfig
from dist_bert.tokenizer.tokenizer import Tokenizer, train_tokenizer
from tests.support.corpus import english_sentences

# First code point of the letters, what ends a sentence, and what is between words.
SCRIPTS = {
    "Hindi": (0x915, "। ", " "),
    "Bengali": (0x995, "।", " "),
    "Urdu": (0x627, "۔ ", " "),
    "Armenian": (0x561, "։ ", " "),
    "Amharic": (0x1200, "። ", " "),
    "Khmer": (0x1780, "។ ", ""),
    "Burmese": (0x1000, "။", ""),
    "Tibetan": (0xF40, "། ", "་"),
    "Thai": (0xE01, " ", ""),
    "Chinese without marks": (0x4E00, "", ""),
}


def transliterated(sentence: str, script: str) -> str:
    first, end, space = SCRIPTS[script]
    numbers = (c for c in itertools.count(first) if unicodedata.category(chr(c)) in ("Lo", "Ll"))
    letters = {97 + i: chr(c) for i, c in enumerate(itertools.islice(numbers, 26))}
    words = re.findall(r"[a-z]+", sentence.lower())
    return space.join(words).translate(letters) + end


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_token_of_a_script_is_lost(script: str, tmp_path: Path) -> None:
    sizes = np.random.default_rng(1).integers(3, 90, 60).tolist()
    sentences = iter(english_sentences(sum(sizes), seed=2))
    texts = [
        "".join(transliterated(s, script) for s in itertools.islice(sentences, n)).strip()
        for n in sizes
    ]
    found = [cut_texts(split_sentences(text)) for text in texts]
    if SCRIPTS[script][1].strip():
        assert sum(map(len, found)) == sum(sizes)
    flat = list(itertools.chain.from_iterable(found))
    assert max(len(sentence.encode()) for sentence in flat) < 4_192, "SentencePiece takes them all"
    config = TokenizerConfig(vocab_size=300, model_type="bpe", byte_fallback=True)
    tokenizer = Tokenizer(train_tokenizer(flat, tmp_path, config))
    ids, offsets = tokenizer.encode_batch(flat)
    documents = Documents(ids, offsets, np.cumsum([0, *map(len, found)]), np.arange(len(found)))
    pairs, losses = draw_pairs(
        documents,
        objective="nsp",
        max_tokens=125,
        short_sequence_prob=0.1,
        balance=True,
        truncate=False,
        borders=PieceBorders.of(tokenizer),
        seed=3,
        copy=0,
    )
    assert losses.num_truncated_tokens == losses.num_dropped_tokens == 0
    assert 2 * np.count_nonzero(pairs.next_sentence_label) == len(pairs) > 60
    assert np.unique(pairs.document_a).size == len(texts)

"""Which sentences a tokenizer is trained on: a sample by hash, without reading all of a corpus."""

import hashlib
from collections.abc import Sequence

from data_prep.inputs import InputFile
from data_prep.readers import read_sentences

_OVERSAMPLING = 1.25  # sentences read for each one wanted: some are duplicates
_LEAST_PER_FILE = 64  # sentences: of many small files some are read whole, others not at all


def sample_sentences(
    inputs: Sequence[InputFile], layout: str, text_field: str, max_sentences: int
) -> list[str]:
    """Distinct sentences in an order that depends on nothing but the inputs.

    Files are read in the order of their path's hash, each for a share by its size from its
    beginning, until there are enough; of these the sentences with the smallest hashes are taken.

    Args:
        inputs: files of the corpus.
        layout: as in `data_prep.readers`.
        text_field: of JSON lines, may be empty.
        max_sentences: number of sentences wanted; 0 = all of them.
    """
    num_wanted = int(max_sentences * _OVERSAMPLING)
    num_bytes = max(sum(file.bytes for file in inputs), 1)
    found: dict[bytes, str] = {}
    for file in sorted(inputs, key=lambda f: _hash(f.path)):
        share = max(_LEAST_PER_FILE, -(-num_wanted * file.bytes // num_bytes))
        num_read = 0
        for _, sentences in read_sentences(file.path, layout, text_field):
            found.update((_hash(sentence), sentence) for sentence in sentences)
            num_read += len(sentences)
            if max_sentences and num_read >= share:
                break
        if max_sentences and len(found) >= num_wanted:
            break
    return [found[key] for key in sorted(found)[: max_sentences or None]]


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()

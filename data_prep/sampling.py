"""Selects sentences to train a tokenizer: a sample by hash, without reading the whole corpus."""

import hashlib
import os
from collections.abc import Sequence

from data_prep.corpus import read_sentences
from data_prep.inputs import InputPart
from data_prep.prepare_config import TextConfig
from data_prep.readers.source import Tally
from data_prep.work_units import cut_large_files

_OVERSAMPLING = 1.25  # sentences read per sentence wanted: some are duplicates
_LEAST_PER_PART = 64  # sentences: of many small files, some are read whole, others not


def sample_sentences(
    inputs: Sequence[InputPart], config: TextConfig, max_sentences: int, max_bad_share: float
) -> list[str]:
    """Distinct sentences in an order that depends only on the inputs.

    Files, and parts of large ones, are read in the order of a hash of their names. Each is read
    from its beginning up to a share by its size, until there are enough sentences; those with the
    smallest hashes are taken. The folder of the files does not matter.

    Args:
        inputs: files of the corpus.
        config: of reading.
        max_sentences: number of sentences wanted; 0 = all of them.
        max_bad_share: of the records of each part; more is an error.
    """
    num_wanted = int(max_sentences * _OVERSAMPLING)
    num_bytes = max(sum(file.bytes for file in inputs), 1)
    found: dict[bytes, str] = {}
    for part in sorted(cut_large_files(inputs, config.format), key=_name):
        share = max(_LEAST_PER_PART, -(-num_wanted * part.bytes // num_bytes))
        num_read = 0
        for _, sentences in read_sentences(part, config, Tally(part.path, max_bad_share)):
            found.update((_hash(sentence), sentence) for sentence in sentences)
            num_read += len(sentences)
            if max_sentences and num_read >= share:
                break
        if max_sentences and len(found) >= num_wanted:
            break
    return [found[key] for key in sorted(found)[: max_sentences or None]]


def _name(part: InputPart) -> bytes:
    return _hash(f"{os.path.basename(part.path)} {part.start} {part.bytes}")


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()

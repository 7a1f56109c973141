"""A tokenizer from a corpus: its sentences are a sample by hash, without reading all of it."""

import dataclasses
import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

from data_prep.corpus import read_sentences
from data_prep.inputs import InputPart, resolve_inputs
from data_prep.prepare_config import TextConfig
from data_prep.readers.source import RecordTally
from data_prep.work_units import cut_large_files
from dist_bert.common import files
from dist_bert.tokenizer.config import TokenizerConfig
from dist_bert.tokenizer.tokenizer import Tokenizer, choose_normalization, train_tokenizer

_OVERSAMPLING = 1.25  # sentences read for each one wanted: some are duplicates
_LEAST_PER_PART = 64  # sentences: of many small files some are read whole, others not at all


def make_tokenizer(
    patterns: Sequence[str],
    text_config: TextConfig,
    max_bad_share: float,
    config: TokenizerConfig,
    output_dir: Path,
) -> None:
    """Samples sentences, trains, and writes the model with what it was made from.

    Args:
        patterns: of the files, as for `resolve_inputs`.
        text_config: of reading them.
        max_bad_share: of the records of a file.
        config: of the tokenizer.
        output_dir: gets tokenizer.model and tokenizer.json.

    Raises:
        UserError: files cannot be read, or the sentences do not suit the settings.
    """
    start = time.monotonic()
    written = [output_dir / name for name in ("tokenizer.model", "tokenizer.json")]
    inputs, layout = resolve_inputs(patterns, text_config.format, written)
    num_bytes = sum(file.bytes for file in inputs)
    print(f"reading  {len(inputs):,} files  {num_bytes / 1e6:.1f} MB", flush=True)
    found_config = dataclasses.replace(text_config, format=layout)
    sentences = sample_sentences(inputs, found_config, config.max_sentences, max_bad_share)
    read_seconds = time.monotonic() - start
    config = choose_normalization(sentences, config)
    print(
        f"training on {len(sentences):,} sentences, read in {read_seconds:.1f} s;"
        f" normalization {config.normalization}",
        flush=True,
    )
    path = train_tokenizer(sentences, output_dir, config)
    record = {
        "fingerprint": Tokenizer(path).fingerprint,
        **dataclasses.asdict(config),
        "input": patterns,
        "max_bad_share": max_bad_share,
        **dataclasses.asdict(text_config),
        "num_files": len(inputs),
        "num_sentences": len(sentences),
    }
    files.write_json(path.with_suffix(".json"), record)
    print(f"{path}: {config.vocab_size:,} pieces in {time.monotonic() - start:.1f} s")


def sample_sentences(
    inputs: Sequence[InputPart], config: TextConfig, max_sentences: int, max_bad_share: float
) -> list[str]:
    """Distinct sentences in an order that depends on nothing but the inputs.

    Files, and parts of large ones, are read in the order of a hash of their names, each for a
    share by its size from its beginning, until there are enough; of these the sentences with the
    smallest hashes are taken. The folder that the files lie in does not matter.

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
        for _, sentences in read_sentences(part, config, RecordTally(part.path, max_bad_share)):
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

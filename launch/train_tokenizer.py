"""Trains a SentencePiece tokenizer with BERT's special pieces.

    python launch/train_tokenizer.py --input 'text/**/*.txt' --output_dir data/tokenizer

Without --input, it reads the documentation of the installed Python packages.
"""

import argparse
import dataclasses
import json
import time

from data_prep.prepare_config import TextConfig, add_input_flags
from dist_bert.common.cli import Parser, local_path, run
from dist_bert.common.settings import add_flags, flags_of, resolve
from dist_bert.tokenizer.config import TokenizerConfig


def main(arguments: argparse.Namespace) -> None:
    """Samples sentences, trains, and writes the model with what it was made from."""
    config = resolve(TokenizerConfig, arguments.config, flags_of(TokenizerConfig, arguments))
    text_config = resolve(TextConfig, None, flags_of(TextConfig, arguments))
    source = {
        "input": arguments.input,
        "max_bad_share": arguments.max_bad_share,
        **dataclasses.asdict(text_config),
    }
    if arguments.dry_run:
        print(json.dumps({**source, **dataclasses.asdict(config)}, indent=2))
        return
    if arguments.preview:
        from data_prep.preview import show_preview

        show_preview(arguments.input, text_config, arguments.max_bad_share, arguments.preview)
        return
    from data_prep.inputs import resolve_inputs
    from data_prep.sampling import sample_sentences
    from dist_bert.common import files
    from dist_bert.tokenizer.tokenizer import Tokenizer, choose_normalization, train_tokenizer

    start = time.monotonic()
    written = [arguments.output_dir / name for name in ("tokenizer.model", "tokenizer.json")]
    inputs, layout = resolve_inputs(arguments.input, text_config.format, written)
    text_config = dataclasses.replace(text_config, format=layout)
    num_bytes = sum(file.bytes for file in inputs)
    print(f"reading  {len(inputs):,} files  {num_bytes / 1e6:.1f} MB", flush=True)
    sentences = sample_sentences(inputs, text_config, config.max_sentences, arguments.max_bad_share)
    num_sentences = len(sentences)
    read_seconds = time.monotonic() - start
    config = choose_normalization(sentences, config)
    print(
        f"training on {num_sentences:,} sentences, read in {read_seconds:.1f} s;"
        f" normalization {config.normalization}",
        flush=True,
    )
    path = train_tokenizer(sentences, arguments.output_dir, config)
    record = {
        "fingerprint": Tokenizer(path).fingerprint,
        **dataclasses.asdict(config),
        **source,
        "num_files": len(inputs),
        "num_sentences": num_sentences,
    }
    files.write_json(path.with_suffix(".json"), record)
    print(f"{path}: {config.vocab_size:,} pieces in {time.monotonic() - start:.1f} s")


if __name__ == "__main__":
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--output_dir", type=local_path, required=True, help="gets tokenizer.model and .json"
    )
    parser.add_argument("--config", metavar="FILE", help="JSON of the settings of TokenizerConfig")
    parser.add_argument(
        "--dry_run", action="store_true", help="print the resolved settings and stop"
    )
    add_input_flags(parser, TextConfig)
    add_flags(parser, TokenizerConfig)
    run(main, parser.parse_args())

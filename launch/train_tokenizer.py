"""Trains a SentencePiece tokenizer with BERT's special pieces.

    python launch/train_tokenizer.py --input 'text/**/*.txt' --output_dir data/tokenizer

Without --input, it reads the documentation of the installed Python packages.
"""

import argparse
import json

from data_prep.prepare_config import TextConfig, add_input_flags
from dist_bert.common.cli import Parser, local_path, run
from dist_bert.common.settings import add_flags, add_switch, flags_of, resolve
from dist_bert.tokenizer.config import TokenizerConfig


def main(arguments: argparse.Namespace) -> None:
    """Trains on a sample of the corpus; or shows the settings, or how the corpus is read."""
    config = resolve(TokenizerConfig, arguments.config, flags_of(TokenizerConfig, arguments))
    text_config = resolve(TextConfig, None, flags_of(TextConfig, arguments))
    if arguments.dry_run:
        source = {"input": arguments.input, "max_bad_share": arguments.max_bad_share}
        settings = {**source, **vars(text_config), **vars(config)}
        print(json.dumps(settings, indent=2))
        return
    corpus = (arguments.input, text_config, arguments.max_bad_share)
    if arguments.preview:
        from data_prep.preview import show_preview

        show_preview(*corpus, arguments.preview)
        return
    from data_prep.make_tokenizer import make_tokenizer

    make_tokenizer(*corpus, config, arguments.output_dir)


if __name__ == "__main__":
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--output_dir", type=local_path, required=True, help="gets tokenizer.model and .json"
    )
    parser.add_argument("--config", metavar="FILE", help="JSON of the settings of TokenizerConfig")
    add_switch(parser, "--dry_run", "print the resolved settings and stop")
    add_input_flags(parser, TextConfig)
    add_flags(parser, TokenizerConfig)
    run(main, parser.parse_args())

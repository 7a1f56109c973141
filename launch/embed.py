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

from dist_bert.common.cli import Parser, run
from dist_bert.common.settings import add_flags, add_switch, flags_of, resolve
from dist_bert.inference.embed_config import EmbedConfig
from dist_bert.inference.run_flags import add_run_flags, chosen_weights


def main(arguments: argparse.Namespace) -> None:
    """Embeds, prints similarities and writes the files that are asked for."""
    checkpoint = chosen_weights(arguments)
    config = resolve(EmbedConfig, None, flags_of(EmbedConfig, arguments))
    config.check()
    if arguments.dry_run:
        settings = {**vars(arguments), **vars(config), "checkpoint": str(checkpoint)}
        print(json.dumps(settings, indent=2))
        return
    from dist_bert.inference.attention import show_attention
    from dist_bert.inference.similarities import show_vectors
    from dist_bert.inference.text_batches import given_texts, require_utf8
    from dist_bert.inference.trained_run import TrainedRun

    texts = given_texts(arguments.text, arguments.input)
    if config.word is not None:
        require_utf8(config.word, "--word")
    trained = TrainedRun.load(checkpoint, is_average=arguments.average)
    if config.attention:
        two = list(itertools.islice(texts, 2))  # the second would be one too many
        show_attention(trained, two, config.layer, config.head, config.attention)
    else:
        show_vectors(trained, texts, config)


if __name__ == "__main__":
    parser = Parser(description=__doc__)
    parser.add_argument("text", nargs="*", help="sentence")
    parser.add_argument(
        "--input", metavar="FILE", help="file of sentences, one a line; - for stdin"
    )
    add_run_flags(parser)
    add_switch(parser, "--dry_run", "print what would be embedded")
    add_flags(parser, EmbedConfig)
    run(main, parser.parse_args())

r"""Turns text into shards of ready-made samples, on any number of MPI ranks with the same result.

    mpiexec -n 4 python -m mpi4py launch/prepare_shards.py --input 'text/**/*.txt' \
        --tokenizer data/tokenizer/tokenizer.model --output_dir data/shards

Without --input, it reads the documentation of the installed Python packages.
"""

import argparse
import json

from data_prep import prepare_config
from data_prep.prepare_config import PrepareConfig
from dist_bert.common.cli import Parser, is_first_rank, local_path, run
from dist_bert.common.settings import add_switch, flags_of


def main(arguments: argparse.Namespace) -> None:
    """Resolves the settings and prepares the data sets."""
    data_sets = prepare_config.resolve_data_sets(
        arguments.output_dir, arguments.config, flags_of(PrepareConfig, arguments)
    )
    token_store = arguments.token_store or arguments.output_dir / "token_store"
    if arguments.dry_run:
        places = {"input": arguments.input, "tokenizer": arguments.tokenizer}
        names = ("max_bad_share", "allow_lost_tokens", "allow_random_next")
        accepted = {name: getattr(arguments, name) for name in names}
        told = [
            {**places, "output_dir": o, "token_store": token_store, **accepted, **vars(config)}
            for o, config in data_sets.items()
        ]
        if is_first_rank():
            print(json.dumps(told if len(told) > 1 else told[0], indent=2, default=str))
        return
    if arguments.preview:
        from data_prep.preview import show_preview

        if is_first_rank():
            config = next(iter(data_sets.values()))  # documents are read alike for all
            show_preview(arguments.input, config, arguments.max_bad_share, arguments.preview)
        return
    from data_prep.limits import Limits
    from data_prep.prepare import prepare

    allowed = (arguments.allow_lost_tokens, arguments.allow_random_next)
    limits = Limits(arguments.max_bad_share, *allowed)
    tokenizer = arguments.tokenizer
    prepare(arguments.input, tokenizer, token_store, data_sets, limits, arguments.log_dir)


if __name__ == "__main__":
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--tokenizer",
        type=local_path,
        required=True,
        help="file from train_tokenizer.py or import_model.py, or any SentencePiece model",
    )
    parser.add_argument("--output_dir", type=local_path, required=True, help="folder of the shards")
    parser.add_argument(
        "--token_store",
        type=local_path,
        help="folder of encoded text, kept for other data sets (default: OUTPUT_DIR/token_store)",
    )
    parser.add_argument("--log_dir", type=local_path, help="folder that gets a log of every rank")
    parser.add_argument("--config", metavar="FILE", help="JSON of the settings below")
    add_switch(parser, "--dry_run", "print the resolved settings and stop")
    prepare_config.add_limit_flags(parser)
    prepare_config.add_input_flags(parser, PrepareConfig)
    run(main, parser.parse_args())

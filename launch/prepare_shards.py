r"""Turns text into shards of ready-made samples, on any number of MPI ranks with the same result.

    mpiexec -n 4 python -m mpi4py launch/prepare_shards.py --input 'text/**/*.txt' \
        --tokenizer data/tokenizer/tokenizer.model --output_dir data/shards

Without --input, it reads the documentation of the installed Python packages.
"""

import argparse
import dataclasses
import json

from data_prep.prepare_config import PrepareConfig, add_input_flags, add_limit_flags
from dist_bert.common.cli import Parser, is_first_rank, local_path, run
from dist_bert.common.settings import add_switch, flags_of, resolve


def main(arguments: argparse.Namespace) -> None:
    """Resolves the settings and prepares the data set."""
    config = resolve(PrepareConfig, arguments.config, flags_of(PrepareConfig, arguments))
    token_store = arguments.token_store or arguments.output_dir / "token_store"
    if arguments.dry_run:
        inputs = {"input": arguments.input, "tokenizer": str(arguments.tokenizer)}
        outputs = {"output_dir": str(arguments.output_dir), "token_store": str(token_store)}
        limit_names = ("max_bad_share", "allow_lost_tokens", "allow_random_next")
        accepted = {name: getattr(arguments, name) for name in limit_names}
        if is_first_rank():
            settings = dataclasses.asdict(config)
            print(json.dumps({**inputs, **outputs, **accepted, **settings}, indent=2))
        return
    if arguments.preview:
        from data_prep.preview import show_preview

        if is_first_rank():
            show_preview(arguments.input, config, arguments.max_bad_share, arguments.preview)
        return
    from data_prep.data_set import Paths
    from data_prep.limits import Limits
    from data_prep.prepare import prepare

    paths = Paths(arguments.tokenizer, arguments.output_dir, token_store)
    limits = Limits(
        arguments.max_bad_share, arguments.allow_lost_tokens, arguments.allow_random_next
    )
    prepare(arguments.input, paths, config, limits, arguments.log_dir)


if __name__ == "__main__":
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--tokenizer",
        type=local_path,
        required=True,
        help="file from train_tokenizer.py or import_model.py, or any SentencePiece model",
    )
    parser.add_argument(
        "--output_dir", type=local_path, required=True, help="folder of the data set"
    )
    parser.add_argument(
        "--token_store",
        type=local_path,
        help="folder of encoded text, kept for other data sets (default: OUTPUT_DIR/token_store)",
    )
    parser.add_argument("--log_dir", type=local_path, help="folder that gets a log of every rank")
    parser.add_argument("--config", metavar="FILE", help="JSON of the settings below")
    add_switch(parser, "--dry_run", "print the resolved settings and stop")
    add_limit_flags(parser)
    add_input_flags(parser, PrepareConfig)
    run(main, parser.parse_args())

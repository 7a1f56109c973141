"""Makes a published BERT usable here: evaluate, fill masks, embed, fine-tune, pretrain further.

    python launch/import_model.py --input downloads/bert-base-uncased --output_dir models/bert_base

The input is a folder in Hugging Face layout: config.json, safetensors, and vocab.txt or
tokenizer.json (WordPiece, or ModernBERT's byte-level BPE). What comes out is compared with what
transformers makes of it before it appears.
"""

import argparse
import json

from dist_bert.checkpoint.weight_source import WeightSource
from dist_bert.common.cli import Parser, local_path, run
from dist_bert.common.errors import UserError
from dist_bert.common.settings import add_flags, add_switch, flags_of, resolve
from dist_bert.huggingface.config import ImportConfig


def main(arguments: argparse.Namespace) -> None:
    """Finds the weights, checks that they can be imported, and imports them."""
    config = resolve(ImportConfig, None, flags_of(ImportConfig, arguments))
    source = WeightSource.find(arguments.input, "--input")
    if not source.is_published or not arguments.input.is_dir():
        raise UserError(
            f"--input {arguments.input}: is a run or a single file, must be a folder in Hugging"
            " Face layout; a run is used as it is"
        )
    if arguments.dry_run:
        files = [str(path) for path in source.tensor_files]
        settings = {**vars(arguments), **vars(config), "tensor_files": files}
        print(json.dumps(settings, indent=2, default=str))
        return
    from dist_bert.huggingface.folder import check_new_folder

    check_new_folder(arguments.output_dir)
    from dist_bert.huggingface.import_model import import_model

    print(f"importing  {arguments.input}", flush=True)
    import_model(source, arguments.output_dir, config.sample_text, config.allow_differences)
    print(
        f"{arguments.output_dir}: give it as --checkpoint or --init_from, and"
        f" {arguments.output_dir}/tokenizer.model to launch/prepare_shards.py"
    )


if __name__ == "__main__":
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--input", type=local_path, required=True, metavar="DIR", help="folder of a published BERT"
    )
    parser.add_argument(
        "--output_dir", type=local_path, required=True, metavar="DIR", help="is missing or empty"
    )
    add_switch(parser, "--dry_run", "print what would be done and stop")
    add_flags(parser, ImportConfig)
    run(main, parser.parse_args())

"""Applies a fine-tuned model to new examples: JSON lines in, JSON lines out, in their order.

    python launch/predict.py --checkpoint runs/pairs --input new.jsonl --output answers.jsonl

A line of input: {"text_a": ..., "text_b": ...}, {"text": ...}, {"id": ..., "question": ...,
"context": ...} or {"words": [...]}. All layouts of training files can be read too, with the same
flags. A bad row is an error, unless --max_bad_share allows it: behind one that is left out, answers
no longer stand in the lines of their rows.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dist_bert.common import files
from dist_bert.common.cli import Parser, check_output_file, run
from dist_bert.common.settings import add_flags, add_switch, flags_of, resolve
from dist_bert.finetuning.readers import ReadConfig, read_examples


def main(arguments: argparse.Namespace) -> None:
    """Loads the model, reads the examples, writes an answer for each."""
    read = resolve(ReadConfig, None, flags_of(ReadConfig, arguments))
    if arguments.dry_run:
        names = ("checkpoint", "input", "output")
        settings = {name: getattr(arguments, name) for name in names}
        print(json.dumps({**settings, **dataclasses.asdict(read)}, indent=2))
        return
    check_output_file(arguments.output, "--output")
    from dist_bert.finetuning.predict import FineTunedModel  # takes seconds

    model = FineTunedModel.load(arguments.checkpoint)
    labelled = read_examples(model.task_name, arguments.input, read, is_labelled=False)
    for line in labelled.summary():
        print(line, file=sys.stderr)
    lines = _lines(model.answers(labelled.examples))
    if arguments.output == "-":
        for line in lines:
            print(line, end="", flush=True)
    else:
        files.write_bytes(Path(arguments.output), "".join(lines).encode())


def _lines(answers: Iterable[dict[str, Any]]) -> Iterable[str]:
    return map(files.json_line, answers)


if __name__ == "__main__":
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--checkpoint", required=True, help="--output_dir of a run of launch/finetune.py"
    )
    parser.add_argument("--input", required=True, metavar="FILE", help="the examples")
    parser.add_argument(
        "--output", default="-", metavar="FILE", help="the answers (default: -, standard output)"
    )
    add_switch(parser, "--dry_run", "print the settings and stop")
    add_flags(parser, ReadConfig, max_bad_share=0.0)
    run(main, parser.parse_args())

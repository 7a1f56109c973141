"""Says what a run will need and take before it is queued: memory, hours, traffic, scaling, disk.

    python launch/plan.py --gpus 64 --gpu H200 --deepspeed_config configs/zero2.json \
        --sequence_length 128 --train_batch_size 4096 --train_micro_batch_size_per_gpu 64

takes the flags of launch/pretrain.py beside its own. Nothing is measured: what it assumes of MFU,
links and disk is printed with it.
"""

import argparse
import json

from dist_bert.common.cli import Parser, check_output_file, run
from dist_bert.tools.plan.flags import add_plan_flags


def main(arguments: argparse.Namespace) -> None:
    """Resolves the settings, prints the plan and writes it as JSON where asked."""
    from dist_bert.common.files import write_json
    from dist_bert.tools.plan.assumptions import Assumptions

    assumptions = Assumptions.of(arguments)
    if arguments.dry_run:
        print(json.dumps(assumptions.settings(), indent=2))
        return
    check_output_file(arguments.json, "--json")
    if arguments.picture:
        from dist_bert.common.pictures import check_picture

        check_output_file(arguments.picture, "--picture")
        check_picture(arguments.picture, "--picture")
    plan, text = assumptions.plan()
    if arguments.picture:
        assumptions.draw(arguments.picture)
    print(text)
    if arguments.json:
        write_json(arguments.json, {"settings": assumptions.settings(), "plan": plan})


if __name__ == "__main__":
    parser = Parser(description=__doc__)
    add_plan_flags(parser)
    run(main, parser.parse_args())

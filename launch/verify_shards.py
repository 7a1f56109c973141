"""Checks a data set: every byte against the manifest, every sample against the format's rules.

    python launch/verify_shards.py data/shards --show 3
    python launch/verify_shards.py s3://bucket/shards --local_cache /scratch/shards

Ends with exit code 2 and one line that names shard, block and sample if anything is wrong.
"""

import argparse

from dist_bert.common.cli import Parser, add_cache_flags, run
from dist_bert.common.redaction import redacted


def main(arguments: argparse.Namespace) -> None:
    """Verifies, shows samples where asked, and prints the statistics."""
    from data_prep.verify import show, verify
    from dist_bert.data.shard_format import SPLITS
    from dist_bert.data.shard_source import ShardSource

    source = ShardSource(arguments.place, arguments.local_cache, arguments.local_cache_gib)
    manifest = verify(source, report=lambda text: print(text, flush=True))
    for text in show(source, arguments.show):
        print(f"\n{text}")
    print()
    for split in SPLITS:  # whose counts have been compared
        statistics = manifest.statistics[split]
        named = statistics.get("shares", {}).items()
        shares = "  ".join(f"{name} {value:.4g}" for name, value in named)
        print(f"{split}: {statistics['num_samples']:,} samples  {shares}")
    print(f"{redacted(arguments.place)}: is whole, and keeps every rule of the format")


if __name__ == "__main__":
    parser = Parser(description=__doc__)
    parser.add_argument("place", metavar="DIR", help="folder or URL of the data set")
    add_cache_flags(parser)
    parser.add_argument("--show", type=int, default=0, help="training samples to print as text")
    run(main, parser.parse_args())

"""The folder of a data set: claimed before the work, sealed by its manifest after it."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_prep.dealing import Split
from data_prep.prepare_config import PrepareConfig
from data_prep.samples import SampleStatistics
from data_prep.token_store import UnitRecord
from dist_bert import files
from dist_bert.config import read_json
from dist_bert.errors import UserError
from dist_bert.shard_format import MANIFEST_NAME, SPLITS, TOKENIZER_NAME, Manifest, ShardRecord
from dist_bert.tokenizer import Tokenizer

CLAIM_NAME = "preparation.json"  # what the shards are made from; written before them


@dataclasses.dataclass(frozen=True)
class Paths:
    """What a preparation reads and writes."""

    tokenizer: Path
    output_dir: Path
    token_store: Path


@dataclasses.dataclass(frozen=True, eq=False)
class BuiltShard:
    """A finished shard file and what was counted while making it."""

    split: str
    record: ShardRecord
    statistics: SampleStatistics


def is_finished(output_dir: Path, identity: dict[str, Any]) -> bool:
    """Whether the data set is in the folder already, complete.

    Args:
        output_dir: need not exist.
        identity: name -> value of all that the data set depends on.

    Raises:
        UserError: the folder holds another data set, or the beginning of one; tells the difference.
    """
    has_manifest = (output_dir / MANIFEST_NAME).exists()
    if (output_dir / CLAIM_NAME).exists():
        there = read_json(output_dir / CLAIM_NAME)
        different = [
            f"{name} = {there.get(name)!r} there, {identity.get(name)!r} asked for"
            for name in {**there, **identity}
            if there.get(name) != identity.get(name)
        ]
    else:
        different = [f"its {CLAIM_NAME} is missing"] if has_manifest else []
    if different:
        raise UserError(
            f"--output_dir {output_dir}: holds another data set ({'; '.join(different)}); give"
            " another folder, or remove this one"
        )
    return has_manifest


def claim(output_dir: Path, identity: dict[str, Any]) -> None:
    """Makes a folder this data set's own, before its first shard."""
    output_dir.mkdir(parents=True, exist_ok=True)
    files.write_json(output_dir / CLAIM_NAME, identity)


def seal(
    paths: Paths,
    config: PrepareConfig,
    tokenizer: Tokenizer,
    units: Sequence[UnitRecord],
    splits: Sequence[Split],
    shards: Sequence[BuiltShard],
) -> Manifest:
    """Writes the tokenizer and then the manifest, which makes the data set a finished one."""
    statistics = {name: SampleStatistics() for name in SPLITS}
    drops: Counter[str] = Counter()
    for unit in units:
        drops.update(unit.drops)
    for shard in shards:
        statistics[shard.split].add(shard.statistics)
    manifest = Manifest(
        config=dataclasses.asdict(config),
        tokenizer={
            "fingerprint": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
            "special_ids": tokenizer.special_ids,
            "num_reserved_pieces": tokenizer.num_reserved_pieces,
        },
        inputs=[file for unit in units for file in unit.inputs],
        totals={
            "documents": sum(u.num_documents for u in units),
            **{f"{split.name}_documents": split.num_documents for split in splits},
            "sentences": sum(u.num_sentences for u in units),
            "tokens": sum(u.num_tokens for u in units),
            "text_bytes": sum(u.text_bytes for u in units),
            "samples": sum(s.num_samples for s in statistics.values()),
            "drops": dict(sorted(drops.items())),
        },
        statistics={name: counts.to_json() for name, counts in statistics.items()},
        splits={name: tuple(s.record for s in shards if s.split == name) for name in SPLITS},
    )
    files.write_bytes(paths.output_dir / TOKENIZER_NAME, paths.tokenizer.read_bytes())
    manifest.save(paths.output_dir)
    return manifest


def summary(manifest: Manifest, seconds: float) -> str:
    """What a user wants to know of a finished data set, in a few lines."""
    totals, train = manifest.totals, manifest.statistics["train"]
    num_bytes = sum(shard.bytes for shards in manifest.splits.values() for shard in shards)
    counts = [f"{manifest.statistics[s]['num_samples']:,} {s}" for s in SPLITS]
    rows = {
        "documents": f"{totals['documents']:,} ({totals['validation_documents']:,} held out)",
        "dropped": ", ".join(f"{n:,} {reason}" for reason, n in totals["drops"].items()) or "none",
        "sentences": f"{totals['sentences']:,}",
        "tokens": f"{totals['tokens']:,} of {totals['text_bytes'] / 1e6:.1f} MB of text",
        "samples": f"{' + '.join(counts)} in {sum(map(len, manifest.splits.values())):,} shards",
        "masked": f"{train['shares']['masked']:.2%} of train tokens",
        "random next": f"{train['shares']['random_next']:.2%} of train samples",
        "bytes a sample": f"{num_bytes / totals['samples']:.0f}",
        "seconds": f"{seconds:.1f}",
    }
    return "\n".join(f"{name:<15} {value}" for name, value in rows.items())

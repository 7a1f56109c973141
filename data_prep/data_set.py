"""The folder of a data set: claimed before the work, completed by writing its manifest."""

import contextlib
import dataclasses
import fcntl
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from data_prep.inputs import InputPart
from data_prep.prepare_config import PrepareConfig
from data_prep.samples import SampleStatistics
from data_prep.shard_assignment import Split
from data_prep.token_store import TokenStore, UnitRecord
from dist_bert.common import files
from dist_bert.common.errors import UserError
from dist_bert.common.settings import read_json
from dist_bert.data import document_sketch
from dist_bert.data.document_sketch import SKETCH_SIZE
from dist_bert.data.shard_format import MANIFEST_NAME, SPLITS, TOKENIZER_NAME, Manifest, ShardRecord
from dist_bert.tokenizer.tokenizer import Tokenizer

CLAIM_NAME = "preparation.json"  # what the data set is made from; written first
_MOST_NAMED = 20  # bad records over all files
WORK_FOLDER = "work"  # in the output folder until the data set is finished


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


def written_files(paths: Paths, log_dir: Path | None) -> list[Path]:
    """Files that preparations with these paths read or wrote, none of them corpus text.

    Folders that may also hold other files are not among them.
    """
    output_dir = paths.output_dir
    written = [paths.tokenizer, paths.tokenizer.with_suffix(".json"), output_dir / WORK_FOLDER]
    written += paths.token_store.glob("unit-*")
    if log_dir is not None:
        written += log_dir.glob("rank-*.log")
    if (output_dir / CLAIM_NAME).exists():  # otherwise files of these names belong to someone else
        written += [output_dir / name for name in (CLAIM_NAME, MANIFEST_NAME, TOKENIZER_NAME)]
        for split in SPLITS:
            written += output_dir.glob(f"{split}-*.tar")
    return written


def check_apart(output_dir: Path, inputs: Iterable[InputPart]) -> None:
    """Checks that no input is among the files that the data set replaces.

    Raises:
        UserError: one of them is.
    """
    folder = os.path.realpath(output_dir)
    for part in inputs:
        path = os.path.realpath(part.path)
        if os.path.dirname(path) == folder and path.endswith(".tar"):
            raise UserError(
                f"--output_dir {output_dir}: holds the input {part.path}, but all tar files there"
                " that do not belong to the data set are removed; give another folder"
            )


def is_finished(output_dir: Path, identity: dict[str, Any]) -> bool:
    """Whether the folder already holds the complete data set.

    Args:
        output_dir: need not exist.
        identity: name -> value of everything the data set depends on.

    Raises:
        UserError: the folder holds another data set, or part of one; names the differences.
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
    """Reserves a folder for this data set before any work."""
    (output_dir / WORK_FOLDER).mkdir(parents=True, exist_ok=True)
    files.write_json(output_dir / CLAIM_NAME, identity)


def unclaim(output_dir: Path) -> None:
    """Releases the folder of a data set that cannot be made, unless it already holds shards."""
    if not any(output_dir.glob("*.tar")):
        remove_work(output_dir)
        (output_dir / CLAIM_NAME).unlink(missing_ok=True)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Locks a folder for this process, creates it if missing, and removes temporary files.

    These are what a killed process was writing; its lock ended with it.

    Raises:
        UserError: another process is working in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UserError(
            f"{folder}: another preparation is writing there; wait for it, or give another folder"
        ) from None
    except OSError:  # a file system without locks: the user must take care
        pass
    try:
        for temporary in folder.glob(".*.tmp"):
            if temporary.is_dir():
                shutil.rmtree(temporary)
            else:
                temporary.unlink()
        yield
    finally:
        os.close(descriptor)


def keep_shard(output_dir: Path, shard: BuiltShard, fingerprint: str) -> None:
    """Records a finished shard, so that a restarted preparation skips it."""
    value = {
        "fingerprint": fingerprint,
        "split": shard.split,
        "record": shard.record.to_json(),
        "statistics": shard.statistics.to_json(),
    }
    files.write_json(_shard_record_path(output_dir, shard.record.file), value, indent=None)


def kept_shard(output_dir: Path, file: str, fingerprint: str) -> BuiltShard | None:
    """A shard finished earlier, if the fingerprint of what it was made from matches."""
    path = _shard_record_path(output_dir, file)
    if not path.exists():
        return None
    value = read_json(path)
    record = ShardRecord.from_json(value["record"])
    shard = output_dir / file
    is_there = shard.exists() and shard.stat().st_size == record.bytes
    if value["fingerprint"] != fingerprint or not is_there:
        return None
    return BuiltShard(value["split"], record, SampleStatistics.from_json(value["statistics"]))


def _shard_record_path(output_dir: Path, file: str) -> Path:
    return output_dir / WORK_FOLDER / f"{Path(file).stem}.json"


def seal(
    paths: Paths,
    config: PrepareConfig,
    tokenizer: Tokenizer,
    store: TokenStore,
    units: Sequence[UnitRecord],
    splits: Sequence[Split],
    shards: Sequence[BuiltShard],
) -> Manifest:
    """Writes the tokenizer and then the manifest, which completes the data set."""
    statistics = {name: SampleStatistics() for name in SPLITS}
    drops: Counter[str] = Counter()
    removed: Counter[str] = Counter()
    bad_records: Counter[str] = Counter()
    mended: Counter[str] = Counter()
    for unit in units:
        drops.update(unit.drops)
        removed.update(unit.removed_characters)
        bad_records.update(unit.bad_records)
        mended.update(unit.mended)
    num_duplicates = sum(u.num_documents for u in units) - sum(s.num_documents for s in splits)
    if num_duplicates:
        drops["duplicate"] = num_duplicates
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
            "document_sketch": document_sketch.encoded(store.smallest_hashes(SKETCH_SIZE)),
            **{f"{split.name}_documents": split.num_documents for split in splits},
            "sentences": sum(u.num_sentences for u in units),
            "tokens": sum(u.num_tokens for u in units),
            "text_bytes": sum(u.text_bytes for u in units),
            "samples": sum(s.num_samples for s in statistics.values()),
            "drops": dict(sorted(drops.items())),
            "removed_characters": dict(sorted(removed.items())),
            "bad_records": dict(sorted(bad_records.items())),
            "mended": dict(sorted(mended.items())),
            "first_bad_records": [u.first_bad for u in units if u.first_bad][:_MOST_NAMED],
        },
        statistics={name: counts.to_json() for name, counts in statistics.items()},
        splits={name: tuple(s.record for s in shards if s.split == name) for name in SPLITS},
    )
    files.write_bytes(paths.output_dir / TOKENIZER_NAME, tokenizer.content)
    records = (record for shards in manifest.splits.values() for record in shards)
    files_of_set = {record.file for record in records}
    for path in paths.output_dir.glob("*.tar"):
        if path.name not in files_of_set:  # made from text that has changed since
            path.unlink()
    manifest.save(paths.output_dir)
    remove_work(paths.output_dir)
    return manifest


def remove_work(output_dir: Path) -> None:
    """Removes files that only an unfinished data set needs."""
    shutil.rmtree(output_dir / WORK_FOLDER, ignore_errors=True)


def summary(manifest: Manifest, seconds: float) -> str:
    """Summary of a finished data set for users, in a few lines."""
    totals, train = manifest.totals, manifest.statistics["train"]
    removed = totals["removed_characters"]
    num_bytes = sum(shard.bytes for shards in manifest.splits.values() for shard in shards)
    counts = [f"{manifest.statistics[s]['num_samples']:,} {s}" for s in SPLITS]
    rows = {
        "documents": f"{totals['documents']:,} ({totals['validation_documents']:,} held out)",
        "dropped": _counts(totals["drops"]),
        **({"characters": f"{_counts(removed)} removed"} if removed else {}),
        "bad records": _counts(totals["bad_records"]),
        "sentences": f"{totals['sentences']:,}",
        "tokens": f"{totals['tokens']:,} of {totals['text_bytes'] / 1e6:.1f} MB of text",
        "samples": f"{' + '.join(counts)} in {sum(map(len, manifest.splits.values())):,} shards",
        "masked": f"{train['shares']['masked']:.2%} of train tokens",
        "in no sample": f"{train['shares']['lost']:.2%} of train tokens",
        "cut sentences": f"{train['num_cuts_in_sentences']:,} times inside, for train samples",
        **_pair_row(manifest.config["pair_objective"], train["shares"]["random_next"]),
        "bytes a sample": f"{num_bytes / totals['samples']:.0f}",
        "seconds": f"{seconds:.1f}",
    }
    if totals["mended"]:
        rows["mended"] = _counts(totals["mended"])
    if totals["first_bad_records"]:
        rows["first bad"] = totals["first_bad_records"][0]
    return "\n".join(f"{name:<15} {value}" for name, value in rows.items())


def _pair_row(objective: str, share: float) -> dict[str, str]:
    names = {"nsp": "random next", "sop": "swapped"}
    return {names[objective]: f"{share:.2%} of train samples"} if objective in names else {}


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{number:,} {reason}" for reason, number in counts.items()) or "none"

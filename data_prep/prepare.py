"""Text to shards: plan, tokenise; then deal, build, seal for each length of samples.

    plan      rank 0 lists the inputs, cuts them into units and shares the plan with all ranks
    tokenise  every unit of the token store is made by one rank (`data_prep.token_store`)
    deal      duplicates are found, documents split and listed (`data_prep.shard_assignment`)
    build     documents are assigned to shards, each made by one rank (`data_prep.samples`)
    seal      rank 0 writes the manifest, which completes the data set (`data_prep.data_set`)

Every result depends only on the inputs and the configuration: any number of ranks writes equal
bytes. Finished work is kept: a killed run can resume on any number of ranks.
"""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from data_prep import data_set, shard_assignment
from data_prep.clauses import PieceBorders
from data_prep.data_set import BuiltShard, Paths
from data_prep.duplicates import FirstDocuments, num_ranges, write_first_documents
from data_prep.limits import Limits, check
from data_prep.mpi_ranks import MpiRanks, connect
from data_prep.plan import Plan, Target, make_plan
from data_prep.prepare_config import PrepareConfig
from data_prep.progress import StageProgress
from data_prep.samples import SampleRecipe, SampleStatistics, build_blocks
from data_prep.shard_assignment import Split, SplitCounts
from data_prep.stored_units import sound_units
from data_prep.token_store import TokenStore, UnitRecord, make_unit, unit_fingerprint, unit_folder
from dist_bert.common import files
from dist_bert.common.errors import UserError
from dist_bert.data.shard_format import SPLITS, FieldTypes, Manifest, write_shard
from dist_bert.tokenizer.tokenizer import CLS_ID, SEP_ID, Tokenizer

T = TypeVar("T")


def prepare(
    patterns: Sequence[str],
    tokenizer_path: Path,
    token_store: Path,
    data_sets: Mapping[Path, PrepareConfig],
    limits: Limits,
    log_dir: Path | None = None,
) -> None:
    """Makes one data set, or several of other lengths; all ranks of an MPI launch call it together.

    Several share the encoded text; each has the bytes that it would have if it was made alone.

    Args:
        patterns: of the input files; empty = the documentation of the installed packages.
        tokenizer_path: its model.
        token_store: folder of the encoded text.
        data_sets: folder -> its configuration; they differ in `sequence_length` alone.
        limits: a data set beyond them is not completed, nor are those that follow it.
        log_dir: receives a log of every rank.

    Raises:
        UserError: on all ranks; the inputs, tokenizer or output folder are unusable, or the samples
            are beyond the limits: finished work is kept, so a retry with higher ones is cheap.
    """
    start = time.monotonic()
    all_paths = {Paths(tokenizer_path, folder, token_store): c for folder, c in data_sets.items()}
    with connect() as ranks, contextlib.ExitStack() as locks:
        if log_dir:
            ranks.each(lambda: _log_to(log_dir / f"rank-{ranks.rank:05d}.log"))
        plan = ranks.share(lambda: make_plan(patterns, all_paths, log_dir))
        for target in plan.targets:
            if target.is_finished and ranks.is_first:
                folder = target.paths.output_dir
                data_set.remove_work(folder)
                print(f"{folder}: is finished already, from this text, with this config")
        if not plan.unfinished:
            return
        ranks.share(lambda: _begin(plan, locks))
        tokenizer = ranks.each(lambda: Tokenizer(tokenizer_path, may_renumber=True))
        try:
            records = _tokenise(ranks, plan, token_store, tokenizer, limits.max_bad_share)
            num_documents = ranks.share(lambda: _count_documents(records, plan.unfinished))
            store = TokenStore(token_store, num_documents)
            for target in plan.unfinished:
                if len(plan.targets) > 1 and ranks.is_first:
                    length = target.config.sequence_length
                    print(
                        f"\n{target.paths.output_dir}: samples of up to {length:,} tokens",
                        flush=True,
                    )
                manifest = _make(ranks, target, store, records, tokenizer, limits)
                if ranks.is_first:
                    print(data_set.summary(manifest, time.monotonic() - start), flush=True)
                start = time.monotonic()
        except UserError:
            if ranks.is_first:
                for target in plan.unfinished:
                    data_set.unclaim(target.paths.output_dir)
            raise


def _log_to(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    form = "%(asctime)s %(levelname)s %(message)s"
    logging.basicConfig(filename=path, level=logging.INFO, format=form, encoding="utf-8")


def _begin(plan: Plan, locks: contextlib.ExitStack) -> None:
    """Takes the folders of all data sets before any work."""
    for folder in {f for t in plan.unfinished for f in (t.paths.output_dir, t.paths.token_store)}:
        locks.enter_context(data_set.locked(folder))
    for target in plan.unfinished:
        data_set.claim(target.paths.output_dir, target.identity)


def _resume(
    ranks: MpiRanks,
    progress: StageProgress,
    sizes: Sequence[int],
    find: Callable[[int], T | None],
    work: Callable[[int], T],
) -> list[T]:
    """Does the items that are not yet done; returns the results of all items on rank 0."""
    done: dict[int, T] = {}  # on rank 0

    def list_missing() -> list[int]:
        found = ((i, find(i)) for i in range(len(sizes)))
        done.update((i, result) for i, result in found if result is not None)
        progress.begin(len(sizes), len(done), sum(sizes) - sum(sizes[i] for i in done))
        return [i for i in range(len(sizes)) if i not in done]

    missing = ranks.share(list_missing)
    made = ranks.run(
        progress.noun,
        [sizes[i] for i in missing],
        lambda item: work(missing[item]),
        lambda item, _: progress.add(sizes[missing[item]]),
    )
    if not ranks.is_first:
        return []
    done.update(zip(missing, made, strict=True))
    return [done[i] for i in range(len(sizes))]


def _tokenise(
    ranks: MpiRanks, plan: Plan, token_store: Path, tokenizer: Tokenizer, max_bad_share: float
) -> list[UnitRecord]:
    progress = StageProgress("tokenise", "units")
    config = plan.targets[0].config  # as a `TextConfig` that of all
    folders = [unit_folder(token_store, unit) for unit in range(len(plan.units))]
    wanted = [unit_fingerprint(unit, config, tokenizer.fingerprint) for unit in plan.units]
    sizes = [sum(part.bytes for part in unit) for unit in plan.units]
    found = sound_units(ranks, folders, wanted, sizes)

    def breathe(num_bytes: int) -> None:
        ranks.breathe()
        if ranks.is_first:  # which has the largest unit
            progress.tick(num_bytes)

    def work(unit: int) -> UnitRecord:
        return make_unit(
            folders[unit],
            plan.units[unit],
            config,
            tokenizer,
            max_bad_share=max_bad_share,
            breathe=breathe,
        )

    return _resume(ranks, progress, sizes, found.get, work)


def _count_documents(records: list[UnitRecord], targets: Sequence[Target]) -> list[int]:
    """Number of documents of each unit; raises an error if no samples can be made of them."""
    config = max((target.config for target in targets), key=lambda c: c.sequence_length)
    num_documents = sum(r.num_documents for r in records)
    if num_documents == 0:
        raise UserError("--input: the corpus is empty, no file contains text; give files that do")
    if num_documents == 1 and config.pair_objective == "nsp":
        raise UserError(
            "--input: the corpus is a single document, but a random next sentence must come from"
            " another one; give more files, --format sentences if it has one sentence per line and"
            " no documents, or --format blank_line or lines if a blank line ends a document"
        )
    num_single = sum(r.num_single_sentence_documents for r in records)
    is_short = _tokens_per_document(records) <= config.max_text_tokens // 2  # otherwise it is cut
    if num_single == num_documents and is_short and config.pair_objective != "none":
        raise UserError(
            "--input: every document is a single sentence, so no sentence has a next one; give"
            " longer documents, --format lines if a line is a sentence and a blank line ends a"
            " document, or --pair_objective none"
        )
    return [r.num_documents for r in records]


def _check_limits(
    shards: list[BuiltShard], config: PrepareConfig, limits: Limits, output_dir: Path
) -> None:
    total = SampleStatistics()
    for shard in shards:
        total.add(shard.statistics)
    check(total, config, limits, output_dir)


def _make(
    ranks: MpiRanks,
    target: Target,
    store: TokenStore,
    records: list[UnitRecord],
    tokenizer: Tokenizer,
    limits: Limits,
) -> Manifest:
    """Makes a data set from the encoded text; returns its manifest, on all ranks."""
    paths, config = target.paths, target.config
    tokens_per_document = ranks.share(lambda: _tokens_per_document(records))
    splits = _deal(ranks, store, paths, config, tokens_per_document)
    shards = _build(ranks, store, splits, records, paths, tokenizer, config)
    ranks.share(lambda: _check_limits(shards, config, limits, paths.output_dir))
    return ranks.share(
        lambda: data_set.seal(paths, config, tokenizer, store, records, splits, shards)
    )


def _tokens_per_document(records: list[UnitRecord]) -> float:
    return sum(r.num_tokens for r in records) / sum(r.num_documents for r in records)


def _deal(
    ranks: MpiRanks,
    store: TokenStore,
    paths: Paths,
    config: PrepareConfig,
    tokens_per_document: float,
) -> tuple[Split, Split]:
    """Lists the documents of both splits."""
    folder = paths.output_dir / data_set.WORK_FOLDER
    num_documents = [int(n) for n in np.diff(store.first_document)]
    first_documents = None
    if config.deduplicate:
        ranges = [1] * num_ranges(sum(num_documents))
        ranks.run(
            "hash range", ranges, lambda i: write_first_documents(folder, store, i), _no_report
        )
        first_documents = FirstDocuments(folder, store)
    limit = ranks.share(lambda: shard_assignment.hash_limit(store, config.validation_share))

    def work(unit: int) -> SplitCounts:
        return shard_assignment.list_documents(folder, store, unit, limit, first_documents)

    made = ranks.run("list", num_documents, work, _no_report)
    counts = ranks.share(lambda: made)
    tokens_per_shard = config.samples_per_shard * config.expected_tokens_per_sample
    documents_per_shard = tokens_per_shard / tokens_per_document
    train, validation = (Split(name, folder, counts, documents_per_shard) for name in SPLITS)
    return train, validation


def _no_report(item: int, result: object) -> None:
    """For work that finishes quickly."""


def _build(
    ranks: MpiRanks,
    store: TokenStore,
    splits: tuple[Split, Split],
    records: list[UnitRecord],
    paths: Paths,
    tokenizer: Tokenizer,
    config: PrepareConfig,
) -> list[BuiltShard]:
    """Makes all shards, those of train first, copy by copy."""
    num_documents = int(store.first_document[-1])
    recipe = _recipe(tokenizer, num_documents, config)
    shards = [
        _Shard(split, copy, index)
        for split in splits
        for copy in range(config.copies if split.name == "train" else 1)
        for index in range(split.num_shards)
    ]
    fingerprint = ranks.share(lambda: files.fingerprint([record.fingerprint for record in records]))
    text_bytes = ranks.share(lambda: sum(record.text_bytes for record in records))
    sizes = [
        s.split.num_documents * text_bytes // num_documents // s.split.num_shards for s in shards
    ]

    def find(item: int) -> BuiltShard | None:
        return data_set.kept_shard(paths.output_dir, shards[item].file, fingerprint)

    def work(item: int) -> BuiltShard:
        shard = shards[item]
        documents = shard.split.documents(shard.index, store, config.seed, shard.copy)
        statistics = SampleStatistics()
        blocks = build_blocks(
            store.gather(documents), recipe, copy=shard.copy, statistics=statistics
        )
        meta = {
            "split": shard.split.name,
            "copy": shard.copy,
            "shard": shard.number,
            "config": dataclasses.asdict(config),
        }
        record = write_shard(paths.output_dir / shard.file, meta, blocks)
        built = BuiltShard(shard.split.name, record, statistics)
        data_set.keep_shard(paths.output_dir, built, fingerprint)
        return built

    return _resume(ranks, StageProgress("build", "shards"), sizes, find, work)


@dataclasses.dataclass(frozen=True)
class _Shard:
    """A shard to make."""

    split: Split
    copy: int
    index: int  # in the copy

    @property
    def number(self) -> int:
        """Index in the split."""
        return self.copy * self.split.num_shards + self.index

    @property
    def file(self) -> str:
        """Name of the file."""
        return f"{self.split.name}-{self.number:05d}.tar"


def _recipe(tokenizer: Tokenizer, num_documents: int, config: PrepareConfig) -> SampleRecipe:
    return SampleRecipe(
        pair_objective=config.pair_objective,
        balance_pairs=config.balance_pairs,
        truncate_pairs=config.truncate_pairs,
        max_text_tokens=config.max_text_tokens,
        short_sequence_prob=config.short_sequence_prob,
        masked_lm_prob=config.masked_lm_prob,
        seed=config.seed,
        cls_id=CLS_ID,
        sep_id=SEP_ID,
        vocabulary=tokenizer.masking_vocabulary(config.whole_words, config.mean_span_length),
        borders=PieceBorders.of(tokenizer),
        types=FieldTypes.fitting(tokenizer.vocab_size, num_documents),
    )

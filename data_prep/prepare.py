"""Text to shards: plan, tokenise, build, seal.

    plan      rank 0 lists the inputs and cuts them into units; all ranks hear of it
    tokenise  every unit of the token store is made by one rank (`data_prep.token_store`)
    build     documents are dealt to shards (`data_prep.dealing`), each made by one rank
    seal      rank 0 writes the manifest, which finishes the data set (`data_prep.data_set`)

Every result is a function of the inputs and the configuration: any number of ranks writes equal
bytes.
"""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

from data_prep import data_set
from data_prep.data_set import BuiltShard, Paths
from data_prep.dealing import Split, split_documents
from data_prep.inputs import InputFile, plan_units, resolve_inputs
from data_prep.prepare_config import PrepareConfig
from data_prep.progress import Progress
from data_prep.samples import SampleRecipe, SampleStatistics, build_blocks
from data_prep.token_store import TextSettings, TokenStore, UnitRecord, make_unit, unit_folder
from data_prep.workers import Ranks, connect
from dist_bert import files
from dist_bert.errors import UserError
from dist_bert.shard_format import FieldTypes, write_shard
from dist_bert.tokenizer import CLS_ID, SEP_ID, Tokenizer


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What rank 0 finds out before any work; the same on all ranks."""

    units: list[list[InputFile]]
    settings: TextSettings
    identity: dict[str, Any]  # of the data set, see `data_set.is_finished`
    is_finished: bool


def prepare(patterns: Sequence[str], paths: Paths, config: PrepareConfig) -> None:
    """Makes a data set; all ranks of an MPI launch call it together.

    Args:
        patterns: of the input files; none = the documentation of the installed packages.
        paths: what is read and written.
        config: of the data set.

    Raises:
        UserError: on all ranks; the inputs, the tokenizer or the output folder do not do.
    """
    start = time.monotonic()
    with connect() as ranks:
        plan = ranks.share(lambda: _make_plan(patterns, paths, config))
        if plan.is_finished:
            if ranks.is_first:
                print(f"{paths.output_dir}: is finished already, from this text, with this config")
            return
        config = dataclasses.replace(config, format=plan.settings.layout)
        tokenizer = ranks.each(lambda: Tokenizer(paths.tokenizer))
        records = _tokenise(ranks, plan, paths, tokenizer)
        store = TokenStore(paths.token_store, ranks.share(lambda: _count_documents(records)))
        splits = ranks.share(lambda: _split(store, records, config))
        ranks.share(lambda: data_set.claim(paths.output_dir, plan.identity))
        shards = _build(ranks, store, splits, records, paths, tokenizer, config)
        manifest = ranks.share(
            lambda: data_set.seal(paths, config, tokenizer, records, splits, shards)
        )
        if ranks.is_first:
            print(data_set.summary(manifest, time.monotonic() - start))


def _make_plan(patterns: Sequence[str], paths: Paths, config: PrepareConfig) -> _Plan:
    fingerprint = Tokenizer(paths.tokenizer).fingerprint
    inputs, layout = resolve_inputs(patterns, config.format)
    num_bytes = sum(file.bytes for file in inputs)
    print(f"plan     {len(inputs):,} files  {num_bytes / 1e6:.1f} MB", flush=True)
    listed = files.fingerprint([(file.path, file.bytes) for file in inputs])
    identity = {
        **dataclasses.asdict(config),
        "format": layout,
        "tokenizer": fingerprint,
        "input": f"{len(inputs)} files of {num_bytes} bytes ({listed[:12]})",
    }
    settings = TextSettings(layout, config.text_field, fingerprint)
    is_finished = data_set.is_finished(paths.output_dir, identity)
    return _Plan(plan_units(inputs), settings, identity, is_finished)


def _tokenise(ranks: Ranks, plan: _Plan, paths: Paths, tokenizer: Tokenizer) -> list[UnitRecord]:
    sizes = [sum(file.bytes for file in unit) for unit in plan.units]
    progress = Progress("tokenise", "units", len(sizes), sum(sizes))

    def work(unit: int) -> UnitRecord:
        folder = unit_folder(paths.token_store, unit)
        return make_unit(folder, plan.units[unit], plan.settings, tokenizer)

    return ranks.run(sizes, work, lambda unit, _: progress.add(sizes[unit]))


def _count_documents(records: list[UnitRecord]) -> list[int]:
    """Documents of each unit, if pairs can be made of them at all."""
    num_documents = sum(r.num_documents for r in records)
    if num_documents == 0:
        raise UserError("--input: the corpus is empty, no file holds text; give files that do")
    if num_documents == 1:
        raise UserError(
            "--input: the corpus is a single document, and a random next sentence must come from"
            " another one; give more files, or --format blank_line or lines if a blank line ends"
            " a document"
        )
    if sum(r.num_single_sentence_documents for r in records) == num_documents:
        raise UserError(
            "--input: every document is a single sentence, so no sentence has a next one; give"
            " longer documents, or --format lines if a line is a sentence and a blank line ends"
            " a document"
        )
    return [r.num_documents for r in records]


def _split(
    store: TokenStore, records: list[UnitRecord], config: PrepareConfig
) -> tuple[Split, Split]:
    tokens_per_document = sum(r.num_tokens for r in records) / int(store.first_document[-1])
    tokens_per_shard = config.samples_per_shard * config.expected_tokens_per_sample
    return split_documents(store, config.validation_share, tokens_per_shard / tokens_per_document)


def _build(
    ranks: Ranks,
    store: TokenStore,
    splits: tuple[Split, Split],
    records: list[UnitRecord],
    paths: Paths,
    tokenizer: Tokenizer,
    config: PrepareConfig,
) -> list[BuiltShard]:
    """Makes all shards, those of train first."""
    num_documents = int(store.first_document[-1])
    recipe = _recipe(tokenizer, num_documents, config)
    shards = [(split, index) for split in splits for index in range(split.num_shards)]
    sizes = [split.num_documents // split.num_shards for split, _ in shards]
    text_bytes = sum(r.text_bytes for r in records)
    bytes_per_document = text_bytes / num_documents
    progress = Progress("build", "shards", len(shards), text_bytes)

    def work(item: int) -> BuiltShard:
        split, index = shards[item]
        documents = store.gather(split.documents(index, store, config.seed))
        statistics = SampleStatistics()
        blocks = build_blocks(documents, recipe, copy=0, statistics=statistics)
        name = f"{split.name}-{index:05d}"
        meta = {"split": split.name, "shard": index, "config": dataclasses.asdict(config)}
        record = write_shard(paths.output_dir / f"{name}.tar", meta, blocks)
        return BuiltShard(split.name, record, statistics)

    return ranks.run(sizes, work, lambda i, _: progress.add(round(sizes[i] * bytes_per_document)))


def _recipe(tokenizer: Tokenizer, num_documents: int, config: PrepareConfig) -> SampleRecipe:
    return SampleRecipe(
        sequence_length=config.sequence_length,
        short_sequence_prob=config.short_sequence_prob,
        masked_lm_prob=config.masked_lm_prob,
        seed=config.seed,
        cls_id=CLS_ID,
        sep_id=SEP_ID,
        vocabulary=tokenizer.masking_vocabulary(config.whole_words),
        types=FieldTypes.fitting(tokenizer.vocab_size, num_documents),
    )

"""A pretraining job: all it is made of, resolved and checked before anything slow or distributed.

No torch here, so `--dry_run` and every refusal come at once. Not for: running it
(`dist_bert.pretraining.pretrain`).
"""

import argparse
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from dist_bert.checkpoint.run_dir import latest_checkpoint, step_of
from dist_bert.checkpoint.weight_source import WeightSource
from dist_bert.common import files
from dist_bert.common.errors import UserError
from dist_bert.common.redaction import redacted, redacted_values
from dist_bert.common.settings import AUTO, flags_of, raise_all, resolve
from dist_bert.data.batches import BatchShape
from dist_bert.data.pretraining_batches import AHEAD_WINDOWS
from dist_bert.data.sample_order import WINDOW_BLOCKS
from dist_bert.data.shard_source import ShardSource, bytes_of_first, most_bytes
from dist_bert.distributed.watchdog import Watchdog
from dist_bert.model.config import ModelConfig
from dist_bert.pretraining.auto_tokens import layout_of, phases_to_settle
from dist_bert.pretraining.config import PretrainingConfig
from dist_bert.pretraining.recipe import Phase, deepspeed_changes, resolve_run
from dist_bert.pretraining.timeline import Corpus, Timeline, make_timeline, run_of
from dist_bert.training.deepspeed_config import DeepSpeedConfig
from dist_bert.training.deepspeed_flags import deepspeed_flags

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class PretrainingJob:
    """The configurations of one run, and its phases with the data sets that they read."""

    model: ModelConfig
    run: PretrainingConfig
    deepspeed: DeepSpeedConfig
    timeline: Timeline

    @classmethod
    def of(
        cls,
        model: ModelConfig,
        run: PretrainingConfig,
        deepspeed: DeepSpeedConfig,
        phases: Sequence[Phase],
        corpora: Mapping[str, Corpus],
    ) -> "PretrainingJob":
        """Puts them together; arguments are those of `make_timeline`.

        Raises:
            UserError: the phases do not fit the data sets, the ranks or the run's schedule.
        """
        if deepspeed.batch_shape.micro_batch_tokens and not run.micro_batch_tokens:
            run = dataclasses.replace(run, micro_batch_tokens=AUTO)  # config.json says it
        timeline = make_timeline(run, phases, corpora, deepspeed.batch_shape)
        run = run_of(run, phases, timeline.num_steps)
        return cls(model, run, deepspeed.with_shape(timeline.largest_shape), timeline)

    @property
    def last(self) -> Corpus:
        """The first data set of the last phase, which says what the model is for in the end."""
        return self.timeline.phases[-1].corpora[0]

    @property
    def tokenizer_path(self) -> Path:
        """The tokenizer that made the shards."""
        return self.last.source.tokenizer_path(self.last.manifest)

    def resolved(self) -> dict[str, Any]:
        """What `--dry_run` prints and the run's `config.json` keeps: without credentials."""
        manifest = self.last.manifest
        values: dict[str, Any] = {
            "model": dataclasses.asdict(self.model),
            "run": dataclasses.asdict(self.run),
            "deepspeed": self.deepspeed.values,
            "world_size": self.deepspeed.batch_shape.world_size,
            "shards": {
                "fingerprint": manifest.fingerprint,
                "config": manifest.config,
                "tokenizer": manifest.tokenizer,
                "random_next": self._random_next,
            },
        }
        if self.run.recipe:
            del values["run"]["shards"]  # a default, which is not read
            values["phases"] = {
                phase.settings.name: {
                    **dataclasses.asdict(phase.settings),
                    "steps": phase.num_steps,
                    "train_batch_size": phase.stages[-1].shape.global_batch_size,
                }
                for phase in self.timeline.phases
            }
        return redacted_values(values)

    def identity(self) -> dict[str, Any]:
        """What must be equal for a checkpoint of this run to be resumed.

        Not the number of ranks, the micro-batch, the ZeRO stage or the precision.
        """
        return {
            **{f"model {name}": value for name, value in dataclasses.asdict(self.model).items()},
            "tokenizer fingerprint": self.last.manifest.tokenizer["fingerprint"],
            "seed": self.run.seed,
            "masks": self.run.masks,
            "optimizer type": self.deepspeed.optimizer_type,
            **self.timeline.identity(),
        }

    def lr(self, step: int) -> float:
        """The learning rate of an optimizer step, from 1 on."""
        return self.deepspeed.peak_lr * self.timeline.lr_share(step)

    def batch_shape(self, step: int) -> BatchShape:
        """The division of a step's global batch."""
        return self.timeline.shape_at(step)

    def may_differ(self, saved: Mapping[str, Any], step: int) -> list[str]:
        """Facts of the identity in which a checkpoint may differ, because the run says so.

        Args:
            saved: the checkpoint's identity.
            step: its step.
        """
        allowed = ["train_batch_size"] if self.run.change_batch_size else []
        if self.run.change_recipe:
            allowed += self.timeline.open_facts(saved, step)
        return allowed

    @property
    def _random_next(self) -> float | None:
        """Share of the held-out pairs that are random; None where there are no pairs."""
        manifest = self.last.manifest
        if manifest.config["pair_objective"] == "none":
            return None
        shares = manifest.statistics.get("validation", {}).get("shares", {})
        share: float | None = shares.get("random_next")
        return share

    def check_device(self, has_gpu: bool) -> None:
        """Refuses what works on GPUs alone.

        Raises:
            UserError: there is none, and something needs one.
        """
        self.deepspeed.check_device(has_gpu)
        if self.run.compile_layers is True and not has_gpu:
            raise UserError(
                "compile_layers = True: needs a GPU, and there is none here; on CPU attention works"
                " sample by sample, which cannot be compiled"
            )
        if self.run.flash_attention_3 and not has_gpu:
            raise UserError("flash_attention_3 = True: needs a Hopper GPU, and there is none here")
        if self.run.float8 and not has_gpu:
            raise UserError(
                "float8 = True: needs a GPU since Ada or Hopper, and there is none here"
            )

    def compiles_layers(self, has_gpu: bool) -> bool:
        """Whether layers are compiled: where asked for, or where `auto` finds that they can be."""
        if self.run.compile_layers == AUTO:
            return has_gpu and self.deepspeed.zero_stage < 3
        return bool(self.run.compile_layers)

    def problems(self) -> list[str]:
        """All in which its parts do not fit each other."""
        problems = []
        run, tokenizer = self.run, self.last.manifest.tokenizer
        vocab_size = tokenizer["vocab_size"]
        if self.model.vocab_size < vocab_size:
            problems.append(
                f"vocab_size = {self.model.vocab_size} is smaller than the tokenizer's"
                f" {vocab_size}: set --vocab_size {vocab_size} or more"
            )
        length = max(phase.sequence_length for phase in self.timeline.phases)
        if self.model.max_position_embeddings < length:
            problems.append(
                f"max_position_embeddings = {self.model.max_position_embeddings} is below the"
                f" shards' sequence_length = {length}: raise it, or prepare shorter shards"
            )
        checkpoint = latest_checkpoint(run.output_dir)
        if checkpoint is not None and step_of(checkpoint) > run.num_train_steps:
            problems.append(
                f"num_train_steps = {run.num_train_steps} is below the step of {checkpoint}: raise"
                " it, or give another --output_dir"
            )
        if run.init_from and checkpoint is None:  # else it resumes from that
            source = WeightSource.find(run.init_from, is_average=run.init_average)
            problems += source.problems(self.model, tokenizer, run.extend_positions, run.init_parts)
        if run.compile_layers is True and self.deepspeed.zero_stage == 3:
            problems.append(
                "compile_layers = True: works at ZeRO 0 to 2; at 3 the weights are gathered inside"
                " of what would be compiled"
            )
        if run.flash_attention_3:
            found = self.model.flash_attention_3_problems(self.deepspeed.precision)
            problems += [f"flash_attention_3 = True: {problem}" for problem in found]
        if run.float8:
            found = self.model.float8_problems(self.deepspeed.precision, self.deepspeed.zero_stage)
            problems += [f"float8 = True: {problem}" for problem in found]
        if run.deterministic and phases_to_settle(self.timeline):
            problems.append(
                "deterministic = True: micro_batch_tokens = auto, of a flag or the DeepSpeed JSON,"
                " may be another number at a resume, and sums are then rounded otherwise; give the"
                " number that a start prints"
            )
        if phases_to_settle(self.timeline):
            try:
                layout_of(self.model, self.deepspeed, run)
            except UserError as error:
                problems.append(f"micro_batch_tokens = auto: {error}; or give a number of tokens")
        return [*problems, *self._corpus_problems()]

    def _corpus_problems(self) -> list[str]:
        """What is wrong with the data sets, and with their tokenizers."""
        problems = []
        fingerprint = self.last.manifest.tokenizer["fingerprint"]
        objective = self.last.manifest.config["pair_objective"]
        for corpus in self.timeline.corpora:
            manifest = corpus.manifest
            problems += corpus.source.room_problems(manifest, self._most_bytes_at_once(corpus))
            if (manifest.config["pair_objective"] == "none") != (objective == "none"):
                problems.append(
                    f"{corpus.source.place}: has pair_objective"
                    f" {manifest.config['pair_objective']}, and {self.last.source.place}"
                    f" {objective}: all phases have pairs, or none"
                )
            if manifest.tokenizer["fingerprint"] != fingerprint:
                problems.append(
                    f"{corpus.source.place}: was made with another tokenizer than"
                    f" {self.last.source.place}: prepare both with the same"
                )
                continue
            try:
                path = corpus.source.tokenizer_path(manifest)
            except UserError as error:  # of a URL
                problems.append(str(error))
                continue
            if not path.exists():
                problems.append(f"{path} is missing: prepare the shards again")
            elif files.sha256_of_file(path) != fingerprint:
                problems.append(
                    f"{path} is not the tokenizer that made the shards (another fingerprint): copy"
                    " that one there, or prepare the shards again"
                )
        return problems

    def _most_bytes_at_once(self, corpus: Corpus) -> int:
        """Shards that the ranks of a node use or expect at the same time, and the held-out ones."""
        training, held_out = corpus.manifest.splits["train"], corpus.manifest.splits["validation"]
        num_blocks = sum(len(record.blocks) for record in training)
        batch_blocks = (
            self.deepspeed.batch_shape.global_batch_size * num_blocks / (corpus.num_samples or 1)
        )
        window = max(WINDOW_BLOCKS, math.ceil(batch_blocks))
        # One window more for ranks that are behind, one for the ends of those that are cut.
        return most_bytes(training, (AHEAD_WINDOWS + 2) * window) + bytes_of_first(
            held_out, self.run.validation_samples
        )


@dataclasses.dataclass(frozen=True)
class PartialJob:
    """What a command line of launch/pretrain.py amounts to; what is wrong is None and a problem."""

    run: PretrainingConfig | None
    corpora: list[Corpus]
    job: PretrainingJob | None
    problems: list[str]

    @classmethod
    def of(cls, arguments: argparse.Namespace, world_size: int) -> "PartialJob":
        """Resolves a command line as far as it can be."""
        problems: list[str] = []

        def attempt(make: Callable[[], T]) -> T | None:
            try:
                return make()
            except UserError as error:
                problems.append(str(error))
                return None

        resolved = attempt(
            lambda: resolve_run(arguments.config, flags_of(PretrainingConfig, arguments))
        )
        run, phases = resolved or (None, ())
        model = attempt(
            lambda: resolve(ModelConfig, arguments.model, flags_of(ModelConfig, arguments))
        )
        deepspeed = attempt(
            lambda: DeepSpeedConfig.load(
                arguments.deepspeed_config,
                world_size,
                deepspeed_changes(phases, deepspeed_flags(arguments)),
            )
        )
        # Deadlines end what an origin delays; this, whatever hangs without one.
        watchdog = Watchdog(run.time_limits if run else None)
        places = list(dict.fromkeys(place for phase in phases for place in phase.shards))
        corpora = {}
        for place in places:
            assert run is not None, "it gives the places"
            watchdog.beat(f"reading the manifest of {place}")
            corpus = attempt(functools.partial(open_corpus, place, places, run))
            if corpus is not None:
                corpora[place] = corpus
        job = None
        if run and model and deepspeed and len(corpora) == len(places):
            watchdog.beat("checking the job")
            job = attempt(lambda: PretrainingJob.of(model, run, deepspeed, phases, corpora))
            if job:
                attempt(lambda: raise_all("pretraining", job.problems()))
        watchdog.stop()
        return cls(run, list(corpora.values()), job, problems)

    def require_job(self) -> PretrainingJob:
        """The job.

        Raises:
            UserError: all that is wrong with it.
        """
        if self.job is None or self.problems:
            raise UserError("; ".join(self.problems))
        return self.job


def open_corpus(place: str, places: Sequence[str], run: PretrainingConfig) -> Corpus:
    """A data set, named by the last part of its place, or by all of it where others end alike.

    Names go to metrics and messages, so they are without credentials.

    Args:
        place: folder or URL.
        places: those of all data sets of the run.
        run: says where copies are kept.

    Raises:
        UserError: there is no data set.
    """
    source = ShardSource(place, run.local_cache, run.local_cache_gib)
    names = [redacted(other).rstrip("/") for other in places]
    ends = [name.rpartition("/")[2] for name in names]
    number = places.index(place)
    is_alone = ends.count(ends[number]) == 1
    return Corpus(ends[number] if is_alone else names[number], source, source.manifest())

"""A pretraining job: all it is made of, resolved and checked before anything slow or distributed.

No torch here, so `--dry_run` and every refusal come at once. Not for: running it
(`dist_bert.pretraining.pretrain`).
"""

import argparse
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from dist_bert.checkpoint.run_dir import latest_checkpoint, step_of
from dist_bert.checkpoint.weight_source import WeightSource
from dist_bert.common import files
from dist_bert.common.errors import UserError
from dist_bert.common.redaction import redacted_values
from dist_bert.common.settings import flags_of, raise_all, resolve
from dist_bert.data.pretraining_batches import AHEAD_WINDOWS
from dist_bert.data.sample_order import WINDOW_BLOCKS
from dist_bert.data.shard_format import Manifest
from dist_bert.data.shard_source import ShardSource, bytes_of_first, most_bytes
from dist_bert.distributed.watchdog import Watchdog
from dist_bert.model.config import ModelConfig
from dist_bert.pretraining.config import PretrainingConfig
from dist_bert.training.deepspeed_config import DeepSpeedConfig
from dist_bert.training.deepspeed_flags import deepspeed_flags

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class PretrainingJob:
    """The configurations of one run and the data set that it reads."""

    model: ModelConfig
    run: PretrainingConfig
    deepspeed: DeepSpeedConfig
    source: ShardSource
    manifest: Manifest

    @property
    def tokenizer_path(self) -> Path:
        """The tokenizer that made the shards."""
        return self.source.tokenizer_path(self.manifest)

    def resolved(self) -> dict[str, Any]:
        """What `--dry_run` prints and the run's `config.json` keeps: without credentials."""
        values: dict[str, Any] = {
            "model": dataclasses.asdict(self.model),
            "run": dataclasses.asdict(self.run),
            "deepspeed": self.deepspeed.values,
            "world_size": self.deepspeed.batch_shape.world_size,
            "shards": {
                "fingerprint": self.manifest.fingerprint,
                "config": self.manifest.config,
                "tokenizer": self.manifest.tokenizer,
                "random_next": self._random_next,
            },
        }
        return {name: redacted_values(value) for name, value in values.items()}

    def identity(self) -> dict[str, Any]:
        """What must be equal for a checkpoint of this run to be resumed.

        Not the number of ranks, the micro-batch, the ZeRO stage or the precision.
        """
        return {
            **{f"model {name}": value for name, value in dataclasses.asdict(self.model).items()},
            "shards fingerprint": self.manifest.fingerprint,
            "tokenizer fingerprint": self.manifest.tokenizer["fingerprint"],
            "seed": self.run.seed,
            "masks": self.run.masks,
            "optimizer type": self.deepspeed.values["optimizer"]["type"],
            "train_batch_size": self.deepspeed.batch_shape.global_batch_size,
        }

    @property
    def may_differ(self) -> list[str]:
        """Facts of the identity in which a checkpoint may differ, because the run says so."""
        return ["train_batch_size"] if self.run.change_batch_size else []

    @property
    def _random_next(self) -> float | None:
        """Share of the held-out pairs that are random; None where there are no pairs."""
        if self.manifest.config["pair_objective"] == "none":
            return None
        shares = self.manifest.statistics.get("validation", {}).get("shares", {})
        share: float | None = shares.get("random_next")
        return share

    def check_device(self, has_gpu: bool) -> None:
        """Refuses what works on GPUs alone.

        Raises:
            UserError: there is none, and something needs one.
        """
        self.deepspeed.check_device(has_gpu)
        if self.run.compile_layers and not has_gpu:
            raise UserError(
                "compile_layers = True: needs a GPU, and there is none here; on CPU attention works"
                " sample by sample, which cannot be compiled"
            )

    def problems(self) -> list[str]:
        """All in which its parts do not fit each other."""
        problems = []
        vocab_size = self.manifest.tokenizer["vocab_size"]
        if self.model.vocab_size < vocab_size:
            problems.append(
                f"vocab_size = {self.model.vocab_size} is smaller than the tokenizer's"
                f" {vocab_size}: set --vocab_size {vocab_size} or more"
            )
        length = self.manifest.config["sequence_length"]
        if self.model.max_position_embeddings < length:
            problems.append(
                f"max_position_embeddings = {self.model.max_position_embeddings} is below the"
                f" shards' sequence_length = {length}: raise it, or prepare shorter shards"
            )
        run = self.run
        checkpoint = latest_checkpoint(run.output_dir)
        if checkpoint is not None and step_of(checkpoint) > run.num_train_steps:
            problems.append(
                f"num_train_steps = {run.num_train_steps} is below the step of {checkpoint}: raise"
                " it, or give another --output_dir"
            )
        if run.init_from and checkpoint is None:  # else it resumes from that
            source = WeightSource.find(run.init_from, is_average=run.init_average)
            problems += source.problems(
                self.model, self.manifest.tokenizer, run.extend_positions, run.init_parts
            )
        if run.compile_layers and self.deepspeed.zero_stage == 3:
            problems.append(
                "compile_layers = True: works at ZeRO 0 to 2; at 3 the weights are gathered inside"
                " of what would be compiled"
            )
        problems += self.source.room_problems(self.manifest, self._most_bytes_at_once())
        try:
            path = self.tokenizer_path
        except UserError as error:  # of a URL
            return [*problems, str(error)]
        if not path.exists():
            problems.append(f"{path} is missing: prepare the shards again")
        elif files.sha256_of_file(path) != self.manifest.tokenizer["fingerprint"]:
            problems.append(
                f"{path} is not the tokenizer that made the shards (another fingerprint): copy that"
                " one there, or prepare the shards again"
            )
        return problems

    def _most_bytes_at_once(self) -> int:
        """Shards that the ranks of a node use or expect at the same time, and the held-out ones."""
        training, held_out = self.manifest.splits["train"], self.manifest.splits["validation"]
        num_blocks = sum(len(record.blocks) for record in training)
        num_samples = sum(record.num_samples for record in training)
        batch_blocks = (
            self.deepspeed.batch_shape.global_batch_size * num_blocks / (num_samples or 1)
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
    source: ShardSource | None
    manifest: Manifest | None
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

        run = attempt(
            lambda: resolve(
                PretrainingConfig, arguments.config, flags_of(PretrainingConfig, arguments)
            )
        )
        model = attempt(
            lambda: resolve(ModelConfig, arguments.model, flags_of(ModelConfig, arguments))
        )
        deepspeed = attempt(
            lambda: DeepSpeedConfig.load(
                arguments.deepspeed_config, world_size, deepspeed_flags(arguments)
            )
        )
        # Deadlines end what an origin delays; this, whatever hangs without one.
        watchdog = Watchdog(run.time_limits if run else None)
        watchdog.beat("reading the manifest")
        source = None
        if run:
            place = (run.shards, run.local_cache, run.local_cache_gib)
            source = attempt(lambda: ShardSource(*place))
        manifest = attempt(source.manifest) if source else None
        job = None
        if run and model and deepspeed and source and manifest:
            job = PretrainingJob(model, run, deepspeed, source, manifest)
            watchdog.beat("checking the job")
            attempt(lambda: raise_all("pretraining", job.problems()))
        watchdog.stop()
        return cls(run, source, manifest, job, problems)

    def require_job(self) -> PretrainingJob:
        """The job.

        Raises:
            UserError: all that is wrong with it.
        """
        if self.job is None or self.problems:
            raise UserError("; ".join(self.problems))
        return self.job

"""The settings of a pretraining run: what a run JSON holds."""

import dataclasses
from typing import Any, Literal

from dist_bert.common.settings import AUTO, setting
from dist_bert.training.config import TrainingConfig


@dataclasses.dataclass(frozen=True)
class PretrainingConfig(TrainingConfig):
    """One pretraining run. Defaults are BERT's published recipe (Devlin et al. 2019, A.2)."""

    shards: str = setting(
        "data/shards",
        "folder of prepared shards (has a manifest.json), or its URL: s3://, gs://, https://, ...",
    )
    local_cache: str = setting(
        "",
        "folder on a local disk of every node for copies of the shards, which its ranks share: for"
        " URLs and slow file systems; $NAME in it is the node's; empty = none",
    )
    local_cache_gib: float = setting(
        0.0, "most that all copies in local_cache take together; 0 = no limit"
    )
    masks: str = setting(
        "fresh",
        "static = as stored; fresh = as stored in the first epoch, then drawn again in each",
        ("fresh", "static"),
    )
    masked_lm_prob: float = setting(
        0.0, "share of the tokens to mask, drawn anew in every epoch; 0 = as in the shards"
    )
    final_masked_lm_prob: float = setting(
        0.0, "share at the last step, to which masked_lm_prob moves in a line; 0 = the same"
    )
    initial_batch_size: int = setting(
        0, "samples of the first steps; it grows by itself up to train_batch_size; 0 = no ramp"
    )
    ramp_samples: int = setting(0, "samples over which the batch grows, equally many for each size")
    micro_batch_tokens: int | Literal["auto"] = setting(
        0,
        "most tokens of a rank in a micro-step, instead of train_micro_batch_size_per_gpu samples:"
        " all micro-batches of a step then have almost equal numbers of tokens; auto = as many as"
        " fit the device, tried before the first step; 0 = as the DeepSpeed JSON says",
    )
    recipe: str = setting(
        "", "JSON of a run of several phases: their data sets and weights, lengths, batches, lr"
    )
    change_recipe: bool = setting(
        False, "resume with a recipe that differs from the checkpoint's in what is still to come"
    )
    validation_samples: int = setting(4_096, "validation samples used each time; 0 = all of them")
    change_batch_size: bool = setting(
        False, "resume from a checkpoint of another train_batch_size, at exactly the next sample"
    )
    init_from: str = setting(
        "",
        "start a new run from these weights: a run's folder or one of its checkpoints, or a folder"
        " or file in Hugging Face layout; a run that has a checkpoint resumes from that",
    )
    init_average: bool = setting(
        False, "with init_from: take the average of the weights, of a run with average_decay"
    )
    init_parts: str = setting(
        "all",
        "with init_from: embeddings takes word embeddings alone, for another architecture",
        ("all", "embeddings"),
    )
    extend_positions: bool = setting(
        False, "with init_from: repeat its position embeddings where the model has more of them"
    )
    compile_layers: bool | Literal["auto"] = setting(
        AUTO,
        "torch.compile the layers: on GPUs, at ZeRO 0 to 2; auto = there, unless compiling fails;"
        " launch/benchmark.py train --against compiled measures whether it pays",
    )
    flash_attention_3: bool = setting(
        False,
        "take FlashAttention 3's kernels on Hopper GPUs, from the package flash_attn_interface;"
        " without dropout on attention weights;"
        " launch/benchmark.py train --against flash_attention_3 measures whether it pays",
    )
    float8: bool = setting(
        False,
        "multiply in the layers in 8 bits, on GPUs since Ada and Hopper, in bf16 at ZeRO 0 to 2:"
        " less exact (docs/numerics.md); launch/benchmark.py train --against float8 measures"
        " whether it pays",
    )

    def problems(self) -> list[str]:
        """All values that are out of range or contradict each other, each as one sentence."""
        problems = super().problems()
        for name in ("validation_samples", "local_cache_gib"):
            if getattr(self, name) < 0:
                problems.append(f"{name} = {getattr(self, name)}: must be at least 0")
        problems += problems_of_phase(self, self.masks)
        for name in ("extend_positions", "init_average"):
            if getattr(self, name) and not self.init_from:
                problems.append(f"{name} = True: does nothing without init_from")
        if self.init_parts != "all" and not self.init_from:
            problems.append(f"init_parts = {self.init_parts}: does nothing without init_from")
        if self.init_parts != "all" and self.extend_positions:
            problems.append("extend_positions = True: does nothing with init_parts = embeddings")
        if self.local_cache_gib and not self.local_cache:
            problems.append("local_cache_gib: does nothing without local_cache")
        return problems


def problems_of_phase(settings: Any, masks: str) -> list[str]:
    """What is wrong with the settings that a run and a phase of a recipe both have.

    Args:
        settings: of either.
        masks: of the run.
    """
    problems = [
        f"{name} = {getattr(settings, name)}: must be at least 0"
        for name in ("initial_batch_size", "ramp_samples", "micro_batch_tokens")
        if getattr(settings, name) != AUTO and getattr(settings, name) < 0
    ]
    problems += [
        f"{name} = {getattr(settings, name)}: must be 0 to 0.5"
        for name in ("masked_lm_prob", "final_masked_lm_prob")
        if not 0.0 <= getattr(settings, name) <= 0.5
    ]
    if settings.final_masked_lm_prob and not settings.masked_lm_prob:
        problems.append("final_masked_lm_prob: does nothing without masked_lm_prob")
    if settings.masked_lm_prob and masks == "static":
        problems.append("masked_lm_prob: needs fresh masks, and masks = static keeps the stored")
    return problems

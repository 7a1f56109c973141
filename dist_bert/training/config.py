"""The settings of a training run: what a run JSON holds."""

import dataclasses

from dist_bert.common.settings import raise_all, setting


@dataclasses.dataclass(frozen=True)
class RunConfig:
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
    output_dir: str = setting("runs/pretrain", "folder for checkpoints, metrics and TensorBoard")
    num_train_steps: int = setting(1_000_000, "optimizer steps in the whole run")
    warmup_steps: int = setting(10_000, "optimizer steps over which the lr rises linearly from 0")
    schedule: str = setting(
        "linear",
        "lr after the warm-up; wsd = constant, then linear over decay_steps",
        ("linear", "cosine", "constant", "wsd"),
    )
    decay_steps: int = setting(0, "last optimizer steps of schedule wsd, over which the lr falls")
    min_lr_ratio: float = setting(0.0, "lr at the end of the decay as a share of the peak, 0 to 1")
    seed: int = setting(42, "seed of weights, sample order, fresh masks and dropout")
    masks: str = setting(
        "fresh",
        "static = as stored; fresh = as stored in the first epoch, then drawn anew in each",
        ("fresh", "static"),
    )
    log_interval: int = setting(10, "optimizer steps between two console lines and metric flushes")
    validation_interval: int = setting(
        1_000, "optimizer steps between two validations; 0 = only at the end"
    )
    validation_samples: int = setting(4_096, "validation samples used each time; 0 = all of them")
    checkpoint_interval: int = setting(1_000, "optimizer steps between two checkpoints")
    keep_checkpoints: int = setting(
        2, "newest checkpoints that are kept beside the best, at least 1"
    )
    max_minutes: float = setting(
        0.0, "save and stop with exit code 85 after so many minutes from the start; 0 = never"
    )
    timeout_seconds: float = setting(
        900.0,
        "longest wait of one rank for the others; keep it above watchdog_minutes and save_minutes,"
        " whose reports tell more",
    )
    heartbeat_seconds: float = setting(
        45.0, "end the job if a rank gives no sign of life for so long (its host is gone); 0 = off"
    )
    start_minutes: float = setting(
        20.0,
        "end the job if no part of the start (joining, loading, compiling, a micro-step of the"
        " first step) ends for so long; 0 = never",
    )
    watchdog_minutes: float = setting(
        10.0, "end the job if no micro-step or validation batch ends for so long; 0 = never"
    )
    save_minutes: float = setting(
        10.0, "end the job if a checkpoint is not written by all ranks within this; 0 = never"
    )
    max_skipped_steps: int = setting(
        10, "non-finite steps in a row after which the run goes back to its last checkpoint once"
    )
    spike_threshold: float = setting(
        8.0,
        "a loss so many median absolute deviations above the median of the last 100 steps is a"
        " spike, which is told and recorded; 0 = off",
    )
    on_spike: str = setting(
        "record",
        "skip = leave the update of a spike out; roll_back = also take back the updates since the"
        " last checkpoint, once until the next; both wait for the device once a step",
        ("record", "skip", "roll_back"),
    )
    change_batch_size: bool = setting(
        False, "go on from a checkpoint of another train_batch_size, at exactly the next sample"
    )
    init_from: str = setting(
        "",
        "start a new run from these weights: a run's folder or one of its checkpoints, or a folder"
        " or file in Hugging Face layout; a run that has a checkpoint goes on from that",
    )
    extend_positions: bool = setting(
        False, "with init_from: repeat its position embeddings where the model has more of them"
    )
    activation_checkpointing: bool = setting(
        False, "compute layers again in the backward pass: less memory, about a third more time"
    )
    compile_layers: bool = setting(
        False,
        "torch.compile the layers: on GPUs, at ZeRO 0 to 2; launch/benchmark.py train --against"
        " compiled tells whether it pays",
    )

    def __post_init__(self) -> None:
        problems = [
            f"{name} = {getattr(self, name)}: must be at least {least}"
            for name, least in (
                ("num_train_steps", 1),
                ("warmup_steps", 0),
                ("decay_steps", 0),
                ("log_interval", 1),
                ("validation_interval", 0),
                ("validation_samples", 0),
                ("checkpoint_interval", 1),
                ("keep_checkpoints", 1),
                ("max_minutes", 0),
                ("timeout_seconds", 1),
                ("start_minutes", 0),
                ("watchdog_minutes", 0),
                ("save_minutes", 0),
                ("heartbeat_seconds", 0),
                ("max_skipped_steps", 1),
                ("spike_threshold", 0),
                ("local_cache_gib", 0),
            )
            if getattr(self, name) < least
        ]
        if "://" in self.output_dir:
            problems.append(
                f"output_dir = {self.output_dir}: is a URL; give a folder of this machine or of a"
                " file system that all nodes share"
            )
        if self.warmup_steps > self.num_train_steps:
            problems.append(
                f"warmup_steps = {self.warmup_steps} is above num_train_steps ="
                f" {self.num_train_steps}"
            )
        if (
            self.schedule == "wsd"
            and not 0 < self.decay_steps <= self.num_train_steps - self.warmup_steps
        ):
            problems.append(
                f"decay_steps = {self.decay_steps}: wsd needs 1 to num_train_steps - warmup_steps"
            )
        if not 0.0 <= self.min_lr_ratio <= 1.0:
            problems.append(f"min_lr_ratio = {self.min_lr_ratio}: must be 0 to 1")
        if self.extend_positions and not self.init_from:
            problems.append("extend_positions = True: does nothing without init_from")
        if self.on_spike != "record" and not self.spike_threshold:
            problems.append(f"on_spike = {self.on_spike}: does nothing with spike_threshold 0")
        if self.local_cache_gib and not self.local_cache:
            problems.append("local_cache_gib: does nothing without local_cache")
        raise_all("run", problems)

    @property
    def time_limits(self) -> dict[str, float]:
        """The limits of `dist_bert.distributed.watchdog`, in minutes."""
        return {
            "start_minutes": self.start_minutes,
            "watchdog_minutes": self.watchdog_minutes,
            "save_minutes": self.save_minutes,
        }

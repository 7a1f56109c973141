"""The settings that every kind of training has."""

import dataclasses

from dist_bert.common.settings import raise_all, setting
from dist_bert.training.schedule import LrSchedule, schedule_setting


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Settings of any training run: its length, schedule, intervals and limits."""

    output_dir: str = setting("runs/pretrain", "folder for checkpoints, metrics and TensorBoard")
    num_train_steps: int = setting(1_000_000, "optimizer steps in the whole run")
    warmup_steps: int = setting(10_000, "optimizer steps over which the lr rises linearly from 0")
    schedule: str = schedule_setting("linear")
    decay_steps: int = setting(0, "last optimizer steps of wsd and wsd_sqrt, over which lr falls")
    min_lr_ratio: float = setting(0.0, "lr at the end of the decay as a share of the peak, 0 to 1")
    average_decay: float = setting(
        0.0,
        "keep an exponential average of the weights beside them, of so high a decay, such as 0.999;"
        " 0 = none",
    )
    seed: int = setting(42, "seed of weights, sample order, fresh masks and dropout")
    log_interval: int = setting(10, "optimizer steps between two console lines and metric flushes")
    validation_interval: int = setting(
        1_000, "optimizer steps between two validations; 0 = only at the end"
    )
    checkpoint_interval: int = setting(1_000, "optimizer steps between two checkpoints")
    keep_checkpoints: int = setting(2, "newest checkpoints to keep besides the best, at least 1")
    max_minutes: float = setting(
        0.0, "save and stop with exit code 85 after so many minutes from the start; 0 = never"
    )
    timeout_seconds: float = setting(
        900.0,
        "longest wait of one rank for the others; keep it above watchdog_minutes and save_minutes,"
        " which report more",
    )
    heartbeat_seconds: float = setting(
        45.0, "end the job if a rank gives no sign of life for so long (its host is gone); 0 = off"
    )
    start_minutes: float = setting(
        20.0,
        "end the job if no part of the start (joining, loading, compiling, micro-steps of step 1)"
        " ends for so long; 0 = never",
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
        " spike, which is reported and recorded; 0 = off",
    )
    on_spike: str = setting(
        "record",
        "skip = leave the update of a spike out; roll_back = also take back the updates since the"
        " last checkpoint, once until the next; both wait for the device once a step",
        ("record", "skip", "roll_back"),
    )
    activation_checkpointing: bool = setting(
        False, "compute layers again in the backward pass: less memory, about a third more time"
    )
    deterministic: bool = setting(
        False,
        "resume bit for bit on GPUs too, as on CPUs: each sum has one order, which takes longer",
    )

    def __post_init__(self) -> None:
        raise_all("run", self.problems())

    def problems(self) -> list[str]:
        """All values that are out of range or contradict each other, each as one sentence."""
        problems = [
            f"{name} = {getattr(self, name)}: must be at least {least}"
            for name, least in (
                ("num_train_steps", 1),
                ("warmup_steps", 0),
                ("decay_steps", 0),
                ("log_interval", 1),
                ("validation_interval", 0),
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
            )
            if getattr(self, name) < least
        ]
        if "://" in self.output_dir:
            problems.append(
                f"output_dir = {self.output_dir}: is a URL; give a folder of this machine or of a"
                " file system that all nodes share"
            )
        problems += self.lr_schedule.problems()
        if not 0.0 <= self.average_decay < 1.0:
            problems.append(f"average_decay = {self.average_decay}: must be 0 to below 1")
        if self.on_spike != "record" and not self.spike_threshold:
            problems.append(f"on_spike = {self.on_spike}: does nothing with spike_threshold 0")
        return problems

    @property
    def lr_schedule(self) -> LrSchedule:
        """The learning rate over the whole run."""
        return LrSchedule(
            self.num_train_steps,
            self.warmup_steps,
            self.schedule,
            self.decay_steps,
            self.min_lr_ratio,
        )

    @property
    def time_limits(self) -> dict[str, float]:
        """The limits of `dist_bert.distributed.watchdog`, in minutes."""
        return {
            "start_minutes": self.start_minutes,
            "watchdog_minutes": self.watchdog_minutes,
            "save_minutes": self.save_minutes,
        }

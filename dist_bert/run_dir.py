"""What lies where in a run's folder; no torch, so that any script can look.

RUN/config.json        resolved configuration and versions
RUN/tokenizer.model    the tokenizer that made the shards, of either kind
RUN/metrics.jsonl      the metrics, one object a step
RUN/predictions.jsonl  answers to the fixed sentences, one object a sentence and validation
RUN/starts.jsonl       one object for each start of the run
RUN/log.txt            what the run said, with times, over all starts
RUN/logs/              what each rank warned of and how it failed, likewise
RUN/environment.json   hosts, versions and variables of the latest start
RUN/tensorboard/       the metrics for TensorBoard
RUN/checkpoints/       step-NNNNNNNNN folders; `latest` and `best`, which name one of them each
RUN/model.safetensors  the weights in float32, when the run has ended
"""

from pathlib import Path

from dist_bert.errors import UserError

CONFIG_NAME = "config.json"
TOKENIZER_NAME = "tokenizer.model"
METRICS_NAME = "metrics.jsonl"
PREDICTIONS_NAME = "predictions.jsonl"
STARTS_NAME = "starts.jsonl"
LOG_NAME = "log.txt"
LOGS_NAME = "logs"
ENVIRONMENT_NAME = "environment.json"
TENSORBOARD_NAME = "tensorboard"
CHECKPOINTS_NAME = "checkpoints"
LATEST_NAME = "latest"
BEST_NAME = "best"
DAMAGED_PREFIX = "damaged-"  # of a checkpoint's folder that was found not to be whole
STATE_NAME = "state.json"
WEIGHTS_NAME = "model.safetensors"


def require_checkpoint(run_dir: str | Path, pointer: str = LATEST_NAME) -> Path:
    """The latest (or best) checkpoint of a run that is to be used.

    Raises:
        UserError: there is none.
    """
    checkpoint = _named_checkpoint(run_dir, pointer)
    if checkpoint is None:
        raise UserError(
            f"--checkpoint {run_dir}: has no {pointer} checkpoint; give the --output_dir of a run"
            " of launch/pretrain.py that has saved"
            f" {'at least once' if pointer == LATEST_NAME else 'right after a validation'}"
        )
    return checkpoint


def require_weights(run_dir: str | Path, pointer: str = LATEST_NAME) -> Path:
    """What is to be used of a folder: a checkpoint, or the weights file of one that has none.

    The latter is a run that has ended, or a model that was imported or exported.

    Raises:
        UserError: there is neither.
    """
    weights = Path(run_dir) / WEIGHTS_NAME
    has_checkpoints = (Path(run_dir) / CHECKPOINTS_NAME).exists()
    if pointer == LATEST_NAME and weights.exists() and not has_checkpoints:
        return weights
    return require_checkpoint(run_dir, pointer)


def latest_checkpoint(run_dir: str | Path) -> Path | None:
    """The folder that `latest` names, or None where the run has no checkpoint yet.

    Raises:
        UserError: it names a folder that is not there.
    """
    return _named_checkpoint(run_dir, LATEST_NAME)


def _named_checkpoint(run_dir: str | Path, pointer: str) -> Path | None:
    folder = Path(run_dir) / CHECKPOINTS_NAME
    if not (folder / pointer).exists():
        return None
    checkpoint = folder / (folder / pointer).read_text().strip()
    if not (checkpoint / STATE_NAME).exists():
        there = ", ".join(path.name for path in checkpoints_newest_first(run_dir))
        raise UserError(
            f"{folder / pointer}: names {checkpoint.name}, which is not there; write the name of"
            f" another checkpoint into it ({there or 'there is none'})"
        )
    return checkpoint


def checkpoints_newest_first(run_dir: str | Path) -> list[Path]:
    """All checkpoints of a run: the one that `latest` names, then the others from the newest on."""
    folder = Path(run_dir) / CHECKPOINTS_NAME
    pointer = folder / LATEST_NAME
    latest = pointer.read_text().strip() if pointer.exists() else ""
    found = (path.parent for path in folder.glob(f"step-*/{STATE_NAME}"))
    return sorted(found, key=lambda path: (path.name == latest, path.name), reverse=True)


def step_of(checkpoint: Path) -> int:
    """The optimizer steps of a checkpoint, by its folder's name."""
    return int(checkpoint.name.removeprefix("step-"))

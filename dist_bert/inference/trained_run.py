"""A trained run as a model to use, and batches as tensors. Not for: training or scores."""

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from dist_bert.checkpoint.format import CheckpointReader
from dist_bert.checkpoint.run_dir import (
    CONFIG_NAME,
    LATEST_NAME,
    TOKENIZER_NAME,
    read_resolved,
    require_weights,
    run_folder,
)
from dist_bert.checkpoint.weight_source import WeightSource
from dist_bert.checkpoint.weights import read_stored, take_weights
from dist_bert.common.device import run_device
from dist_bert.common.errors import UserError
from dist_bert.common.settings import from_dict
from dist_bert.model.bert import BertForPreTraining
from dist_bert.model.config import ModelConfig
from dist_bert.model.published_names import OUR_HEADS
from dist_bert.tokenizer.tokenizer import Tokenizer
from dist_bert.training.deepspeed_config import stored_precision

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}  # by precision


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """A checkpoint of a pretraining run, or a model that was imported."""

    model: BertForPreTraining  # float32, in evaluation mode
    config: ModelConfig
    tokenizer: Tokenizer
    precision: str  # in which it was trained: bf16, fp16 or fp32
    step: int  # 0 of an imported model: it does not say
    device: torch.device
    is_average: bool = False  # of the weights, over the steps
    missing_heads: tuple[str, ...] = ()  # that an imported model lacks: random ones stand there

    @classmethod
    def load(
        cls, place: str | Path, pointer: str = LATEST_NAME, is_average: bool = False
    ) -> "TrainedRun":
        """Loads the weights onto this process's device.

        Args:
            place: the folder of the run, one of its checkpoints, or the folder of a model in
                Hugging Face layout with our tokenizer, as launch/import_model.py and
                launch/export_model.py write it.
            pointer: which checkpoint of a run's folder, `latest` or `best` (of the lowest
                validation loss).
            is_average: take the average of the weights, which the checkpoint must have.

        Raises:
            UserError: there is neither a checkpoint nor a model in the folder, or it is damaged.
        """
        path = require_weights(place, pointer)
        run_dir = run_folder(path)
        device = run_device()
        if not path.is_dir():
            return cls._of_file(path.parent, device)
        reader = CheckpointReader(path)
        resolved = read_resolved(run_dir, {"model": dict, "deepspeed": dict})
        origin = f"{run_dir}/{CONFIG_NAME}"
        config = from_dict(ModelConfig, resolved["model"], origin)
        precision = stored_precision(resolved["deepspeed"], origin)
        with torch.device("meta"):  # the weights are all replaced: nothing to initialise
            model = BertForPreTraining(config)
        take_weights(model, reader.weights(is_average), origin)
        return cls(
            model.to(device).eval(),
            config,
            Tokenizer(run_dir / TOKENIZER_NAME),
            precision=precision,
            step=reader.contents["state"]["step"],
            device=device,
            is_average=is_average,
        )

    @classmethod
    def _of_file(cls, folder: Path, device: torch.device) -> "TrainedRun":
        """Loads the one weights file of a folder."""
        source = WeightSource.find(folder, "--checkpoint")
        if source.tokenizer is None:
            raise UserError(
                f"--checkpoint {folder}: has no {TOKENIZER_NAME}; import the model first, `python"
                f" launch/import_model.py --input {folder} --output_dir DIR`, and give that DIR"
            )
        stored = read_stored(source)
        with torch.device("cpu" if stored.missing_heads else "meta"):
            model = BertForPreTraining(source.model)
        origin = f"{folder}/{CONFIG_NAME}"
        take_weights(model, {**model.state_dict(), **stored.tensors}, origin)
        ours = {} if source.is_published else {"deepspeed": dict, "run.num_train_steps": int}
        resolved = read_resolved(folder, ours)
        return cls(
            model.to(device).eval(),
            source.model,
            Tokenizer(source.tokenizer),
            precision=stored_precision(resolved["deepspeed"], origin) if ours else "fp32",
            step=resolved["run"]["num_train_steps"] if ours else 0,  # a run writes it at its end
            device=device,
            missing_heads=stored.missing_heads,
        )

    def own_weights(self) -> dict[str, Tensor]:
        """All weights but those of missing heads, by the parameters' names."""
        without = tuple(OUR_HEADS[head] for head in self.missing_heads)
        return {
            name: value
            for name, value in self.model.state_dict().items()
            if not name.startswith(without)
        }

    def require_mlm_head(self) -> None:
        """Refuses a model that cannot say what stands behind a [MASK].

        Raises:
            UserError: its MLM head is missing.
        """
        if "MLM head" in self.missing_heads:
            raise UserError(
                "the model has no MLM head, which tells masked tokens: it was saved for another"
                " task; `launch/pretrain.py --init_from` trains a new one"
            )


def read_weights(checkpoint: Path) -> dict[str, Tensor]:
    """All weights of a checkpoint in float32, by the parameters' names, on the CPU."""
    return CheckpointReader(checkpoint).weights()

"""Settings of a fine-tuning run; those of reading its files are `readers.ReadConfig`. No torch."""

import dataclasses
import math

from dist_bert.common.settings import raise_all, setting
from dist_bert.finetuning.examples import TASKS
from dist_bert.training.config import TrainingConfig


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """One fine-tuning, maybe over several seeds and learning rates."""

    task: str = setting("pair_classification", "what is to be learnt", TASKS)
    checkpoint: str = setting(
        "runs/pretrain",
        "the encoder: a pretraining run's folder or one of its checkpoints, or a folder in Hugging"
        " Face layout",
    )
    average: bool = setting(
        False, "take the average of the encoder's weights, of a run with average_decay"
    )
    train: str = setting("", "labelled examples to learn from; see docs/finetuning.md for layouts")
    eval: str = setting(
        "", "labelled examples to score; empty = a part of the training file (eval_share)"
    )
    eval_share: float = setting(
        0.1, "share of the training examples that is kept apart where eval is not given"
    )
    output_dir: str = setting("runs/finetune", "folder for model, scores and TensorBoard")
    max_seq_length: int = setting(
        0, "longest sample in tokens; 0 = 384 for questions, else 128, or the model's positions"
    )
    num_train_epochs: float = setting(3.0, "passes over the training examples")
    warmup_share: float = setting(0.1, "share of all steps over which the lr rises, 0 to 1")
    schedule: str = setting("linear", "lr after it", ("linear", "cosine", "constant"))
    learning_rates: str = setting(
        "", "peak learning rates to try, such as 2e-5,5e-5; empty = the DeepSpeed JSON's"
    )
    seed: int = setting(42, "seed of the new head, the order and dropout; the first of `seeds`")
    seeds: int = setting(1, "number of seeds, each a run of its own")
    evals_per_epoch: int = setting(1, "how often in an epoch the model is scored and saved")
    early_stopping: int = setting(
        0, "end a run after so many scores in a row without a better one; 0 = never"
    )
    random_init: bool = setting(
        False, "leave the encoder's weights random: what pretraining is worth"
    )
    new_pooler: bool = setting(
        False,
        "texts: start with a new pooler, not the one trained on next-sentence prediction (of a"
        " modern encoder: a new prediction head, not the masked LM's)",
    )
    qa_head: str = setting(
        "span",
        "questions: span = start and end chosen among all tokens, token_classes = each token is"
        " start, end or other",
        ("span", "token_classes"),
    )
    doc_stride: int = setting(128, "questions: tokens between the starts of two windows")
    max_null_windows: int = setting(
        0,
        "questions: learn from so many windows without the answer for each, for long contexts;"
        " 0 = from all",
    )
    max_question_tokens: int = setting(64, "questions: longer ones are cut")
    max_answer_tokens: int = setting(30, "questions: longest answer")
    hidden_dropout_prob: float = setting(0.1, "dropout of embeddings, sub-layers and the head")
    attention_probs_dropout_prob: float = setting(0.1, "dropout on attention weights")
    activation_checkpointing: bool = setting(
        False, "compute layers again in the backward pass: less memory, about a third more time"
    )
    deterministic: bool = setting(
        False,
        "resume bit for bit on GPUs too, as on CPUs: each sum has one order, which takes longer",
    )
    log_interval: int = setting(10, "optimizer steps between two console lines")
    max_minutes: float = setting(
        0.0, "save and stop with exit code 85 after so many minutes from the start; 0 = never"
    )

    def __post_init__(self) -> None:
        problems = [
            f"{name} = {getattr(self, name)}: must be at least {least}"
            for name, least in (
                ("max_seq_length", 0),
                ("seeds", 1),
                ("evals_per_epoch", 1),
                ("early_stopping", 0),
                ("doc_stride", 1),
                ("max_null_windows", 0),
                ("max_question_tokens", 1),
                ("max_answer_tokens", 1),
                ("log_interval", 1),
                ("max_minutes", 0),
            )
            if getattr(self, name) < least
        ]
        if not self.train:
            problems.append("train: give a file of labelled examples (--train FILE)")
        if not self.num_train_epochs > 0.0:
            problems.append(f"num_train_epochs = {self.num_train_epochs}: must be above 0")
        if not 0.0 < self.eval_share < 1.0:
            problems.append(f"eval_share = {self.eval_share}: must be above 0 and below 1")
        if not 0.0 <= self.warmup_share <= 1.0:
            problems.append(f"warmup_share = {self.warmup_share}: must be 0 to 1")
        for text in filter(None, self.learning_rates.split(",")):
            if not _is_positive_number(text):
                problems.append(
                    f"learning_rates = {self.learning_rates}: {text!r} is not a number above 0;"
                    " give them as 2e-5,5e-5"
                )
        raise_all("fine-tuning", problems)

    @property
    def lrs(self) -> list[float]:
        """The learning rates to try; none = the one of the DeepSpeed JSON."""
        return [float(text) for text in self.learning_rates.split(",") if text]

    def run(
        self, output_dir: str, seed: int, num_samples: int, global_batch_size: int
    ) -> TrainingConfig:
        """What the training loop is to do in one run.

        Args:
            output_dir: of this run.
            seed: of this run.
            num_samples: of the training set.
            global_batch_size: samples of an optimizer step.
        """
        num_steps = max(1, math.ceil(self.num_train_epochs * num_samples / global_batch_size))
        num_evals = max(1, round(self.num_train_epochs * self.evals_per_epoch))
        interval = math.ceil(num_steps / num_evals)
        return TrainingConfig(
            output_dir=output_dir,
            num_train_steps=num_steps,
            warmup_steps=round(self.warmup_share * num_steps),
            schedule=self.schedule,
            seed=seed,
            log_interval=self.log_interval,
            validation_interval=interval,
            checkpoint_interval=interval,
            keep_checkpoints=1,
            spike_threshold=0.0,  # of few examples, losses jump as a matter of course
            max_minutes=self.max_minutes,
            activation_checkpointing=self.activation_checkpointing,
            deterministic=self.deterministic,
        )


def _is_positive_number(text: str) -> bool:
    try:
        return 0.0 < float(text) < math.inf
    except ValueError:
        return False

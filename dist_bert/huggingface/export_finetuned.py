"""Exports a fine-tuned run as a folder that Hugging Face's transformers loads without this package.

As with a pretrained run (`dist_bert.huggingface.export_pretrained`), the folder appears only after
it has been loaded and compared: logits and token ids must be equal, equal answers are counted.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dist_bert.checkpoint.run_dir import CONFIG_NAME, read_resolved
from dist_bert.checkpoint.weights import published_order
from dist_bert.common import files
from dist_bert.common.errors import UserError
from dist_bert.common.settings import from_dict
from dist_bert.data.batches import BatchShape
from dist_bert.finetuning.batches import evaluation_batches, scores_of_batches
from dist_bert.finetuning.examples import (
    PAIR_TASKS,
    Example,
    QuestionExample,
    TextExample,
    WordsExample,
)
from dist_bert.finetuning.features import Features
from dist_bert.finetuning.predict import FineTunedModel
from dist_bert.finetuning.readers import ReadConfig, read_examples
from dist_bert.finetuning.results import read_results
from dist_bert.huggingface.answers import compare_answers
from dist_bert.huggingface.compare import check_ids, read_lines, tell_difference
from dist_bert.huggingface.finetuned_card import finetuned_card
from dist_bert.huggingface.folder import load_model, load_tokenizer, write_head, write_tokenizer
from dist_bert.huggingface.onnx_model import write_onnx
from dist_bert.huggingface.tokenizer import ODD_TEXTS
from dist_bert.model.published_config import require_published_form
from dist_bert.model.published_names import family
from dist_bert.tokenizer.tokenizer import PAD_ID

_NUM_EXAMPLES = 32  # that are answered by both: seconds on a CPU
_MICRO_BATCH = 8  # samples that are computed together
_NEEDED = {  # of the run's config.json, beside the model and its task
    "read": dict,
    "encoder.path": str,
    "finetune.train": str,
    "finetune.eval": str,
    "finetune.hidden_dropout_prob": float,
    "finetune.attention_probs_dropout_prob": float,
    "sets.train.examples": int,
    "sets.eval.examples": int,
    "run.num_train_steps": int,
    "run.warmup_steps": int,
    "run.schedule": str,
    "deepspeed.train_batch_size": int,
    "deepspeed.optimizer.type": str,
}


def export_finetuned(
    model: FineTunedModel,
    output_dir: Path,
    sample_text: str | None,
    allow_differences: bool,
    with_onnx: bool,
) -> None:
    """Writes the folder, loads it, compares, and prints the results.

    Args:
        model: of a finished run.
        output_dir: must be missing or empty.
        sample_text: file of further texts, one per line, to compare their token ids.
        allow_differences: whether to only report texts with different token ids.
        with_onnx: whether to write `model.onnx`, too.

    Raises:
        UserError: transformers has no such model, or its logits or ids differ; leaves no folder.
    """
    require_published_form(model.config)
    if not family(model.config).task_modules:
        raise UserError(
            f"{model.run_dir}: is fine-tuned on an encoder of architecture bert with positions ="
            " rotary, which is exported as a pretrained run only; launch/predict.py applies it"
        )
    model = dataclasses.replace(model, head=model.head.cpu(), device=torch.device("cpu"))
    resolved = read_resolved(model.run_dir, _NEEDED)
    examples = _examples(model, resolved)
    facts = model.task.published_facts(family(model.config).classes)
    weights = model.task.published_weights(model.head.state_dict())
    with files.whole_folder(output_dir) as folder:
        write_head(weights, model.config, facts, folder, model.task.tokenizer)
        has_segments = model.config.type_vocab_size > 0
        write_tokenizer(model.task.tokenizer, model.task.max_seq_length, folder, has_segments)
        order = published_order(model.task.tokenizer, model.config.vocab_size)
        new_ids = order.argsort()
        tokenizer, theirs = load_tokenizer(folder), load_model(folder, facts["architectures"][0])
        equal_outputs = _check_outputs(model, theirs, examples, order)
        print(f"outputs    {equal_outputs}", flush=True)

        def encode(window: list[str]) -> list[list[int]]:
            batch: list[list[int]] = tokenizer(window, add_special_tokens=False, verbose=False)[
                "input_ids"
            ]
            return [new_ids[ids].tolist() for ids in batch]

        texts = [*ODD_TEXTS, *(text for example in examples for text in _texts(example))]
        texts += read_lines(sample_text) if sample_text is not None else []
        equal_ids = check_ids(model.task.tokenizer, encode, texts, allow_differences)
        checks = [f"Outputs: {equal_outputs}.", f"Token ids: {equal_ids}."]
        for agreement in compare_answers(model, theirs, tokenizer, examples):
            print(f"answers    {agreement}", *agreement.differences, sep="\n  ", flush=True)
            checks.append(f"{agreement}.")
        if with_onnx:
            equal_onnx = write_onnx(theirs, folder)
            print(f"onnx       {equal_onnx}", flush=True)
            checks.append(f"ONNX: {equal_onnx}.")
        name = output_dir.absolute().name
        card = finetuned_card(name, model.task, resolved, read_results(model.run_dir), checks)
        files.write_bytes(folder / "README.md", card.encode())


def _examples(model: FineTunedModel, resolved: dict[str, Any]) -> Sequence[Any]:
    """The first examples that the run was scored on, if they still exist; otherwise odd texts."""
    settings = resolved["finetune"]
    path = settings["eval"] or settings["train"]
    try:
        read = from_dict(ReadConfig, resolved["read"], CONFIG_NAME)
        return read_examples(model.task_name, path, read, is_labelled=False).examples[
            :_NUM_EXAMPLES
        ]
    except UserError as error:
        print(f"examples   those of the run cannot be read ({error}): odd texts are used instead")
    texts = [text for text in ODD_TEXTS if text.strip()]
    if model.task_name == "question_answering":
        context = " ".join(texts)
        return [QuestionExample(str(i), t, context, None, "") for i, t in enumerate(texts)]
    if model.task_name == "token_classification":
        return [WordsExample(tuple(text.split()), None, "") for text in texts]
    others = texts[1:] if model.task_name in PAIR_TASKS else [None] * len(texts)
    return [TextExample(a, b, None, "") for a, b in zip(texts, others, strict=False)]


def _texts(example: Example) -> list[str]:
    if isinstance(example, TextExample):
        return [example.text_a, *([example.text_b] if example.text_b is not None else [])]
    if isinstance(example, WordsExample):
        return list(example.words)
    return [example.question, example.context]


def _check_outputs(
    model: FineTunedModel, theirs: Any, examples: Sequence[Any], order: Tensor
) -> str:
    """Compares the scores of all samples of the examples; returns the result as text.

    Args:
        model: ours.
        theirs: the same model in transformers.
        examples: of the task.
        order: (R,) its id for each of ours.
    """
    features: Features = model.task.prepare(examples, is_training=False).features
    has_segments = model.config.type_vocab_size > 0
    ours, expected = [], []
    for batch in evaluation_batches(features, BatchShape(1, 1, _MICRO_BATCH), rank=0):
        rows = [row for _, row in scores_of_batches(model.head, [batch], model.device)]
        ours.append(torch.from_numpy(np.vstack(rows)))
        samples = batch.samples.tolist()
        expected.append(_scores_of_padded(theirs, features, samples, has_segments, order))
    pairs = {"logits": (torch.cat(ours), torch.cat(expected))}
    return tell_difference(pairs, int(features.offsets[-1]), len(features))


@torch.no_grad()
def _scores_of_padded(
    theirs: Any, features: Features, samples: Sequence[int], has_segments: bool, order: Tensor
) -> Tensor:
    """Scores of samples, (B, C), or of all their tokens, (T, C); of spans, C is start and end."""
    bounds = torch.from_numpy(features.offsets)
    flat = torch.from_numpy(features.input_ids).long()
    rows = [flat[bounds[sample] : bounds[sample + 1]] for sample in samples]
    ids = pad_sequence(rows, batch_first=True, padding_value=PAD_ID)  # (B, S)
    places = torch.arange(ids.shape[1])
    is_token = places < torch.tensor([len(row) for row in rows])[:, None]
    batch = {"input_ids": order[ids], "attention_mask": is_token.long()}
    if has_segments:
        starts = torch.from_numpy(features.segment_b_start)[samples, None]
        batch["token_type_ids"] = ((places >= starts) & is_token).long()
    scores = theirs(**batch)
    if "start_logits" in scores:
        return torch.stack([scores.start_logits, scores.end_logits], 2)[is_token]
    logits: Tensor = scores.logits
    return logits[is_token] if logits.ndim > 2 else logits

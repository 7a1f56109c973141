"""The README.md of an exported fine-tuned model: its task, classes, scores and usage.

The licence is the user's to choose. Not for: exporting (`dist_bert.huggingface.export_finetuned`).
"""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dist_bert.finetuning.examples import PAIR_TASKS
from dist_bert.finetuning.task import TEXT_PIPELINE, WORD_PIPELINE, Task
from dist_bert.huggingface.answers import answer_settings
from dist_bert.huggingface.pretrained_card import TOKENIZER_NOTES, table
from dist_bert.huggingface.usage import find_answer, tag_words

_MAX_CLASSES = 100  # whose scores a card lists individually

_TEXTS_NOTE = "Without `truncation=True`, a text that is too long is an error."
_PAIRS_NOTE = (
    " If two texts are both truncated to an odd total number of tokens, dist-bert gives the odd one"
    " to the first text and transformers to the second."
)
_WORDS_NOTE = (
    "A word's tag is predicted at its first piece; the model was not trained on the others."
    " `pipeline` splits words by itself: with SentencePiece at spaces, so that a word whose first"
    " piece is a lone `▁` falls apart, and words written without spaces (Chinese) are split"
    " differently than in training; with WordPiece at every punctuation mark. It also takes the"
    " likeliest tag of each word, but dist-bert takes the likeliest valid sequence (`I-X` only"
    " after `B-X` or `I-X`). This function is equivalent to dist-bert:"
)
_QUESTIONS_NOTE = (
    "transformers no longer has a pipeline for questions. This function is equivalent to dist-bert:"
    " it reads long contexts in windows and, if the model was trained on questions without an"
    " answer, detects when there is none:"
)


def finetuned_card(
    name: str,
    task: Task,
    resolved: dict[str, Any],
    results: dict[str, Any],
    checks: Sequence[str],
) -> str:
    """The text of the card.

    Args:
        name: of the model's folder.
        task: with its classes.
        resolved: the run's config.json.
        results: the run's results.json.
        checks: results of the export's comparisons, one sentence each.
    """
    task_name = resolved["task"]["name"]
    is_modern = resolved["model"].get("architecture") == "modern"
    tokenizer = TOKENIZER_NOTES[task.tokenizer.kind]
    parts = [
        f"---\nlibrary_name: transformers\npipeline_tag: {task.pipeline}\n"
        "# license: choose one; it also depends on the training texts\n---",
        f"# {name}",
        f"A {'ModernBERT' if is_modern else 'BERT'} encoder fine-tuned for"
        f" {task_name.replace('_', ' ')}, exported by dist-bert.",
        *_usage(name, task, is_of_pairs=task_name in PAIR_TASKS),
        f"{tokenizer} The longest input has {task.max_seq_length} tokens.",
        "## Scores",
        "On held-out examples:",
        table([("", ""), *((n, f"{value:.4f}") for n, value in results["values"].items())]),
        *_classes(task, results["per_class"]),
        "## Training",
        table([("", ""), *_training(resolved, results)]),
        "## Checks of the export",
        " ".join(checks),
    ]
    return "\n\n".join(parts) + "\n"


def _usage(name: str, task: Any, is_of_pairs: bool) -> tuple[str, ...]:
    """How the model is used, and where transformers does otherwise than the run."""
    if task.pipeline == TEXT_PIPELINE:
        given = '{"text": "A text.", "text_pair": "Another one."}' if is_of_pairs else '"A text."'
        code = (
            "from transformers import pipeline\n\n"
            f'classify = pipeline("{TEXT_PIPELINE}", "{name}")\n'
            f"print(classify([{given}], top_k=None, truncation=True))"
        )
        note = f"{task.score_note} {_TEXTS_NOTE}{_PAIRS_NOTE if is_of_pairs else ''}"
        return _code(code), note
    if task.pipeline == WORD_PIPELINE:
        sentence = '["Alice", "sold", "the", "lamp", "."]'
        code = (
            "from transformers import pipeline\n\n"
            f'tag = pipeline("{WORD_PIPELINE}", "{name}", aggregation_strategy="first")\n'
            f"print(tag({sentence}, is_split_into_words=True))"
        )
        call = f"print(tag_words({sentence}, model, tokenizer))"
        own = _shown(name, "AutoModelForTokenClassification", tag_words, call)
        return _code(code), _WORDS_NOTE, own
    settings = ", ".join(f"{name}={value!r}" for name, value in answer_settings(task).items())
    call = (
        'question, context = "Who came?", "Alice came. Bob did not."\n'
        f"settings = dict({settings})\n"
        "print(find_answer(question, context, model, tokenizer, **settings))"
    )
    kind = "TokenClassification" if task.as_token_classes else "QuestionAnswering"
    return _QUESTIONS_NOTE, _shown(name, f"AutoModelFor{kind}", find_answer, call)


def _shown(name: str, model_class: str, function: Callable[..., Any], call: str) -> str:
    """Source of one of our functions, to copy, and a call of it."""
    return _code(
        f"from typing import Any\n\nfrom transformers import {model_class}, AutoTokenizer\n\n\n"
        f"{inspect.getsource(function)}\n\n"
        f'model = {model_class}.from_pretrained("{name}")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")\n{call}'
    )


def _code(text: str) -> str:
    return f"```python\n{text}\n```"


def _classes(task: Task, per_class: Sequence[dict[str, Any]]) -> list[str]:
    """The classes, with their scores if available."""
    if not task.classes:
        return []
    classes = ", ".join(f"`{name}`" for name in task.classes[:_MAX_CLASSES])
    more = len(task.classes) - _MAX_CLASSES
    told = f"{len(task.classes)} classes: {classes}" + (f" and {more} more" if more > 0 else "")
    names = ("precision", "recall", "f1")
    rows = [
        (scores["name"], *(f"{scores[name]:.4f}" for name in names), f"{scores['support']:,}")
        for scores in per_class[:_MAX_CLASSES]
    ]
    return [told, table([("", *names, "examples"), *rows])] if rows else [told]


def _training(resolved: dict[str, Any], results: dict[str, Any]) -> list[tuple[str, str]]:
    settings, sets, run = resolved["finetune"], resolved["sets"], resolved["run"]
    optimizer = resolved["deepspeed"]["optimizer"]["type"]
    rows = [
        ("encoder", Path(resolved["encoder"]["path"]).name),
        *(
            (f"examples to {use}", f"{sets[key]['examples']:,}")
            for use, key in (("learn from", "train"), ("score", "eval"))
        ),
        (
            "files",
            ", ".join(Path(settings[key]).name for key in ("train", "eval") if settings[key]),
        ),
        ("longest sample (tokens)", f"{resolved['task']['max_seq_length']}"),
        ("optimizer steps", f"{results['step']:,} of {run['num_train_steps']:,}: the best score"),
        ("samples a step", f"{resolved['deepspeed']['train_batch_size']:,}"),
        ("optimizer", f"{optimizer}, peak learning rate {results['lr']:g}, {run['schedule']}"),
        ("warmup steps", f"{run['warmup_steps']:,}"),
        (
            "dropout",
            f"{settings['hidden_dropout_prob']:g}, of attention"
            f" {settings['attention_probs_dropout_prob']:g}",
        ),
        ("seed", f"{results['seed']}"),
    ]
    return rows + [(name, version) for name, version in resolved.get("versions", {}).items()]

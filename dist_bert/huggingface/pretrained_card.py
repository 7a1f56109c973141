"""The README.md of an exported model: description, training and usage.

The licence is the user's to choose. Not for: exporting (`dist_bert.huggingface.export_pretrained`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dist_bert.checkpoint.run_dir import METRICS_NAME
from dist_bert.common.json_lines import rows_of
from dist_bert.tokenizer.kind import Kind

_ACCURACY = "validation/nsp_accuracy"
_SCORES = {  # metric -> (name, format)
    "validation/mlm_loss": ("masked LM loss (nats)", ".4f"),
    "validation/mlm_accuracy": ("masked LM accuracy", ".2%"),
    "validation/nsp_loss": ("next sentence loss (nats)", ".4f"),
    _ACCURACY: ("next sentence accuracy", ".2%"),
}

TOKENIZER_NOTES: dict[Kind, str] = {
    "SentencePiece": (
        "Its tokenizer is SentencePiece's, as `PreTrainedTokenizerFast`: `AutoTokenizer` loads it,"
        " `BertTokenizer` (WordPiece) must not be used."
    ),
    "WordPiece": (
        "Its tokenizer is an imported WordPiece vocabulary, as `PreTrainedTokenizerFast`: the"
        " special pieces were moved to the front, so its ids differ from the published ones."
    ),
    "byte-level BPE": (
        "Its tokenizer is the imported byte-level BPE, unchanged: ids and rows of the word"
        " embeddings are in the published order. dist-bert moves the special pieces to the front"
        " when it reads this folder."
    ),
}


def model_card(
    name: str,
    resolved: dict[str, Any],
    step: int,
    run_dir: Path,
    tokenizer_kind: Kind,
    check: str,
    no_mlm_head: str,
    is_average: bool = False,
) -> str:
    """The text of the card.

    Args:
        name: of the model's folder.
        resolved: the run's config.json.
        step: of the checkpoint.
        run_dir: for the scores, if there was a validation at that step.
        tokenizer_kind: of the tokenizer's pieces.
        check: results of the export's comparisons, one line.
        no_mlm_head: the reason for a folder without it; empty if it has one.
        is_average: the weights are an average over the steps, which the scores are not of.
    """
    places = {place for phase in resolved.get("phases", {}).values() for place in phase["shards"]}
    random_next = resolved.get("shards", {}).get("random_next")  # of the last phase
    random_next = random_next if len(places) < 2 else None
    scores = [] if is_average else _scores(run_dir, step, random_next)
    parts = [
        "---\nlibrary_name: transformers\n"
        f"pipeline_tag: {'feature-extraction' if no_mlm_head else 'fill-mask'}\n"
        "# license: choose one; it also depends on the training text\n---",
        f"# {name}",
        f"{_kind(resolved)}, exported by dist-bert.",
        *(["Its weights are an exponential average over the steps."] if is_average else []),
        *([f"It lacks the masked LM head: {no_mlm_head}."] if no_mlm_head else []),
        _usage(name, not no_mlm_head),
        TOKENIZER_NOTES[tokenizer_kind],
        "## Training",
        table([("", ""), *_training(resolved, step)]),
        *([table(_phases(resolved, step))] if "phases" in resolved else []),
    ]
    if scores:
        parts += [f"Held-out samples at step {step:,}:", table([("", ""), *scores])]
    return "\n\n".join([*parts, "## Checks of the export", check]) + "\n"


def _kind(resolved: dict[str, Any]) -> str:
    if resolved.get("model", {}).get("architecture") == "modern":
        return "A ModernBERT encoder with the head of its masked LM"
    if resolved.get("model", {}).get("positions") == "rotary":
        return "A BERT encoder with rotary positions (NomicBert) and the head of its masked LM"
    return "A BERT encoder with the heads of its pretraining"


def _usage(name: str, has_mlm_head: bool) -> str:
    fill_mask = f'pipeline("fill-mask", "{name}")("A sentence with a [MASK] in it.")\n'
    return (
        "```python\nfrom transformers import AutoModel, AutoTokenizer"
        f"{', pipeline' if has_mlm_head else ''}\n\n"
        f"{fill_mask if has_mlm_head else ''}"
        f'tokenizer, model = (c.from_pretrained("{name}") for c in (AutoTokenizer, AutoModel))\n'
        "```"
    )


def _training(resolved: dict[str, Any], step: int) -> list[tuple[str, str]]:
    """Names and values; parts of the configuration that a run lacks are omitted."""
    rows = [("optimizer steps", f"{step:,}")]  # 0 if it was imported
    settings, phases = resolved.get("deepspeed", {}), resolved.get("phases", {})
    if "train_batch_size" in settings and not phases:
        rows.append(("samples a step", f"{settings['train_batch_size']:,}"))
    optimizer = settings.get("optimizer")
    if optimizer:
        values = ", ".join(f"{key} {value}" for key, value in optimizer["params"].items())
        rows.append(("optimizer", f"{optimizer['type']} ({values})"))
    run = resolved.get("run", {})
    names = ("num_train_steps", "schedule", "warmup_steps", "decay_steps", "seed", "masks")
    rows += [(name, f"{run[name]}") for name in names if name in run]
    shards = resolved.get("shards", {})
    names = (
        "sequence_length", "pair_objective", "masked_lm_prob", "whole_words", "mean_span_length",
        "copies",
    )  # fmt: skip
    config = shards.get("config", {})
    if run.get("masked_lm_prob"):
        shares = (run["masked_lm_prob"], run.get("final_masked_lm_prob"))
        config = {**config, "masked_lm_prob": " to ".join(f"{share}" for share in shares if share)}
    if phases:  # each has its own; `shards` is the first data set of the last one
        config = {name: value for name, value in config.items() if name == "pair_objective"}
    rows += [(name, f"{config[name]}") for name in names if name in config]
    if shards:
        if not phases:
            rows.append(("fingerprint of the data", f"`{shards['fingerprint']}`"))
        rows.append(("fingerprint of the tokenizer", f"`{shards['tokenizer']['fingerprint']}`"))
    rows += [(f"{name}", version) for name, version in resolved.get("versions", {}).items()]
    return rows


def _phases(resolved: dict[str, Any], step: int) -> list[tuple[str, ...]]:
    """The phases of a recipe that have begun at a step, under a header."""
    rows: list[tuple[str, ...]] = [
        ("phase", "steps", "samples a step", "data sets", "masked", "schedule")
    ]
    end = 0
    for name, phase in resolved["phases"].items():
        first, end = end + 1, end + phase["steps"]
        if first > step:
            break
        sizes = (phase["initial_batch_size"], phase["train_batch_size"])
        shares = (phase["masked_lm_prob"], phase["final_masked_lm_prob"])
        total = sum(phase["shards"].values())
        parts = [
            f"{weight / total:.1%} {place.rstrip('/').rpartition('/')[2]}"
            for place, weight in phase["shards"].items()
        ]
        by_tokens = " (by tokens)" if phase["weights_by"] == "tokens" else ""
        masked = " to ".join(f"{share:.1%}" for share in shares if share) or "as prepared"
        schedule = "the run's" if phase["schedule"] == "run" else phase["schedule"]
        if phase["lr_share"] != 1:
            schedule += f", up to {phase['lr_share']:.0%} of the lr"
        batch = " to ".join(f"{size:,}" for size in sizes if size)
        steps, data = f"{first:,} to {min(end, step):,}", ", ".join(parts) + by_tokens
        rows.append((name, steps, batch, data, masked, schedule))
    return rows


def _scores(run_dir: Path, step: int, random_next: float | None) -> list[tuple[str, str]]:
    """Results of the validation at a step; empty if there was none.

    Args:
        run_dir: of the run.
        step: of the checkpoint.
        random_next: share of the held-out pairs that are random; None = unknown.
    """
    rows = rows_of(run_dir / METRICS_NAME, only_numbers=True)
    found: dict[str, float] = {}
    for row in rows:
        if row["step"] == step and any(name.startswith("validation/") for name in row):
            found = row
    scores = {
        metric: (name, format(found[metric], form))
        for metric, (name, form) in _SCORES.items()
        if metric in found
    }
    if _ACCURACY in scores and random_next is not None:
        majority = max(random_next, 1 - random_next)
        name, told = scores[_ACCURACY]
        scores[_ACCURACY] = (name, f"{told} (always the more frequent label: {majority:.2%})")
    return list(scores.values())


def table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is its header."""
    escaped = ([cell.replace("|", "\\|") for cell in row] for row in rows)  # names of classes
    head, *body = [f"| {' | '.join(row)} |" for row in escaped]
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body])

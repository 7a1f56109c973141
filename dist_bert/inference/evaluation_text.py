"""An evaluation as text for people. Not for: any score that `Evaluation` has not."""

from collections.abc import Mapping

from dist_bert.inference.confidence import Estimate
from dist_bert.inference.evaluate import Evaluation, Scores

_KIND_TITLES = {"mask": "[MASK]", "random": "a random piece", "kept": "itself, kept"}
_GROUP_COLUMNS = {"mlm_loss": "MLM loss", "mlm_accuracy": "MLM accuracy"}
_PAIR_COLUMNS = {"nsp_accuracy": "NSP accuracy"}


def evaluation_text(result: Evaluation) -> str:
    """The scores of all samples beside the baselines, then those of groups of them."""
    lengths = {f"{few} to {most}": group for (few, most), group in result.by_length.items()}
    kinds = {_KIND_TITLES[kind]: group for kind, group in result.by_kind.items()}
    sections = (
        f"step {result.step:,}: {result.scores.num_samples:,} held-out samples from"
        f" {result.num_documents:,} documents, {result.scores.num_masked:,} predictions",
        _all_samples(result),
        _groups("tokens of the sample", lengths),
        _groups("piece at the position", kinds),
    )
    return "\n\n".join(sections)


def _all_samples(result: Evaluation) -> str:
    scores = result.scores
    rows = [
        ("MLM loss (nats)", scores.mlm_loss, f"{result.unigram_loss:.4f}  unigram", ".4f"),
        ("MLM perplexity", scores.mlm_perplexity, "", ",.1f"),
        (
            "MLM accuracy",
            scores.mlm_accuracy,
            f"{result.majority_accuracy:.2%}  most frequent piece",
            ".2%",
        ),
    ]
    if scores.nsp_accuracy is not None and scores.nsp_loss is not None:
        entropy, majority = result.nsp_entropy, result.nsp_majority_accuracy
        told = [f"{entropy:.4f}  entropy of the labels", f"{majority:.2%}  more frequent label"]
        rows.append(("NSP loss (nats)", scores.nsp_loss, told[0], ".4f"))
        rows.append(("NSP accuracy", scores.nsp_accuracy, told[1], ".2%"))
    lines = [f"{'':<17}{'score':>9}   {'95 % interval':<19}  baseline"]
    for name, estimate, baseline, form in rows:
        interval = "one document: none"
        if estimate.low is not None:
            interval = f"{estimate.low:{form}} to {estimate.high:{form}}"
        lines.append(f"{name:<17}{estimate.value:>9{form}}   {interval:<19}  {baseline}".rstrip())
    return "\n".join(lines)


def _groups(title: str, groups: Mapping[str, Scores]) -> str:
    """A table with a line for each group of predictions."""
    has_pairs = any(group.nsp_accuracy for group in groups.values())
    columns = {**_GROUP_COLUMNS, **(_PAIR_COLUMNS if has_pairs else {})}
    heads = "".join(f"{head:>18}" for head in columns.values())
    lines = [f"{title:<25}{'samples':>9}{'predictions':>13}{heads}"]
    for name, group in groups.items():
        estimates = group.estimates()
        cells = "".join(f"{_cell(estimates.get(column), column):>18}" for column in columns)
        lines.append(f"{name:<25}{group.num_samples:>9,}{group.num_masked:>13,}{cells}".rstrip())
    return "\n".join(lines)


def _cell(estimate: Estimate | None, name: str) -> str:
    """A score with half the width of its interval, which may be cut off on one side."""
    if estimate is None:
        return ""
    form = ".3f" if name.endswith("_loss") else ".2%"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:{form}}          "
    margin = max(estimate.value - estimate.low, estimate.high - estimate.value)
    return f"{estimate.value:{form}} ± {margin:{form}}"

"""What a recipe needs, beside what this machine has. Only the standard library is imported."""

from collections.abc import Iterator, Sequence
from typing import Any

from dist_bert.common.device import num_wanted_gpus
from dist_bert.tools.doctor.findings import Finding, judged
from dist_bert.tools.doctor.trials import recipe_needs, remedy_of


def recipe_findings(flags: Sequence[str], output_dir: str, free_bytes: int) -> Iterator[Finding]:
    """Whether a recipe can start, and what it needs beside what there is.

    Args:
        flags: of launch/pretrain.py, `--recipe` among them.
        output_dir: of the run.
        free_bytes: of the disk that has it.
    """
    ranks = num_wanted_gpus() or 1
    needs = recipe_needs(["--num_ranks", str(ranks), "--output_dir", output_dir, *flags])
    if isinstance(needs, str):
        remedy = remedy_of(needs, "see launch/pretrain.py --help")
        yield Finding("recipe", "flags", "failed", needs, remedy, True)
        return
    for problem in needs["problems"]:
        remedy = "launch/pretrain.py --check lists all of a run's problems"
        yield Finding("recipe", "run", "cannot start", problem, remedy, is_fatal=True)
    for warning in needs["warnings"]:
        remedy = "docs/recipes.md has what it means"
        yield Finding("recipe", "data sets", "can be trained on", warning, remedy)
    if "phases" not in needs:
        return
    for phase in needs["phases"]:
        yield _phase(phase, needs["memory_bytes"])
    if needs["not_planned"]:
        yield Finding("recipe", "memory and disk", f"not planned: {needs['not_planned']}")
        return
    yield judged(
        Finding("recipe", "checkpoints", f"up to {_size(needs['disk_bytes'])} in {output_dir}"),
        free_bytes < needs["disk_bytes"],
        f"there are {_size(free_bytes)} free",
        "free some space, name another --output_dir, or lower keep_checkpoints",
    )


def _phase(phase: dict[str, Any], memory: int) -> Finding:
    """A phase of a recipe, with a warning where a rank needs more memory than it has."""
    needed = phase["rank_bytes"]
    told = f"{phase['num_steps']:,} steps, {phase['num_samples']:,} samples of up to"
    told += f" {phase['sequence_length']:,} tokens from {', '.join(phase['data_sets'])}"
    told += f"; a rank needs {_size(needed)}" if needed else ""
    return judged(
        Finding("recipe", f"phase {phase['name']}", told),
        bool(needed) and needed > memory,
        f"a rank has {_size(memory)}",
        "give a smaller micro-batch, --activation_checkpointing true or a higher ZeRO stage"
        " (launch/plan.py compares them)",
    )


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:,.2f} GiB"

"""What a preparation will read and make: checked and cut into units before any work."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep import data_set
from data_prep.data_set import Paths
from data_prep.inputs import InputPart, resolve_inputs
from data_prep.prepare_config import PrepareConfig
from data_prep.stored_units import require_own_tokenizer
from data_prep.work_units import plan_units, sentence_lists
from dist_bert.common import files
from dist_bert.tokenizer.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Target:
    """One of the data sets to make."""

    paths: Paths
    config: PrepareConfig
    identity: dict[str, Any]  # see `data_set.is_finished`
    is_finished: bool


@dataclasses.dataclass(frozen=True)
class Plan:
    """Units of work and data sets; rank 0 makes it, and it is the same on all ranks."""

    units: list[list[InputPart]]  # none if there is nothing to do
    targets: list[Target]

    @property
    def unfinished(self) -> list[Target]:
        """Those that are still to be made."""
        return [target for target in self.targets if not target.is_finished]


def make_plan(
    patterns: Sequence[str], data_sets: Mapping[Paths, PrepareConfig], log_dir: Path | None
) -> Plan:
    """Lists the inputs and looks at the folders; prints what is unusual.

    Args:
        patterns: of the input files; empty = the documentation of the installed packages.
        data_sets: paths -> configuration; they differ in output folder and `sequence_length` alone.
        log_dir: of the ranks' logs, which are no input.

    Raises:
        UserError: the inputs, the tokenizer or a folder is unusable.
    """
    paths, any_config = next(iter(data_sets.items()))
    tokenizer = Tokenizer(paths.tokenizer, may_renumber=True)
    written = [file for own in data_sets for file in data_set.written_files(own, log_dir)]
    inputs, layout = resolve_inputs(patterns, any_config.format, written)
    for own in data_sets:
        data_set.check_apart(own.output_dir, inputs)
    num_bytes = sum(file.bytes for file in inputs)
    print(f"plan     {len(inputs):,} files  {num_bytes / 1e6:.1f} MB", flush=True)
    for line in tokenizer.changes:
        print(line, flush=True)
    for path in sentence_lists(inputs, layout):
        print(
            f"{path}: looks like one sentence per line without documents, but is read as one"
            " document; if its lines are sentences, give --format sentences",
            flush=True,
        )
    listed = files.fingerprint([(file.path, file.bytes) for file in inputs])
    targets = []
    for own, config in data_sets.items():
        config = dataclasses.replace(config, format=layout)
        identity = {
            **dataclasses.asdict(config),
            "tokenizer": tokenizer.fingerprint,
            "input": f"{len(inputs)} files of {num_bytes} bytes ({listed[:12]})",
        }
        is_finished = data_set.is_finished(own.output_dir, identity)
        targets.append(Target(own, config, identity, is_finished))
    if all(target.is_finished for target in targets):
        return Plan([], targets)
    require_own_tokenizer(paths.token_store, tokenizer.fingerprint)
    return Plan(plan_units(inputs, layout), targets)

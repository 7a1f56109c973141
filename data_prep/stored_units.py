"""Checks the units of a token store: finds those to reuse, and why others are encoded again.

Nothing in a store is trusted: a unit is reused only if its files match the sums in its `unit.json`.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from data_prep.mpi_ranks import MpiRanks
from data_prep.token_store import UnitRecord, is_unit, read_record
from dist_bert.common import files
from dist_bert.common.errors import UserError

_MOST_NAMED = 3  # units per problem


def require_own_tokenizer(store: Path, tokenizer: str) -> None:
    """Protects units encoded with another tokenizer, maybe hours of work, from being replaced.

    Args:
        store: need not exist.
        tokenizer: fingerprint of the one to encode with.

    Raises:
        UserError: the store has such units.
    """
    for folder in sorted(store.glob("unit-*")):
        try:
            theirs = read_record(folder).tokenizer
        except UserError:  # damaged, or of another version: useless
            continue
        if theirs != tokenizer:
            raise UserError(
                f"--token_store {store}: holds text that was encoded with another tokenizer"
                f" ({theirs[:12]} there, {tokenizer[:12]} asked for); give another folder, or"
                " remove this one"
            )


def sound_units(
    ranks: MpiRanks, folders: Sequence[Path], wanted: Sequence[str], sizes: Sequence[int]
) -> dict[int, UnitRecord]:
    """The units to reuse, on rank 0; prints which others are encoded again, and why.

    All ranks call it, and share the reading.

    Args:
        ranks: of the preparation.
        folders: of all units; need not exist.
        wanted: fingerprints of what they should be made from.
        sizes: of the text of each unit, in bytes.
    """
    records: dict[int, UnitRecord] = {}  # on rank 0
    others: dict[str, list[str]] = defaultdict(list)  # likewise: kind -> units

    def look() -> list[int]:
        for unit, (folder, fingerprint) in enumerate(zip(folders, wanted, strict=True)):
            if not is_unit(folder):
                continue
            try:
                record = read_record(folder)
            except UserError as error:
                others["cannot be used"].append(str(error))
                continue
            if record.fingerprint == fingerprint:
                records[unit] = record
            else:
                others["were made from other text or with other settings"].append(str(folder))
        return list(records)

    found = ranks.share(look)
    problems = ranks.run(
        "check of unit",
        [sizes[unit] for unit in found],
        lambda item: damage(folders[found[item]]),
        lambda item, problem: None,
    )
    for unit, problem in zip(found, problems, strict=False):  # on other ranks, there are none
        if problem:
            others["are damaged"].append(problem)
            del records[unit]
    for kind, names in others.items():
        told = "; ".join(names[:_MOST_NAMED]) + ("; ..." if len(names) > _MOST_NAMED else "")
        print(f"token store: {len(names):,} units {kind} and are encoded again: {told}")
    return records


def damage(folder: Path) -> str:
    """How a unit differs from what was written; "" if it does not."""
    for name, sha256 in read_record(folder).sha256.items():
        try:
            if files.sha256_of_file(folder / name) != sha256:
                return f"{folder / name} has changed since it was written (sha256)"
        except FileNotFoundError:
            return f"{folder / name} is missing"
    return ""

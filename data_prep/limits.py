"""Limits of lost tokens and random pairs, checked before a data set is completed."""

import dataclasses
from pathlib import Path

from data_prep.prepare_config import PrepareConfig
from data_prep.samples import SampleStatistics
from dist_bert.common.errors import UserError

LOST_TOKENS, TRUNCATED_TOKENS, RANDOM_NEXT = 0.05, 0.2, 0.65  # the defaults


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits that a preparation accepts."""

    max_bad_share: float  # of the records of a file
    lost_tokens: float | None = None  # share; None = what the settings imply
    random_next: float = RANDOM_NEXT  # share of the pairs, in nsp


def check(
    statistics: SampleStatistics, config: PrepareConfig, limits: Limits, output_dir: Path
) -> None:
    """Ends a preparation whose samples cannot be what the user wants.

    Args:
        statistics: of all samples.
        config: of the data set.
        limits: of it.
        output_dir: of it, for the message.

    Raises:
        UserError: too many tokens are in no sample, or too many pairs are random.
    """
    lost = statistics.num_lost_tokens / max(statistics.num_document_tokens, 1)
    expected = TRUNCATED_TOKENS if config.truncate_pairs else LOST_TOKENS
    most = expected if limits.lost_tokens is None else limits.lost_tokens
    if not statistics.num_samples:
        raise UserError(f"{output_dir}: no token is in a sample: {_why_lost(statistics, config)}")
    if lost > most:
        raise UserError(
            f"{output_dir}: {lost:.1%} of the tokens are in no sample, at most {most:.1%} may be:"
            f" {_why_lost(statistics, config)}; or allow it with --allow_lost_tokens"
            f" {_above(lost)}"
        )
    random_next = statistics.num_random_next / max(statistics.num_samples, 1)
    if config.pair_objective == "nsp" and random_next > limits.random_next:
        raise UserError(
            f"{output_dir}: {random_next:.1%} of the pairs have a random second segment, at most"
            f" {limits.random_next:.1%} may: most chunks of {config.sequence_length} tokens have a"
            f" single sentence; {_how_to_balance(config)}, or allow it with --allow_random_next"
            f" {_above(random_next)}"
        )


def _why_lost(statistics: SampleStatistics, config: PrepareConfig) -> str:
    if statistics.num_truncated_tokens > statistics.num_dropped_tokens:
        return (
            "sentences are long, and the excess of a pair is cut off; give another --output_dir and"
            " leave out --truncate_pairs, which loses nothing"
        )
    if statistics.num_dropped_tokens > 2 * statistics.num_dropped_sentences:
        return (
            "samples of [UNK] alone have nothing to predict; give another --output_dir and a"
            " --tokenizer that was made from such text, or has pieces for bytes"
        )
    return (
        f"documents of one token have no second segment, which --pair_objective"
        f" {config.pair_objective} needs; give another --output_dir and --pair_objective none"
    )


def _how_to_balance(config: PrepareConfig) -> str:
    """The settings to change, which make another data set."""
    ways = [] if config.balance_pairs else ["--balance_pairs true"]
    ways += ["without --truncate_pairs"] if config.truncate_pairs else []
    ways += ["a greater --sequence_length", "--pair_objective none"]
    return f"give another --output_dir and {', '.join(ways[:-1])} or {ways[-1]}"


def _above(share: float) -> str:
    """A share a little above this one, with two digits."""
    return f"{min(share + 0.01, 1.0):.2f}"

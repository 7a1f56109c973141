"""Limits of a data set: what is beyond them is one line that says why, and what to set."""

from pathlib import Path
from typing import Any

import pytest

from data_prep.limits import Limits, check
from data_prep.prepare_config import PrepareConfig
from data_prep.samples import SampleStatistics
from dist_bert.common.errors import UserError


def checked(
    num_lost: int = 0,
    num_random: int = 0,
    limits: Any = (),
    num_unknown: int = 0,
    num_samples: int = 1_000,
    **settings: Any,
) -> None:
    num_truncated = num_lost * 2 // 3 if settings.get("truncate_pairs") else 0
    statistics = SampleStatistics(
        num_samples=num_samples,
        num_random_next=num_random,
        num_document_tokens=1_000,
        num_truncated_tokens=num_truncated,
        num_dropped_sentences=num_lost - num_truncated,
        num_dropped_tokens=num_lost - num_truncated + num_unknown,
    )
    check(statistics, PrepareConfig(**settings), Limits(0.0, *limits), Path("out"))


def test_lost_tokens_end_a_preparation() -> None:
    checked(50)
    with pytest.raises(
        UserError, match=r"^out: 5\.1% of the tokens .* at most 5\.0%.*pair_objective none"
    ) as caught:
        checked(51, pair_objective="sop")
    assert "--allow_lost_tokens 0.06" in str(caught.value)
    checked(51, limits=(0.06,), pair_objective="sop")
    checked(200, truncate_pairs=True)
    with pytest.raises(UserError, match=r"20\.1%.* leave out --truncate_pairs.*_tokens 0\.21"):
        checked(201, truncate_pairs=True)
    with pytest.raises(UserError, match=r"0\.1% of the tokens .* at most 0\.0%"):
        checked(1, limits=(0.0,))


def test_text_that_the_tokenizer_does_not_know_is_named() -> None:
    checked(num_unknown=50)
    with pytest.raises(
        UserError, match=r"5\.1% of the tokens .*: samples of \[UNK\] alone .* 0\.06"
    ):
        checked(num_unknown=51)
    with pytest.raises(UserError, match=r"^out: no token is in a sample: samples of \[UNK\] alone"):
        checked(num_unknown=1_000, num_samples=0, limits=(1.0,), pair_objective="none")


def test_too_many_random_pairs_end_a_preparation() -> None:
    checked(num_random=650, balance_pairs=False)
    with pytest.raises(
        UserError, match=r"^out: 65\.1% of the pairs .* at most 65\.0%.*--balance_pairs true, "
    ) as caught:
        checked(num_random=651, balance_pairs=False)
    assert "--allow_random_next 0.66" in str(caught.value)
    assert "truncate" not in str(caught.value)
    checked(num_random=651, balance_pairs=False, limits=(None, 0.66))
    with pytest.raises(UserError, match=r"balance_pairs true, without --truncate_pairs, a greater"):
        checked(num_random=1_000, balance_pairs=False, truncate_pairs=True)
    checked(num_random=1_000, pair_objective="sop")

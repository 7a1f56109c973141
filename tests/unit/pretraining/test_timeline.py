"""Where phases begin, and what each step of a run is."""

import dataclasses
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from dist_bert.common.errors import UserError
from dist_bert.data import document_sketch
from dist_bert.data.batches import TO_BE_FOUND, BatchShape
from dist_bert.data.mixture import Mixture
from dist_bert.data.shard_source import ShardSource
from dist_bert.pretraining.config import PretrainingConfig
from dist_bert.pretraining.recipe import Phase
from dist_bert.pretraining.timeline import Corpus, Timeline, make_timeline
from dist_bert.pretraining.timeline_text import timeline_table, warnings_of
from tests.support.synthetic import write_data_set

USUAL = BatchShape(2, 3, 2)  # 12 samples
RUN = PretrainingConfig(warmup_steps=0, schedule="constant")


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Corpus]:
    """Of 27, 19 and 27 samples; the mean of the second one is 20 tokens, of the others 10."""
    folder = tmp_path_factory.mktemp("corpora")
    found = {}
    layouts: dict[str, Any] = {"a": ((5, 3), (7,), (4, 2, 6)), "b": ((9,), (2, 8)), "c": ((27,),)}
    for name, layout in layouts.items():
        manifest = write_data_set(folder / name, layout).manifest
        mean = 20 if name == "b" else 10
        counts = {"train": {"num_samples": 100, "num_tokens": 100 * mean}}
        inputs = [{"path": f"{name}.txt", "sha256": "0" * 64, "start": 0}]
        manifest = dataclasses.replace(manifest, statistics=counts, inputs=inputs)
        found[name] = Corpus(name, ShardSource(folder / name), manifest)
    return found


def timeline_of(corpora: dict[str, Corpus], *phases: Phase, run: Any = RUN) -> Timeline:
    return make_timeline(run, phases, corpora, USUAL)


def refusal(corpora: dict[str, Corpus], *phases: Phase, run: Any = RUN) -> str:
    with pytest.raises(UserError) as caught:
        timeline_of(corpora, *phases, run=run)
    return str(caught.value)


def test_lengths_in_steps_samples_and_tokens_become_steps(corpora: dict[str, Corpus]) -> None:
    timeline = timeline_of(
        corpora,
        Phase({"a": 1.0}, steps=7),
        Phase({"a": 1.0}, samples=61),  # 6 steps of 12
        Phase({"a": 1.0, "b": 3.0}, tokens=1_750),  # 17.5 a sample: 100 samples, 9 steps
        Phase({"b": 1.0}, tokens=721, train_batch_size=6),  # 37 samples, 7 steps
    )
    assert [phase.num_steps for phase in timeline.phases] == [7, 6, 9, 7]
    assert [phase.first_step for phase in timeline.phases] == [0, 7, 13, 22]
    assert [phase.first_sample for phase in timeline.phases] == [0, 84, 156, 264]
    assert timeline.num_steps == 29
    assert [timeline.samples_before(step) for step in (1, 7, 8, 9, 22, 23, 29, 30)] == [
        0, 72, 84, 96, 252, 264, 300, 306,
    ]  # fmt: skip
    assert [timeline.shape_at(step).global_batch_size for step in (1, 22, 23, 99)] == [12, 12, 6, 6]


def test_weights_by_tokens_are_weights_by_samples_of_their_means(
    corpora: dict[str, Corpus],
) -> None:
    timeline = timeline_of(corpora, Phase({"a": 1.0, "b": 1.0}, weights_by="tokens", steps=100))
    (phase,) = timeline.phases
    counts = Mixture(phase.weights).counts(phase.num_samples)
    assert counts == pytest.approx([800, 400], abs=2)


def test_a_data_set_goes_on_where_earlier_phases_left_it(corpora: dict[str, Corpus]) -> None:
    timeline = timeline_of(
        corpora,
        Phase({"a": 1.0}, steps=5),
        Phase({"b": 1.0, "a": 1.0}, steps=10),
        Phase({"a": 1.0, "b": 1.0}, steps=1),
    )
    first, second, third = timeline.phases
    assert (first.consumed, first.consumed_at_end) == ((0,), (60,))
    of_b, of_a = Mixture((1, 1)).counts(120)
    assert (second.consumed, second.consumed_at_end) == ((0, 60), (of_b, 60 + of_a))
    assert third.consumed == (60 + of_a, of_b)


def test_a_ramp_grows_in_equal_steps_over_its_samples(corpora: dict[str, Corpus]) -> None:
    ramp = Phase({"a": 1.0}, steps=20, train_batch_size=24, initial_batch_size=6, ramp_samples=90)
    timeline = timeline_of(corpora, ramp)
    sizes = [timeline.shape_at(step).global_batch_size for step in range(1, 21)]
    assert sizes == [6] * 5 + [12] * 3 + [18] * 2 + [24] * 10  # 30 samples each, rounded up
    before = [timeline.samples_before(step) for step in range(1, 22)]
    assert [b - a for a, b in pairwise(before)] == sizes
    assert timeline.phases[0].num_samples == before[-1] == 342
    assert {stage.shape.micro_batch_size for stage in timeline.phases[0].stages} == {2}
    assert timeline.largest_shape == BatchShape(4, 3, 2)


def test_a_micro_batch_is_never_larger_than_usual(corpora: dict[str, Corpus]) -> None:
    timeline = timeline_of(
        corpora,
        Phase({"a": 1.0}, steps=1, train_batch_size=24),
        Phase({"a": 1.0}, steps=1, train_batch_size=3),
        Phase({"a": 1.0}, steps=1, train_batch_size=24, train_micro_batch_size_per_gpu=8),
    )
    shapes = [phase.stages[0].shape for phase in timeline.phases]
    assert shapes == [BatchShape(4, 3, 2), BatchShape(1, 3, 1), BatchShape(1, 3, 8)]


def test_phases_are_by_tokens_where_that_is_usual_unless_they_give_samples(
    corpora: dict[str, Corpus],
) -> None:
    phases = (
        Phase({"a": 1.0}, steps=1),
        Phase({"a": 1.0}, steps=1, micro_batch_tokens=90, train_batch_size=24),
        Phase({"a": 1.0}, steps=1, train_micro_batch_size_per_gpu=2),
    )
    usual = BatchShape(4, 3, 1, TO_BE_FOUND)
    timeline = make_timeline(RUN, phases, corpora, usual)
    shapes = [phase.stages[0].shape for phase in timeline.phases]
    assert shapes == [usual, BatchShape(8, 3, 1, 90), BatchShape(2, 3, 2)]


def test_the_share_of_masks_is_a_line_over_its_phase(corpora: dict[str, Corpus]) -> None:
    timeline = timeline_of(
        corpora,
        Phase({"a": 1.0}, steps=5, masked_lm_prob=0.3, final_masked_lm_prob=0.1),
        Phase({"a": 1.0}, steps=5, masked_lm_prob=0.2),
        Phase({"a": 1.0}, steps=5),
    )
    rates = [[phase.masked_lm_prob(step) for step in range(1, 6)] for phase in timeline.phases]
    assert rates[0] == pytest.approx([0.3, 0.25, 0.2, 0.15, 0.1])
    assert rates[1:] == [[0.2] * 5, [0.0] * 5]


def test_the_run_s_schedule_spans_all_phases(corpora: dict[str, Corpus]) -> None:
    run = dataclasses.replace(RUN, warmup_steps=4, schedule="linear")
    phases = [Phase({"a": 1.0}, steps=10), Phase({"a": 1.0}, steps=10, lr_share=0.5)]
    timeline = timeline_of(corpora, *phases, run=run)
    shares = [timeline.lr_share(step) for step in range(1, 21)]
    expected = [step / 4 if step < 4 else (20 - step) / 16 for step in range(1, 21)]
    assert shares[:10] == pytest.approx(expected[:10])
    assert shares[10:] == pytest.approx([0.5 * share for share in expected[10:]])


def test_a_phase_s_own_warm_up_begins_where_the_lr_was(corpora: dict[str, Corpus]) -> None:
    timeline = timeline_of(
        corpora,
        Phase({"a": 1.0}, steps=10, schedule="linear", min_lr_ratio=0.1),
        Phase({"a": 1.0}, steps=10, schedule="wsd", warmup_steps=4, decay_steps=2, lr_share=0.5),
    )
    shares = [timeline.lr_share(step) for step in range(10, 21)]
    assert shares == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.5, 0.5, 0.5, 0.25, 0.0])


def test_the_run_s_schedule_means_nothing_where_every_phase_has_its_own(
    corpora: dict[str, Corpus],
) -> None:
    run = dataclasses.replace(RUN, schedule="wsd", decay_steps=3, min_lr_ratio=0.5)
    timeline = timeline_of(corpora, Phase({"a": 1.0}, steps=4, schedule="linear"), run=run)
    assert [timeline.lr_share(step) for step in range(1, 5)] == [0.75, 0.5, 0.25, 0.0]


def test_what_does_not_fit_names_its_phase(corpora: dict[str, Corpus]) -> None:
    good = Phase({"a": 1.0}, "good", steps=5)
    bad = [
        Phase({"a": 1.0}, "ramp", steps=9, train_batch_size=24, initial_batch_size=9),
        Phase({"a": 1.0}, "half", steps=9, ramp_samples=9),
        Phase({"a": 1.0}, "odd", steps=9, train_batch_size=16),
        Phase(
            {"a": 1.0}, "short", samples=20, train_batch_size=24, initial_batch_size=6,
            ramp_samples=90,
        ),
    ]  # fmt: skip
    message = refusal(corpora, good, *bad)
    for told in (
        "phase ramp: initial_batch_size = 9: must divide train_batch_size = 24",
        "phase half: initial_batch_size, ramp_samples: a ramp needs both",
        "phase odd: train_batch_size = 16 is not a multiple of train_micro_batch_size_per_gpu = 2"
        " x 3 ranks = 6",
        "phase short: ramp_samples = 90: the phase ends before its batch has grown",
    ):
        assert told in message
    late = Phase({"a": 1.0}, "late", steps=5, schedule="wsd", decay_steps=6)
    assert "phase late: decay_steps = 6: wsd needs" in refusal(corpora, good, late)
    late = dataclasses.replace(late, schedule="linear", decay_steps=5)
    assert "phase late: decay_steps = 5: does nothing with" in refusal(corpora, good, late)
    run = dataclasses.replace(RUN, warmup_steps=11)
    assert "warmup_steps = 11 is above num_train_steps = 10" in refusal(
        corpora, good, good, run=run
    )


def test_data_sets_of_one_phase_are_prepared_alike(corpora: dict[str, Corpus]) -> None:
    config = {**corpora["b"].manifest.config, "whole_words": True}
    other = corpora["b"]._replace(
        manifest=dataclasses.replace(corpora["b"].manifest, config=config)
    )
    changed = {**corpora, "b": other}
    message = refusal(changed, Phase({"a": 1.0, "b": 1.0}, steps=1))
    assert "its data sets differ in whole_words (a: False, b: True)" in message
    timeline_of(changed, Phase({"a": 1.0}, steps=1), Phase({"b": 1.0}, steps=1))


# --- the identity


def test_one_phase_has_the_facts_of_runs_before_there_were_phases(
    corpora: dict[str, Corpus],
) -> None:
    facts = timeline_of(corpora, Phase({"a": 1.0}, steps=9)).identity()
    assert facts == {
        "shards fingerprint": corpora["a"].manifest.fingerprint,
        "train_batch_size": 12,
    }


def changed_facts(corpora: dict[str, Corpus], old: list[Phase], new: list[Phase], step: int) -> Any:
    """Facts of an old recipe's checkpoint that a new one may not change."""
    one, other = (timeline_of(corpora, *phases) for phases in (old, new))
    saved, current = one.identity(), other.identity()
    differing = {n for n in saved.keys() | current.keys() if saved.get(n) != current.get(n)}
    return sorted(differing - set(other.open_facts(saved, step)))


def test_the_future_may_be_changed_and_the_past_may_not(corpora: dict[str, Corpus]) -> None:
    first, second = Phase({"a": 1.0}, steps=10), Phase({"a": 1.0, "b": 1.0}, steps=10)
    mixed = Phase({"a": 1.0, "b": 3.0}, steps=10)
    third = Phase({"b": 1.0}, steps=4, train_batch_size=6)
    longer, shorter = (dataclasses.replace(first, steps=steps) for steps in (15, 5))
    allowed = [
        ([first, second], [first, mixed], 10),  # other weights of what has not begun
        ([first, second], [first, second, third], 15),  # one phase more
        ([first, second], [longer, mixed, third], 10),
        ([first, second], [first, dataclasses.replace(second, steps=7), mixed], 17),  # cut here
        ([first], [first, second], 10),
        ([longer], [first, second], 7),
        ([first, second], [first, dataclasses.replace(second, steps=20)], 20),  # a longer last one
    ]
    for old, new, step in allowed:
        assert changed_facts(corpora, old, new, step) == []
    assert changed_facts(corpora, [first, second], [first, mixed], 11) == [
        "phase 2 shards fingerprint"
    ]
    assert changed_facts(corpora, [first, second], [longer, second], 11) == ["steps"]
    assert changed_facts(corpora, [longer, second], [shorter, second], 7) == ["steps"]
    assert changed_facts(corpora, [first], [Phase({"b": 1.0}, steps=10)], 3) == [
        "shards fingerprint"
    ]


# --- as text


def test_the_table_has_a_row_for_each_phase(corpora: dict[str, Corpus]) -> None:
    run = dataclasses.replace(RUN, warmup_steps=2, schedule="linear")
    timeline = timeline_of(
        corpora,
        Phase({"a": 1.0}, "first", steps=8, train_batch_size=24, initial_batch_size=12,
              ramp_samples=24, masked_lm_prob=0.3),
        Phase({"a": 3.0, "b": 1.0}, "second", steps=2),
        run=run,
    )  # fmt: skip
    head, *rows = [line.split("  ") for line in timeline_table(timeline, 1e-3).splitlines()]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in (head, *rows)]
    assert cells == [
        ["phase", "steps", "samples", "tokens", "longest", "batch", "lr", "masked",
         "shares and epochs at its end"],
        ["first", "1 to 8", "168", "1,680", "31", "12 to 24", "5.00e-04 to 1.00e-03 to 2.50e-04",
         "30.0%", "a 100.0% 6.22"],
        ["second", "9 to 10", "24", "300", "31", "12", "1.25e-04 to 0.00e+00", "stored",
         "a 75.0% 6.93, b 25.0% 0.26"],
    ]  # fmt: skip


def test_many_epochs_and_files_in_common_are_told(corpora: dict[str, Corpus]) -> None:
    quiet = timeline_of(corpora, Phase({"a": 1.0}, steps=90))
    assert warnings_of(quiet) == []
    often = timeline_of(corpora, Phase({"a": 1.0}, steps=80), Phase({"a": 1.0}, steps=20))
    assert warnings_of(often) == [
        "a is seen 44.4 times until the end of phase 1, more than BERT's 40: give it a lower"
        " weight, or fewer steps"
    ]
    both = Phase({"a": 1.0, "b": 1.0}, "both", steps=1)
    shared = timeline_of(corpora, both, dataclasses.replace(both, name="again"))
    assert warnings_of(shared) == [
        "a and b of phase both have 1 input files in common, such as b.txt: their text counts"
        " twice, and may be in the training samples of one and the held-out ones of the other"
    ]


def test_documents_in_common_are_told_where_files_differ(corpora: dict[str, Corpus]) -> None:
    def with_documents(name: str, first: int, stop: int) -> Corpus:
        corpus = corpora[name]
        sketch = document_sketch.encoded(np.arange(first, stop, dtype=np.uint64) << np.uint64(40))
        totals = {**corpus.manifest.totals, "documents": stop - first, "document_sketch": sketch}
        return corpus._replace(
            manifest=dataclasses.replace(corpus.manifest, totals=totals, inputs=[])
        )

    both = Phase({"a": 1.0, "b": 1.0}, "both", steps=1)
    shared = {"a": with_documents("a", 0, 100), "b": with_documents("b", 93, 333)}
    assert warnings_of(timeline_of(shared, both)) == [
        "a and b of phase both have about 7 documents in common, 7.0% of a: their text counts"
        " twice, and may be in the training samples of one and the held-out ones of the other"
    ]
    assert not warnings_of(timeline_of({**shared, "b": with_documents("b", 100, 333)}, both))
    older = dataclasses.replace(shared["b"].manifest, totals={"documents": 5})
    assert not warnings_of(timeline_of({**shared, "b": shared["b"]._replace(manifest=older)}, both))

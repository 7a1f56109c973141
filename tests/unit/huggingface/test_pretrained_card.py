"""The card of a pretrained model: what it says of a run's data, batches and scores."""

import json
from pathlib import Path
from typing import Any

from dist_bert.huggingface.pretrained_card import model_card, table


def phase(shards: dict[str, float], **others: Any) -> dict[str, Any]:
    return {
        "shards": shards, "weights_by": "samples", "train_batch_size": 24, "initial_batch_size": 0,
        "masked_lm_prob": 0.0, "final_masked_lm_prob": 0.0, "schedule": "run", "lr_share": 1.0,
        **others,
    }  # fmt: skip


PHASES = {
    "begin": phase(
        {"/home/me/books": 2.0}, steps=6, initial_batch_size=12, masked_lm_prob=0.3,
        final_masked_lm_prob=0.15,
    ),
    "mixed": phase({"data/books": 3.0, "s3://b/wiki/": 1.0}, steps=5, weights_by="tokens"),
    "last": phase({"data/wiki": 1.0}, steps=4, schedule="wsd", lr_share=0.5),
}  # fmt: skip
RESOLVED: dict[str, Any] = {
    "run": {"num_train_steps": 15, "schedule": "linear", "masked_lm_prob": 0.0},
    "deepspeed": {"train_batch_size": 48},
    "shards": {
        "fingerprint": "f00d",
        "config": {"sequence_length": 53, "pair_objective": "nsp", "masked_lm_prob": 0.15},
        "tokenizer": {"fingerprint": "cafe"},
        "random_next": 0.5,
    },
}


def card(resolved: dict[str, Any], step: int, folder: Path) -> str:
    row = {"step": step, "validation/mlm_loss": 3.25, "validation/nsp_accuracy": 0.75}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    return model_card("mine", resolved, step, folder, "SentencePiece", "All equal.", "")


def test_a_recipe_s_card_has_the_phases_that_have_begun(tmp_path: Path) -> None:
    made = card({**RESOLVED, "phases": PHASES}, 9, tmp_path)
    assert (
        "| phase | steps | samples a step | data sets | masked | schedule |\n"
        "|---|---|---|---|---|---|"
        "\n| begin | 1 to 6 | 12 to 24 | 100.0% books | 30.0% to 15.0% | the run's |"
        "\n| mixed | 7 to 9 | 24 | 75.0% books, 25.0% wiki (by tokens) | as prepared | the run's |"
        "\n\n"
    ) in made  # fmt: skip
    whole = card({**RESOLVED, "phases": PHASES}, 15, tmp_path)
    assert (
        "| last | 12 to 15 | 24 | 100.0% wiki | as prepared | wsd, up to 50% of the lr |" in whole
    )
    assert "| pair_objective | nsp |" in made and "`cafe`" in made and "| 75.00% |" in made
    for of_one_phase in ("/home/me", "48", "sequence_length", "f00d", "50.00%"):
        assert of_one_phase not in whole


def test_the_card_of_one_data_set(tmp_path: Path) -> None:
    made = card(RESOLVED, 15, tmp_path)
    for row in (
        "| samples a step | 48 |", "| sequence_length | 53 |", "| masked_lm_prob | 0.15 |",
        "| fingerprint of the data | `f00d` |",
        "| next sentence accuracy | 75.00% (always the more frequent label: 50.00%) |",
    ):  # fmt: skip
        assert row in made
    assert "phase" not in made
    run = {**RESOLVED["run"], "masked_lm_prob": 0.3, "final_masked_lm_prob": 0.2}
    assert "| masked_lm_prob | 0.3 to 0.2 |" in card({**RESOLVED, "run": run}, 15, tmp_path)


def test_a_bar_in_a_name_is_no_border_of_columns() -> None:
    rows = table([("", "f1"), ("news|sports", "0.5")]).splitlines()
    assert rows == ["|  | f1 |", "|---|---|", r"| news\|sports | 0.5 |"]

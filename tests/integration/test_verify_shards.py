"""verify_shards finds every wrong byte and every sample that breaks a rule, and says where."""

import dataclasses
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from data_prep.verify import show, verify
from dist_bert.common.errors import UserError
from dist_bert.data.masking import restore
from dist_bert.data.shard_format import Manifest, ShardFile, write_shard
from tests.integration.conftest import run_script

Block = dict[str, NDArray[Any]]
SHARD = 1  # of the training split: neither the first one nor the only one
ROW = 7


@pytest.fixture
def copy(data_set: Path, tmp_path: Path) -> Path:
    ignore = shutil.ignore_patterns("token_store")
    return Path(shutil.copytree(data_set, tmp_path / "shards", ignore=ignore))


RECIPES = {
    "sop": ["--pair_objective", "sop", "--balance_pairs", "true", "--mean_span_length", "3"],
    "none": ["--pair_objective", "none", "--mean_span_length", "3", "--masked_lm_prob", "0.4"],
}


@pytest.fixture(scope="module")
def recipes(data_set: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Data sets of other recipes, from the same token store."""
    folder = tmp_path_factory.mktemp("recipes")
    for name, flags in RECIPES.items():
        made = run_script(
            sys.executable, "launch/prepare_shards.py", "--input", data_set.parent / "text/*.txt",
            "--tokenizer", data_set / "tokenizer.model", "--token_store", data_set / "token_store",
            "--output_dir", folder / name, "--sequence_length", "53",
            "--samples_per_shard", "307", "--validation_share", "0.1", *flags,
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
    return {name: folder / name for name in RECIPES}


def silently(folder: Path) -> Manifest:
    return verify(folder, report=lambda text: None)


def blocks_of(folder: Path, split: str, shard: int) -> list[Block]:
    manifest = Manifest.load(folder)
    record = manifest.splits[split][shard]
    file = ShardFile(folder, record, manifest.field_types)
    blocks = [file.block(i) for i in range(len(record.blocks))]
    return [{field: column.copy() for field, column in block.items()} for block in blocks]


def put_back(folder: Path, split: str, shard: int, blocks: list[Block]) -> None:
    """Writes a shard anew, with a manifest that agrees with its bytes."""
    manifest = Manifest.load(folder)
    records = list(manifest.splits[split])
    records[shard] = write_shard(folder / records[shard].file, {}, blocks)
    splits = {**manifest.splits, split: tuple(records)}
    dataclasses.replace(manifest, splits=splits).save(folder)


def test_a_whole_data_set_passes_and_is_shown(data_set: Path) -> None:
    ended = run_script(sys.executable, "launch/verify_shards.py", data_set, "--show", "2")
    assert ended.returncode == 0, ended.stderr
    assert f"{data_set}: is whole" in ended.stdout
    manifest = Manifest.load(data_set)
    for record in (*manifest.splits["train"], *manifest.splits["validation"]):
        assert f"{record.file}  {record.num_samples:,} samples" in ended.stdout
    for text in show(data_set, 2):
        assert text in ended.stdout
        assert text.startswith("A: ") and text.count("[MASK]") >= 1
        assert ("(true next)" in text) != ("(random next)" in text)
    many = manifest.splits["train"][0].num_samples + 3  # goes on into the next shard
    assert len(list(show(data_set, many))) == many


def test_every_wrong_byte_is_found_with_its_place(copy: Path) -> None:
    record = Manifest.load(copy).splits["train"][SHARD]
    path = copy / record.file
    whole = path.read_bytes()
    offset = record.blocks[0].offset
    rng = np.random.default_rng(0)
    for place in (3, 600, offset + 5, *rng.integers(offset, len(whole), 20).tolist()):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(UserError, match=rf"{record.file}: (block 0 is damaged|bytes between)"):
            silently(copy)
    path.write_bytes(whole[:-512])
    ended = run_script(sys.executable, "launch/verify_shards.py", copy)
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1
    assert f"{record.file}: has {len(whole) - 512} bytes" in ended.stderr
    path.write_bytes(whole)
    silently(copy)


def set_item(field: str, value: int) -> Callable[[Block], None]:
    def change(block: Block) -> None:
        block[field][ROW] = value

    return change


def mask_the_separator(block: Block) -> None:
    place = int(block["segment_b_start"][ROW]) - 1
    count = int(block["num_masked"][ROW])
    dropped, *others = [int(p) for p in block["masked_lm_positions"][ROW, :count] if p > place]
    block["input_ids"][ROW, dropped] = 9
    kept = [int(p) for p in block["masked_lm_positions"][ROW, :count] if p < place]
    positions = [*kept, place, *others]
    block["masked_lm_positions"][ROW] = 0
    block["masked_lm_labels"][ROW] = 0
    block["masked_lm_positions"][ROW, : len(positions)] = positions
    block["masked_lm_labels"][ROW, : len(positions)] = 9
    block["masked_lm_labels"][ROW, len(kept)] = 3
    block["num_masked"][ROW] = len(positions)


def swap_positions(block: Block) -> None:
    for field in ("masked_lm_positions", "masked_lm_labels"):
        block[field][ROW, :2] = block[field][ROW, 1::-1]


def put(row_piece: int, place: Callable[[Block], int]) -> Callable[[Block], None]:
    def change(block: Block) -> None:
        block["input_ids"][ROW, place(block)] = row_piece

    return change


def unmask(block: Block) -> None:
    for field in ("masked_lm_positions", "masked_lm_labels", "num_masked"):
        block[field][ROW] = 0


def dirty_padding(block: Block) -> None:
    row = int(np.flatnonzero(block["num_tokens"] < block["input_ids"].shape[1])[0])
    block["input_ids"][row, -1] = 9


def unmasked_place(block: Block) -> int:
    masked = block["masked_lm_positions"][ROW, : int(block["num_masked"][ROW])].tolist()
    stop = int(block["segment_b_start"][ROW]) - 1
    return next(place for place in range(1, stop) if place not in masked)


def swap_document(block: Block) -> None:
    label = block["next_sentence_label"]
    row = int(np.flatnonzero(label == 1)[0])
    block["document_ids"][row, 1] = block["document_ids"][row, 0]


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (set_item("num_tokens", 54), "num_tokens is 3 to sequence_length"),
        (set_item("segment_b_start", 2), "both segments hold text"),
        (put(9, lambda block: 0), r"a sample begins with \[CLS\]"),
        (put(9, lambda block: int(block["segment_b_start"][ROW]) - 1), "segments end with"),
        (put(9, lambda block: int(block["num_tokens"][ROW]) - 1), "segments end with"),
        (put(3, unmasked_place), "no other token is"),
        (put(4, unmasked_place), "no other token is"),
        (put(701, unmasked_place), "pieces are below vocab_size"),
        (dirty_padding, "padding is 0"),
        (unmask, "something is masked"),
        (set_item("num_masked", 99), "something is masked"),
        (set_item("masked_lm_positions", 99), "masked positions are inside"),
        (swap_positions, "masked positions ascend"),
        (mask_the_separator, "no special token is masked"),
        (set_item("next_sentence_label", 2), "next_sentence_label is 0 or 1"),
        (swap_document, "a random B is from another document"),
    ],
)
def test_a_sample_that_breaks_a_rule_is_named(
    copy: Path, change: Callable[[Block], None], rule: str
) -> None:
    blocks = blocks_of(copy, "train", SHARD)
    block = blocks[0]
    assert block["num_masked"][ROW] > 2 and block["num_tokens"][ROW] > 20
    change(block)
    put_back(copy, "train", SHARD, blocks)
    with pytest.raises(UserError, match=rf"train-00001.tar: block 0: sample \d+ .*{rule}"):
        silently(copy)


def end_early(block: Block) -> None:
    """A second segment of which only the last [SEP] is left."""
    block["segment_b_start"][ROW] = block["num_tokens"][ROW] - 1


def other_document(block: Block) -> None:
    block["document_ids"][ROW, 1] += 1


@pytest.mark.parametrize(
    ("recipe", "change", "rule"),
    [
        ("sop", end_early, "both segments hold text"),
        ("sop", set_item("next_sentence_label", 2), "next_sentence_label is 0 or 1"),
        ("sop", other_document, "both segments are from one document"),
        ("none", end_early, "there is one segment"),
        ("none", set_item("next_sentence_label", 1), "next_sentence_label is 0$"),
        ("none", other_document, "a sample is from one document"),
        ("none", put(3, unmasked_place), "no other token is"),
        ("none", put(9, lambda block: int(block["num_tokens"][ROW]) - 1), "segments end with"),
    ],
)
def test_every_recipe_has_rules_of_its_own(
    recipes: dict[str, Path],
    tmp_path: Path,
    recipe: str,
    change: Callable[[Block], None],
    rule: str,
) -> None:
    folder = Path(shutil.copytree(recipes[recipe], tmp_path / "shards"))
    assert silently(folder).config["pair_objective"] == recipe
    blocks = blocks_of(folder, "train", SHARD)
    change(blocks[0])
    put_back(folder, "train", SHARD, blocks)
    message = rf"train-00001.tar: block 0: sample {ROW} breaks the rule: {rule}"
    with pytest.raises(UserError, match=message):
        silently(folder)


def test_every_recipe_is_shown_as_what_it_is(recipes: dict[str, Path]) -> None:
    for text in show(recipes["sop"], 20):
        assert text.startswith("A: ") and "\nB: " in text and "\nanswers: " in text
        assert ("  (in order)\n" in text) != ("  (swapped)\n" in text)
    for text in show(recipes["none"], 20):
        assert text.startswith("A: ") and "\nB: " not in text and "\nanswers: " in text
        assert "[SEP]" not in text and "(" not in text.split("\nanswers")[0]


def test_recipes_of_the_command_line_reach_the_samples(recipes: dict[str, Path]) -> None:
    for recipe, rate in (("sop", 0.15), ("none", 0.4)):
        manifest = Manifest.load(recipes[recipe])
        statistics = manifest.statistics["train"]
        assert abs(statistics["shares"]["masked"] - rate) < 0.01
        blocks = [
            block for i in range(len(manifest.splits["train"]))
            for block in blocks_of(recipes[recipe], "train", i)
        ]  # fmt: skip
        for block in blocks:
            assert block["num_tokens"].max() <= 53
            num_labelled = int(np.count_nonzero(block["next_sentence_label"]))
            if recipe == "sop":  # a block is a shard
                assert 2 * num_labelled == block["num_tokens"].size
            else:
                assert num_labelled == 0
        positions = np.concatenate([block["masked_lm_positions"][:, :5] for block in blocks])
        is_run = np.diff(positions.astype(int), axis=1) == 1
        assert is_run.mean() > 0.55  # 2 of 3 in runs of 3; 0.35 of words alone


def test_counts_splits_and_tokenizer_must_be_those_of_the_manifest(copy: Path) -> None:
    manifest = Manifest.load(copy)
    statistics = {s: dict(values) for s, values in manifest.statistics.items()}
    statistics["train"]["num_kept"] += 1
    dataclasses.replace(manifest, statistics=statistics).save(copy)
    with pytest.raises(UserError, match=r"train: num_kept is \d+, the manifest says"):
        silently(copy)
    manifest.save(copy)
    blocks = blocks_of(copy, "train", SHARD)
    row = int(np.flatnonzero(blocks[0]["next_sentence_label"] == 1)[0])
    held_out = blocks_of(copy, "validation", 0)[0]["document_ids"][0, 0]
    blocks[0]["document_ids"][row, 1] = held_out
    put_back(copy, "train", SHARD, blocks)
    with pytest.raises(UserError, match=rf"block 0: document {held_out} is in both splits"):
        silently(copy)
    (copy / "tokenizer.model").write_bytes(b"another")
    with pytest.raises(UserError, match=r"tokenizer.model: is missing, or is not the tokenizer"):
        silently(copy)


def test_what_is_shown_are_the_originals(data_set: Path) -> None:
    """The masked text with its answers put in is the text of the sample."""
    block = blocks_of(data_set, "train", 0)[0]
    names = ("input_ids", "masked_lm_positions", "masked_lm_labels", "num_masked")
    originals = restore(*(block[name] for name in names))
    text = next(show(data_set, 1))
    answers = [answer.split(": ")[0] for answer in text.split("answers: ")[1].split(", ")]
    positions = [int(place) for place in answers if place.isdigit()]
    assert positions == block["masked_lm_positions"][0, : block["num_masked"][0]].tolist()
    assert (originals[0] != block["input_ids"][0]).sum() <= len(positions)

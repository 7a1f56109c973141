"""A pretraining job: what identifies it, and everything that is refused before it starts."""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from dist_bert.common.errors import UserError
from dist_bert.common.settings import add_flags
from dist_bert.data.batches import TO_BE_FOUND, BatchShape
from dist_bert.data.shard_source import ShardSource
from dist_bert.model.config import ModelConfig
from dist_bert.pretraining.config import PretrainingConfig
from dist_bert.pretraining.job import PartialJob, PretrainingJob, open_corpus
from dist_bert.pretraining.recipe import Phase
from dist_bert.training.deepspeed_flags import add_deepspeed_flags
from tests.support.synthetic import SEQUENCE_LENGTH, TINY_MODEL, VOCAB_SIZE, DataSet, write_data_set

DEEPSPEED = {
    "train_batch_size": 12,
    "train_micro_batch_size_per_gpu": 2,
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}},
    "zero_optimization": {"stage": 2},
    "bf16": {"enabled": True},
}
RUN: dict[str, Any] = {"num_train_steps": 9, "warmup_steps": 2}


@pytest.fixture
def data_set(tmp_path: Path) -> DataSet:
    return write_data_set(tmp_path / "shards")


def write(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


def make_job(
    folder: Path, *flags: str, world_size: int = 3, deepspeed: dict[str, Any] | None = None
) -> PretrainingJob:
    """The job of a command line, with three JSON files and the shards of `folder`."""
    parser = argparse.ArgumentParser()
    for name in ("model", "config"):
        parser.add_argument(f"--{name}")
    add_deepspeed_flags(parser, "")
    add_flags(parser, PretrainingConfig)
    add_flags(parser, ModelConfig)
    arguments = [
        f"--deepspeed_config={write(folder / 'd.json', {**DEEPSPEED, **(deepspeed or {})})}",
        f"--model={write(folder / 'm.json', dataclasses.asdict(TINY_MODEL))}",
        f"--config={write(folder / 'r.json', RUN)}",
        f"--shards={folder / 'shards'}",
        *flags,
    ]
    return PartialJob.of(parser.parse_args(arguments), world_size).require_job()


def refusal(folder: Path, *flags: str, **others: Any) -> str:
    with pytest.raises(UserError) as caught:
        make_job(folder, *flags, **others)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_job_takes_its_parts_from_files_and_flags(tmp_path: Path, data_set: DataSet) -> None:
    job = make_job(tmp_path, "--seed", "7", "--hidden_dropout_prob", "0")
    assert job.model == dataclasses.replace(TINY_MODEL, hidden_dropout_prob=0.0)
    assert job.run == PretrainingConfig(shards=str(data_set.folder), seed=7, **RUN)
    assert job.last.manifest == data_set.manifest
    assert job.deepspeed.batch_shape.accumulation_steps == 2
    assert job.tokenizer_path == data_set.folder / "tokenizer.model"


def test_what_is_resolved_is_json_with_every_setting(tmp_path: Path, data_set: DataSet) -> None:
    job = make_job(tmp_path)
    resolved = json.loads(json.dumps(job.resolved()))
    assert resolved == {
        "model": dataclasses.asdict(job.model),
        "run": dataclasses.asdict(job.run),
        "deepspeed": {**DEEPSPEED, "gradient_accumulation_steps": 2},
        "world_size": 3,
        "shards": {
            "fingerprint": data_set.manifest.fingerprint,
            "config": data_set.manifest.config,
            "tokenizer": data_set.manifest.tokenizer,
            "random_next": None,  # the statistics of made-up shards are empty
        },
    }


def test_credentials_of_a_recipe_s_places_are_kept_nowhere(
    tmp_path: Path, data_set: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = {f"https://me:hush@{host}/books?sig=hush": 1.0 for host in ("a", "b")}
    monkeypatch.setattr(ShardSource, "manifest", lambda self: data_set.manifest)
    job = make_job(tmp_path, "--local_cache", str(tmp_path / "cache"))
    corpora = {place: open_corpus(place, list(places), job.run) for place in places}
    assert [corpus.name for corpus in corpora.values()] == [
        "https://***@a/books?***", "https://***@b/books?***",
    ]  # fmt: skip
    alone = "https://me:hush@a/b/"
    assert open_corpus(alone, [alone], job.run).name == "b"
    run = dataclasses.replace(job.run, recipe="recipe.json")
    phases = [Phase(places, "mixed", steps=9)]
    resolved = PretrainingJob.of(job.model, run, job.deepspeed, phases, corpora).resolved()
    assert resolved["phases"]["mixed"]["shards"] == {
        "https://***@a/books?***": 1.0, "https://***@b/books?***": 1.0,
    }  # fmt: skip
    assert "hush" not in json.dumps(resolved)
    assert resolved["phases"]["mixed"]["train_batch_size"] == 12, "as resolved"
    assert "shards" not in resolved["run"], "a default, which is not read"


def test_flags_for_the_deepspeed_json_are_recorded_as_if_they_stood_there(
    tmp_path: Path, data_set: DataSet
) -> None:
    flags = ("--lr", "0.5", "--train_batch_size", "18", "--deepspeed", "gradient_clipping=0.25")
    recorded = make_job(tmp_path, *flags).resolved()["deepspeed"]
    assert recorded == {
        **DEEPSPEED,
        "optimizer": {"type": "AdamW", "params": {"lr": 0.5}},
        "train_batch_size": 18,
        "gradient_accumulation_steps": 3,
        "gradient_clipping": 0.25,
    }
    message = refusal(tmp_path, "--deepspeed", "gradient_cliping=0.25")
    assert (
        "d.json (with the flags' gradient_cliping) configuration: unknown key gradient_cli"
        in message
    )


def test_identity_is_json_and_names_what_a_checkpoint_depends_on(
    tmp_path: Path, data_set: DataSet
) -> None:
    identity = make_job(tmp_path).identity()
    assert json.loads(json.dumps(identity)) == identity
    for name, value in dataclasses.asdict(TINY_MODEL).items():
        assert identity.pop(f"model {name}") == value
    expected = {
        "shards fingerprint": data_set.manifest.fingerprint,
        "tokenizer fingerprint": data_set.manifest.tokenizer["fingerprint"],
        "seed": 42,
        "masks": "fresh",
        "train_batch_size": 12,
    }
    assert {key: identity[key] for key in expected} == expected


@pytest.mark.parametrize(
    "flags,key",
    [
        (("--seed", "43"), "seed"),
        (("--masks", "static"), "masks"),
        (("--intermediate_size", "38"), "model intermediate_size"),
        (("--hidden_act", "relu"), "model hidden_act"),
    ],
)
def test_what_makes_it_another_run_changes_the_identity(
    tmp_path: Path, data_set: DataSet, flags: tuple[str, ...], key: str
) -> None:
    one, other = make_job(tmp_path).identity(), make_job(tmp_path, *flags).identity()
    assert {k for k in one if one[k] != other[k]} == {key} and one.keys() == other.keys()


def test_another_batch_size_optimizer_or_data_set_changes_the_identity(
    tmp_path: Path, data_set: DataSet
) -> None:
    one = make_job(tmp_path).identity()
    assert make_job(tmp_path, deepspeed={"train_batch_size": 24}).identity() != one
    optimizer = {"type": "AdamW", "params": {"lr": 1e-4, "amsgrad": True}}
    other = make_job(tmp_path, deepspeed={"optimizer": optimizer}).identity()
    assert other == {**one, "optimizer type": "AdamW with amsgrad"}
    write_data_set(tmp_path / "shards", train=((5, 3), (7,)))
    other = make_job(tmp_path).identity()
    assert {k for k in one if one[k] != other[k]} == {"shards fingerprint"}


def test_where_the_shards_lie_is_no_part_of_the_identity(tmp_path: Path, data_set: DataSet) -> None:
    local = make_job(tmp_path)
    url, cache = data_set.folder.as_uri(), str(tmp_path / "cache")
    flags = ("--shards", url, "--local_cache", cache, "--local_cache_gib", "1")
    job = make_job(tmp_path, *flags)
    assert job.identity() == local.identity() and job.last.manifest == local.last.manifest
    assert job.tokenizer_path.parent == tmp_path / "cache"
    assert job.tokenizer_path.read_bytes() == local.tokenizer_path.read_bytes()
    assert job.resolved()["run"]["local_cache_gib"] == 1.0


def test_caches_that_cannot_work_are_refused(tmp_path: Path, data_set: DataSet) -> None:
    url, cache = data_set.folder.as_uri(), ("--local_cache", str(tmp_path / "cache"))
    assert "give --local_cache DIR" in refusal(tmp_path, "--shards", url, "--vocab_size", "7")
    assert "does nothing without local_cache" in refusal(tmp_path, "--local_cache_gib", "3")
    assert "must be at least 0" in refusal(tmp_path, *cache, "--local_cache_gib", "-1")
    records = data_set.manifest.splits
    needed = sum(record.bytes for record in (*records["train"], *records["validation"]))
    enough, too_little = (str(size / 2**30) for size in (needed, needed - 1))
    make_job(tmp_path, *cache, "--local_cache_gib", enough)
    problem = refusal(tmp_path, *cache, "--local_cache_gib", too_little)
    assert f"must be at least {needed / 2**30:.3g} GiB, the shards in use" in problem
    first = records["validation"][0]  # 8 samples: a validation of so many needs no other shard
    make_job(tmp_path, *cache, "--local_cache_gib", too_little, "--validation_samples", "8")
    assert first.num_samples == 8
    (data_set.folder / "tokenizer.model").write_bytes(b"another one")
    problem = refusal(tmp_path, "--shards", url, *cache, "--vocab_size", "7")
    assert "is not the tokenizer that made the shards" in problem and "vocab_size = 7" in problem


@pytest.mark.parametrize(
    "flags",
    [
        ("--num_train_steps", "10"),
        ("--log_interval", "3"),
        ("--output_dir", "elsewhere"),
        ("--checkpoint_interval", "5"),
        ("--validation_samples", "7"),
    ],
)
def test_what_does_not_touch_the_weights_may_change(
    tmp_path: Path, data_set: DataSet, flags: tuple[str, ...]
) -> None:
    assert make_job(tmp_path, *flags).identity() == make_job(tmp_path).identity()


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused(
    tmp_path: Path, data_set: DataSet
) -> None:
    message = refusal(tmp_path, "--vocab_size", str(VOCAB_SIZE - 1))
    assert message == (
        "pretraining configuration: vocab_size = 100 is smaller than the tokenizer's 101:"
        " set --vocab_size 101 or more"
    )
    make_job(tmp_path, "--vocab_size", str(VOCAB_SIZE))
    make_job(tmp_path, "--vocab_size", str(VOCAB_SIZE + 1))


def test_positions_below_the_sequence_length_are_refused(tmp_path: Path, data_set: DataSet) -> None:
    message = refusal(tmp_path, "--max_position_embeddings", str(SEQUENCE_LENGTH - 1))
    assert "max_position_embeddings = 30 is below the shards' sequence_length = 31" in message
    make_job(tmp_path, "--max_position_embeddings", str(SEQUENCE_LENGTH))


def test_another_or_no_tokenizer_is_refused(tmp_path: Path, data_set: DataSet) -> None:
    path = data_set.folder / "tokenizer.model"
    path.write_bytes(b"another one")
    message = refusal(tmp_path)
    assert f"{path} is not the tokenizer that made the shards" in message
    path.unlink()
    assert f"{path} is missing: prepare the shards again" in refusal(tmp_path)


def test_a_micro_batch_of_samples_does_not_restrict_one_of_tokens(
    tmp_path: Path, data_set: DataSet
) -> None:
    assert "is not a multiple of train_micro_batch_size" in refusal(tmp_path, world_size=4)
    for tokens in ("62", "auto"):
        job = make_job(tmp_path, "--micro_batch_tokens", tokens, world_size=4)
        assert job.batch_shape(1).global_batch_size == 12
    flags = ("--micro_batch_tokens", "62", "--train_micro_batch_size_per_gpu", "2")
    assert "is not a multiple of" in refusal(tmp_path, *flags, world_size=4), "as asked for"


def test_the_deepspeed_json_s_auto_is_that_of_the_run(tmp_path: Path, data_set: DataSet) -> None:
    auto = ("--train_micro_batch_size_per_gpu", "auto")
    job = make_job(tmp_path, *auto, world_size=4)
    assert job.batch_shape(1) == BatchShape(3, 4, 1, TO_BE_FOUND)
    assert job.resolved()["run"]["micro_batch_tokens"] == "auto"
    given = make_job(tmp_path, *auto, "--micro_batch_tokens", "62", world_size=4)
    assert given.batch_shape(1) == BatchShape(3, 4, 1, 62)


def test_deterministic_needs_micro_batches_of_a_given_size(
    tmp_path: Path, data_set: DataSet
) -> None:
    flags = ("--deterministic", "true", "--micro_batch_tokens")
    for message in (
        refusal(tmp_path, *flags, "auto"),
        refusal(tmp_path, *flags[:2], "--train_micro_batch_size_per_gpu", "auto"),
    ):
        assert "deterministic = True: micro_batch_tokens = auto, of a flag or the" in message
    assert make_job(tmp_path, *flags, "124").run.deterministic


def test_layers_are_compiled_on_gpus_alone_and_not_at_zero_3(
    tmp_path: Path, data_set: DataSet
) -> None:
    job = make_job(tmp_path, "--compile_layers", "true")
    job.check_device(has_gpu=True)
    with pytest.raises(UserError, match="compile_layers = True: needs a GPU"):
        job.check_device(has_gpu=False)
    make_job(tmp_path).check_device(has_gpu=False)
    stage_3 = {"zero_optimization": {"stage": 3}}
    message = refusal(tmp_path, "--compile_layers", "true", deepspeed=stage_3)
    assert "compile_layers = True: works at ZeRO 0 to 2" in message


def test_flash_attention_3_needs_a_gpu_16_bits_and_no_dropout(
    tmp_path: Path, data_set: DataSet
) -> None:
    flags = ("--flash_attention_3", "true")
    no_dropout = ("--attention_probs_dropout_prob", "0")
    message = refusal(tmp_path, *flags, "--attention_probs_dropout_prob", "0.1")
    assert "flash_attention_3 = True: attention_probs_dropout_prob = 0.1" in message
    message = refusal(tmp_path, *flags, *no_dropout, deepspeed={"bf16": {"enabled": False}})
    assert "flash_attention_3 = True: FlashAttention 3 computes in bf16 and fp16" in message
    job = make_job(tmp_path, *flags, *no_dropout, deepspeed={"bf16": {"enabled": True}})
    job.check_device(has_gpu=True)
    with pytest.raises(UserError, match="flash_attention_3 = True: needs a Hopper GPU"):
        job.check_device(has_gpu=False)


def test_products_in_8_bits_need_a_gpu_bf16_and_even_widths(
    tmp_path: Path, data_set: DataSet
) -> None:
    fitting = ("--float8", "true", "--hidden_size", "32", "--intermediate_size", "48")
    bf16 = {"bf16": {"enabled": True}}
    message = refusal(tmp_path, *fitting, "--hidden_size", "24", deepspeed=bf16)
    assert "float8 = True: hidden_size = 24: must be a multiple of 16" in message
    message = refusal(tmp_path, *fitting, deepspeed={"bf16": {"enabled": False}})
    assert "float8 = True: needs bf16, and the DeepSpeed JSON has fp32" in message
    message = refusal(tmp_path, *fitting, deepspeed={**bf16, "zero_optimization": {"stage": 3}})
    assert "float8 = True: works at ZeRO 0 to 2" in message
    job = make_job(tmp_path, *fitting, deepspeed=bf16)
    job.check_device(has_gpu=True)
    with pytest.raises(UserError, match="float8 = True: needs a GPU"):
        job.check_device(has_gpu=False)


def test_all_that_does_not_fit_comes_at_once(tmp_path: Path, data_set: DataSet) -> None:
    (data_set.folder / "tokenizer.model").unlink()
    message = refusal(tmp_path, "--vocab_size", "7", "--max_position_embeddings", "5")
    assert message.count("; ") == 2
    for part in ("vocab_size = 7", "max_position_embeddings = 5", "tokenizer.model is missing"):
        assert part in message


def test_without_shards_it_says_how_to_make_them(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    for state in ("does not exist", "is unfinished"):
        message = refusal(tmp_path)
        assert message.startswith(f"--shards {folder}: {state}")
        assert "make quickstart" in message
        assert (
            f"launch/prepare_shards.py --input TEXT... --tokenizer FILE --output_dir {folder}"
            in (message)
        )
        folder.mkdir(exist_ok=True)


def test_mistakes_in_the_parts_come_out(tmp_path: Path, data_set: DataSet) -> None:
    assert "warmup_steps = 2 is above num_train_steps = 1" in refusal(
        tmp_path, "--num_train_steps", "1"
    )
    assert "hidden_size = 25 is not divisible" in refusal(tmp_path, "--hidden_size", "25")
    assert "train_batch_size = 12 is not a multiple" in refusal(tmp_path, world_size=5)
    assert "unknown key typo" in refusal(tmp_path, deepspeed={"typo": 1})


def test_the_problems_of_all_configurations_come_together(
    tmp_path: Path, data_set: DataSet
) -> None:
    flags = ["--num_train_steps", "1", "--hidden_size", "25"]
    message = refusal(tmp_path, *flags, deepspeed={"typo": 1}, world_size=5)
    for part in ("warmup_steps = 2 is above", "hidden_size = 25", "typo", "train_batch_size = 12"):
        assert part in message

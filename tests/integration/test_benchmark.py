"""The benchmark of preparation and loaders: what it prints, writes and computes."""

import importlib
import json
import math
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from data_prep.benchmark import sample_figures, stage_figures
from data_prep.sentences import split_sentences
from data_prep.stage_profile import OTHER, STAGES, measured_stages, stage_of
from dist_bert.common.text_tables import number, table
from dist_bert.data.reader import Columns
from dist_bert.data.shard_format import FIELD_SHAPES, Manifest, ShardRecord
from dist_bert.tools.benchmark.loader import content, samples_per_second
from tests.integration.conftest import MODERN_PARTS, TINY_MODEL, launcher, run_script
from tests.support.corpus import write_text_files

SCRIPT = "launch/benchmark.py"
LOADERS = [
    "ours",
    "memmap",
    "webdataset_one_member",
    "webdataset_raw_fields",
    "webdataset_npz",
]


def test_a_small_run_writes_every_figure_that_it_prints(tmp_path: Path) -> None:
    write_text_files(tmp_path / "text", count=211)
    made = run_script(
        sys.executable, SCRIPT, "prepare", "--input", tmp_path / "text" / "*.txt",
        "--rounds", "1", "--loader_samples", "307", "--json", tmp_path / "figures.json",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    written = json.loads((tmp_path / "figures.json").read_text())
    figures = written["figures"]
    printed = made.stdout[made.stdout.index("\ncorpus") :]
    assert printed == "".join(f"\n{table(name, rows)}\n" for name, rows in figures.items())
    first_line = made.stdout.splitlines()[0]
    assert list(written["machine"]) == [
        "cpu", "cores", "python", "numpy", "sentencepiece", "webdataset", "torch", "deepspeed",
    ]  # fmt: skip
    assert all(f"{name} {value}" in first_line for name, value in written["machine"].items())
    assert written["settings"]["loader_samples"] == 307

    corpus = figures["corpus"]["text"]
    assert corpus["documents"] == 211 and corpus["vocab_size"] < 8_192  # as many as there are
    check_text_to_shards(corpus["mb_of_text"], figures["text_to_shards"])
    check_samples(figures)
    for length in (128, 512):
        loaders = figures[f"loader_{length}"]
        assert list(loaders) == LOADERS
        for row in loaders.values():
            assert min(row.values()) > 0
            ours = loaders["ours"]["samples_per_cpu_second"]
            assert row["ours_divided_by_it"] == ours / row["samples_per_cpu_second"]


def test_sources_are_compared(data_set: Path, tmp_path: Path) -> None:
    made = run_script(
        sys.executable, SCRIPT, "sources", "--shards", data_set, "--rounds", "1",
        "--json", tmp_path / "figures.json",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    ((name, rows),) = json.loads((tmp_path / "figures.json").read_text())["figures"].items()
    assert made.stdout.endswith(f"\n{table(name, rows)}\n")
    assert list(rows) == ["folder", "cache_cold", "cache_warm", "http_cold", "http_warm"]
    for row in rows.values():
        rate = row["samples_per_cpu_second"]
        assert row["divided_by_folder"] == rate / rows["folder"]["samples_per_cpu_second"]
        assert row["samples_per_second"] > 0 and 0 < row["data_wait_share_at_10000"] < 1


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_training_is_compared_on_real_batches(
    data_set: Path, tmp_path: Path, num_ranks: int
) -> None:
    """On one rank BERT, on two ranks a modern model with local layers."""
    against = ["plain_torch", "transformers"] if num_ranks == 1 else ["transformers_sorted"]
    parts = {} if num_ranks == 1 else MODERN_PARTS
    size_flags = [f"--{name}={str(size).lower()}" for name, size in (TINY_MODEL | parts).items()]
    made = run_script(
        *launcher(num_ranks), SCRIPT, "train", "--shards", data_set, "--rounds", "2",
        "--train_batch_size", "24", "--micro_batch_size", "6", "--against", *against,
        "--matmul_roofline", "--json", tmp_path / "figures.json", *size_flags,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())["figures"]
    steps = figures["steps"]
    assert list(steps) == ["ours", *against]
    assert steps["ours"]["ours_is_faster"] == 1.0
    device = figures["device"]["one"]
    for row in steps.values():
        assert row["samples_per_second"] == pytest.approx(24 / row["seconds"])
        tokens_per_sample = row["tokens_per_second"] / row["samples_per_second"]
        assert tokens_per_sample == pytest.approx(
            steps["ours"]["tokens_per_second"] / steps["ours"]["samples_per_second"]
        )
        assert row["mfu"] > 0 and row["ours_is_faster"] > 0 and row["peak_gib"] >= 0
        roofline = row["mfu"] * device["peak_tflops"] / device["matmul_tflops"]
        assert row["share_of_roofline"] == pytest.approx(roofline)
    shares = figures["parts"]["ours"]
    assert sum(shares.values()) == pytest.approx(1.0)
    named = {name for name, share in shares.items() if share > 0.003}
    assert {"embedding", "attention", "feed_forward", "heads", "optimizer"} <= named
    assert num_ranks == 1 or "communication" in named
    (loader,) = (rows["ours"] for name, rows in figures.items() if name.startswith("loader"))
    assert 0 <= loader["data_wait_share"] < 1 and loader["samples_per_second_at_most"] > 0
    assert "ours is faster" in made.stdout and made.stdout.count("\nsteps") == 1


def test_saves_are_compared(data_set: Path, tmp_path: Path) -> None:
    size_flags = [f"--{name}={size}" for name, size in TINY_MODEL.items()]
    made = run_script(
        *launcher(2), SCRIPT, "saves", "--shards", data_set, "--rounds", "2", "--steps", "3",
        "--train_batch_size", "24", "--micro_batch_size", "6", "--folder", tmp_path,
        "--json", tmp_path / "figures.json", *size_flags,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]
    ((name, rows),) = json.loads((tmp_path / "figures.json").read_text())["figures"].items()
    assert made.stdout.endswith(f"\n{table(name, rows)}\n") and name == "saves of 3 steps"
    assert list(rows) == ["none", "waiting", "beside"]
    assert rows["none"]["cost_seconds"] == 0
    assert min(rows[way]["stall_seconds"] for way in ("waiting", "beside")) > 0
    step = rows["none"]["seconds_per_step"]
    for row in rows.values():
        assert row["stall_in_steps"] == pytest.approx(row["stall_seconds"] / step)
        assert row["stall_percent_every_100"] == pytest.approx(row["stall_in_steps"])
        assert row["cost_percent_every_100"] == pytest.approx(row["cost_seconds"] / step)


def test_optimizers_are_compared(data_set: Path, tmp_path: Path) -> None:
    size_flags = [f"--{name}={size}" for name, size in TINY_MODEL.items()]
    made = run_script(
        *launcher(2), SCRIPT, "optimizers", "--shards", data_set, "--rounds", "2",
        "--train_batch_size", "24", "--micro_batch_size", "6",
        "--json", tmp_path / "figures.json", *size_flags,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())["figures"]
    rows = figures["optimizers"]
    assert made.stdout.endswith(f"\n{table('optimizers', rows)}\n")
    assert list(rows) == ["AdamW", "Lamb", "StableAdamW", "Muon"]
    assert rows["AdamW"]["update_by_AdamW"] == 1.0
    for row in rows.values():
        assert 0 < row["update_ms"] < row["step_ms"] and 0 < row["update_share"] < 1
    refused = run_script(
        sys.executable, SCRIPT, "optimizers", "--shards", data_set, "--optimizers", "AdamW", "Lamb",
        "--deepspeed_config", "configs/zero3.json", *size_flags,
    )  # fmt: skip
    assert refused.returncode == 2
    assert "optimizer type Lamb with ZeRO 3 would train wrongly" in refused.stderr


def test_windows_are_compared_by_length(tmp_path: Path) -> None:
    flags = [
        "--lengths", "96", "288", "--windows", "32", "64", "--hidden_size", "48",
        "--num_attention_heads", "4", "--rounds", "1",
    ]  # fmt: skip
    made = run_script(
        sys.executable, SCRIPT, "attention", *flags, "--json", tmp_path / "figures.json"
    )
    assert made.returncode == 0, made.stderr
    ((name, rows),) = json.loads((tmp_path / "figures.json").read_text())["figures"].items()
    assert made.stdout.endswith(f"\n{table(name, rows)}\n") and name == "attention, 48 wide"
    shapes = [(length, window) for length in (96, 288) for window in (32, 64)]
    assert list(rows) == [f"{length} tokens, window {window}" for length, window in shapes]
    unit = rows["96 tokens, window 32"]["window_cpu_seconds"] / (96 * 32)
    for (length, window), row in zip(shapes, rows.values(), strict=True):
        seconds = row["window_cpu_seconds"]
        assert row["of_all_pairs"] == pytest.approx(seconds / row["all_pairs_cpu_seconds"])
        expected = seconds / (length * window) / unit
        assert row["by_length_times_window"] == pytest.approx(expected)
    refused = run_script(sys.executable, SCRIPT, "attention", *flags, "--windows", "33")
    assert refused.returncode == 2 and "local_attention = 33: must be even" in refused.stderr


@pytest.mark.trains
def test_the_trainer_of_transformers_is_timed(data_set: Path, tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text(json.dumps(TINY_MODEL))
    picture, earlier = tmp_path / "losses.png", tmp_path / "earlier.json"
    row = {"minutes": 0.01, "million_tokens": 0.1, "mlm_loss": 7.0, "mlm_accuracy": 0.1}
    earlier.write_text(json.dumps({"figures": {"an earlier one": {"step 10": row}}}))
    flags = (
        "peers", "--shards", data_set, "--model", tmp_path / "model.json",
        "--minutes", "0.01", "--scores", "2", "--max_samples", "16", "--lr", "1e-3",
        "--batch_size", "4", "--json", tmp_path / "figures.json", "--beside", earlier,
    )  # fmt: skip
    made = run_script(sys.executable, SCRIPT, *flags, "--picture", picture)
    assert made.returncode == 0, made.stderr
    ((name, rows),) = json.loads((tmp_path / "figures.json").read_text())["figures"].items()
    assert name == "transformers' BertForPreTraining, lr 0.001" and 1 <= len(rows) <= 3
    assert made.stdout.endswith(f"\nloss against time: {picture}\n\n{table(name, rows)}\n")
    assert " fit into 0.01 minutes\n" in made.stdout
    for row in rows.values():
        assert row["minutes"] > 0 and row["mlm_loss"] > 0 and row["million_tokens"] > 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    refused = run_script(sys.executable, SCRIPT, *flags)
    assert refused.returncode == 2 and "--beside: what it names is drawn" in refused.stderr
    refused = run_script(sys.executable, SCRIPT, *flags, *[earlier] * 6, "--picture", picture)
    assert refused.returncode == 2 and "at most 6 besides the new one" in refused.stderr


def test_plain_torch_is_compared_on_one_rank_alone(data_set: Path) -> None:
    made = run_script(
        *launcher(2), SCRIPT, "train", "--shards", data_set, "--against", "plain_torch"
    )
    assert made.returncode != 0
    assert "error: --against plain_torch: compares one rank" in made.stderr


def check_text_to_shards(mb_of_text: float, rows: dict[str, dict[str, float]]) -> None:
    assert list(rows) == ["ranks_1", "ranks_2", "sentencepiece_alone"]
    alone = rows["sentencepiece_alone"]
    for name, row in rows.items():
        assert all(value > 0 for column, value in row.items() if column != "cpu_growth_percent")
        assert row["mb_per_cpu_second"] == pytest.approx(mb_of_text / row["cpu_seconds"])
        if name != "sentencepiece_alone":
            assert row["mb_per_second"] == pytest.approx(mb_of_text / row["wall_seconds"])
            times = row["mb_per_cpu_second"] / alone["mb_per_cpu_second"]
            assert row["times_sentencepiece"] == pytest.approx(times)
            assert 10 < row["peak_mb_per_rank"] < 10_000
    growth = rows["ranks_2"]["cpu_seconds"] / rows["ranks_1"]["cpu_seconds"] - 1
    assert rows["ranks_2"]["cpu_growth_percent"] == pytest.approx(100 * growth)


def check_samples(figures: dict[str, dict[str, dict[str, float]]]) -> None:
    stages = figures["stages"]
    assert list(stages) == [*dict.fromkeys(STAGES.values()), OTHER]
    assert sum(row["percent_of_time"] for row in stages.values()) == pytest.approx(100)
    # The small ones may fall between two looks at this size.
    assert all(stages[name]["cpu_seconds"] > 0 for name in ("read", "sentences", "encode", OTHER))
    for length in (128, 512):
        row = figures["samples"][f"length_{length}"]
        assert row["num_samples"] > 100 and row["bytes_per_sample"] > length
        rate = row["num_samples"] / row["pairs_and_masks_cpu_seconds"]
        assert row["samples_per_cpu_second"] == pytest.approx(rate)
        microseconds = figures["microseconds_per_sample"].values()
        total = sum(stage[f"length_{length}"] for stage in microseconds)
        assert total == pytest.approx(1e6 / rate)


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    tokenizer = tmp_path / "none.model"
    for flags, told in (
        (["--input", tmp_path / "none-*"], "none-*: no file matches"),
        (["--tokenizer", tokenizer, "--input", __file__], f"--tokenizer {tokenizer}: cannot be"),
        (["--tokenizer", __file__, "--input", __file__], "read as a SentencePiece model, with"),
        (["--rounds", "0"], "argument --rounds: '0': must be a whole number of at least 1"),
        (["--json", tmp_path / "none" / "figures.json"], "its folder does not exist"),
        (["--zeal"], "unknown argument --zeal; known flags: --debug --dry_run --help --input"),
    ):
        ended = run_script(sys.executable, SCRIPT, "prepare", *flags)
        assert ended.returncode == 2
        assert ended.stderr.startswith("error: ") and told in ended.stderr
        assert ended.stderr.count("\n") == 1


def test_dry_run_prints_the_settings() -> None:
    ended = run_script(sys.executable, SCRIPT, "prepare", "--dry_run", "--rounds", "7")
    assert json.loads(ended.stdout) == {
        "command": "prepare", "input": [], "tokenizer": None, "sequence_length": 128,
        "rounds": 7, "loader_samples": 32_768,
    }  # fmt: skip


def test_figures_keep_three_digits() -> None:
    values = (1_234_567, 7, 0, 123456.7, 99.94, 12.34, 1.234, -1.234, 0.1234, 0.0)
    texts = ("1,234,567", "7", "0", "123,457", "99.9", "12.3", "1.23", "-1.23", "0.123", "0.000")
    assert tuple(map(number, values)) == texts


def test_a_table_is_aligned_and_leaves_what_is_missing_blank() -> None:
    rows = {"a_row": {"short": 3, "a_long_column": 1234.5}, "b": {"a_long_column": 0.5}}
    assert table("the_title", rows) == (
        "the title  short  a long column\n"
        "a row          3          1,234\n"
        "b                         0.500"
    )  # fmt: skip


def test_every_stage_names_something_that_exists() -> None:
    for name in STAGES:
        parts = name.split(".")
        found = importlib.import_module(".".join(parts[:2]))
        for part in parts[2:]:
            found = getattr(found, part)
        assert found is not None


def test_the_longest_name_decides_the_stage() -> None:
    assert stage_of("data_prep.readers.lines.blank_line") == "read"
    assert stage_of("data_prep.pairs.assemble") == "order_and_assemble"
    assert stage_of("data_prep.samples.measure") == "statistics"
    assert stage_of("data_prep.samples.measure.<locals>.inner") == "statistics"
    assert stage_of("data_prep.samples.build_blocks_of_wood") is None
    assert stage_of("data_prep.pairs") is None and stage_of("numpy.sum") is None


def test_time_goes_to_the_innermost_stage() -> None:
    before = signal.getsignal(signal.SIGALRM)
    start = time.process_time()
    with measured_stages() as seconds:
        while time.process_time() - start < 0.3:
            split_sentences("He came. She went! Did they? Nobody, in the end, knows. " * 100)
    total = time.process_time() - start
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert sum(seconds.values()) == pytest.approx(total, rel=0.1)
    assert seconds["sentences"] > 0.8 * total


def test_stage_figures_are_means_and_shares() -> None:
    rows = stage_figures([{"read": 1.0, "masks": 3.0}, {"read": 2.0, "masks": 2.0}])
    assert rows == {
        "read": {"cpu_seconds": 1.5, "percent_of_time": 37.5},
        "masks": {"cpu_seconds": 2.5, "percent_of_time": 62.5},
    }


def test_samples_are_measured_in_the_best_round() -> None:
    shards = (ShardRecord("a", 700, "", 3, ()), ShardRecord("b", 500, "", 2, ()))
    manifest = Manifest({}, {}, [], {"samples": 5}, {}, {"train": shards[:1], "other": shards[1:]})
    slow = {"pairs": 2.0, "order_and_assemble": 2.0, "masks": 2.0, "statistics": 2.0, "read": 0.0}
    best = {"pairs": 0.5, "order_and_assemble": 1.0, "masks": 0.7, "statistics": 0.3, "read": 9.0}
    row = sample_figures(manifest, [slow, best])
    assert row["pairs_and_masks_cpu_seconds"] == pytest.approx(2.5)
    assert row["samples_per_cpu_second"] == pytest.approx(2.0)
    assert (row["num_samples"], row["bytes_per_sample"]) == (5, 240)


def make_columns(count: int) -> Columns:
    rng = np.random.default_rng(count)
    widths = {"B": (), "BS": (13,), "BP": (3,), "B2": (2,)}
    return {
        field: rng.integers(1, 100, (count, *widths[shape]))
        for field, shape in FIELD_SHAPES.items()
    }


def test_content_depends_neither_on_order_nor_on_padding_nor_on_batches() -> None:
    columns = make_columns(7)
    order = np.random.default_rng(0).permutation(7)
    shuffled = {field: column[order] for field, column in columns.items()}
    padded = {
        field: np.pad(column, ((0, 0), (0, 4))) if field in ("input_ids", "masked_lm_labels") else
        column for field, column in shuffled.items()
    }  # fmt: skip
    parts = [{f: c[rows] for f, c in padded.items()} for rows in (slice(0, 2), slice(2, None))]
    assert content(iter([columns])) == content(iter(parts))
    assert content(iter([columns]))[0] == 7


@pytest.mark.parametrize("field", FIELD_SHAPES)
def test_content_depends_on_every_field(field: str) -> None:
    columns, changed = make_columns(7), make_columns(7)
    changed[field][4] += 1
    assert content(iter([columns])) != content(iter([changed]))
    swapped = make_columns(7)
    swapped[field][[2, 5]] = swapped[field][[5, 2]]
    assert content(iter([columns])) != content(iter([swapped]))


def test_fast_loaders_pass_several_times() -> None:
    passes = []

    def load(number: int) -> Iterator[Columns]:
        passes.append(number)
        end = time.process_time() + 0.01
        while time.process_time() < end:
            pass
        yield {"num_tokens": np.zeros(11, np.uint16)}
        yield {"num_tokens": np.zeros(2, np.uint16)}

    rate = samples_per_second(load, least_seconds=0.035)
    assert passes == list(range(len(passes))) and len(passes) > 1
    assert rate == pytest.approx(13 / 0.01, rel=0.3) and math.isfinite(rate)

"""Parts of the preparation: inputs, the hand-out, sampling, settings, the folder of a data set."""

import dataclasses
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from data_prep import data_set
from data_prep.data_set import BuiltShard
from data_prep.inputs import InputPart, find_inputs, installed_packages
from data_prep.make_tokenizer import _hash, sample_sentences
from data_prep.mpi_ranks import hand_out
from data_prep.prepare_config import (
    FORMATS,
    PrepareConfig,
    TextConfig,
    add_input_flags,
    resolve_data_sets,
)
from data_prep.progress import StageProgress
from data_prep.readers import _READERS
from data_prep.readers.source import RecordTally
from data_prep.samples import SampleStatistics
from dist_bert.common.cli import Parser
from dist_bert.common.errors import UserError
from dist_bert.common.hashing import hash64
from dist_bert.common.settings import flags_of
from dist_bert.data.shard_format import BlockRecord, ShardRecord
from tests.support.corpus import write_text_files


def test_work_goes_to_the_rank_with_least_largest_first() -> None:
    assert hand_out([5, 9, 1, 1, 7], 2) == [[1, 2, 3], [4, 0]]
    sizes = [int(h) for h in hash64("sizes", np.arange(200)) % np.uint64(1_000)]
    for num_ranks in (1, 2, 3, 7):
        items = hand_out(sizes, num_ranks)
        assert sorted(itertools.chain(*items)) == list(range(200))
        loads = [sum(sizes[i] for i in own) for own in items]
        assert max(loads) - min(loads) <= max(sizes)
        assert all(
            [sizes[i] for i in own] == sorted((sizes[i] for i in own), reverse=True)
            for own in items
        )
    assert hand_out([], 3) == [[], [], []]


def test_inputs_are_sorted_files_without_repetition(tmp_path: Path) -> None:
    write_text_files(tmp_path / "b", 3)
    write_text_files(tmp_path / "a" / "deep", 2)
    patterns = [str(tmp_path / "**" / "*.txt"), str(tmp_path / "b" / "*"), str(tmp_path / "**")]
    files = find_inputs(patterns)
    assert len(files) == 5 and files == sorted(files)
    assert files[0].path.endswith("a/deep/document-0000.txt")
    assert files[0].bytes == os.path.getsize(files[0].path) > 0
    with pytest.raises(UserError, match=r"none\*.*b.*a folder: give .*b/\*\*.*no file matches"):
        find_inputs([str(tmp_path / "none*"), *patterns, str(tmp_path / "b")])


def test_a_file_of_several_names_is_read_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_text_files(tmp_path / "a", 2)
    (tmp_path / "latest").symlink_to("a")
    path = f"{tmp_path}/a/document-0000.txt"
    files = find_inputs([f"{tmp_path}/**", f"{tmp_path}/a/../a/document-0000.txt", path])
    assert len({os.path.realpath(file.path) for file in files}) == len(files) == 2
    assert files == sorted(files)
    assert capsys.readouterr().out == "left out 3 other names of the same files\n"


def test_the_name_of_a_file_that_is_there_is_no_pattern(tmp_path: Path) -> None:
    for name in ("[br*ck].jsonl", "a[1].txt", "a1.txt"):
        (tmp_path / name).write_text("x")
    for name in ("[br*ck].jsonl", "a[1].txt"):
        assert [file.path for file in find_inputs([str(tmp_path / name)])] == [str(tmp_path / name)]
    assert len(find_inputs([str(tmp_path / "a[12]*")])) == 1


def test_a_name_that_is_not_utf8_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("x")
    with open(os.fsencode(tmp_path) + b"/caf\xe9.txt", "w") as file:
        file.write("x")
    with pytest.raises(UserError, match=r"--input .*/caf\\xe9\.txt: the name .* not UTF-8; rename"):
        find_inputs([str(tmp_path / "*")])
    assert len(find_inputs([str(tmp_path / "g*")])) == 1


def test_urls_are_no_patterns() -> None:
    with pytest.raises(UserError, match=r"--input https://x/a\.txt \(a URL: .*: no file matches"):
        find_inputs(["https://x/a.txt"])


def test_what_a_preparation_writes_is_no_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("text/a.txt", "out/b.txt", "out/own/c.txt", "out/own/deep/d.txt", "e.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    written = [tmp_path / "out" / "own", tmp_path / "e.txt", tmp_path / "missing"]
    files = find_inputs([str(tmp_path / "**")], written)
    assert [file.path for file in files] == [str(tmp_path / n) for n in ("out/b.txt", "text/a.txt")]
    assert "left out 3 files" in capsys.readouterr().out
    with pytest.raises(UserError, match="other than what this preparation wrote or uses"):
        find_inputs([str(tmp_path / "out" / "own" / "**")], written)


def test_installed_packages_are_modules_without_tests() -> None:
    paths = [file.path for file in installed_packages()]
    assert len(paths) > 500 and len(set(paths)) == len(paths)
    assert any(path.endswith(f"numpy{os.sep}__init__.py") for path in paths)
    assert any(path.endswith(f"{os.sep}argparse.py") for path in paths)
    assert not any(f"{os.sep}tests{os.sep}" in p or not p.endswith(".py") for p in paths)


def sample(files: list[InputPart], count: int, layout: str = "text") -> list[str]:
    return sample_sentences(files, TextConfig(format=layout), count, max_bad_share=0.0)


def test_a_sample_depends_on_nothing_but_the_text(tmp_path: Path) -> None:
    write_text_files(tmp_path / "here", 211)
    write_text_files(tmp_path / "there" / "deeper", 211)
    files = find_inputs([str(tmp_path / "here" / "*.txt")])
    everything = sample(files, 0)
    assert len(set(everything)) == len(everything) > 1_000
    some = sample(files, 300)
    assert len(some) == 300 and set(some) < set(everything)
    assert some == sorted(some, key=_hash), "mixed: not in the order of the files"
    assert sample(files[::-1], 300) == some
    assert sample(find_inputs([str(tmp_path / "there" / "**")]), 300) == some
    assert sample(files, 10**6) == everything


def test_a_small_sample_reads_few_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text_files(tmp_path, 97)
    files = find_inputs([str(tmp_path / "*.txt")])
    opened = []

    def read(
        part: InputPart, config: TextConfig, tally: RecordTally
    ) -> Iterator[tuple[str, list[str]]]:
        opened.append(part.path)
        yield "", [f"{part.path} {i}" for i in range(90)]

    monkeypatch.setattr("data_prep.make_tokenizer.read_sentences", read)
    assert len(sample(files, 500)) == 500
    assert len(opened) == 7, "500 sentences and a quarter more, 90 a file"


def test_a_sample_of_a_large_file_is_from_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_prep.work_units._MIN_UNIT_BYTES", 1_000)
    (tmp_path / "a").write_text("".join(f"Sentence number {i}.\n" for i in range(9_000)))
    found = sample(find_inputs([str(tmp_path / "a")]), 2_500, "sentences")
    numbers = np.array([int(sentence.split()[2][:-1]) for sentence in found])
    assert len(numbers) == 2_500
    assert abs(np.mean(numbers) / 9_000 - 0.5) < 0.1 and numbers.max() > 8_000


def test_settings_out_of_range_are_all_named() -> None:
    with pytest.raises(UserError) as caught:
        PrepareConfig(
            sequence_length=7, masked_lm_prob=0.0, validation_share=0.6, seed=-1, copies=0,
            mean_span_length=0.5, min_characters=9, max_characters=8,
        )  # fmt: skip
    for name in (
        "sequence_length = 7", "masked_lm_prob", "validation_share", "seed = -1", "copies = 0",
        "mean_span_length = 0.5", "max_characters = 8: must be at least min_characters = 9",
    ):  # fmt: skip
        assert name in str(caught.value)
    with pytest.raises(UserError, match="min_characters = -1: must be at least 0"):
        TextConfig(min_characters=-1)
    assert PrepareConfig().expected_tokens_per_sample == 125 * 0.95
    assert PrepareConfig(pair_objective="none").max_text_tokens == 126


def data_sets(*flags: str, output_dir: str = "out") -> dict[str, int]:
    """Folder -> length, of a command line."""
    parser = Parser()
    add_input_flags(parser, PrepareConfig)
    parser.add_argument("--config")
    arguments = parser.parse_args(flags)
    found = resolve_data_sets(
        Path(output_dir), arguments.config, flags_of(PrepareConfig, arguments)
    )
    assert all(
        dataclasses.replace(c, sequence_length=128) == PrepareConfig() for c in found.values()
    )
    return {str(folder): config.sequence_length for folder, config in found.items()}


@pytest.mark.parametrize(
    "flags", [("--max_bad_share", "nan"), ("--max_bad_share", "-1"), ("--preview", "-2")]
)
def test_flags_of_the_input_out_of_range_are_one_line(
    flags: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    parser = Parser()
    add_input_flags(parser, PrepareConfig)
    with pytest.raises(SystemExit):
        parser.parse_args(flags)
    assert f"{flags[0]}: {flags[1]!r}: must be a" in capsys.readouterr().err


def test_each_length_is_a_data_set_of_its_own(tmp_path: Path) -> None:
    assert data_sets() == {"out": 128}
    assert data_sets("--sequence_length", "61") == {"out": 61}
    file = tmp_path / "config.json"
    file.write_text('{"sequence_length": [512, 32]}')
    several = data_sets("--config", str(file), output_dir="data/my_shards")
    assert several == {"data/my_shards_512": 512, "data/my_shards_32": 32}
    assert list(several.values()) == [512, 32], "in the order given"
    assert data_sets("--config", str(file), "--sequence_length", "8, 9") == {"out_8": 8, "out_9": 9}
    file.write_text('{"sequence_length": [61]}')
    assert data_sets("--config", str(file)) == {"out": 61}


@pytest.mark.parametrize(
    ("flag", "problem"),
    [
        ("32,128,32", r"sequence_length = \[32, 128, 32\]: must name each length once"),
        ("32,0", "sequence_length = 0: must be 8 to 65535"),
        ("[]", "must name each length once, and at least one"),
        ("[32, 128.0]", "sequence_length = 128.0: must be int"),
        ('[32, "128"]', "sequence_length = '128': must be int"),
        ("[[32], 61]", r"sequence_length = \[32\]: must be int"),
    ],
)
def test_lengths_that_cannot_be_are_named(tmp_path: Path, flag: str, problem: str) -> None:
    flags = ["--sequence_length", flag]
    if flag[0] == "[":
        (tmp_path / "config.json").write_text(f'{{"sequence_length": {flag}}}')
        flags = ["--config", str(tmp_path / "config.json")]
    with pytest.raises(UserError, match=problem):
        data_sets(*flags)


@pytest.mark.parametrize("flag", ["", ",", "32,", "32 128", "x", "32,-1", "1e2", "\u0664"])
def test_text_that_is_no_length_is_one_line(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        data_sets("--sequence_length", flag)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"argument --sequence_length: {flag!r}: must be a whole number, or several" in error


@pytest.mark.parametrize("folder", [".", "..", "/", "a/.."])
def test_a_folder_without_a_name_is_for_one_length(folder: str) -> None:
    assert data_sets(output_dir=folder) == {folder: 128}
    with pytest.raises(UserError, match="has no name of its own to add the lengths to; give"):
        data_sets("--sequence_length", "8,9", output_dir=folder)


def test_every_format_has_a_reader() -> None:
    assert set(FORMATS) == {"auto", *_READERS}


def test_a_folder_belongs_to_one_data_set(tmp_path: Path) -> None:
    identity = {"seed": 1, "input": "9 files"}
    assert not data_set.is_finished(tmp_path / "new", identity)
    assert not (tmp_path / "new").exists(), "asking makes nothing"
    data_set.claim(tmp_path / "new", identity)
    assert not data_set.is_finished(tmp_path / "new", identity)
    (tmp_path / "new" / "manifest.json").write_text("{}")
    assert data_set.is_finished(tmp_path / "new", identity)
    with pytest.raises(UserError, match=r"holds another data set \(seed = 1 there, 2 asked for\)"):
        data_set.is_finished(tmp_path / "new", {**identity, "seed": 2})
    (tmp_path / "new" / "preparation.json").unlink()
    with pytest.raises(UserError, match=r"preparation\.json is missing"):
        data_set.is_finished(tmp_path / "new", identity)


def test_a_failed_data_set_frees_its_folder_unless_it_has_shards(tmp_path: Path) -> None:
    data_set.claim(tmp_path, {"seed": 1})
    data_set.unclaim(tmp_path)
    assert not list(tmp_path.iterdir())
    data_set.claim(tmp_path, {"seed": 1})
    (tmp_path / "train-00000.tar").touch()
    data_set.unclaim(tmp_path)
    with pytest.raises(UserError, match="seed = 1 there"):
        data_set.is_finished(tmp_path, {"seed": 2})


def test_a_folder_is_locked_and_cleared(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    folder.mkdir()
    (folder / ".unit-00001.77.tmp").mkdir()
    (folder / ".unit-00001.77.tmp" / "ids.npy").touch()
    (folder / ".train-00000.tar.77.tmp").touch()
    (folder / "train-00000.tar").touch()
    with data_set.locked(folder):
        assert [path.name for path in folder.iterdir()] == ["train-00000.tar"]
        with pytest.raises(UserError, match="new: another preparation is writing there"):
            data_set.locked(folder).__enter__()
    with data_set.locked(folder):
        pass


def test_a_finished_shard_is_kept_if_it_is_there_and_of_the_same_text(tmp_path: Path) -> None:
    data_set.claim(tmp_path, {})
    path = tmp_path / "train-00003.tar"
    path.write_bytes(bytes(77))
    record = ShardRecord(path.name, 77, "sha", 5, (BlockRecord(0, 5, 13, 2, 99),))
    shard = BuiltShard("train", record, SampleStatistics(num_samples=5, length_histogram=[2, 3]))
    assert data_set.kept_shard(tmp_path, path.name, "text") is None
    data_set.keep_shard(tmp_path, shard, "text")
    kept = data_set.kept_shard(tmp_path, path.name, "text")
    assert kept is not None and vars(kept) == vars(shard)
    assert data_set.kept_shard(tmp_path, path.name, "other text") is None
    path.write_bytes(bytes(76))
    assert data_set.kept_shard(tmp_path, path.name, "text") is None
    path.unlink()
    assert data_set.kept_shard(tmp_path, path.name, "text") is None


def test_progress_tells_rate_and_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("data_prep.progress.time.monotonic", lambda: now[0])
    progress = StageProgress("tokenise", "units")
    progress.begin(4, 0, 40_000_000)
    for seconds in (1.0, 5.0, 6.0, 8.0):
        now[0] = seconds
        progress.add(10_000_000)
    lines = capsys.readouterr().out.splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "tokenise 2/4 units 4.0 MB/s 5 s left",
        "tokenise 4/4 units 5.0 MB/s 8.0 s",
    ]


def test_progress_counts_what_was_done_earlier_but_not_its_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("data_prep.progress.time.monotonic", lambda: now[0])
    progress = StageProgress("build", "shards")
    progress.begin(7, 5, 20_000_000)
    for seconds in (6.0, 8.0):
        now[0] = seconds
        progress.add(10_000_000)
    lines = capsys.readouterr().out.splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "build 5 shards done earlier, 2 to do",
        "build 6/7 shards 1.7 MB/s 6 s left",
        "build 7/7 shards 2.5 MB/s 8.0 s",
    ]


def test_a_long_unit_shows_that_work_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr("data_prep.progress.time.monotonic", lambda: now[0])
    progress = StageProgress("tokenise", "units")
    progress.begin(num_items=2, num_done=0, num_bytes=12_000_000)
    for now[0], num_bytes in ((101.0, 1_000_000), (108.0, 6_000_000), (109.0, 7_000_000)):
        progress.tick(num_bytes)
    progress.add(8_000_000)
    now[0] = 116.0
    progress.tick(2_400_000)
    assert capsys.readouterr().out.splitlines() == [
        "tokenise 0/2 units  6.0 MB of the next  0.8 MB/s  8 s so far",
        "tokenise 1/2 units  2.4 MB of the next  0.7 MB/s  8 s left",
    ]

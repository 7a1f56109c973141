"""From text files to shards through `launch/`, with real MPI ranks."""

import dataclasses
import hashlib
import json
import os
import re
import shutil
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from numpy.typing import NDArray

from data_prep.data_set import CLAIM_NAME
from data_prep.token_store import TokenStore, content_hash
from dist_bert.data import document_sketch
from dist_bert.data.masking import restore
from dist_bert.data.shard_format import FIELD_SHAPES, MANIFEST_NAME, SPLITS, Manifest, ShardFile
from dist_bert.tokenizer.config import TokenizerConfig
from dist_bert.tokenizer.tokenizer import CLS_ID, MASK_ID, SEP_ID, Tokenizer, train_tokenizer
from tests.integration.conftest import (
    ROOT,
    assert_one_line_error,
    files_of,
    mpiexec,
    prepare_shards,
    run_script,
)
from tests.support.corpus import english_sentences, write_text_files

NUM_FILES = 1_201
SETTINGS = ["--samples_per_shard", "257", "--validation_share", "0.05", "--sequence_length", "61"]


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A corpus, its tokenizer and the data set that one rank made of it."""

    folder: Path
    tokenizer: Path
    shards: Path
    output: str

    @property
    def text(self) -> str:
        return str(self.folder / "text" / "*.txt")

    @property
    def manifest(self) -> Manifest:
        return Manifest.load(self.shards)

    def blocks(self, split: str) -> list[dict[str, NDArray[Any]]]:
        manifest = self.manifest
        shards = [ShardFile(self.shards, r, manifest.field_types) for r in manifest.splits[split]]
        return [s.block(i) for s in shards for i in range(len(s.record.blocks))]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("prepared")
    texts = write_text_files(folder / "text", NUM_FILES)
    for number in range(0, 300, 3):  # duplicates
        copy = folder / "text" / f"copy-{number:04d}.txt"
        copy.write_text(texts[number], encoding="utf-8")
    trained = run_script(
        sys.executable, "launch/train_tokenizer.py", "--input", folder / "text" / "*.txt",
        "--output_dir", folder / "tokenizer", "--vocab_size", "901",
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    tokenizer = folder / "tokenizer" / "tokenizer.model"
    arguments: list[str | Path] = [
        "--input",
        str(folder / "text" / "*.txt"),
        "--tokenizer",
        tokenizer,
    ]
    made = prepare_shards(1, *arguments, "--output_dir", folder / "shards", *SETTINGS)
    assert made.returncode == 0, made.stderr
    return Prepared(folder, tokenizer, folder / "shards", made.stdout)


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_any_number_of_ranks_writes_equal_bytes(prepared: Prepared, num_ranks: int) -> None:
    output = prepared.folder / f"shards-{num_ranks}"
    made = prepare_shards(
        num_ranks, "--input", prepared.text, "--tokenizer", prepared.tokenizer,
        "--output_dir", output, *SETTINGS,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert files_of(output) == files_of(prepared.shards)
    assert len(list(output.glob("*.tar"))) > 8 and not list(output.rglob("*.tmp"))


def test_train_tokenizer_says_what_it_was_made_from(prepared: Prepared) -> None:
    record = json.loads(prepared.tokenizer.with_suffix(".json").read_text())
    assert record["fingerprint"] == Tokenizer(prepared.tokenizer).fingerprint
    assert (record["vocab_size"], record["format"], record["num_files"]) == (901, "auto", 1_301)


def test_a_token_store_serves_other_settings(prepared: Prepared) -> None:
    output, store = prepared.folder / "other", prepared.shards / "token_store"
    before = {path: path.stat().st_ctime_ns for path in store.rglob("*")}
    made = prepare_shards(
        2, "--input", prepared.text, "--tokenizer", prepared.tokenizer, "--output_dir", output,
        "--token_store", store, *SETTINGS[:-1], "127", "--seed", "7",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert {path: path.stat().st_ctime_ns for path in store.rglob("*")} == before
    assert Manifest.load(output).config["sequence_length"] == 127
    assert (
        max(
            b["num_tokens"].max()
            for b in dataclasses.replace(prepared, shards=output).blocks("train")
        )
        == 127
    )


def test_a_damaged_token_store_is_mended(prepared: Prepared, tmp_path: Path) -> None:
    """And that of another tokenizer is left alone."""
    store = tmp_path / "store"
    shutil.copytree(prepared.shards / "token_store", store)
    flipped, cut, unreadable = sorted(store.glob("unit-*"))[:3]
    ids = np.load(flipped / "ids.npy", mmap_mode="r+")
    ids[:100] ^= 1
    ids.flush()
    os.truncate(cut / "ids.npy", (cut / "ids.npy").stat().st_size // 2)
    (unreadable / "unit.json").write_text("{")
    made = prepare_shards(
        2, "--input", prepared.text, "--tokenizer", prepared.tokenizer, "--output_dir",
        tmp_path / "out", "--token_store", store, *SETTINGS,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert (
        f"token store: 2 units are damaged and are encoded again: {flipped}/ids.npy has changed"
        f" since it was written (sha256); {cut}/ids.npy has changed"
    ) in made.stdout
    assert "token store: 1 units cannot be used and are encoded again: " in made.stdout
    assert files_of(store) == files_of(prepared.shards / "token_store")
    assert files_of(tmp_path / "out").items() <= files_of(prepared.shards).items()

    lines = english_sentences(900, seed=3)
    other = train_tokenizer(lines, tmp_path / "other", TokenizerConfig(vocab_size=301))
    before = files_of(store)
    made = prepare_shards(
        2, "--input", prepared.text, "--tokenizer", other, "--output_dir", tmp_path / "new",
        "--token_store", store, *SETTINGS,
    )  # fmt: skip
    assert_one_line_error(made, f"--token_store {store}: holds text that was encoded with another")
    assert files_of(store) == before and not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("recipe", "share", "copies"),
    [
        (["--copies", "3"], 0.5, 3),
        (["--pair_objective", "sop", "--whole_words", "false"], 0.5, 1),
        (["--pair_objective", "none", "--mean_span_length", "3", "--masked_lm_prob", "0.4"], 0, 1),
    ],
)
def test_recipes(
    prepared: Prepared, tmp_path: Path, recipe: list[str], share: float, copies: int
) -> None:
    store = prepared.shards / "token_store"
    made = prepare_shards(
        2, "--input", prepared.text, "--tokenizer", prepared.tokenizer, "--output_dir",
        tmp_path / "out", "--token_store", store, *SETTINGS, *recipe,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    verified = run_script(sys.executable, "launch/verify_shards.py", tmp_path / "out")
    assert verified.returncode == 0, verified.stderr
    manifest = Manifest.load(tmp_path / "out")
    assert manifest.statistics["train"]["shares"]["random_next"] == share
    counts = [manifest.statistics[split]["num_samples"] for split in SPLITS]
    usual = [prepared.manifest.statistics[split]["num_samples"] for split in SPLITS]
    if copies > 1:
        assert abs(counts[0] / usual[0] / copies - 1) < 0.1
    assert abs(counts[1] / usual[1] - 1) < 0.3, "held-out documents are passed over once"
    if "0.4" in recipe:
        assert abs(manifest.statistics["train"]["shares"]["masked"] - 0.4) < 0.005


LIMITS: dict[
    tuple[str, ...], tuple[str, str]
] = {  # flags of a data set that is beyond a limit -> what is said, what accepts it
    ("--truncate_pairs", "true", "--sequence_length", "19"): ("are in no sample", "lost_tokens"),
    ("--balance_pairs", "false", "--sequence_length", "61"): (
        "have a random second",
        "random_next",
    ),
}


@pytest.mark.parametrize("flags", LIMITS, ids=lambda flags: flags[0])
def test_a_limit_ends_a_preparation_and_its_flag_goes_on(
    prepared: Prepared, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    sentences = [
        f"The lantern near the bridge was old in the year {1_000 + i}." for i in range(600)
    ]
    documents = [[sentence] for sentence in sentences[:500]] + [sentences[500:550], sentences[550:]]
    (tmp_path / "a.txt").write_text("\n\n".join("\n".join(lines) for lines in documents))
    common: list[str | Path] = ["--input", "a.txt", "--format", "lines", "--output_dir", "out"]
    common += ["--tokenizer", prepared.tokenizer, *flags]
    problem, limit = LIMITS[flags]
    made = prepare_shards(2, *common, cwd=tmp_path)
    assert_one_line_error(made, problem)
    assert not (tmp_path / "out" / MANIFEST_NAME).exists()
    shards = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    assert shards
    found = re.search(rf"--allow_{limit} (0\.\d\d|1\.00)$", made.stderr.strip())
    assert found, made.stderr
    made = prepare_shards(1, *common, *found[0].split(), cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert {path: path.stat().st_mtime_ns for path in shards} == shards, "nothing is made again"
    verified = run_script(sys.executable, "launch/verify_shards.py", tmp_path / "out")
    assert verified.returncode == 0, verified.stderr


def test_documents_of_single_sentences_are_balanced_and_all_kept(
    prepared: Prepared, tmp_path: Path
) -> None:
    sentences = [
        f"The lantern near the bridge was old in the year {1_000 + i}." for i in range(300)
    ]
    documents = [[sentence] for sentence in sentences[:280]] + [sentences[280:]]
    (tmp_path / "a.txt").write_text("\n\n".join("\n".join(lines) for lines in documents))
    made = prepare_shards(
        2, "--input", "a.txt", "--format", "lines", "--output_dir", "out", "--tokenizer",
        prepared.tokenizer, cwd=tmp_path,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    manifest = Manifest.load(tmp_path / "out")
    shards = [
        (split, ShardFile(tmp_path / "out", record, manifest.field_types))
        for split in SPLITS
        for record in manifest.splits[split]
    ]
    blocks = [shard.block(i) for _, shard in shards for i in range(len(shard.record.blocks))]
    first = np.concatenate([block["document_ids"][:, 0] for block in blocks])
    assert set(first.tolist()) == set(range(281))
    for split in SPLITS:
        assert manifest.statistics[split]["shares"]["random_next"] == 0.5
        assert manifest.statistics[split]["shares"]["lost"] == 0


def test_what_is_left_out_is_counted(prepared: Prepared, tmp_path: Path) -> None:
    texts = [f"This is text {i}. It has another sentence, number {i}." for i in range(1_000)]
    rows = [{"text": text, "language": "de" if i % 4 else "en"} for i, text in enumerate(texts)]
    rows += rows[:400:2]  # every second one is German
    rows += [{"text": "Too short.", "language": "en"}, {"text": "", "language": "en"}]
    lines = [json.dumps(row) for row in rows]
    lines[77] = "not JSON"  # German
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    common: list[str | Path] = ["--tokenizer", prepared.tokenizer, "--input", "a.jsonl"]
    common += ["--deduplicate", "true", "--min_characters", "20", "--languages", "en"]
    for num_ranks in (1, 2):
        made = prepare_shards(
            num_ranks, *common, "--output_dir", f"out{num_ranks}", "--max_bad_share", "0.01",
            cwd=tmp_path,
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
        totals = Manifest.load(tmp_path / f"out{num_ranks}").totals
        assert totals["drops"] == {
            "duplicate": 100,
            "empty": 1,
            "other_language": 849,
            "too_short": 1,
        }
        assert totals["bad_records"] == {"not_json": 1}
        assert totals["first_bad_records"][0].startswith("a.jsonl: line 78: is not JSON")
        assert totals["documents"] == 350
        assert totals["train_documents"] + totals["validation_documents"] == 250
    assert files_of(tmp_path / "out1") == files_of(tmp_path / "out2")
    made = prepare_shards(
        2, *common, "--output_dir", "strict", "--max_bad_share", "0", cwd=tmp_path
    )
    assert_one_line_error(made, "a.jsonl: line 78: is not JSON")


def test_the_preview_shows_documents_and_makes_nothing(prepared: Prepared, tmp_path: Path) -> None:
    command = ["--tokenizer", "none", "--input", prepared.text, "--preview", "2"]
    shown = prepare_shards(2, *command, "--output_dir", tmp_path / "out")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("copy-0000.txt (text)") == 1, "one rank speaks"
    assert not (tmp_path / "out").exists()
    same = run_script(
        sys.executable, "launch/train_tokenizer.py", "--input", prepared.text, "--preview", "2",
        "--output_dir", tmp_path / "out",
    )  # fmt: skip
    assert same.returncode == 0 and same.stdout == shown.stdout


def test_plain_webdataset_reads_the_same_samples(prepared: Prepared) -> None:
    urls = sorted(map(str, prepared.shards.glob("train-*.tar")))
    fields = [f"{field}.npy" for field in FIELD_SHAPES]
    read = webdataset.WebDataset(urls, shardshuffle=False).decode().to_tuple(*fields).unbatched()
    ours = prepared.blocks("train")
    rows = ((block, row) for block in ours for row in range(len(block["num_tokens"])))
    num_samples = 0
    for sample, (block, row) in zip(read, rows, strict=True):
        for field, values in zip(FIELD_SHAPES, sample, strict=True):
            np.testing.assert_array_equal(values, block[field][row])
        num_samples += 1
    assert num_samples == prepared.manifest.statistics["train"]["num_samples"] > 2_000


def test_masks_and_pairs_have_the_shares_of_the_recipe(prepared: Prepared) -> None:
    blocks = prepared.blocks("train")
    num_maskable = num_masked = num_to_mask = num_kept = 0
    for block in blocks:
        original = restored(block)
        num_maskable += int(np.count_nonzero(original >= 5))
        rows, columns = np.nonzero(
            np.arange(block["masked_lm_positions"].shape[1]) < block["num_masked"][:, None]
        )
        labels = block["masked_lm_labels"][rows, columns]
        inputs = block["input_ids"][rows, block["masked_lm_positions"][rows, columns]]
        assert labels.min() >= 5 and np.all((inputs >= 5) | (inputs == MASK_ID))
        num_masked += labels.size
        num_to_mask += int(np.count_nonzero(inputs == MASK_ID))
        num_kept += int(np.count_nonzero(inputs == labels))
    assert num_maskable > 100_000
    assert abs(num_masked / num_maskable - 0.15) < 0.002
    assert abs(num_to_mask / num_masked - 0.8) < 0.01
    assert abs(num_kept / num_masked - 0.1) < 0.01
    shares = prepared.manifest.statistics["train"]["shares"]
    assert shares["masked"] == round(num_masked / num_maskable, 6)
    is_random = np.concatenate([block["next_sentence_label"] for block in blocks]) == 1
    assert shares["random_next"] == round(float(is_random.mean()), 6)
    assert f"{shares['random_next']:.2%}" in prepared.output


def test_pairs_and_split_keep_documents_apart(prepared: Prepared) -> None:
    documents: dict[str, set[int]] = {}
    for split in SPLITS:
        blocks = prepared.blocks(split)
        ids = np.concatenate([block["document_ids"] for block in blocks])
        is_random = np.concatenate([block["next_sentence_label"] for block in blocks]) == 1
        np.testing.assert_array_equal(ids[:, 0] != ids[:, 1], is_random)
        documents[split] = set(ids.ravel().tolist())
    assert len(documents["train"]) > 1_000 and len(documents["validation"]) > 20
    totals = prepared.manifest.totals
    assert totals["documents"] == totals["train_documents"] + totals["validation_documents"]
    hashes = np.concatenate([unit.document_hashes for unit in store_of(prepared).units])
    assert np.unique(hashes).size < hashes.size, "there are duplicates"
    held_out = {int(hashes[d]) for d in documents["validation"]}
    assert not held_out & {int(hashes[d]) for d in documents["train"]}


def test_originals_are_the_text_of_their_documents(prepared: Prepared) -> None:
    store = store_of(prepared)
    tokenizer = Tokenizer(prepared.shards / "tokenizer.model")
    for block in (*prepared.blocks("train")[:3], *prepared.blocks("validation")):
        original = restored(block)
        for i in range(0, len(original), 5):
            length, b_start = int(block["num_tokens"][i]), int(block["segment_b_start"][i])
            sample = original[i]
            assert sample[0] == CLS_ID and sample[b_start - 1] == sample[length - 1] == SEP_ID
            assert not sample[length:].any()
            segments = (sample[1 : b_start - 1], sample[b_start : length - 1])
            for segment, document in zip(segments, block["document_ids"][i], strict=True):
                tokens = store.gather(np.array([document])).tokens
                places = np.flatnonzero(tokens == segment[0])
                found = [tokens[p : p + segment.size].tolist() for p in places]
                assert segment.tolist() in found
    path, first = prepared.manifest.inputs[0]["path"], store.gather(np.array([0]))
    text = Path(path).read_text(encoding="utf-8")
    assert store.units[0].document_hashes[0] == content_hash(text.encode())
    assert tokenizer.decode(first.tokens).split()[:3] == text.split()[:3]


def test_the_manifest_says_what_was_read(prepared: Prepared) -> None:
    manifest = prepared.manifest
    assert [i["path"] for i in manifest.inputs] == sorted(i["path"] for i in manifest.inputs)
    assert len(manifest.inputs) == NUM_FILES + 100
    name = Path(manifest.inputs[50]["path"])
    assert manifest.inputs[50]["sha256"] == hashlib.sha256(name.read_bytes()).hexdigest()
    assert manifest.tokenizer["fingerprint"] == Tokenizer(prepared.tokenizer).fingerprint
    every = np.concatenate([unit.document_hashes for unit in store_of(prepared).units])
    np.testing.assert_array_equal(
        document_sketch.decoded(manifest.totals["document_sketch"]),
        np.unique(every)[: document_sketch.SKETCH_SIZE],
    )
    assert manifest.totals["samples"] == sum(
        record.num_samples for records in manifest.splits.values() for record in records
    )
    for records in manifest.splits.values():
        for record in records:
            data = (prepared.shards / record.file).read_bytes()
            assert record.sha256 == hashlib.sha256(data).hexdigest()


def test_a_finished_data_set_is_left_alone(prepared: Prepared) -> None:
    before = files_of(prepared.shards)
    common: list[str | Path] = ["--input", prepared.text, "--tokenizer", prepared.tokenizer]
    common += ["--output_dir", prepared.shards, *SETTINGS]
    again = prepare_shards(2, *common)
    assert again.returncode == 0 and "finished already" in again.stdout
    other = prepare_shards(2, *common, "--seed", "43")
    assert_one_line_error(other, "holds another data set (seed = 42 there, 43 asked for)")
    assert files_of(prepared.shards) == before


@pytest.mark.parametrize(
    ("files", "arguments", "problem"),
    [
        ({"a.txt": b"Text."}, ["--input", "*.md", "a.txt"], "--input *.md: no file matches"),
        ({"a.txt": b"", "b.txt": b" \n"}, ["--input", "*.txt"], "the corpus is empty"),
        ({"a.txt": b"One. Two."}, ["--input", "*.txt"], "the corpus is a single document"),
        ({"a.txt": b"One.\n\nTwo.\n\nThree."}, ["--input", "*.txt", "--format", "lines"],
         "every document is a single sentence"),
        ({"a.txt": b"One is here\nTwo is there\n" * 9}, ["--input", "*.txt"],
         "--format sentences if it has one sentence per line"),
        ({"a.txt": b"One. Two.", "b.txt": b"One. \xff", "c.txt": b"x. \xff"}, ["--input", "*.txt"],
         ".txt: byte "),
        ({"a.txt": b"One."}, ["--input", "*.txt", "--tokenizer", "none"], "none: cannot be read"),
        ({"a.txt": b"One."}, ["--input", "https://example.org/a.txt"], "(a URL: fetch the files"),
        ({"a.txt": b"One."}, ["--input", "*.txt", "--output_dir", "s3://bucket/out"],
         "--output_dir: s3://bucket/out: is a URL; give a local path"),
        ({"a.txt": b"One."}, ["--input", "*.txt", "--token_store", "gs://x"], "gs://x: is a URL"),
        ({"a.txt": b"One."}, ["--input", "*.txt", "--sequence_length", "4"], "sequence_length = 4"),
        ({"a.txt": b"One."}, ["--input", "*.txt", "--sequence_lenth", "4"], "unknown argument"),
        ({"c.json": b'{"sede": 1}'}, ["--config", "c.json"], "unknown key sede; known: format"),
        ({"a.txt": b"x", "logs": b""}, ["--input", "a.txt", "--log_dir", "logs"],
         "logs: File exists"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_exit_code_2(
    prepared: Prepared,
    tmp_path: Path,
    files: dict[str, bytes],
    arguments: list[str],
    problem: str,
) -> None:
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    made = prepare_shards(
        3, "--tokenizer", prepared.tokenizer, "--output_dir", "out", *arguments, cwd=tmp_path
    )  # fmt: skip
    assert_one_line_error(made, problem)
    assert not (tmp_path / "out" / MANIFEST_NAME).exists()
    assert not (tmp_path / "out" / CLAIM_NAME).exists(), "the folder is free for another try"


def test_a_preparation_leaves_its_own_files_out(prepared: Prepared, tmp_path: Path) -> None:
    """Patterns that cover the output find more at the second start, killed or finished."""
    shutil.copytree(prepared.folder / "text", tmp_path / "data" / "text")
    shutil.copytree(prepared.tokenizer.parent, tmp_path / "data" / "tokenizer")
    arguments = [
        "--input", "data/**", "--tokenizer", "data/tokenizer/tokenizer.model",
        "--output_dir", "data/shards", "--log_dir", "data/logs", *SETTINGS,
    ]  # fmt: skip
    made = prepare_shards(2, *arguments, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    manifest = Manifest.load(tmp_path / "data" / "shards")
    assert {Path(i["path"]).parent.name for i in manifest.inputs} == {"text"}
    before = files_of(tmp_path / "data" / "shards")
    again = prepare_shards(1, *arguments, cwd=tmp_path)
    assert again.returncode == 0 and "finished already" in again.stdout, again.stderr
    (tmp_path / "data" / "shards" / MANIFEST_NAME).unlink()  # as if it had been killed
    again = prepare_shards(2, *arguments, cwd=tmp_path)
    assert again.returncode == 0 and "units done earlier" in again.stdout, again.stderr
    assert files_of(tmp_path / "data" / "shards") == before


def test_tar_files_of_the_corpus_are_not_removed(prepared: Prepared, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "train-00000.tar", "w") as tar:
        tar.add(prepared.folder / "text", "text")
    arguments = ["--input", "*.tar", "--tokenizer", str(prepared.tokenizer), "--output_dir", "."]
    for _ in range(2):
        made = prepare_shards(1, *arguments, cwd=tmp_path)
        assert_one_line_error(made, "--output_dir .: holds the input train-00000.tar")
        assert os.listdir(tmp_path) == ["train-00000.tar"]


def test_a_list_of_sentences_is_told(prepared: Prepared, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(english_sentences(2_000, 5)))
    made = prepare_shards(
        2, "--input", "a.txt", "--tokenizer", prepared.tokenizer, "--output_dir", "out",
        cwd=tmp_path,
    )  # fmt: skip
    assert "a.txt: looks like one sentence per line without documents" in made.stdout
    assert_one_line_error(made, "--format sentences")


def test_a_traceback_is_shown_on_request(tmp_path: Path) -> None:
    made = prepare_shards(1, "--tokenizer", "none", "--output_dir", tmp_path / "out", "--debug")
    assert made.returncode == 2 and "Traceback" in made.stderr and "UserError" in made.stderr


def test_a_crash_on_one_rank_ends_all(tmp_path: Path) -> None:
    (tmp_path / "crash.py").write_text(
        "from data_prep.mpi_ranks import connect\n"
        "with connect() as ranks:\n"
        "    def work(item):\n"
        "        if ranks.rank == 1:\n"
        "            raise RuntimeError('boom')\n"
        "        return item\n"
        "    ranks.run('item', [1, 1, 1], work, lambda item, result: None)\n"
    )
    for start in (["-m", "mpi4py"], []):
        made = run_script(*mpiexec(3)[:-2], *start, tmp_path / "crash.py")
        assert made.returncode not in (0, 2) and "RuntimeError: boom" in made.stderr


def test_a_killed_rank_ends_all_and_leaves_no_half_data_set(
    prepared: Prepared, tmp_path: Path
) -> None:
    (tmp_path / "killed.py").write_text(
        "import os, signal\n"
        "from data_prep.mpi_ranks import connect\n"
        "with connect() as ranks:\n"
        "    def work(item):\n"
        "        if ranks.rank == 1:\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return item\n"
        "    ranks.run('item', [1, 1, 1], work, lambda item, result: None)\n"
    )
    assert run_script(*mpiexec(2), tmp_path / "killed.py").returncode != 0


def test_results_come_in_order_and_each_item_is_done_once(tmp_path: Path) -> None:
    (tmp_path / "work.py").write_text(
        "import json, pathlib, sys\n"
        "from data_prep.mpi_ranks import connect\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "with connect() as ranks:\n"
        "    def work(item):\n"
        "        (folder / f'{item}-{ranks.rank}').touch(exist_ok=False)\n"
        "        return item * item\n"
        "    told = []\n"
        "    report = lambda item, result: told.append(item)\n"
        "    found = ranks.run('item', list(range(41)), work, report)\n"
        "    assert ranks.share(lambda: 'word') == 'word'\n"
        "    assert ranks.each(lambda: ranks.rank) == ranks.rank\n"
        "    assert ranks.run('item', [], work, print) == []\n"
        "    if ranks.is_first:\n"
        "        print(json.dumps([found, sorted(told)]))\n"
    )
    (tmp_path / "done").mkdir()
    made = run_script(*mpiexec(3), tmp_path / "work.py", tmp_path / "done")
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout) == [[i * i for i in range(41)], list(range(41))]
    done = [path.name.split("-") for path in (tmp_path / "done").iterdir()]
    assert sorted(int(item) for item, _ in done) == list(range(41))
    assert {rank for _, rank in done} == {"0", "1", "2"}


@pytest.mark.parametrize("script", ["train_tokenizer.py", "prepare_shards.py"])
def test_help_and_dry_run(script: str, tmp_path: Path) -> None:
    shown = run_script(sys.executable, f"launch/{script}", "--help")
    assert shown.returncode == 0 and "--text_field" in shown.stdout
    dry = run_script(
        sys.executable, f"launch/{script}", "--dry_run", "--output_dir", tmp_path / "out",
        "--format", "lines", *(["--tokenizer", "t"] if script.startswith("prepare") else []),
    )  # fmt: skip
    assert dry.returncode == 0 and json.loads(dry.stdout)["format"] == "lines"
    assert not (tmp_path / "out").exists()


def test_the_default_corpus_is_the_installed_documentation(
    prepared: Prepared, tmp_path: Path
) -> None:
    """Here a copy of a few modules stands for all packages of this machine."""
    site = tmp_path / "site"
    site.mkdir()
    for name in ("argparse.py", "ast.py", "calendar.py", "gzip.py", "inspect.py", "os.py"):
        shutil.copy(Path(os.__file__).with_name(name), site)
    (tmp_path / "run.py").write_text(
        "import sys, sysconfig, runpy\n"
        "folders = ('stdlib', 'purelib', 'platlib')\n"
        f"sysconfig.get_paths = lambda: dict.fromkeys(folders, {str(site)!r})\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    made = run_script(
        sys.executable, tmp_path / "run.py", ROOT / "launch/prepare_shards.py", "--tokenizer",
        prepared.tokenizer, "--output_dir", tmp_path / "out",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert (
        "no --input given: reading the documentation of the installed Python packages"
        in made.stdout
    )
    manifest = Manifest.load(tmp_path / "out")
    assert [Path(i["path"]).name for i in manifest.inputs if i["documents"]] == [
        "argparse.py", "ast.py", "calendar.py", "gzip.py", "inspect.py", "os.py",
    ]  # fmt: skip


def restored(block: dict[str, NDArray[Any]]) -> NDArray[Any]:
    """Original ids of a block."""
    return restore(
        block["input_ids"],
        block["masked_lm_positions"],
        block["masked_lm_labels"],
        block["num_masked"],
    )


def store_of(prepared: Prepared) -> TokenStore:
    folder = prepared.shards / "token_store"
    records = [json.loads(p.read_text()) for p in sorted(folder.glob("unit-*/unit.json"))]
    return TokenStore(folder, [record["num_documents"] for record in records])

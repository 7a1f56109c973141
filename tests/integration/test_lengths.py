"""Data sets of several lengths from one pass over the text, with real MPI ranks."""

import json
import re
import signal
import sys
from pathlib import Path

import pytest

from data_prep.data_set import CLAIM_NAME
from dist_bert.data.shard_format import MANIFEST_NAME
from tests.integration.conftest import (
    ROOT,
    assert_one_line_error,
    files_of,
    prepare_shards,
    run_script,
)


def flags(data_set: Path, output_dir: Path, lengths: str) -> list[str | Path]:
    """Those that made `data_set`, whose samples have up to 53 tokens, but for the lengths."""
    return [
        "--input", data_set.parent / "text" / "*.txt",
        "--tokenizer", data_set.parent / "tokenizer/tokenizer.model", "--output_dir", output_dir,
        "--samples_per_shard", "307", "--validation_share", "0.1", "--sequence_length", lengths,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def alone(data_set: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """The files of data sets that were made alone, and of their token store."""
    short = tmp_path_factory.mktemp("alone") / "short"
    made = prepare_shards(1, *flags(data_set, short, "29"), "--token_store", short / "token_store")
    assert made.returncode == 0, made.stderr
    found = {"29": files_of(short), "53": files_of(data_set)}
    stores = [
        {name: found[length].pop(name) for name in list(found[length]) if name[:6] == "token_"}
        for length in found
    ]
    assert stores[0] == stores[1]
    return {**found, "store": stores[0]}


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_each_length_has_the_bytes_of_a_run_of_its_own(
    data_set: Path, alone: dict[str, dict[str, str]], tmp_path: Path, num_ranks: int
) -> None:
    made = prepare_shards(num_ranks, *flags(data_set, tmp_path / "out", "29,53"))
    assert made.returncode == 0, made.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"out", "out_29", "out_53"}
    assert files_of(tmp_path / "out_29") == alone["29"]
    assert files_of(tmp_path / "out_53") == alone["53"]
    assert files_of(tmp_path / "out") == alone["store"]
    assert made.stdout.count("plan  ") == 1 and "units done earlier" not in made.stdout
    first, second = (f"{tmp_path}/out_{n}: samples of up to {n} tokens\n" for n in (29, 53))
    before, _, told = made.stdout.partition(first)
    of_first, _, of_second = told.partition(second)
    assert "tokenise" in before and "samples  " not in before
    for text, length in ((of_first, 29), (of_second, 53)):
        counts = json.loads((tmp_path / f"out_{length}" / MANIFEST_NAME).read_text())["statistics"]
        assert f"samples         {counts['train']['num_samples']:,} train + " in text


def test_a_killed_preparation_keeps_the_finished_lengths(
    data_set: Path, alone: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    command = flags(data_set, tmp_path / "out", "29,53")
    (tmp_path / "killed.py").write_text(
        "import os, runpy, signal, sys\n"
        "from data_prep import data_set\n"
        "seal = data_set.seal\n"
        "def seal_one(paths, *rest):\n"
        "    if paths.output_dir.name == 'out_53':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return seal(paths, *rest)\n"
        "data_set.seal = seal_one\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    script = ROOT / "launch/prepare_shards.py"
    killed = run_script(sys.executable, tmp_path / "killed.py", script, *command)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (tmp_path / "out_29" / MANIFEST_NAME).exists()
    assert (tmp_path / "out_53" / CLAIM_NAME).exists()
    assert not (tmp_path / "out_53" / MANIFEST_NAME).exists()
    written = {p: p.stat().st_mtime_ns for p in (tmp_path / "out_29").rglob("*")}
    made = prepare_shards(1, *command)
    assert made.returncode == 0, made.stderr
    assert f"{tmp_path}/out_29: is finished already, from this text" in made.stdout
    for stage in ("units", "shards"):
        assert re.search(rf"\d {stage} done earlier, 0 to do", made.stdout)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out_29").rglob("*")} == written
    assert files_of(tmp_path / "out_53") == alone["53"]
    made = prepare_shards(2, *command)
    assert made.returncode == 0 and made.stdout.count("is finished already") == 2
    made = prepare_shards(1, *command, "--seed", "7")
    assert_one_line_error(made, "out_29: holds another data set (seed = 42 there, 7 asked for)")


def test_a_limit_frees_the_folders_of_lengths_that_have_no_shards(
    data_set: Path, tmp_path: Path
) -> None:
    command = flags(data_set, tmp_path / "out", "29,53")
    made = prepare_shards(2, *command, "--allow_random_next", "0.1")
    assert_one_line_error(made, f"{tmp_path}/out_29: 50.0% of the pairs have a random second")
    assert (tmp_path / "out_29" / CLAIM_NAME).exists() and not list(tmp_path.glob("out_53/*"))


def test_a_dry_run_shows_each_length_and_makes_nothing(data_set: Path, tmp_path: Path) -> None:
    shown = prepare_shards(2, *flags(data_set, tmp_path / "out", "29,53"), "--dry_run")
    assert shown.returncode == 0, shown.stderr
    first, second = json.loads(shown.stdout)
    assert (first["output_dir"], first["sequence_length"]) == (str(tmp_path / "out_29"), 29)
    assert (second["output_dir"], second["sequence_length"]) == (str(tmp_path / "out_53"), 53)
    store = str(tmp_path / "out/token_store")
    assert first["token_store"] == second["token_store"] == store
    assert not list(tmp_path.iterdir())

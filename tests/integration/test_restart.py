"""A preparation that is killed, fails or is started twice: nothing is lost, nothing is half."""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dist_bert.data.shard_format import MANIFEST_NAME
from tests.integration.conftest import (
    ROOT,
    assert_one_line_error,
    files_of,
    mpiexec,
    prepare_shards,
    run_script,
    small_disk,
)
from tests.support.corpus import write_text_files
from tests.support.processes import started, wait_until

SETTINGS = ["--samples_per_shard", "101", "--sequence_length", "61", "--deduplicate", "true"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with text of 4 MB in a dozen units, and a tokenizer."""
    folder = tmp_path_factory.mktemp("restart")
    texts = write_text_files(folder / "files", 2_203)
    with open(folder / "text.jsonl", "w", encoding="utf-8") as file:
        for text in (*texts, *texts[:99], *texts):
            file.write(json.dumps({"text": text}) + "\n")
    trained = run_script(
        sys.executable, "launch/train_tokenizer.py", "--input", folder / "text.jsonl",
        "--output_dir", folder / "tokenizer", "--vocab_size", "901",
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    return folder


def arguments(corpus: Path, output: Path) -> list[str | Path]:
    tokenizer = corpus / "tokenizer" / "tokenizer.model"
    paths: list[str | Path] = ["--input", corpus / "text.jsonl", "--tokenizer", tokenizer]
    return [*paths, "--output_dir", output, *SETTINGS]


@pytest.fixture(scope="module")
def seconds(corpus: Path) -> float:
    """What the whole preparation takes on one rank, here and now."""
    begin = time.monotonic()
    made = prepare_shards(1, *arguments(corpus, corpus / "undisturbed"))
    assert made.returncode == 0, made.stderr
    return time.monotonic() - begin


@pytest.fixture(scope="module")
def undisturbed(corpus: Path, seconds: float) -> dict[str, str]:
    found = files_of(corpus / "undisturbed")
    assert sum(name.endswith(".tar") for name in found) > 30
    assert sum(name.endswith("unit.json") for name in found) > 8
    return found


def preparing(
    num_ranks: int, *arguments: str | Path
) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    command = [*mpiexec(num_ranks), ROOT / "launch/prepare_shards.py", *arguments]
    return started(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def ranks_of(output: Path) -> list[int]:
    """Process ids of the ranks that write to a folder."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (folder / "cmdline").read_bytes().split(b"\0")
            if str(output).encode() in command and b"mpi4py" in command and b"-n" not in command:
                found.append(int(folder.name))
    return found


def kill_when(process: subprocess.Popen[str], output: Path, is_time: Callable[[], bool]) -> None:
    """Kills one rank with -9 as soon as it is time; the others must end by themselves."""
    wait_until(lambda: is_time() or process.poll() is not None, "the time to kill")
    assert process.poll() is None, "ended before it was time"
    os.kill(max(ranks_of(output)), signal.SIGKILL)
    wait_until(lambda: process.poll() is not None, "the end of all")
    assert process.returncode != 0
    wait_until(lambda: not ranks_of(output), "the end of every rank")


def test_a_killed_rank_costs_only_what_it_was_doing(
    corpus: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    units, shards = output / "token_store", output / "work"
    with preparing(2, *arguments(corpus, output)) as process:
        kill_when(process, output, lambda: len(list(units.glob("unit-*"))) >= 3)
    assert not (output / MANIFEST_NAME).exists()
    num_units = len(list(units.glob("unit-*")))
    with preparing(3, *arguments(corpus, output)) as process:
        kill_when(process, output, lambda: len(list(shards.glob("train-*.json"))) >= 5)
        assert process.stdout is not None
        told = re.search(r"tokenise (\d+) units done earlier, (\d+) to do", process.stdout.read())
        assert told and int(told[1]) == num_units and int(told[2]) > 0
    num_shards = len(list(shards.glob("*-*.json")))
    before = {path: path.stat().st_ctime_ns for path in output.glob("*.tar")}
    made = prepare_shards(1, *arguments(corpus, output))
    assert made.returncode == 0, made.stderr
    assert f"build    {num_shards} shards done earlier" in made.stdout
    kept = sum(path.stat().st_ctime_ns == ctime for path, ctime in before.items())
    assert kept == num_shards
    assert files_of(output) == undisturbed
    assert not list(output.rglob("*.tmp")) and not shards.exists()


@pytest.mark.parametrize("seed", range(2))
def test_killed_again_and_again_at_any_moment(
    corpus: Path, undisturbed: dict[str, str], seconds: float, tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    output = tmp_path / "out"
    for attempt in range(60):
        with preparing(1 + (seed + attempt) % 3, *arguments(corpus, output)) as process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                patience = seconds * rng.uniform(0.15, 0.35 + 0.04 * attempt)
                assert process.wait(timeout=patience) == 0
                break
            for pid in ranks_of(output):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            wait_until(lambda: process.poll() is not None, "the launcher's end")
    assert attempt >= 2
    assert files_of(output) == undisturbed


def test_a_restart_with_other_settings_is_refused_from_the_first_moment(
    corpus: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    with preparing(1, *arguments(corpus, output)) as process:
        kill_when(process, output, lambda: (output / "preparation.json").exists())
    refused = prepare_shards(2, *arguments(corpus, output), "--seed", "43")
    assert_one_line_error(refused, "holds another data set (seed = 42 there, 43 asked for)")


def test_text_that_changes_between_two_starts_is_read_again(corpus: Path, tmp_path: Path) -> None:
    text = (corpus / "text.jsonl").read_text(encoding="utf-8")
    changing = tmp_path / "text.jsonl"
    changing.write_text(text.replace("harbour", "HARBOUR"), encoding="utf-8")
    common: list[str | Path] = ["--input", changing, "--tokenizer"]
    common += [corpus / "tokenizer" / "tokenizer.model", *SETTINGS, "--output_dir"]
    shards = tmp_path / "killed" / "work"
    with preparing(2, *common, tmp_path / "killed") as process:
        kill_when(process, tmp_path / "killed", lambda: len(list(shards.glob("train-*.json"))) >= 5)
    changing.write_text(text, encoding="utf-8")
    for output in ("killed", "fresh"):
        made = prepare_shards(2, *common, tmp_path / output)
        assert made.returncode == 0, made.stderr
        assert "shards done earlier" not in made.stdout
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "fresh")


def test_two_preparations_never_share_a_folder(corpus: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with preparing(1, *arguments(corpus, output)) as process:
        begun = output / "preparation.json"
        wait_until(lambda: begun.exists() or process.poll() is not None, str(begun))
        second = prepare_shards(1, *arguments(corpus, output))
    assert_one_line_error(second, "another preparation is writing there")


@pytest.mark.parametrize("failing_rank", [0, 1])
def test_a_mistake_ends_ranks_in_the_middle_of_long_work(tmp_path: Path, failing_rank: int) -> None:
    (tmp_path / "long.py").write_text(
        "import time\n"
        "from data_prep.mpi_ranks import connect\n"
        "from dist_bert.common.errors import UserError\n"
        "with connect() as ranks:\n"
        "    def work(item):\n"
        f"        if ranks.rank == {failing_rank}:\n"
        "            raise UserError('a mistake')\n"
        "        for i in range(10_000_000):\n"
        "            time.sleep(0.01)\n"
        "            ranks.breathe()\n"
        "    try:\n"
        "        ranks.run('item', [1, 1, 1], work, print)\n"
        "    except UserError as error:\n"
        "        print(ranks.rank, error)\n"
    )
    made = run_script(*mpiexec(3), tmp_path / "long.py")
    assert made.returncode == 0, made.stderr
    assert sorted(made.stdout.splitlines()) == [f"{rank} a mistake" for rank in range(3)]


def test_a_full_disk_is_one_line_and_harms_nothing(
    corpus: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, "1m") as resize:
        for size in ("1m", "3m"):  # full among the units, then among the shards
            resize(size)
            made = prepare_shards(2, *arguments(corpus, disk / "out"))
            assert_one_line_error(made, "No space left on device")
            assert re.search(rf"error: {disk}/out/\S+: ", made.stderr), "names the file"
            assert not (disk / "out" / MANIFEST_NAME).exists()
        resize("64m")
        made = prepare_shards(2, *arguments(corpus, disk / "out"))
        assert made.returncode == 0 and "units done earlier" in made.stdout, made.stderr
        assert files_of(disk / "out") == undisturbed


def test_memory_does_not_grow_with_the_corpus(corpus: Path, tmp_path: Path) -> None:
    peaks = []
    text = (corpus / "text.jsonl").read_bytes()
    for times in (1, 10):
        (tmp_path / f"text{times}.jsonl").write_bytes(text * times)
        logs = tmp_path / f"logs{times}"
        made = prepare_shards(
            2, "--input", tmp_path / f"text{times}.jsonl", "--tokenizer",
            corpus / "tokenizer/tokenizer.model", "--output_dir", tmp_path / f"out{times}",
            "--samples_per_shard", "1009", "--log_dir", logs,
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
        assert sorted(path.name for path in logs.iterdir()) == ["rank-00000.log", "rank-00001.log"]
        told = "".join(path.read_text() for path in logs.iterdir())
        assert len(re.findall(r"units \d+ is done", told)) >= 8
        peaks.append(max(map(int, re.findall(r"peak memory so far (\d+) MiB", told))))
    assert peaks[1] < 1.1 * peaks[0] + 20, peaks

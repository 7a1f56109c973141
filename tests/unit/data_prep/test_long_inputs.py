"""Inputs of many short documents, of one endless line, of few huge documents: linear, and bounded.

Work is counted, not timed: calls of Python functions and bytes read from files.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dist_bert.tokenizer.config import TokenizerConfig
from dist_bert.tokenizer.tokenizer import train_tokenizer
from tests.support.corpus import english_sentences
from tests.support.processes import ROOT, environment

MIB = 1 << 20
# Prepares a data set with one rank; prints how many calls that took, bytes that were read, and by
# how many bytes the memory grew, mapped files left out.
PROGRAM = """
import json, runpy, sys
from data_prep import prepare, samples, verify
from data_prep.readers import records

def memory(name):
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) << 10

def bytes_read():
    return int(open("/proc/self/io").read().split()[1])

num_calls = 0
def count(frame, event, argument):
    global num_calls
    num_calls += event in ("call", "c_call")

counts_calls, sys.argv = json.loads(sys.argv[1]), sys.argv[2:]
before = bytes_read(), memory("RssAnon")
open("/proc/self/clear_refs", "w").write("5")  # forgets the peak so far
if counts_calls:
    sys.setprofile(count)
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as ended:
    sys.setprofile(None)
    assert not ended.code, ended.code
print(json.dumps([num_calls, bytes_read() - before[0], memory("VmHWM") - before[1]]))
"""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    return train_tokenizer(english_sentences(900, seed=1), folder, TokenizerConfig(vocab_size=301))


def prepared(
    tokenizer: Path, folder: Path, layout: str, counts_calls: bool = True
) -> tuple[int, int, int]:
    """What `PROGRAM` tells of the preparation of a folder's files."""
    ended = subprocess.run(
        [
            sys.executable, "-c", PROGRAM, json.dumps(counts_calls),
            ROOT / "launch/prepare_shards.py", "--input", folder / "*.txt",
            "--format", layout, "--tokenizer", tokenizer,
            "--output_dir", folder / "out", "--sequence_length", "64",
        ],
        capture_output=True, text=True, env=environment(),
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    num_calls, num_read, peak_bytes = json.loads(ended.stdout.splitlines()[-1])
    return num_calls, num_read, peak_bytes


def write_documents(folder: Path, layout: str, number: int) -> int:
    """Two files of documents of one line and three sentences; returns their size in bytes."""
    folder.mkdir()
    sentences = english_sentences(3 * number, seed=7)
    texts = [" ".join(sentences[i : i + 3]) for i in range(0, 3 * number, 3)]
    if layout == "jsonl":
        lines = [json.dumps({"text": text}) + "\n" for text in texts]
    else:
        lines = [text + ("\n\n" if layout == "blank_line" else " ") for text in texts]
    for part in range(2):
        (folder / f"{part}.txt").write_text("".join(lines[part::2]))
    return sum(map(len, lines))


@pytest.mark.parametrize("layout", ["jsonl", "blank_line", "text"])
def test_work_is_linear_in_the_text(tmp_path: Path, tokenizer: Path, layout: str) -> None:
    """Four times the text takes four times the calls, and four times the reading."""
    counts = []
    for number in (1_500, 6_000):
        num_bytes = write_documents(tmp_path / str(number), layout, number)
        counts.append((num_bytes, *prepared(tokenizer, tmp_path / str(number), layout)[:2]))
    (few_bytes, few_calls, few_read), (many_bytes, many_calls, many_read) = counts
    growth = many_bytes / few_bytes
    assert few_calls > 1_000 and few_read > 2 * few_bytes
    assert many_calls < 1.05 * growth * few_calls, counts
    assert many_read < 1.05 * growth * few_read, counts


@pytest.mark.slow
def test_a_line_of_many_megabytes_takes_little_memory(tmp_path: Path, tokenizer: Path) -> None:
    """Two lines of 26 MB: documents of at most 16 MiB, of which one is in memory at a time."""
    assert write_documents(tmp_path / "text", "text", 270_000) > 49 * MIB
    *_, peak_bytes = prepared(tokenizer, tmp_path / "text", "text", counts_calls=False)
    assert peak_bytes < 400 * MIB, peak_bytes  # 249 MiB; 600 for six times as much text

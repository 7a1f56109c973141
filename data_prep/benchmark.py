"""Measures preparation: text to shards on 1 and 2 ranks, by stage, compared with SentencePiece.

The measurements alternate round by round, because a machine's speed changes by the minute; the best
round of each counts. Seconds are CPU seconds, summed over all processes of a launch, including the
start of the interpreter. Not for: printing
(`dist_bert.common.text_tables`), or reading the shards (`dist_bert.tools.benchmark.loader`).
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import io
import multiprocessing
import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import sentencepiece

from data_prep.corpus import read_sentences
from data_prep.inputs import resolve_inputs
from data_prep.prepare_config import TextConfig
from data_prep.readers.source import RecordTally
from data_prep.stage_profile import measured_stages
from dist_bert.common.errors import UserError
from dist_bert.data.shard_format import Manifest

T = TypeVar("T")
Figures = dict[str, dict[str, dict[str, float]]]  # table -> row -> column -> figure

SAMPLE_LENGTHS = (128, 512)  # tokens: BERT's first and last training phase
TOKENIZER_PIECES = 8_192  # if no tokenizer is given

_LAUNCH = Path(__file__).parents[1] / "launch"
_RANKS = (1, 2)
_SAMPLE_STAGES = ("pairs", "order_and_assemble", "masks", "statistics")  # of `build_blocks`
_ENCODE_TEXTS = (
    16_384  # as in dist_bert.tokenizer.tokenizer: lists of all texts would not fit the caches
)
_MAX_BAD_SHARE = 0.001  # of a file's records, the default of the scripts
_MB = 1e6


@dataclasses.dataclass(frozen=True)
class _Cost:
    """Resources used by a launch of processes."""

    cpu_seconds: float  # of all of them
    wall_seconds: float
    peak_bytes: int  # resident memory of the largest of them


def train_tokenizer(patterns: Sequence[str], output_dir: Path) -> Path:
    """Trains a tokenizer of `TOKENIZER_PIECES`, or as many as the text yields; returns its file.

    Raises:
        UserError: the text is unusable.
    """
    command = [sys.executable, str(_LAUNCH / "train_tokenizer.py"), *_input_flags(patterns)]
    command += ["--output_dir", str(output_dir), "--vocab_size"]
    try:
        _launch([*command, str(TOKENIZER_PIECES)])
    except UserError as error:
        most = re.search(r"at most (\d+) pieces", str(error))
        if most is None:
            raise
        _launch([*command, most[1]])
    return output_dir / "tokenizer.model"


def measure_all(
    patterns: Sequence[str],
    tokenizer: str | None,
    *,
    sequence_length: int,
    rounds: int,
    compare_loaders: Callable[..., dict[str, dict[str, float]]],
) -> Figures:
    """Measures the preparation, then readers on its shards, in a temporary folder.

    Args:
        patterns: of the input files; none = the documentation of the installed packages.
        tokenizer: model file; None = one is trained on the text.
        sequence_length: most tokens of a sample, for everything but the making of samples.
        rounds: of which the best counts.
        compare_loaders: given a data set, a folder to work in and `report`, returns figures.

    Raises:
        UserError: the text or the tokenizer does not do.
    """
    start = time.monotonic()

    def report(*texts: str) -> None:
        print(f"{time.monotonic() - start:6.0f} s ", *texts, flush=True)

    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder = Path(name)
        if not tokenizer:
            report("training a tokenizer")
        model = Path(tokenizer) if tokenizer else train_tokenizer(patterns, folder / "tokenizer")
        figures = measure_preparation(
            patterns, model, folder, sequence_length=sequence_length, rounds=rounds, report=report
        )
        for length in SAMPLE_LENGTHS:
            figures[f"loader_{length}"] = compare_loaders(
                shards_folder(folder, length),
                folder,
                report=functools.partial(report, f"loaders at length {length}:"),
            )
    print(
        f"\nbest of {rounds} rounds, of the stages the mean; seconds and rates are of the CPU time"
        " of all processes, unless they are of the wall; 1 MB is 1,000,000 bytes"
    )
    return figures


def measure_preparation(
    patterns: Sequence[str],
    tokenizer: Path,
    folder: Path,
    *,
    sequence_length: int,
    rounds: int,
    report: Callable[[str], None],
) -> Figures:
    """Measures text to shards, its stages, and the making of samples.

    Args:
        patterns: of the input files; empty = the documentation of the installed packages.
        tokenizer: model file.
        folder: working folder; at the end it holds a data set for each of `SAMPLE_LENGTHS`, see
            `shards_folder`.
        sequence_length: most tokens of a sample, for everything but the making of samples.
        rounds: number of rounds; the best one counts.
        report: receives progress messages.

    Raises:
        UserError: the text or the tokenizer is unusable.
    """
    _load_sentencepiece(tokenizer)  # fails now, not after minutes
    flags = [*_input_flags(patterns), "--tokenizer", str(tokenizer)]
    report("reading the text for SentencePiece alone")
    sentences = folder / "sentences.txt"
    _in_new_process(_write_sentences, tuple(patterns), sentences)
    costs: dict[int, list[_Cost]] = {num_ranks: [] for num_ranks in _RANKS}
    alone_seconds = []
    for number in range(1, rounds + 1):
        for num_ranks in _RANKS:
            report(f"round {number} of {rounds}: text to shards, ranks: {num_ranks}")
            end_to_end = ["--sequence_length", str(sequence_length)]
            costs[num_ranks].append(_prepare(num_ranks, [*flags, *end_to_end], folder / "ranks"))
        report(f"round {number} of {rounds}: SentencePiece alone")
        alone_seconds.append(_in_new_process(_encode_alone, tokenizer, sentences))
    sentences.unlink()
    manifest = Manifest.load(folder / "ranks")
    shutil.rmtree(folder / "ranks")

    profiles: dict[int, list[dict[str, float]]] = {}
    for number in range(1, rounds + 1):
        shutil.rmtree(folder / "token_store", ignore_errors=True)
        for length in dict.fromkeys((sequence_length, *SAMPLE_LENGTHS)):  # the first one encodes
            report(f"round {number} of {rounds}: stages at length {length}")
            output = shards_folder(folder, length)
            shutil.rmtree(output, ignore_errors=True)
            outputs = ["--output_dir", str(output), "--token_store", str(folder / "token_store")]
            own = [*flags, *outputs, "--sequence_length", str(length)]
            profiles.setdefault(length, []).append(_in_new_process(_stage_seconds, own))
    manifests = {length: Manifest.load(shards_folder(folder, length)) for length in SAMPLE_LENGTHS}
    return {
        "corpus": {"text": _corpus_figures(manifest)},
        "text_to_shards": _end_to_end_figures(
            manifest.totals["text_bytes"], costs, min(alone_seconds)
        ),
        "stages": stage_figures(profiles[sequence_length]),
        "samples": {
            f"length_{length}": sample_figures(manifests[length], profiles[length])
            for length in SAMPLE_LENGTHS
        },
        "microseconds_per_sample": microsecond_figures(manifests, profiles),
    }


def shards_folder(folder: Path, sequence_length: int) -> Path:
    """Folder of a data set that `measure_preparation` made."""
    return folder / f"shards-{sequence_length}"


def stage_figures(rounds: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Mean seconds of each stage over some rounds, and their shares, which sum to 100 %."""
    seconds = {stage: sum(r[stage] for r in rounds) / len(rounds) for stage in rounds[0]}
    total = sum(seconds.values())
    return {
        stage: {"cpu_seconds": value, "percent_of_time": 100 * value / total}
        for stage, value in seconds.items()
    }


def sample_figures(manifest: Manifest, rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Speed of making samples in the best of some rounds, and their size on disk."""
    num_samples = manifest.totals["samples"]
    seconds = sum(_best_sample_stages(rounds).values())
    num_bytes = sum(shard.bytes for shards in manifest.splits.values() for shard in shards)
    return {
        "num_samples": num_samples,
        "pairs_and_masks_cpu_seconds": seconds,
        "samples_per_cpu_second": num_samples / seconds,
        "bytes_per_sample": num_bytes / num_samples,
    }


def microsecond_figures(
    manifests: Mapping[int, Manifest], profiles: Mapping[int, Sequence[Mapping[str, float]]]
) -> dict[str, dict[str, float]]:
    """Rows for the stages of making samples, columns for the sequence lengths."""
    return {
        stage: {
            f"length_{length}": 1e6
            * _best_sample_stages(profiles[length])[stage]
            / manifest.totals["samples"]
            for length, manifest in manifests.items()
        }
        for stage in _SAMPLE_STAGES
    }


def _best_sample_stages(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Seconds of the stages of making samples, in the round where they are lowest."""
    seconds = [{stage: stages[stage] for stage in _SAMPLE_STAGES} for stages in rounds]
    return min(seconds, key=lambda stages: sum(stages.values()))


def _corpus_figures(manifest: Manifest) -> dict[str, float]:
    totals = manifest.totals
    return {
        "mb_of_text": totals["text_bytes"] / _MB,
        "documents": totals["documents"],
        "sentences": totals["sentences"],
        "tokens": totals["tokens"],
        "vocab_size": manifest.tokenizer["vocab_size"],
    }


def _end_to_end_figures(
    text_bytes: int, costs: Mapping[int, Sequence[_Cost]], alone_seconds: float
) -> dict[str, dict[str, float]]:
    """Rows for every number of ranks and for SentencePiece alone."""
    alone_rate = text_bytes / _MB / alone_seconds
    rows: dict[str, dict[str, float]] = {}
    for num_ranks, runs in costs.items():
        cpu_seconds = min(run.cpu_seconds for run in runs)
        wall_seconds = min(run.wall_seconds for run in runs)
        rate = text_bytes / _MB / cpu_seconds
        rows[f"ranks_{num_ranks}"] = {
            "cpu_seconds": cpu_seconds,
            "wall_seconds": wall_seconds,
            "mb_per_cpu_second": rate,
            "mb_per_second": text_bytes / _MB / wall_seconds,
            "times_sentencepiece": rate / alone_rate,
            "peak_mb_per_rank": max(run.peak_bytes for run in runs) / _MB,
        }
    one, two = (rows[f"ranks_{num_ranks}"] for num_ranks in _RANKS)
    two["cpu_growth_percent"] = 100 * (two["cpu_seconds"] / one["cpu_seconds"] - 1)
    rows["sentencepiece_alone"] = {"cpu_seconds": alone_seconds, "mb_per_cpu_second": alone_rate}
    return rows


def _input_flags(patterns: Sequence[str]) -> list[str]:
    return ["--input", *patterns] if patterns else []


def _prepare(num_ranks: int, flags: list[str], output_dir: Path) -> _Cost:
    """Prepares a data set from scratch, launched as a user launches it."""
    shutil.rmtree(output_dir, ignore_errors=True)
    script = [sys.executable, "-m", "mpi4py", str(_LAUNCH / "prepare_shards.py")]
    launcher = ["mpiexec", "-n", str(num_ranks)]
    return _launch([*launcher, *script, *flags, "--output_dir", str(output_dir)])


def _launch(command: list[str]) -> _Cost:
    """Runs a command to its end.

    Its peak memory is correct only if this process is smaller: a child starts as a copy of it.

    Raises:
        UserError: it failed; quotes its error line.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    start = time.perf_counter()
    try:
        process = subprocess.Popen(
            command,
            env={**os.environ, "PATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    except FileNotFoundError:
        raise UserError(
            f"{command[0]}: is not installed; install an MPI: pip install mpich"
        ) from None
    with process:
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)  # of it and the children it waited for
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        lines = output.strip().splitlines() or [f"exit code {process.returncode}"]
        told = [line for line in lines if line.startswith("error: ")]
        raise UserError((told or lines)[-1].removeprefix("error: "))
    return _Cost(
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        wall_seconds=time.perf_counter() - start,
        peak_bytes=usage.ru_maxrss * 1024,
    )


def _in_new_process(work: Callable[..., T], *arguments: Any) -> T:
    """Result of a function, run in a separate process so that its memory is freed."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(work, *arguments).result()


def _write_sentences(patterns: Sequence[str], path: Path) -> None:
    """Writes all sentences of the corpus, one per line: none contains a line break."""
    with contextlib.redirect_stdout(io.StringIO()):
        inputs, layout = resolve_inputs(patterns, "auto")
    config = TextConfig(format=layout)
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for part in inputs:
            for _, sentences in read_sentences(
                part, config, RecordTally(part.path, _MAX_BAD_SHARE)
            ):
                file.writelines(f"{sentence}\n" for sentence in sentences)


def _load_sentencepiece(tokenizer: Path) -> sentencepiece.SentencePieceProcessor:
    try:
        return sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
    except RuntimeError as error:
        raise UserError(
            f"--tokenizer {tokenizer}: cannot be read as a SentencePiece model, with which the"
            " preparation is compared; give one of launch/train_tokenizer.py, or none"
        ) from error


def _encode_alone(tokenizer: Path, sentences: Path) -> float:
    """CPU seconds that the bare library takes to encode all sentences, on one thread."""
    processor = _load_sentencepiece(tokenizer)
    texts = sentences.read_bytes().decode().split("\n")[:-1]
    start = time.process_time()
    for begin in range(0, len(texts), _ENCODE_TEXTS):
        processor.encode(texts[begin : begin + _ENCODE_TEXTS], num_threads=1)
    return time.process_time() - start


def _stage_seconds(flags: list[str]) -> dict[str, float]:
    """CPU seconds of each stage of a preparation in this process, which runs nothing else."""
    script = str(_LAUNCH / "prepare_shards.py")
    sys.argv = [script, *flags]
    output = io.StringIO()
    with (
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(output),
        measured_stages() as seconds,
    ):
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as exit:
            if exit.code:
                raise UserError(output.getvalue().strip().removeprefix("error: ")) from None
    return seconds

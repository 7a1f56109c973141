"""What a rank says, and where: lines, the log file, a bar on a terminal."""

import contextlib
import io
import logging
import os
import re
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dist_bert.distributed import rank_log
from dist_bert.training.console import Console


class Terminal(io.StringIO):
    """A stream that is one, and knows what its screen shows."""

    def isatty(self) -> bool:
        return True

    def screen(self) -> list[str]:
        """Lines as they stand when all is written; a return goes over what is there."""
        lines = []
        for written in self.getvalue().split("\n"):
            shown = ""
            for part in written.split("\r"):
                shown = part + shown[len(part) :]
            lines.append(shown.rstrip())
        return lines


def rank(number: int, monkeypatch: pytest.MonkeyPatch) -> Console:
    monkeypatch.setenv("RANK", str(number))
    return Console()


def logged(path: Path) -> list[str]:
    """The lines of a log file without their times, which must be there."""
    lines = path.read_text().splitlines()
    matches = [re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ (.*)", line) for line in lines]
    return [match[1] if match else f"no time: {line}" for line, match in zip(lines, matches)]  # noqa: B905


def test_rank_0_speaks_and_all_of_it_is_logged_over_restarts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "log.txt"
    for start in ("first", "second"):
        console = rank(0, monkeypatch)
        console.say(f"{start} start")
        console.open_log(path)
        console.start_bar(14, 3)
        console.advance()
        console.tell_progress("step 3/14", "loss 5.0")
        console.warn("two\n  lines")
        console.note("error: for the file alone")
        console.close()
    output = capsys.readouterr()
    lines = ["step 3/14  loss 5.0", "warning: two lines"]
    assert output.out.splitlines() == ["first start", *lines, "second start", *lines]
    assert output.err == ""
    kept = [*lines, "error: for the file alone"]
    assert logged(path) == ["first start", *kept, "second start", *kept]


def test_no_line_has_a_credential(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url, shown = "s3://me:ge/he@im@bucket/x?sig=geheim", "s3://***@bucket/x?***"
    console = rank(0, monkeypatch)
    console.open_log(tmp_path / "log.txt")
    console.say(f"reading {url}")
    console.warn(
        f"{url}: is slow {'.' * 945} {url}"
    )  # the second one would be cut inside of the password
    console.note(url)
    rank_log.keep(url)
    told = logged(tmp_path / "log.txt")
    assert told == [f"reading {shown}", f"warning: {shown}: is slow {'.' * 945} {shown}", shown]
    assert capsys.readouterr().out.splitlines() == told[:2]
    rank_log.last_words(f"error: {url}")
    assert capsys.readouterr().err == "" and b"geheim" not in b"".join(rank_log._early)
    assert [line.split(maxsplit=2)[2].decode().strip() for line in rank_log._early] == [
        *told[1:],
        f"error: {shown}",
    ]
    other = rank(1, monkeypatch)
    other.warn(url)
    assert other.take_unshared() == [f"warning: {shown}"]


@pytest.fixture(autouse=True)
def no_early_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept until a rank has its file is of this process, not of one console."""
    monkeypatch.setattr(rank_log, "_early", [])


def test_other_ranks_show_nothing_and_share_their_warnings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    console = rank(3, monkeypatch)
    console.say("a line")
    console.tell_progress("step 3/14", "loss 5.0")
    console.note("a note")
    console.warn("something is odd")
    output = capsys.readouterr()
    assert output.out == output.err == ""
    assert console.num_unshared == 1
    assert console.take_unshared() == ["warning: something is odd"]
    assert console.num_unshared == 0 and console.take_unshared() == []
    console.warn("something is odd")
    assert console.num_unshared == 0, "has been shared"


def test_a_warning_of_many_ranks_is_shown_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    console = rank(0, monkeypatch)
    console.warn("all say this")
    common, some, own = (f"warning: {text}" for text in ("all say this", "some", "own"))
    console.hear([[], [common], [common, some], [some, own], [common, some]])
    console.hear([[], [some, own], [], [], []])
    console.hear([[], *([f"warning: rank {r}'s own"] for r in range(1, 12))])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [common, f"rank 2 and 2 more: {some}", f"rank 3: {own}"]
    assert lines[3:11] == [f"rank {r}: warning: rank {r}'s own" for r in range(1, 9)]
    assert lines[11:] == ["warning: 3 more of other ranks, see their logs"]


def test_a_flood_of_warnings_is_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    console = rank(0, monkeypatch)
    for _ in range(10_001):
        console.warn("again")
    counts = ["", *(f" ({n} times)" for n in ("10", "100", "1,000", "10,000"))]
    assert capsys.readouterr().out.splitlines() == [f"warning: again{count}" for count in counts]
    for number in range(1_000):
        console.warn(f"{number} " + "x" * 5_000)
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) == 1_000 + len("warning: ") for line in lines[:199])
    flood = "warning: more than 200 different warnings; the others are counted here"
    assert lines[199:] == [flood, f"{flood} (10 times)", f"{flood} (100 times)"]
    other = rank(1, monkeypatch)
    for number in range(1_000):
        other.warn(f"number {number}")
    assert other.num_unshared == 201


def test_warnings_of_python_and_deepspeed_are_lines_and_information_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    logger = logging.getLogger("DeepSpeed")
    monkeypatch.setattr(logger, "filters", [])
    monkeypatch.setattr(logging.getLogger("dist_bert"), "filters", [])
    rank(0, monkeypatch).take_over_warnings()
    handler = logging.StreamHandler(sys.stdout)  # as DeepSpeed adds when it is imported
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr(logger, "level", logging.INFO)
    logger.info("a banner")
    logger.warning("the %s is small", "bucket")
    logger.warning("Setting accelerator to CPU. If you have GPU ...")
    logging.getLogger("dist_bert").warning("%s is damaged", "step-4")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old name", FutureWarning, stacklevel=1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["warning: the bucket is small", "warning: step-4 is damaged"]
    (line,) = lines[2:]
    assert re.fullmatch(r"warning: old name \(FutureWarning of test_console.py, line \d+\)", line)


def test_a_terminal_has_one_bar_below_all_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "100")
    console = rank(0, monkeypatch)
    console.open_log(tmp_path / "log.txt")
    console.say("resumed")
    console.start_bar(1_400, 700)
    for _ in range(3):
        console.advance()
    console.tell_progress("step 703/1,400", "loss 5.0  1:02:03 left")
    console.say("saved step 703")
    console.warn("odd")
    *lines, bar = terminal.screen()
    assert lines == ["resumed", "saved step 703", "warning: odd"]
    assert re.fullmatch(r"step 703/1,400 50%\|.{10}\| ?,? ?loss 5.0  1:02:03 left", bar), bar
    console.close()
    console.say("done")
    assert terminal.screen() == [*lines, "done", ""]
    steps = "step 703/1,400  loss 5.0  1:02:03 left"
    assert logged(tmp_path / "log.txt") == ["resumed", steps, "saved step 703", "warning: odd"]


def test_other_ranks_draw_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    console = rank(1, monkeypatch)
    console.start_bar(14, 0)
    console.advance()
    console.close()
    assert terminal.getvalue() == ""


def test_a_thread_warns_while_the_disk_takes_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that takes its time, here a pipe that nobody reads yet."""
    path, console = tmp_path / "log.txt", rank(0, monkeypatch)
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    console.open_log(path)
    texts = ["x" * 200_000, "y" * 100_000]  # a pipe takes 65,536
    read = b""
    with ThreadPoolExecutor(2) as threads:
        notes = [threads.submit(console.note, text) for text in texts]
        while not all(note.done() for note in notes):
            with contextlib.suppress(BlockingIOError):
                read += os.read(reader, 1 << 10)
    with contextlib.suppress(BlockingIOError):
        while part := os.read(reader, 1 << 16):
            read += part
    os.close(reader)
    assert [note.exception() for note in notes] == [None, None]
    assert sorted(line.split()[1] for line in read.decode().splitlines()) == texts

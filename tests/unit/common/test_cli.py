"""The scripts' manners: quick help, one line for a mistake, exit codes, only rank 0 speaks."""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from dist_bert.common.cli import (
    Parser,
    check_output_file,
    count,
    is_first_rank,
    positive,
    run,
    share,
)
from dist_bert.common.errors import UserError
from dist_bert.common.settings import add_switch
from tests.support.processes import ROOT, run_script

SCRIPTS = sorted((ROOT / "launch").glob("*.py"))
RANK_NAMES = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK")
# Of others: what `site` itself imports begins with an underscore.
INSTALLED = {name for name in packages_distributions() if not name.startswith("_")}
PACKAGES = INSTALLED - {"dist_bert", "data_prep"}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in RANK_NAMES:
        monkeypatch.delenv(name, raising=False)


def launch(script: Path, *flags: str, rank: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RANK": str(rank)}
    return run_script(sys.executable, "-X", "importtime", script, *flags, env=environment)


def split_import_times(stderr: str) -> tuple[set[str], list[str]]:
    """Names of the imported packages, and what else was said."""
    lines = stderr.splitlines()
    names = {line.split("|")[-1].strip() for line in lines if line.startswith("import time:")}
    others = [line for line in lines if not line.startswith("import time:")]
    return {name.split(".")[0] for name in names}, others


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_help_comes_at_once_and_imports_nothing_slow(script: Path) -> None:
    ended = launch(script, "--help")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("usage: ") and "--debug" in ended.stdout
    imported, others = split_import_times(ended.stderr)
    assert "argparse" in imported and others == []
    assert not imported & PACKAGES


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_refuse_unknown_flags_in_one_line(script: Path) -> None:
    needed = {
        "baselines": ("--task", "token_classification", "--train", "f"),
        "benchmark": ("sources", "--shards", "d"),
        "plan": ("--gpus", "8"),
        "prepare_shards": ("--tokenizer", "t", "--output_dir", "d"),
        "train_tokenizer": ("--output_dir", "d"),
        "verify_shards": ("d",),
        "evaluate": ("--checkpoint", "c", "--shards", "d"),
        "fill_mask": ("--checkpoint", "c", "a [MASK]"),
        "embed": ("--checkpoint", "c", "a"),
        "report": ("r",),
        "import_model": ("--input", "d", "--output_dir", "d"),
        "export_model": ("--checkpoint", "c", "--output_dir", "d"),
        "predict": ("--checkpoint", "c", "--input", "f"),
        "save_weights": ("--checkpoint", "c", "--output", "f"),
    }
    ended = launch(script, *needed.get(script.stem, ()), "--no_such_flag")
    _, others = split_import_times(ended.stderr)
    assert ended.returncode == 2 and ended.stdout == ""
    assert len(others) == 1
    assert others[0].startswith("error: ") and "--no_such_flag" in others[0]
    if script.stem in needed or script.stem == "pretrain":
        assert "unknown argument --no_such_flag; known flags: --" in others[0]


def make_parser() -> Parser:
    parser = Parser(description="Bakes bread.\n\n    bake --degrees 200")
    parser.add_argument("--degrees", type=int, default=180, help="heat")
    parser.add_argument("--required", required=True)
    return parser


def test_unknown_flags_list_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        make_parser().parse_args(["--required", "x", "--zeal", "3", "stray"])
    assert caught.value.code == 2
    assert capsys.readouterr().err == (
        "error: unknown argument --zeal 3 stray; known flags: --debug --degrees --help --required\n"
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--fan"], (True, [])),
        (["--fan", "true", "a loaf"], (True, ["a loaf"])),
        (["--fan", "false", "a loaf"], (False, ["a loaf"])),
        (["--fan", "a loaf", "true"], (True, ["a loaf", "true"])),
        (["a loaf", "--fan", "--debug"], (True, ["a loaf"])),
        (["--fan=false", "--", "--fan", "a loaf"], (False, ["--fan", "a loaf"])),
        (["--fan", "--", "a loaf"], (True, ["a loaf"])),
    ],
)
def test_a_switch_leaves_the_text_after_it_alone(
    arguments: list[str], expected: tuple[bool, list[str]]
) -> None:
    parser = Parser()
    parser.add_argument("loaf", nargs="*")
    add_switch(parser, "--fan", "whether air moves")
    parsed = parser.parse_args(arguments)
    assert (parsed.fan, parsed.loaf) == expected


@pytest.mark.parametrize(
    "arguments,message",
    [
        ([], "the following arguments are required: --required"),
        (["--required", "x", "--degrees", "hot"], "argument --degrees: invalid int value: 'hot'"),
        (["--required", "x", "--degree", "7"], "unknown argument --degree 7"),  # no abbreviations
    ],
)
def test_mistakes_on_the_command_line_are_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        make_parser().parse_args(arguments)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") and error.count("\n") == 1


def test_the_description_keeps_its_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        make_parser().parse_args(["--help"])
    assert caught.value.code == 0
    assert "Bakes bread.\n\n    bake --degrees 200\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "good", "wrong"),
    [
        (count, {"1": 1, "77": 77}, ("0", "-3", "2.5", "")),
        (positive, {"1e-3": 0.001, "40": 40.0}, ("0", "inf", "nan", "much")),
        (share, {"0": 0.0, "0.65": 0.65, "1": 1.0}, ("-0.1", "1.01", "nan", "half")),
    ],
)
def test_numbers_have_their_range(
    kind: Callable[[str], float], good: dict[str, float], wrong: tuple[str, ...]
) -> None:
    assert {text: kind(text) for text in good} == good
    for text in wrong:
        with pytest.raises(argparse.ArgumentTypeError, match=rf"^'{text}': must be a "):
            kind(text)


def test_a_file_in_no_folder_is_refused_before_the_work(tmp_path: Path) -> None:
    check_output_file(str(tmp_path / "a.json"), "--json")
    check_output_file(None, "--json")
    with pytest.raises(UserError, match=r"--json .*: its folder does not exist; make it first"):
        check_output_file(str(tmp_path / "none" / "a.json"), "--json")


def fail(arguments: argparse.Namespace) -> None:
    raise UserError("--degrees 900: the oven ends at 300")


def outcome(main: object, debug: bool = False) -> object:
    with pytest.raises(SystemExit) as caught:
        run(main, argparse.Namespace(debug=debug))  # type: ignore[arg-type]
    return caught.value.code


def test_a_users_mistake_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(fail) == 2
    captured = capsys.readouterr()
    assert captured.err == "error: --degrees 900: the oven ends at 300\n"
    assert captured.out == ""


def test_no_mistake_shows_a_credential(capsys: pytest.CaptureFixture[str]) -> None:
    url = "https://me:geheim@host/x?sig=geheim"

    def refuse(arguments: argparse.Namespace) -> None:
        raise UserError(f"--shards {url}: cannot be read")

    def miss(arguments: argparse.Namespace) -> None:
        open(url).close()

    assert outcome(refuse) == 2
    assert capsys.readouterr().err == "error: --shards https://***@host/x?***: cannot be read\n"
    assert outcome(miss) == 2
    assert capsys.readouterr().err == "error: https://***@host/x?***: No such file or directory\n"
    assert outcome(refuse, debug=True) == 2
    traceback = capsys.readouterr().err
    assert "https://***@host/x?***" in traceback and "geheim" not in traceback
    with pytest.raises(SystemExit):
        make_parser().parse_args(["--required", "x", url])
    assert "https://***@host/x?***" in capsys.readouterr().err


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(fail, debug=True) == 2
    error = capsys.readouterr().err
    assert "Traceback" in error and "in fail" in error and "the oven ends at 300" in error


def test_our_own_mistakes_keep_their_traceback() -> None:
    def main(arguments: argparse.Namespace) -> None:
        raise KeyError("ours")

    with pytest.raises(KeyError):
        run(main, argparse.Namespace(debug=False))


def test_success_is_0_and_a_script_may_choose_its_code() -> None:
    assert outcome(lambda arguments: None) == 0
    assert outcome(lambda arguments: 85) == 85


@pytest.mark.parametrize("name", RANK_NAMES)
def test_only_the_first_rank_speaks(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert is_first_rank()
    monkeypatch.setenv(name, "0")
    assert is_first_rank()
    monkeypatch.setenv(name, "1")
    assert not is_first_rank()
    assert outcome(fail) == 2
    with pytest.raises(SystemExit) as caught:
        make_parser().parse_args([])
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


def test_a_script_on_another_rank_is_silent() -> None:
    script = ROOT / "launch" / "pretrain.py"
    for flags in (("--zeal",), ("--shards", "nowhere")):
        ended = launch(script, *flags, rank=1)
        _, others = split_import_times(ended.stderr)
        assert ended.returncode == 2
        assert (ended.stdout, others) == ("", [])


def test_output_that_nobody_reads_to_its_end_is_no_error() -> None:
    program = (
        "from dist_bert.common.cli import Parser, run\n"
        "def main(arguments):\n"
        "    for number in range(100_000):\n"
        "        print(number)\n"
        "run(main, Parser().parse_args())\n"
    )
    ended = run_script(
        "bash", "-c", 'set -o pipefail; "$0" -c "$1" | head -n 1', sys.executable, program
    )
    assert (ended.stdout, ended.stderr, ended.returncode) == ("0\n", "", 141)


def test_a_file_that_the_system_refuses_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a_file").touch()

    def main(arguments: argparse.Namespace) -> None:
        (tmp_path / "a_file" / "folder").mkdir(parents=True)

    assert outcome(main) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/a_file/folder: Not a directory\n"
    with pytest.raises(NotADirectoryError):
        run(main, argparse.Namespace(debug=True))

    def fail_without_a_file(arguments: argparse.Namespace) -> None:
        raise OSError("ours")

    with pytest.raises(OSError, match="ours"):
        run(fail_without_a_file, argparse.Namespace(debug=False))

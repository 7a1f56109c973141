"""`dist-bert COMMAND ...` and `python -m dist_bert COMMAND ...`: the scripts of launch/ by name.

Under a launcher of ranks the second form is what it starts: `deepspeed --module dist_bert pretrain
...`, `torchrun -m dist_bert pretrain ...`, `mpiexec -n 8 python -m mpi4py -m dist_bert
prepare_shards ...`. The scripts themselves say what they take.
"""

import ast
import runpy
import shutil
import sys
from pathlib import Path

import dist_bert
from dist_bert.common.cli import Parser, run
from dist_bert.common.errors import UserError
from dist_bert.common.shipped import shipped

_HELP_FLAGS = ("-h", "--help")


def main() -> None:
    """Runs the script that the first argument names, in this process."""
    scripts = {path.stem: path for path in shipped("launch").glob("*.py")}
    # The deepspeed launcher puts the rank's number in front of all other arguments.
    rank = [text for text in sys.argv[1:2] if text.startswith("--local_rank")]
    command, *flags = sys.argv[1 + len(rank) :] or ["--help"]
    if command in _HELP_FLAGS:
        print(_usage(scripts))
    elif command == "--version":
        print(dist_bert.__version__)
    elif command == "copy":
        _copy(flags)
    elif command in scripts:
        sys.argv = [str(scripts[command]), *rank, *flags]
        runpy.run_path(str(scripts[command]), run_name="__main__")
    else:
        Parser().error(f"{command}: is no command; known: {', '.join(sorted([*scripts, 'copy']))}")


def _usage(scripts: dict[str, Path]) -> str:
    """What each command does, as its script says."""
    rows = {"copy": "Writes launch/ and configs/ into a folder, to change them or for sbatch."}
    for name, path in scripts.items():
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        rows[name] = text.partition("\n\n")[0].replace("\n", " ")
    lines = [f"  {name:<16}{rows[name]}" for name in sorted(rows)]
    return "\n".join(
        [
            "usage: dist-bert COMMAND [--help] ...",
            "       python -m dist_bert COMMAND ..., also behind a launcher of ranks:",
            "       deepspeed --module dist_bert pretrain ...",
            "",
            *lines,
        ]
    )


def _copy(flags: list[str]) -> None:
    """Writes scripts and configurations, so that the lines of the README work in a folder."""
    parser = Parser(prog="dist-bert copy", description=_copy.__doc__)
    parser.add_argument("folder", type=Path, help="is made; must have no launch/ and no configs/")
    arguments = parser.parse_args(flags)

    def write(_: object) -> None:
        there = [name for name in ("launch", "configs") if (arguments.folder / name).exists()]
        if there:
            raise UserError(f"{arguments.folder}: has {there[0]}/ already; give another folder")
        for name in ("launch", "configs"):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(shipped(name), arguments.folder / name, ignore=ignored)
        print(f"{arguments.folder}: has launch/ and configs/ now")

    run(write, arguments)


if __name__ == "__main__":
    main()

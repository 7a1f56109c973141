"""The batch scripts without a SLURM: syntax, rules, and when a job is queued again."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dist_bert.distributed.rendezvous import free_port, listen
from tests.support.processes import run_script

FOLDER = Path(__file__).parents[2] / "launch/slurm"
SCRIPTS = sorted([*FOLDER.glob("*.sh"), *FOLDER.glob("*.sbatch")])
SLURM = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "SETUP": "true", "CONTAINER": ""}


def section(name: str) -> str:
    """A section of the container's definition, without its indentation."""
    definition = (FOLDER / "dist_bert.def").read_text()
    found = re.search(rf"^%{name}\n(.*?)(?=^%|\Z)", definition, re.MULTILINE | re.DOTALL)
    assert found
    return re.sub("^    ", "", found[1], flags=re.MULTILINE)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_bash_reads_them(script: Path) -> None:
    assert run_script("bash", "-n", script).returncode == 0


def test_shellcheck_finds_nothing() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck")
    sections = ("post", "environment", "test", "runscript")
    made = run_script("shellcheck", "--external-sources", *SCRIPTS)
    assert not made.stdout and made.returncode == 0, made.stdout
    for name in sections:  # Apptainer runs them with sh
        made = run_script("shellcheck", "--shell", "sh", "-", stdin=section(name))
        assert made.returncode == 0, made.stdout


def test_the_container_takes_what_there_is() -> None:
    for line in section("files").splitlines():
        if line:
            source, destination = line.split()
            assert (FOLDER.parents[1] / source).exists() and destination == "/opt/dist-bert/"
    setup = (FOLDER.parents[1] / "setup.py").read_text()
    extras = re.search(r"'\.\[(.+)\]'", section("post"))
    assert extras and all(f'"{name}": ' in setup for name in extras[1].split(","))


def test_the_container_builds_the_package_from_what_it_takes(tmp_path: Path) -> None:
    for line in filter(None, section("files").splitlines()):
        source = FOLDER.parents[1] / line.split()[0]
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, tmp_path / source.name)
    build = "from setuptools import build_meta; build_meta.build_wheel('.')"
    made = run_script(sys.executable, "-c", build, cwd=tmp_path)
    assert made.returncode == 0 and list(tmp_path.glob("*.whl")), made.stderr


@pytest.mark.parametrize("script", FOLDER.glob("*.sbatch"), ids=lambda path: path.name)
def test_slurm_reads_all_options(script: Path) -> None:
    """It stops at the first command."""
    lines = script.read_text().splitlines()
    first_command = next(i for i, line in enumerate(lines) if line and line[0] != "#")
    assert not any(line.startswith("#SBATCH") for line in lines[first_command:])
    assert "#SBATCH --requeue" in lines and "#SBATCH --open-mode=append" in lines


def slice_of(folder: Path, code: int, saves: str, **variables: str) -> tuple[int, str]:
    """One slice of job 7 that saves something and ends with a code; a queue that takes it again."""
    program = (
        "scontrol() { echo requeued; }; sleep() { :; }; saved_state() { cat state; }\n"
        f". {FOLDER}/job.sh; begin_slice run; echo {saves} >state; end_slice {code}\n"
    )
    made = run_script("bash", "-c", program, cwd=folder, env={**os.environ, **SLURM, **variables})
    return made.returncode, made.stdout + made.stderr


def test_a_job_is_queued_again_while_it_gets_on(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("0")
    for number, code in enumerate((85, 1, 137, 143, 85), start=1):
        assert "requeued" in slice_of(tmp_path, code, saves=str(number))[1]
    assert "requeued" not in slice_of(tmp_path, 85, "9", SLURM_RESTART_COUNT="100")[1]
    for code in (0, 2):
        ended, output = slice_of(tmp_path, code, saves="10")
        assert ended == code and "requeued" not in output
        assert not (tmp_path / "run/slurm-slices").exists()


def test_a_job_that_stands_still_ends(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("0")
    assert "requeued" in slice_of(tmp_path, 1, saves="0")[1]
    assert "requeued" in slice_of(tmp_path, 85, saves="0")[1]
    ended, output = slice_of(tmp_path, 85, saves="0")
    assert ended == 85 and "nothing new was saved in 3 slices" in output
    # Submitted again, it has another number; and what is saved counts from there.
    assert "requeued" in slice_of(tmp_path, 1, saves="0", SLURM_JOB_ID="8")[1]
    assert "requeued" in slice_of(tmp_path, 1, saves="1", SLURM_JOB_ID="8")[1]
    assert "requeued" in slice_of(tmp_path, 1, saves="1", SLURM_JOB_ID="8")[1]


@pytest.mark.parametrize("output_dir", ["out", "out/"])
def test_shards_of_several_lengths_count_as_saved(output_dir: str, tmp_path: Path) -> None:
    """Each slice finishes a shard of one length; otherwise the job would end after three."""
    (tmp_path / "launch").mkdir()
    shutil.copytree(FOLDER, tmp_path / "launch/slurm")
    srun = "mkdir -p out_29/work; touch out_29/work/train-$SLURM_RESTART_COUNT.json; exit 1"
    for name, body in {"python": "", "srun": srun, "scontrol": "", "sleep": ""}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    command = ["bash", "launch/slurm/prepare_shards.sbatch", "--output_dir", output_dir]
    for number in range(5):
        job = {**SLURM, "SLURM_RESTART_COUNT": str(number), "PATH": f"{tmp_path}:/usr/bin:/bin"}
        made = run_script(*command, "--sequence_length", "29,53", cwd=tmp_path, env=job)
        assert "queueing the job again" in made.stdout, made.stderr


def pipeline(folder: Path, **variables: str) -> tuple[int, str, list[str]]:
    """Runs the pipeline with an sbatch that only counts, and refuses a job with --wrong.

    It answers as in a federation of clusters.
    """
    queue = folder / "sbatch"
    refuse = 'case "$*" in *--wrong*) exit 3 ;; esac'
    queue.write_text(
        f'#!/bin/sh\n{refuse}\necho "$@" >>submitted\necho "$(wc -l <submitted);cluster"\n'
    )
    queue.chmod(0o755)
    for name in ("launch", "configs"):
        (folder / name).symlink_to(FOLDER.parents[1] / name)
    given = {"INPUT": "text/*.txt", "PATH": f"{folder}:{os.environ['PATH']}", **variables}
    made = run_script("bash", "launch/slurm/pipeline.sh", cwd=folder, env={**os.environ, **given})
    submitted = folder / "submitted"
    lines = submitted.read_text().splitlines() if submitted.exists() else []
    return made.returncode, made.stderr, lines


def test_the_pipeline_is_a_row_of_jobs(tmp_path: Path) -> None:
    code, told, jobs = pipeline(tmp_path, TASK="classification", TRAIN="a.tsv", PREPARE_FLAGS="--x")
    assert code == 0, told
    names = re.findall(r"^(\w+) +job (\d) +(?:after (.+))?$", told, re.MULTILINE)
    assert names == [
        ("tokenizer", "1", ""), ("shards", "2", "1"), ("pretrain", "3", "2"),
        ("scores", "4", "3"), ("finetune", "5", "3"),
    ]  # fmt: skip
    assert "--output_dir data/shards --sequence_length 128,512 --x" in jobs[1]
    assert "--recipe configs/recipes/bert.json --output_dir runs/pipeline/pretrain" in jobs[2]
    assert "--checkpoint runs/pipeline/pretrain --shards data/shards_512" in jobs[3]
    assert "--checkpoint runs/pipeline/pretrain --output_dir runs/pipeline/cl" in jobs[4]


def test_the_pipeline_of_one_length_reads_its_only_folder(tmp_path: Path) -> None:
    (tmp_path / "own.json").write_text('{"phases": [{"shards": "d/shards", "steps": 9}]}')
    code, told, jobs = pipeline(tmp_path, RECIPE="own.json", DATA="d", LENGTHS="61")
    assert code == 0, told
    assert "--output_dir d/shards --sequence_length 61" in jobs[1]
    assert "--shards d/shards --json" in jobs[3]


def test_the_pipeline_ends_at_a_job_that_is_refused(tmp_path: Path) -> None:
    code, _, jobs = pipeline(tmp_path, PREPARE_OPTIONS="--wrong")
    assert code == 3 and len(jobs) == 1 and "train_tokenizer" in jobs[0]


def test_a_recipe_of_other_shards_is_refused_before_any_job(tmp_path: Path) -> None:
    code, told, jobs = pipeline(tmp_path, LENGTHS="128,256")
    assert (code, jobs) == (2, [])
    assert told == (
        "error: RECIPE = configs/recipes/bert.json: no phase reads data/shards_256, which LENGTHS ="
        " 128,256 makes\n"
    )


def test_names_with_blanks_reach_the_container_whole(tmp_path: Path) -> None:
    folder = tmp_path / "a job"
    (folder / "launch").mkdir(parents=True)
    shutil.copytree(FOLDER, folder / "launch/slurm")
    (folder / "apptainer").write_text("#!/bin/sh\nprintf '%s|' \"$@\"\n")
    (folder / "apptainer").chmod(0o755)
    job = {**SLURM, "CONTAINER": "my images/bert.sif", "CONTAINER_FLAGS": "--nv --bind /scratch"}
    made = run_script(
        "bash", "launch/slurm/train_tokenizer.sbatch", "--output_dir", "a b", cwd=folder,
        env={**os.environ, **job, "PATH": f"{folder}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert made.returncode == 0 and made.stderr == ""
    assert made.stdout.rstrip("|").split("|") == [
        *("exec", "--nv", "--bind", "/scratch", "--bind", str(folder), "--pwd", str(folder)),
        *("my images/bert.sif", "python", "launch/train_tokenizer.py", "--output_dir", "a b"),
    ]


def test_slices_that_slurm_itself_ends_count_too(tmp_path: Path) -> None:
    """A node that fails ends the batch shell, which then counts nothing."""
    (tmp_path / "state").write_text("0")
    for _ in range(3):
        program = f"saved_state() {{ cat state; }}; . {FOLDER}/job.sh; begin_slice run; kill -9 $$"
        run_script("bash", "-c", program, cwd=tmp_path, env={**os.environ, **SLURM})
    ended, output = slice_of(tmp_path, 0, saves="1")
    assert ended == 1 and "nothing new was saved in 3 slices" in output
    assert "slice 0" not in output, "not even begun"


def test_ranks_get_a_port_that_is_free(tmp_path: Path) -> None:
    """The first from 20000 + job on: of two jobs with the same one, each gets another."""
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho n1\n")
    (tmp_path / "scontrol").chmod(0o755)
    program = ". launch/slurm/training.sh; echo $MASTER_ADDR $MASTER_PORT"
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    job = {**SLURM, "SLURM_NNODES": "1", "RANKS_PER_NODE": "2", "PATH": path}
    first = free_port(20_000)
    with listen(first):
        made = subprocess.run(
            ["bash", "-c", program], cwd=FOLDER.parents[1], capture_output=True, text=True,
            env={**os.environ, **job, "SLURM_JOB_ID": str(12_000 + first - 20_000)},
        )  # fmt: skip
    address, port = made.stdout.split()
    assert address == "n1" and first < int(port) < first + 1_000, made.stderr


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        ("--output_dir a/b --seed 3", "a/b"),
        ("--seed 3 --output_dir=c", "c"),
        ("--output_dir a --output_dir b", "b"),
        ("--seed 3", ""),
    ],
)
def test_the_folder_is_found_among_the_flags(arguments: str, value: str) -> None:
    program = f". {FOLDER}/job.sh; value_of --output_dir {arguments}"
    made = run_script("bash", "-c", program, env={**os.environ, **SLURM})
    assert made.stdout.strip() == value

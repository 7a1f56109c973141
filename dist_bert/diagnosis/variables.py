"""The environment variables that matter to a run: an allow list, and never a secret."""

import os

_VARIABLES = (
    "CUDA_", "DS_", "FI_", "GLOO_", "LD_", "MASTER_", "MKL_NUM_THREADS", "MPI", "NCCL_", "OMP_",
    "OMPI_", "PMI", "PYTHONPATH", "RANK", "LOCAL_RANK", "SLURM_", "TMPDIR", "TORCH_", "UCX_",
    "WORLD_SIZE",
)  # fmt: skip
_SECRETS = ("JWT", "TOKEN", "KEY", "SECRET", "PASSWORD")


def relevant_variables() -> dict[str, str]:
    """Name -> value, by name."""
    return {
        name: os.environ[name]
        for name in sorted(os.environ)
        if name.startswith(_VARIABLES) and not any(secret in name for secret in _SECRETS)
    }

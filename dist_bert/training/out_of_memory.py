"""How a run ends that needs more memory than its device has: with the settings that need less."""

import contextlib
import os
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist

from dist_bert.common.cli import USER_ERROR_EXIT_CODE
from dist_bert.data.batches import BatchShape
from dist_bert.distributed.rank_log import last_words


@contextlib.contextmanager
def told_if_out_of_memory(shape: Callable[[], BatchShape]) -> Iterator[None]:
    """Ends this process with the remedy where a block runs out of the device's memory.

    At once, because other ranks may wait for this one in a collective.

    Args:
        shape: returns the division of the global batch that was too much.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        cause = ". ".join(str(error).split(". ")[:2])  # that, and how much was asked for
        last_words(f"error: rank {dist.get_rank()}: {remedy(shape())} ({cause})")
        os._exit(USER_ERROR_EXIT_CODE)


def remedy(shape: BatchShape) -> str:
    """What to do against it, in a sentence."""
    setting, now = "train_micro_batch_size_per_gpu", shape.micro_batch_size
    if shape.micro_batch_tokens:
        setting, now = "micro_batch_tokens", shape.micro_batch_tokens
    smaller = f", try {now // 2}" if now > 1 else ""
    return (
        f"out of GPU memory: lower --{setting} (now {now}{smaller}), or set"
        " activation_checkpointing, a higher ZeRO stage or offload"
    )

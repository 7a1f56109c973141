"""Repeats learned position embeddings inside of a running engine, for samples that grow longer."""

from typing import Any

import torch
import torch.distributed as dist

from dist_bert.checkpoint.fragments import fragments, is_replicated, refresh_weights

_NAME = "encoder.position_embeddings.weight"


def repeat_positions(engine: Any, known: int, wanted: int) -> None:
    """Copies the first `known` rows to the rows up to `wanted`, again and again.

    Also what the optimizer knows of them, so that the first steps of a copy are no larger than
    those of its original. Called by all ranks together; ZeRO may have cut the rows anywhere.

    Args:
        engine: the DeepSpeed engine.
        known: rows that are trained.
        wanted: rows that will be used, at most those of the model.
    """
    own = [fragment for fragment in fragments(engine) if fragment.name == _NAME]
    told: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(told, [name for fragment in own for name in fragment.tensors])
    width = engine.module.encoder.position_embeddings.embedding_dim
    for what in sorted({name for names in told for name in names}):
        source = torch.zeros(known * width, device=engine.device)
        for fragment in own:
            size = min(fragment.size, max(0, source.numel() - fragment.start))
            place = slice(fragment.start, fragment.start + size)
            source[place] = fragment.tensors[what][:size]
        if not is_replicated(engine):
            dist.all_reduce(source)
        for fragment in own:
            tensor = fragment.tensors[what]
            element = torch.arange(fragment.start, fragment.start + fragment.size)
            element = element.to(tensor.device)
            is_new = (element >= source.numel()) & (element < wanted * width)
            tensor[is_new] = source[element[is_new] % source.numel()].to(tensor.device)
    refresh_weights(engine)

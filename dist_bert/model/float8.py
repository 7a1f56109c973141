"""Matrix products of the layers in 8 bits, by torchao's linear modules in place of ours.

Before each product, forward and backward, both operands are divided by their largest value and
rounded: inputs and weights to e4m3, with 3 bits of fraction, gradients to e5m2, with 2
(Micikevicius et al. 2022, "FP8 Formats for Deep Learning", https://arxiv.org/abs/2209.05433). Sums
and results keep their types, and so do the weights: optimizer, checkpoints and export see no
difference. Not for: embeddings, heads and attention, which stay as they are.
"""

import torch
from torch import nn

from dist_bert.common.errors import UserError

_LEAST_CAPABILITY = (8, 9)  # Ada, Hopper and later


def use_float8(layers: nn.ModuleList, *, emulate: bool = False) -> None:
    """Exchanges all linear modules of the layers, in place; the parameters stay the same objects.

    Args:
        layers: of the encoder.
        emulate: round in the same way, but multiply in the type of the inputs: for devices without
            such products, slowly.

    Raises:
        UserError: torchao is not installed, or this GPU has no products in 8 bits.
    """
    if not emulate and torch.cuda.get_device_capability() < _LEAST_CAPABILITY:
        found = ".".join(map(str, torch.cuda.get_device_capability()))
        raise UserError(
            f"float8 = True: needs a GPU of compute capability 8.9 or later; this one has {found}:"
            " leave it out"
        )
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ImportError as error:
        raise UserError(
            f"float8 = True: {error.name} is not installed: pip install -c constraints.txt -e"
            " '.[float8]'"
        ) from None
    convert_to_float8_training(layers, config=Float8LinearConfig(emulate=emulate))

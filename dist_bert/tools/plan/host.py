"""What the host has to start on a GPU in an optimizer step, counted: a floor of the step's time.

Operations that launch work, of layers that are not compiled, as PyTorch's dispatcher counts them:
the model's on tensors without contents (tests/unit/tools/test_host_plan.py), and what DeepSpeed's
engine dispatches beyond them, on one rank (tests/integration/test_dispatch.py). Messages, and
Python's own time in DeepSpeed's hooks, come on top.
"""

from dist_bert.model.config import ModelConfig
from dist_bert.training.zero_layout import ZeroLayout

_AROUND_LAYERS = 90  # embeddings, heads and losses, both ways; of BERT, of others a few more
_REDUCTION = {0: 1, 1: 2, 2: 2, 3: 2}  # of a parameter's gradient, by ZeRO stage
_UPDATE = {0: (0, 12), 1: (2, 92), 2: (2, 92), 3: (2, 72)}  # by AdamW: of a parameter, and once
_OTHER_UPDATE = 1_000  # by one of ours: the most that test_dispatch.py allows


def step_launches(layout: ZeroLayout) -> int:
    """Operations of an optimizer step on one rank."""
    num_steps, num_parameters = layout.accumulation_steps, len(layout.sizes)
    passes = num_steps * pass_launches(layout.model)
    additions = (num_steps - 1) * num_parameters  # to the gradients of the micro-steps before
    num_reductions = num_steps if layout.stage >= 2 else 1
    reductions = num_reductions * _REDUCTION[layout.stage] * num_parameters
    of_parameter, once = _UPDATE[layout.stage]
    update = _OTHER_UPDATE
    if layout.optimizer == "AdamW":
        update = of_parameter * num_parameters + once
    return passes + additions + reductions + update


def pass_launches(model: ModelConfig) -> int:
    """Forward and backward pass of the model over one micro-batch."""
    return _AROUND_LAYERS + model.num_hidden_layers * layer_launches(model)


def layer_launches(model: ModelConfig) -> int:
    """Forward and backward pass of a layer, whose attention is one kernel each way.

    Forward: 4 matrix products, attention, 2 norms, 2 sums, the activation. Backward: 2 products for
    each, 2 for attention's three gradients in one, and what the others have forward.
    """
    launches = 10 + 15
    launches += 4 if model.bias else 0  # sums for their gradients
    launches += 10 + 11 if model.positions == "rotary" else 0
    launches += 1 + 3 if model.feed_forward == "geglu" else 0
    launches += 2 + 2 if model.hidden_dropout_prob else 0  # a kernel each way, on a GPU
    return launches

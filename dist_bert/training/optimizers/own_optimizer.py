"""The torch optimizer around a rule of ours: it knows what lies where, and keeps the state.

A rule (`Lamb`, `StableAdamW`, `Muon`) has the settings and updates one parameter group.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from dist_bert.checkpoint.places import Place
from dist_bert.training.optimizers.matrices import WholeMatrices
from dist_bert.training.optimizers.pieces import Pieces


class Rule(Protocol):
    """How parameters are updated."""

    def state_names(self, group: dict[str, Any]) -> Sequence[str]:
        """Names of the state tensors of a group, each of an owner's shape."""

    def update(self, group: dict[str, Any], states: Sequence[dict[str, Any]], step: int) -> None:
        """Updates the `params` of a group in place.

        Args:
            group: with its `lr`, its `pieces` and, where it has `matrices`, `whole` for them.
            states: of its owners, which are updated, too.
            step: number of the update, from 1.
        """


class OwnOptimizer(torch.optim.Optimizer):
    """Takes groups with `params`, `names`, `shapes` and what their rule asks for.

    Before `bind` a step only makes the state: DeepSpeed may take one when it is built.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], lr: float, rule: Rule) -> None:
        """Begins without state; `bind` comes before the first step that counts.

        Args:
            groups: of whole parameters.
            lr: learning rate.
            rule: updates the groups.
        """
        super().__init__([dict(group) for group in groups], {"lr": lr})
        self.rule = rule
        self._is_bound = False

    def bind(self, places: Sequence[Place], is_sharded: bool) -> None:
        """Learns what lies where, after DeepSpeed has replaced the parameters.

        Called by all ranks together.
        """
        for group in self.param_groups:
            group["pieces"] = pieces = Pieces.of(group, places, is_sharded)
            if group.get("matrices"):
                device = group["params"][0].device
                group["whole"] = WholeMatrices(group["matrices"], pieces.places, device, is_sharded)
        self._is_bound = True

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of `param_groups`; before `bind`, only makes the state."""
        for group in self.param_groups:
            states = self._states(group)
            if self._is_bound:
                for state in states:
                    state["step"] += 1
                self.rule.update(group, states, states[0]["step"])

    def _states(self, group: dict[str, Any]) -> list[dict[str, Any]]:
        """The state of every owner: a count of steps, and zeros of its shape at first."""
        for owner in group["params"]:
            state = self.state[owner]
            if not state:
                state["step"] = 0  # on the host: nothing waits for the device to know it
                for name in self.rule.state_names(group):
                    state[name] = torch.zeros_like(owner, memory_format=torch.contiguous_format)
        return [self.state[owner] for owner in group["params"]]

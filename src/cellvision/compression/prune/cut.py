"""A cut: what of which tensors stays, and how it is made in nets, their averages and their optimizers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cellvision.compression.prune.masks import apply_masks
from cellvision.compression.prune.parts import Part
from cellvision.models.structure.widths import fit_attributes, get_groups, replace_tensor, set_groups


@dataclass(frozen=True, kw_only=True, eq=False)
class Cut:
    """What stays of a net, whichever copy of it: processes that prune alike can send it to each other.

    Attributes:
        kept: {tensor name: {dimension: (M,) int64 places that stay, rising}}, of parameters and buffers.
        groups: {module name: how many groups are left}.
        masks: {parameter name: bool tensor of its shape behind the cut, False where it becomes 0}.
    """

    kept: Mapping[str, Mapping[int, Tensor]] = field(default_factory=dict)
    groups: Mapping[str, int] = field(default_factory=dict)
    masks: Mapping[str, Tensor] = field(default_factory=dict)

    def take(self, name: str, tensor: Tensor) -> Tensor:
        """What stays of a tensor of the named parameter's or buffer's shape."""
        for dim, places in self.kept.get(name, {}).items():
            tensor = tensor.index_select(dim, places.to(tensor.device))
        return tensor * self.masks[name].to(tensor.device) if name in self.masks else tensor

    @torch.no_grad()
    def apply(self, net: nn.Module) -> dict[nn.Parameter, tuple[str, nn.Parameter]]:
        """Cut a net, gradients included.

        Returns:
            {parameter before: (name, parameter in its place)}; see ``carry_optimizer``.
        """
        before = dict(net.named_parameters())
        tensors = {**before, **dict(net.named_buffers())}
        for name in self.kept:
            replace_tensor(net, name, self.take(name, tensors[name]))
        modules = dict(net.named_modules())
        for name, count in self.groups.items():
            set_groups(modules[name], count)
        for owner in {name.rpartition(".")[0] for name in self.kept}:
            fit_attributes(modules[owner])
        apply_masks(net, self.masks)
        after = dict(net.named_parameters())
        for name, old in before.items():
            if old.grad is not None:
                after[name].grad = self.take(name, old.grad)
        return {old: (name, after[name]) for name, old in before.items() if name in self.kept}

    def carry_optimizer(
        self, optimizer: torch.optim.Optimizer, replaced: Mapping[nn.Parameter, tuple[str, nn.Parameter]]
    ) -> None:
        """Let an optimizer go on with the cut net: its parameters, and of their moments what stays.

        Without it, it would go on training parameters that no net holds any more, and nothing would say so. Learning
        rates and schedules are untouched.

        Args:
            optimizer: any that keeps its state per parameter in tensors of the parameter's shape, and counts.
            replaced: of ``apply``.
        """
        for group in optimizer.param_groups:
            group["params"] = [replaced[old][1] if old in replaced else old for old in group["params"]]
        for old, (name, new) in replaced.items():
            if old in optimizer.state:
                state: dict[str, Any] = optimizer.state.pop(old)
                has_shape = {
                    key: isinstance(value, Tensor) and value.shape == old.shape for key, value in state.items()
                }
                optimizer.state[new] = {
                    key: self.take(name, value) if has_shape[key] else value for key, value in state.items()
                }


def build_cut(removed: Mapping[Part, Tensor]) -> Cut:
    """The cut that takes channels from parts.

    Args:
        removed: (M,) int64 channels of each part to take out, whole units of it.
    """
    gone: dict[tuple[str, int], list[Tensor]] = defaultdict(list)
    lengths: dict[tuple[str, int], int] = {}
    groups: dict[str, int] = {}
    for part, channels in removed.items():
        for slices in part.slices:
            places = slices.places[torch.isin(slices.channels, channels)]
            if not len(places):
                continue
            for name, tensor, dim in slices.list_tensors():
                gone[name, dim].append(places)
                lengths[name, dim] = tensor.shape[dim]
            count = None if isinstance(slices.layer, nn.Parameter) else get_groups(slices.layer)
            if slices.is_out and count is not None and count > 1:
                groups[slices.name] = count - len(places) * count // len(slices.places)
    kept: dict[str, dict[int, Tensor]] = defaultdict(dict)
    for (name, dim), lists in gone.items():
        stays = torch.ones(lengths[name, dim], dtype=torch.bool)
        stays[torch.cat(lists)] = False
        kept[name][dim] = stays.nonzero().squeeze(1)
    return Cut(kept=dict(kept), groups=groups)


def count_numbers(removed: Mapping[Part, Tensor]) -> dict[str, int]:
    """{parameter name: how many numbers the cut would leave of it}, of those that lose some; cheaper than the cut."""
    gone: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    shapes: dict[str, torch.Size] = {}
    for part, channels in removed.items():
        is_gone = torch.zeros(part.width, dtype=torch.bool)
        is_gone[channels] = True
        for slices in part.slices:
            count = int(is_gone[slices.channels].sum())
            for name, tensor, dim in slices.list_tensors():
                gone[name][dim] += count
                shapes[name] = tensor.shape
    numbers = {}
    for name, dims in gone.items():
        numbers[name] = 1
        for dim, length in enumerate(shapes[name]):
            numbers[name] *= length - dims.get(dim, 0)
    return numbers

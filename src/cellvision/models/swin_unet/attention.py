"""Self-attention within windows, shifted or not, that is the same in a graph of any size as in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.models.swin_transformer import ShiftedWindowAttention

APART = -100.0
"""Added to the score of two places that only the cyclic shift brought into one window; exp(-100) is nothing."""


class WindowAttention(ShiftedWindowAttention):
    """torchvision's shifted-window attention, with the same parameters and results, but for two things.

    The shift is made always. torchvision leaves it out where the map is a single window, which a graph of any size
    cannot do, and which would let a small image be seen differently from the same pixels in a larger one. And its
    linear layers are called as modules, so that compression can follow and round them.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) of the same shape; H and W are multiples of the window's sides."""
        height, width = x.shape[1:3]
        down, right = self.shift_size
        is_shifted = down + right > 0
        windows = self._split(x.roll((-down, -right), dims=(1, 2)) if is_shifted else x)
        query, key, value = (self._split_heads(part) for part in self.qkv(windows).chunk(3, dim=-1))
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1) + self.get_relative_position_bias()
        if is_shifted:
            scores = scores + self._part_wrapped(height, width, scores)
        found = (scores.softmax(-1) @ value).transpose(2, 3).flatten(3)
        joined = self._join(self.proj(found), height, width)
        return joined.roll((down, right), dims=(1, 2)) if is_shifted else joined

    def _split(self, x: Tensor) -> Tensor:
        """(B, windows, places of a window, C) of (B, H, W, C)."""
        rows, columns = self.window_size
        return x.unflatten(2, (-1, columns)).unflatten(1, (-1, rows)).transpose(2, 3).flatten(3, 4).flatten(1, 2)

    def _join(self, windows: Tensor, height: int, width: int) -> Tensor:
        """The way back from ``_split``."""
        rows, columns = self.window_size
        grid = windows.unflatten(1, (height // rows, width // columns)).unflatten(3, (rows, columns))
        return grid.transpose(2, 3).flatten(3, 4).flatten(1, 2)

    def _split_heads(self, windows: Tensor) -> Tensor:
        """(B, windows, heads, places, C / heads) of (B, windows, places, C)."""
        return windows.unflatten(-1, (self.num_heads, -1)).transpose(2, 3)

    def _part_wrapped(self, height: int, width: int, like: Tensor) -> Tensor:
        """(windows, 1, places, places): APART between what comes from opposite edges of the map, else 0."""
        down, right = self.shift_size
        is_below = torch.arange(height, device=like.device) >= height - down
        is_right = torch.arange(width, device=like.device) >= width - right
        region = 2 * is_below.int().unsqueeze(1) + is_right.int().unsqueeze(0)
        region = self._split(region.unsqueeze(0).unsqueeze(-1)).squeeze(0).transpose(1, 2)  # (windows, 1, places)
        differs = region.unsqueeze(-1) != region.unsqueeze(-2)
        return differs.to(like.dtype) * APART

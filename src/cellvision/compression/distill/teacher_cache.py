"""What a teacher said of an image, kept for when the very same image comes again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

Look = Callable[[Tensor, tuple[tuple[int, int], ...] | None], dict[str, Tensor]]
"""From (B, C, H, W) images and their sizes to named maps, whose first dimension is B."""

_MIB = 2**20


@dataclass(kw_only=True)
class TeacherCache:
    """A bounded store of a teacher's maps by the bytes of the image, so that a hit is never another image.

    Worth something only where images come again unchanged: without random crops and other random augmentation. It takes
    no one's word for that and counts. What is in it stays, because images that come once per epoch would in turn throw
    out each other; and it lets go of everything when an epoch after the first had no hit at all.

    Attributes:
        mib: limit of what is stored, in main memory.
        hits, misses: images in the epoch so far.
        is_given_up: whether it stores no more.
    """

    mib: float
    hits: int = 0
    misses: int = 0
    is_given_up: bool = False
    _kept: dict[bytes, dict[str, Tensor]] = field(default_factory=dict, repr=False)
    _bytes: int = 0
    _epochs: int = 0

    def look(self, images: Tensor, sizes: tuple[tuple[int, int], ...] | None, ask: Look) -> dict[str, Tensor]:
        """The maps of a batch, of which the teacher is asked only about images that are not known."""
        if self.is_given_up:
            return ask(images, sizes)
        keys = [_name(image, sizes[at] if sizes else None) for at, image in enumerate(images)]
        unknown = [at for at, key in enumerate(keys) if key not in self._kept]
        self.hits, self.misses = self.hits + len(keys) - len(unknown), self.misses + len(unknown)
        if not unknown:
            return self._join([self._kept[key] for key in keys], images.device)
        fresh = ask(images[unknown], tuple(sizes[at] for at in unknown) if sizes else None)
        told = {at: {name: maps[i] for name, maps in fresh.items()} for i, at in enumerate(unknown)}
        for at in unknown:
            self._keep(keys[at], told[at])
        return self._join([told.get(at) or self._kept[key] for at, key in enumerate(keys)], images.device)

    def end_epoch(self) -> str:
        """A line on the epoch that ends, and its counts at 0 again."""
        hits, images = self.hits, self.hits + self.misses
        self._epochs += 1
        self.hits = self.misses = 0
        line = f"distill: {hits} of {images} images were in the teacher's cache ({self._bytes / _MIB:.1f} MiB)"
        if self._epochs > 1 and images and not hits and not self.is_given_up:
            self.is_given_up, self._kept, self._bytes = True, {}, 0
            line += "; none comes again, so nothing is kept any more (random crops or augmentation)"
        return line

    def _keep(self, key: bytes, maps: dict[str, Tensor]) -> None:
        size = sum(each.numel() * each.element_size() for each in maps.values())
        if self._bytes + size <= self.mib * _MIB:
            self._kept[key] = {name: each.detach().to("cpu", copy=True) for name, each in maps.items()}
            self._bytes += size

    def _join(self, each: list[dict[str, Tensor]], device: torch.device) -> dict[str, Tensor]:
        return {name: torch.stack([maps[name].to(device) for maps in each]) for name in each[0]}


def _name(image: Tensor, size: tuple[int, int] | None) -> bytes:
    """A digest of what the teacher is shown of an image."""
    digest = hashlib.blake2b(repr((tuple(image.shape), size)).encode(), digest_size=16)
    digest.update(image.detach().cpu().contiguous().numpy().tobytes())
    return digest.digest()

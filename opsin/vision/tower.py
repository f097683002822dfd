"""What a resolution has to know of the model it plans for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Tower:
    """Facts of an encoder and its connector.

    - `patch`: pixels per side of a patch
    - `temporal`: frames of a clip that make one map where the resolution is `Native` (2 for Qwen2-VL's encoder)
    - `shrink`: grid of patches (rows, columns) -> grid of tokens, as the connector makes it; raises ValueError, with
      the reason, for a grid that the connector cannot take
    - `fold`: patches per side that the connector makes into one token (sides of a grid are multiples of it)
    - `spatial`: tokens keep the order of the picture's rows and columns. A resampler's latents do not: they form
      one row, and nothing can be cut from them
    - `trims`: pixels beyond the last whole patch are not seen (SigLIP's 384 pixels hold 27 patches of 14)
    """

    patch: int
    shrink: Callable[[int, int], tuple[int, int]]
    temporal: int = 1
    fold: int = 1
    spatial: bool = True
    trims: bool = False

    def side(self, pixels: int) -> int:
        """Patches along a side of `pixels`.

        Raises:
            ValueError: it holds no whole number of patches, and the encoder does not trim it.
        """
        if pixels < self.patch or (pixels % self.patch and not self.trims):
            below = pixels // self.patch * self.patch
            near = f"{below} and {below + self.patch}" if below else f"{self.patch}, the smallest"
            raise ValueError(
                f"resolution size {pixels} is not a multiple of the encoder's patch size {self.patch}; near it: {near}"
            )
        return pixels // self.patch

"""Counter-based random numbers: a sample is determined by its seed.

Every number is a hash of (seed, stream, step, element), computed by tensor operations. There are no generator objects
and no host loop, row i depends on seeds[i] only, and the integers are equal on every device.
"""

import math

import torch
from torch import Tensor

VALIDATION_STREAM = 7  # noise of a validation loss: the same for an image at every validation
LATENT_STREAM = 8  # noise that samples a latent from a KL autoencoder's distribution, outside of training
# increment and multipliers of SplitMix64 (Steele, Lea, Flood 2014), as signed 64-bit integers
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX2 = 0x94D049BB133111EB - 2**64


def mix(x: Tensor) -> Tensor:
    """Hash int64 -> int64: a bijection whose outputs look random (SplitMix64's finaliser)."""
    x = x + _GOLDEN
    x = (x ^ _shift(x, 30)) * _MIX1
    x = (x ^ _shift(x, 27)) * _MIX2
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch's is arithmetic)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


class SeededNoise:
    """Random numbers for a batch of samples, each with its own seed.

    Args:
        seeds: (B,) int64; row i of every result depends on ``seeds[i]`` only.
        stream: separates the random numbers of different users of one seed (prior, generator, label).
    """

    def __init__(self, seeds: Tensor, stream: int = 0) -> None:
        self.seeds = seeds
        self._seed_hashes = mix(mix(seeds.long()) + stream)

    def _bits(self, step: int, count: int) -> Tensor:
        """Return (B, count) int64, uniform over all 64 bits."""
        step_hashes = mix(self._seed_hashes + 2 * step + 1)
        elements = torch.arange(count, device=self.seeds.device, dtype=torch.int64)
        return mix(step_hashes[:, None] + mix(elements)[None])

    def uniform(self, step: int, *shape: int) -> Tensor:
        """Return (B, *shape) float32, uniform in the open interval (0, 1)."""
        return self._open_unit(self._bits(step, math.prod(shape)), 40).view(-1, *shape)

    def normal(self, step: int, *shape: int) -> Tensor:
        """Return (B, *shape) float32, standard normal (Box-Muller, from both halves of the 64 bits)."""
        bits = self._bits(step, math.prod(shape))
        radius = (-2 * self._open_unit(bits, 40).log()).sqrt()
        angle = 2 * math.pi * self._open_unit(bits << 32, 40)
        return (radius * angle.cos()).view(-1, *shape)

    def gumbel(self, step: int, *shape: int) -> Tensor:
        """Return (B, *shape) float32, standard Gumbel."""
        return -(-self.uniform(step, *shape).log()).log()

    def integers(self, step: int, count: int) -> Tensor:
        """Return (B,) int64, uniform in [0, count)."""
        return (_shift(self._bits(step, 1)[:, 0], 33) * count) >> 31  # multiply-shift, because MPS has no float64

    @staticmethod
    def _open_unit(bits: Tensor, shift: int) -> Tensor:
        """Top ``64 - shift`` bits -> float32 in (0, 1). With 24 bits the tail of a normal ends at 5.9 σ."""
        return (_shift(bits, shift).float() + 0.5) * 2.0 ** (shift - 64)


def tile_rows(seeds: Tensor, tile: int) -> list[tuple[Tensor, Tensor]]:
    """Split a batch of seeds into tiles in which every seed has a fixed position.

    The last bits of a matmul depend on its number of rows. So work is done in tiles of exactly ``tile`` rows, and seed
    s is always row s mod tile of its tile: its sample is bit-equal for every batch size and number of processes.

    Returns:
        For each tile: ``rows`` (tile,) int64, the index in the batch that fills each position (positions without a
        seed in the batch repeat another index), and ``wanted`` (n,) int64, the positions whose results belong to the
        batch indices ``rows[wanted]``.
    """
    tile_numbers = torch.div(seeds, tile, rounding_mode="floor")
    positions = seeds - tile_numbers * tile
    plan: list[tuple[Tensor, Tensor]] = []
    pending = torch.arange(len(seeds), device=seeds.device)
    while len(pending):
        same_tile = pending[tile_numbers[pending] == tile_numbers[pending[0]]]
        first = _first_of_each(positions[same_tile])
        chosen = same_tile[first]
        rows = chosen[0].repeat(tile)
        rows[positions[chosen]] = chosen
        plan.append((rows, positions[chosen]))
        pending = pending[~torch.isin(pending, chosen)]
    return plan


def _first_of_each(values: Tensor) -> Tensor:
    """Return the index of the first occurrence of each value (a batch may contain a seed twice)."""
    order = torch.argsort(values, stable=True)
    ordered = values[order]
    is_first = torch.ones_like(ordered, dtype=torch.bool)
    is_first[1:] = ordered[1:] != ordered[:-1]
    return order[is_first]

"""Counter-based random numbers: a sample is named by its seed.

Every number is a hash of (seed, stream, step, element), computed by tensor operations: no generator objects and no host
loop, row i depends on seeds[i] alone, and the integers are equal on every device.
"""

import math

import torch
from torch import Tensor

VALIDATION_STREAM = 7  # noise of a validation loss: the same for every image at every validation
LATENT_STREAM = 8  # which latent of a image a KL autoencoder's distribution gives, outside of training
# multiplier and shifts of the SplitMix64 finaliser (Steele, Lea, Flood 2014), as signed 64-bit integers
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX2 = 0x94D049BB133111EB - 2**64


def mix(x: Tensor) -> Tensor:
    """Hash int64 -> int64, a bijection that passes for random (SplitMix64's finaliser)."""
    x = x + _GOLDEN
    x = (x ^ _shift(x, 30)) * _MIX1
    x = (x ^ _shift(x, 27)) * _MIX2
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch's is arithmetic)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


class SeededNoise:
    """Random numbers for a batch of named samples.

    Args:
        seeds: (B,) int64; row i of every draw depends on ``seeds[i]`` alone.
        stream: keeps apart the draws of different users of one seed (prior, generator, label).
    """

    def __init__(self, seeds: Tensor, stream: int = 0) -> None:
        self.seeds = seeds
        self._rows = mix(mix(seeds.long()) + stream)

    def _bits(self, step: int, count: int) -> Tensor:
        """Return (B, count) int64, uniform over all 64 bits."""
        rows = mix(self._rows + 2 * step + 1)
        elements = torch.arange(count, device=self.seeds.device, dtype=torch.int64)
        return mix(rows[:, None] + mix(elements)[None])

    def uniform(self, step: int, *shape: int) -> Tensor:
        """Return (B, *shape) float32, uniform in the open interval (0, 1)."""
        return self._open_unit(self._bits(step, math.prod(shape)), 40).view(-1, *shape)

    def normal(self, step: int, *shape: int) -> Tensor:
        """Return (B, *shape) float32, standard normal (Box-Muller; both halves of the 64 bits are used)."""
        bits = self._bits(step, math.prod(shape))
        radius = (-2 * self._open_unit(bits, 40).log()).sqrt()
        angle = 2 * math.pi * self._open_unit(bits << 32, 40)
        return (radius * angle.cos()).view(-1, *shape)

    def gumbel(self, step: int, *shape: int) -> Tensor:
        """Return (B, *shape) float32, standard Gumbel."""
        return -(-self.uniform(step, *shape).log()).log()

    def integers(self, step: int, count: int) -> Tensor:
        """Return (B,) int64, uniform in [0, count)."""
        return (_shift(self._bits(step, 1)[:, 0], 33) * count) >> 31  # multiply-shift: no float64, which MPS has not

    @staticmethod
    def _open_unit(bits: Tensor, shift: int) -> Tensor:
        """Top ``64 - shift`` bits -> float32 in (0, 1). With 24 bits the tail of a normal ends at 5.9 sigma."""
        return (_shift(bits, shift).float() + 0.5) * 2.0 ** (shift - 64)


def tile_rows(seeds: Tensor, tile: int) -> list[tuple[Tensor, Tensor]]:
    """Split a batch of seeds into tiles in which every seed has its fixed place.

    Floating-point results of a matmul depend on the number of rows in the last bits. So work is done in tiles
    of exactly ``tile`` rows, and seed s is always row s mod tile of its tile: its sample is bit-equal for every batch
    size and process count.

    Returns:
        For each tile: ``rows`` (tile,) int64, the batch row that fills each place (places nobody asked for repeat
        another row), and ``wanted`` (n,) int64, the places whose result belongs to batch rows ``rows[wanted]``.
    """
    numbers = torch.div(seeds, tile, rounding_mode="floor")
    places = seeds - numbers * tile
    plan: list[tuple[Tensor, Tensor]] = []
    pending = torch.arange(len(seeds), device=seeds.device)
    while len(pending):
        here = pending[numbers[pending] == numbers[pending[0]]]
        first = _first_of_each(places[here])
        chosen = here[first]
        rows = chosen[0].repeat(tile)
        rows[places[chosen]] = chosen
        plan.append((rows, places[chosen]))
        pending = pending[~torch.isin(pending, chosen)]
    return plan


def _first_of_each(values: Tensor) -> Tensor:
    """Positions of the first occurrence of each value (the same seed may be asked for twice)."""
    order = torch.argsort(values, stable=True)
    ordered = values[order]
    new = torch.ones_like(ordered, dtype=torch.bool)
    new[1:] = ordered[1:] != ordered[:-1]
    return order[new]

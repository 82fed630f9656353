"""Counter-based random numbers: a sample is determined by its seed.

Every number is a hash of (seed, stream, step, element), computed by tensor operations. There are no generator objects
and no host loop, row i depends on seeds[i] only, and the integers are equal on every device.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from rcg_lightning.core.transfers import to_device

VALIDATION_STREAM = 7  # noise of a validation loss: the same for an image at every validation
STEPS = 32  # steps that are hashed together
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
        # hashed once, as a GPU waits for the launch of every small operation
        self._step_hashes: dict[int, Tensor] = {}  # block of steps -> (STEPS, B)
        self._element_hashes: dict[int, Tensor] = {}  # n -> (n,)

    def uniform(self, step: int, *shape: int) -> Tensor:
        """Return (B, *shape) float32, uniform in the open interval (0, 1)."""
        return self._numbers("uniform", step, shape)

    def normal(self, step: int, *shape: int) -> Tensor:
        """Return (B, *shape) float32, standard normal."""
        return self._numbers("normal", step, shape)

    def gumbel(self, step: int, *shape: int) -> Tensor:
        """Return (B, *shape) float32, standard Gumbel."""
        return self._numbers("gumbel", step, shape)

    def integers(self, step: int, count: int) -> Tensor:
        """Return (B,) int64, uniform in [0, count)."""
        bits = random_bits(*self._hashes(step, 1))[:, 0]
        return (_shift(bits, 33) * count) >> 31  # multiply-shift, because MPS has no float64

    def _numbers(self, distribution: str, step: int, shape: tuple[int, ...]) -> Tensor:
        return _NUMBERS[distribution](*self._hashes(step, math.prod(shape))).view(-1, *shape)

    def _hashes(self, step: int, count: int) -> tuple[Tensor, Tensor]:
        """Return the hashes of a step for each seed, (B,), and those of ``count`` elements, (count,)."""
        block, row = divmod(step, STEPS)
        if block not in self._step_hashes:
            steps = torch.arange(block * STEPS, (block + 1) * STEPS, device=self.seeds.device)
            self._step_hashes[block] = mix(self._seed_hashes + 2 * steps[:, None] + 1)
        if count not in self._element_hashes:
            self._element_hashes[count] = mix(torch.arange(count, device=self.seeds.device))
        return self._step_hashes[block][row], self._element_hashes[count]


def random_bits(step_hashes: Tensor, element_hashes: Tensor) -> Tensor:
    """Hashes of a step (B,) and of elements (n,) -> (B, n) int64, uniform over all 64 bits."""
    return mix(step_hashes[:, None] + element_hashes[None])


def _open_unit(bits: Tensor, shift: int) -> Tensor:
    """Top ``64 - shift`` bits -> float32 in (0, 1). With 24 bits the tail of a normal ends at 5.9 σ."""
    return (_shift(bits, shift).float() + 0.5) * 2.0 ** (shift - 64)


def _uniform(step_hashes: Tensor, element_hashes: Tensor) -> Tensor:
    return _open_unit(random_bits(step_hashes, element_hashes), 40)


def _normal(step_hashes: Tensor, element_hashes: Tensor) -> Tensor:
    """Box-Muller, from both halves of the 64 bits."""
    bits = random_bits(step_hashes, element_hashes)
    radius = (-2 * _open_unit(bits, 40).log()).sqrt()
    return radius * (2 * math.pi * _open_unit(bits << 32, 40)).cos()


def _gumbel(step_hashes: Tensor, element_hashes: Tensor) -> Tensor:
    return -(-_uniform(step_hashes, element_hashes).log()).log()


Numbers = Callable[[Tensor, Tensor], Tensor]  # hashes of a step (B,) and of elements (n,) -> (B, n)
_NUMBERS: dict[str, Numbers] = {"uniform": _uniform, "normal": _normal, "gumbel": _gumbel}


@contextmanager
def noise_by(compiled: Callable[[Numbers], Numbers]) -> Iterator[None]:
    """Let every ``SeededNoise`` compute its floats by compiled functions: normal numbers take 30 kernels otherwise."""
    before = dict(_NUMBERS)
    _NUMBERS.update({name: compiled(function) for name, function in before.items()})
    try:
        yield
    finally:
        _NUMBERS.update(before)


def tile_rows(positions: Tensor, tile: int) -> list[tuple[Tensor, Tensor]]:
    """Split a batch into tiles in which every example has a fixed row.

    The last bits of a matmul depend on its number of rows. So work is done in tiles of exactly ``tile`` rows, and
    position p is always row p mod tile of its tile: a sample is bit-equal for every batch size and number of processes.

    Args:
        positions: (B,) int64, on the host: where an example lies among those of all tiles, such as its seed.
        tile: rows of a tile.

    Returns:
        For each tile: ``rows`` (tile,) int64, the index in the batch that fills each position (positions without a
        seed in the batch repeat another index), and ``wanted`` (n,) int64, the positions whose results belong to the
        batch indices ``rows[wanted]``.
    """
    numbers = tile_numbers(positions, tile)
    own_rows = positions - numbers * tile
    plan: list[tuple[Tensor, Tensor]] = []
    pending = torch.arange(len(positions))
    while len(pending):
        same_tile = pending[numbers[pending] == numbers[pending[0]]]
        first = _first_of_each(own_rows[same_tile])
        chosen = same_tile[first]
        rows = chosen[0].repeat(tile)
        rows[own_rows[chosen]] = chosen
        plan.append((rows, own_rows[chosen]))
        pending = pending[~torch.isin(pending, chosen)]
    return plan


def in_tiles(compute: Callable[[Tensor], Tensor], positions: Tensor, tile: int, device: torch.device) -> Tensor:
    """Return the results (B, …) of a batch on ``device``, computed tile by tile; see ``tile_rows``.

    The tiles are planned on the host, so that it never waits for the device.

    Args:
        compute: indices in the batch (tile,), on the device -> results (tile, …).
    """
    result: Tensor | None = None
    for plan in tile_rows(positions, tile):
        index, wanted = (to_device(rows, device) for rows in plan)
        computed = compute(index)
        if result is None:
            result = computed.new_empty(len(positions), *computed.shape[1:])
        result[index[wanted]] = computed[wanted]
    assert result is not None, "sampling needs at least one seed"
    return result


def tile_numbers(positions: Tensor, tile: int) -> Tensor:
    """Return the number of the tile (B,) of each position (B,)."""
    return torch.div(positions, tile, rounding_mode="floor")


def fitting_tile(largest: int, first: int, count: int) -> int:
    """Return the tile for a request of ``count`` positions from ``first``, so that it costs what it asks for.

    It is ``largest`` or, for a request of few tiles, the largest power of two with which at most a quarter more is
    computed than requested; up to 64, less than twice as much.
    """
    smaller = (1 << bits for bits in range((largest - 1).bit_length() - 1, -1, -1))
    for tile in (largest, *smaller):
        computed = ((first + count - 1) // tile - first // tile + 1) * tile
        if computed - count <= (count - 1 if tile <= 64 else count // 4):
            return tile
    return 1


def _first_of_each(values: Tensor) -> Tensor:
    """Return the index of the first occurrence of each value (a batch may contain a position twice)."""
    order = torch.argsort(values, stable=True)
    ordered = values[order]
    is_first = torch.ones_like(ordered, dtype=torch.bool)
    is_first[1:] = ordered[1:] != ordered[:-1]
    return order[is_first]

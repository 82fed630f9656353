import math

import pytest
import torch

from rcg_lightning.core.counter_rng import SeededNoise, fitting_tile, mix, tile_rows

SEEDS = torch.arange(400)


def test_mix_is_splitmix64():
    """Published outputs of the generator: output n is the hash of seed + (n - 1) · golden ratio."""
    assert int(mix(torch.tensor([0]))) % 2**64 == 0xE220A8397B1DCDAF
    assert int(mix(torch.tensor([1234567]))) % 2**64 == 6457827717110365317
    hashes = mix(torch.arange(-50_000, 50_000))
    assert len(hashes.unique()) == 100_000


def test_normal_noise_is_normal():
    x = SeededNoise(SEEDS).normal(0, 500).double()
    assert x.shape == (400, 500)
    n = x.numel()
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3), (6, 15)):
        variance = {1: 1, 2: 2, 3: 15, 4: 96, 6: 10_170}[power]
        assert float((x**power).mean()) == pytest.approx(moment, abs=5 * math.sqrt(variance / n))
    ordered = x.flatten().sort().values
    distance = (torch.special.ndtr(ordered) - (torch.arange(n) + 0.5) / n).abs().max()
    assert float(distance) < 2 / math.sqrt(n)  # Kolmogorov-Smirnov
    assert 4 < float(x.abs().max()) < 6


def test_uniform_gumbel_and_integers_follow_their_distributions():
    u = SeededNoise(SEEDS).uniform(0, 500)
    assert float(u.min()) > 0
    assert float(u.max()) < 1
    assert float(u.mean()) == pytest.approx(0.5, abs=0.004)
    assert float(u.var()) == pytest.approx(1 / 12, rel=0.01)
    gumbel = SeededNoise(SEEDS).gumbel(0, 500)
    assert bool(gumbel.isfinite().all())
    assert float(gumbel.mean()) == pytest.approx(0.5772, abs=0.02)
    assert float(gumbel.var()) == pytest.approx(math.pi**2 / 6, rel=0.03)
    counts = torch.bincount(SeededNoise(torch.arange(60_000)).integers(0, 6), minlength=6)
    assert len(counts) == 6
    assert bool(((counts - 10_000).abs() < 5 * math.sqrt(10_000)).all())


@pytest.mark.parametrize("distribution", ["normal", "uniform", "gumbel"])
def test_a_row_depends_on_its_seed_only(distribution):
    def noise(seeds):
        return getattr(SeededNoise(seeds, stream=2), distribution)(3, 2, 5)

    everything = noise(SEEDS)
    assert everything.shape == (400, 2, 5)
    order = torch.randperm(400)
    assert torch.equal(noise(SEEDS[order]), everything[order])
    assert torch.equal(noise(torch.tensor([7])), everything[7:8])
    assert torch.equal(noise(torch.tensor([9, 9]))[0], everything[9])
    assert len(everything[:, 0, 0].unique()) > 395


def test_numbers_are_those_of_earlier_versions():
    """Hashes of (seed, stream, step, element): a change would change every sample."""
    numbers = SeededNoise(torch.tensor([0, 17, -5]), stream=2)
    for step in (0, 31, 32, 1000):
        hashes = mix(mix(mix(numbers.seeds) + 2) + 2 * step + 1)
        bits = mix(hashes[:, None] + mix(torch.arange(4))[None])
        unit = (((bits >> 40) & 0xFFFFFF).float() + 0.5) * 2.0**-24
        assert torch.equal(numbers.uniform(step, 4), unit)


def test_the_first_elements_do_not_depend_on_the_count():
    assert torch.equal(SeededNoise(SEEDS).normal(0, 10)[:, :3], SeededNoise(SEEDS).normal(0, 3))


def test_streams_steps_seeds_and_elements_are_independent():
    def correlation(a, b):
        return abs(float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]))

    first = SeededNoise(SEEDS).normal(0, 100)
    limit = 5 / math.sqrt(first.numel())
    assert correlation(first, SeededNoise(SEEDS).normal(1, 100)) < limit
    assert correlation(first, SeededNoise(SEEDS, stream=1).normal(0, 100)) < limit
    assert correlation(first, SeededNoise(SEEDS + 1).normal(0, 100)) < limit
    assert correlation(first[:, :-1], first[:, 1:]) < limit
    assert correlation(first.square(), SeededNoise(SEEDS).normal(1, 100).square()) < limit
    assert not torch.equal(first, SeededNoise(SEEDS + 400).normal(0, 100))


def test_large_and_negative_seeds_are_valid():
    seeds = torch.tensor([-(2**63), -1, 0, 2**32, 2**63 - 1])
    x = SeededNoise(seeds).normal(0, 1000)
    assert bool(x.isfinite().all())
    assert float((x @ x.T / 1000 - torch.eye(5)).abs().max()) < 0.2


@pytest.mark.parametrize("tile", [1, 4, 16])
@pytest.mark.parametrize(
    "seeds",
    [
        torch.arange(50),
        torch.tensor([5]),
        torch.tensor([3, 3, 3, 19, 3]),
        torch.randint(-40, 40, (70,), generator=torch.Generator().manual_seed(0)),
    ],
    ids=["range", "one", "repeated", "mixed"],
)
def test_every_seed_has_its_position_in_a_tile(seeds, tile):
    covered = []
    for rows, wanted in tile_rows(seeds, tile):
        assert rows.shape == (tile,)
        assert torch.equal(seeds[rows[wanted]] % tile, wanted)
        tile_numbers = torch.div(seeds[rows[wanted]], tile, rounding_mode="floor")
        assert len(tile_numbers.unique()) == 1
        covered += rows[wanted].tolist()
    assert sorted(covered) == list(range(len(seeds)))


def test_there_are_no_more_tiles_than_needed():
    assert len(tile_rows(torch.arange(64), 16)) == 4
    assert len(tile_rows(torch.randperm(64), 16)) == 4
    assert len(tile_rows(torch.arange(8, 24), 16)) == 2
    assert tile_rows(torch.arange(0), 16) == []


@pytest.mark.parametrize("largest", [64, 100, 4096])
@pytest.mark.parametrize("first", [0, 17, 5000])
@pytest.mark.parametrize("count", [1, 7, 9, 64, 100, 1346, 5000, 50_000])
def test_a_request_costs_what_it_asks_for(largest, first, count):
    tile = fitting_tile(largest, first, count)
    tiles = (first + count - 1) // tile - first // tile + 1
    assert tile <= largest
    assert count <= tiles * tile <= (2 * count if tile <= 64 else 1.25 * count)


def test_large_requests_take_the_largest_tile_and_small_ones_a_power_of_two():
    assert [fitting_tile(64, 0, count) for count in (1, 7, 9, 33, 64, 100, 5000)] == [1, 8, 16, 64, 64, 64, 64]
    assert [fitting_tile(4096, 0, count) for count in (64, 1346, 5000, 50_000)] == [64, 512, 2048, 4096]
    assert fitting_tile(500, 0, 10_000) == 500


@pytest.mark.parametrize("tile", [8, 32])
def test_results_of_tiles_are_bit_equal_for_any_batch(tile):
    """Matmuls and an activation: without tiles the last bits depend on the batch size."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(37, 61), torch.nn.SiLU(), torch.nn.Linear(61, 5))

    @torch.no_grad()
    def sample(seeds):
        result = torch.empty(len(seeds), 5)
        for rows, wanted in tile_rows(seeds, tile):
            result[rows[wanted]] = network(SeededNoise(seeds[rows]).normal(0, 37))[wanted]
        return result

    everything = sample(torch.arange(100))
    for count in (1, 2, 3, 7, 31, 100):
        assert torch.equal(torch.cat([sample(part) for part in torch.arange(100).split(count)]), everything)
    order = torch.randperm(100)
    assert torch.equal(sample(order), everything[order])
    repeated = torch.tensor([4, 99, 4, 4, 36])
    assert torch.equal(sample(repeated), everything[repeated])

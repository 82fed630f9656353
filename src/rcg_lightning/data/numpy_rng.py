"""Random numbers that depend on counters only: the same for any number of workers and processes, in any version."""

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(z: np.ndarray) -> np.ndarray:
    """Scramble 64-bit integers (the finaliser of SplitMix64, Steele et al. 2014)."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def key(*counters: int | np.ndarray) -> np.ndarray:
    """Hash counters, each an int or an integer array (n,), in order into (n,) uint64; n = 1 for ints alone."""
    state = np.zeros(1, np.uint64)
    for counter in counters:
        word = np.atleast_1d(np.asarray(counter, np.int64)).view(np.uint64)
        state = _mix((state ^ _mix(word + _GOLDEN)) + _GOLDEN)
    return state


def uniform(count: int, *counters: int | np.ndarray) -> np.ndarray:
    """Return random numbers (n, count) float64, uniform in [0, 1), one row for each entry of the counters."""
    steps = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    words = _mix(key(*counters)[:, None] + steps)
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(size: int, *counters: int) -> np.ndarray:
    """Return a random permutation (size,) int64 of 0 .. size - 1."""
    words = _mix(key(*counters) + np.arange(1, size + 1, dtype=np.uint64) * _GOLDEN)
    return np.argsort(words, kind="stable")

"""Helpers of the agreement tests: recorded noise, forward passes, and the unread tensors of a file."""

import torch

from rcg_lightning.official.tensor_report import report_tensors


class Recorded:
    """Mock of SeededNoise with the recorded start and noise_seq (steps, B or 1, *S)."""

    def __init__(self, start, sequence):
        self.start, self.sequence, self.rows = start, sequence, len(start)

    def normal(self, step, *shape):
        if step == 0:
            return self.start
        return self.sequence[step - 1][: self.rows].expand(self.rows, *shape)


def check_forward(model, golden, ema, close):
    """Check the network's output for all recorded examples, and for the first alone."""
    x, t = golden.io["in.x"], golden.io["in.t"]
    expected = golden.io["out.forward_ema" if ema else "out.forward"]
    with torch.no_grad():
        output = model.denoiser.network(x, t, model.condition(len(x)))
        one = model.denoiser.network(x[:1], t[:1], model.condition(1))
    torch.testing.assert_close(output, expected, **close)
    torch.testing.assert_close(one, expected[:1], **close)


def unread(official, weights):
    """Return the names in an official state dict whose tensors are not among the ``weights`` read from it."""
    used = [*weights.network.values(), *weights.conditioner.values()]
    return set(report_tensors(official, used, {}, {}).unknown)

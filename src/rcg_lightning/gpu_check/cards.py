"""Published peak rates of NVIDIA's cards, to show what share of them is reached."""

import re

from rcg_lightning.bench.execution import Precision

# dense TFLOP/s of bf16 with float32 sums, TF32 and float32: NVIDIA's data sheets of H200, H100, A100, L40S and L4, and
# white papers of Ada (RTX 4090) and GA102 (RTX 3090)
PEAKS: dict[str, tuple[float, float, float]] = {
    "H200": (989, 495, 67),
    "H100 PCIe": (756, 378, 51),
    "H100 NVL": (835, 418, 60),
    "H100": (989, 495, 67),
    "A100": (312, 156, 19.5),
    "L40S": (362, 183, 91.6),
    "L4": (121, 60, 30.3),
    "RTX 4090": (165, 82.6, 82.6),
    "RTX 3090": (71, 35.6, 35.6),
}
GOALS_ON = ("H100", "H200")  # cards that the goals of speed are meant for


def peak_rate(card: str, precision: Precision) -> float | None:
    """Return the peak operations per second of a card by its name; None for one that isn't listed."""
    known = next((rates for name, rates in PEAKS.items() if re.search(rf"{name}\b", card)), None)
    return None if known is None else 1e12 * dict(zip(("bf16", "tf32", "float32"), known))[precision]

"""Verdicts on the stages of a run: good, usable or broken, and what to do.

A verdict compares a stage with references that are measured on the same images: real images, a principal-component
encoder, an untrained network, images without structure. No range of another data set is used, so a verdict holds for
any data. Nothing here measures; see ``sampling.stage_measurements``. Nothing here imports torch.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from scipy.special import betaincinv

Grade = Literal["good", "usable", "broken"]
COPIES = 0.03  # tolerated excess of the copy rate over that of real evaluation images


@dataclass(frozen=True)
class Verdict:
    """The verdict on one stage.

    Attributes:
        stage: encoder, tokenizer, RDM or generator.
        grade: good, usable or broken.
        reason: the metrics with their references, in words.
        advice: what to do; empty where the stage is good.
        metrics: everything measured, by name.
    """

    stage: str
    grade: Grade
    reason: str
    advice: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)

    def line(self) -> str:
        """Return the verdict in one line."""
        return f"{self.stage}: {self.grade}: {self.reason}" + (f"; {self.advice}" if self.advice else "")

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, for verdict.json."""
        return {**asdict(self), "metrics": dict(self.metrics)}


@dataclass(frozen=True)
class Representation:
    """Metrics of representations of the same images by one encoder.

    Attributes:
        effective_rank: in [1, dimensions]; 1 if they lie on a line.
        uniformity: 0 if all are equal, lower is more spread.
        agreement: fraction of images whose changed copy is nearest to another changed copy of the same image.
    """

    effective_rank: float
    uniformity: float
    agreement: float


def encoder_verdict(
    encoder: Representation, components: Representation, untrained: Representation, n: int, is_baseline: bool = False
) -> Verdict:
    """Grade an encoder by ``n`` images, next to principal components of the pixels and an untrained network.

    ``is_baseline``: the encoder is principal components itself, which no training makes better.
    """
    least_rank = min(components.effective_rank, untrained.effective_rank)
    best = max(components.agreement, untrained.agreement)
    reason = (
        f"two views of an image agree in {encoder.agreement:.2f} of {n} images (pixel components "
        f"{components.agreement:.2f}, untrained network {untrained.agreement:.2f}), effective rank "
        f"{encoder.effective_rank:.1f} ({components.effective_rank:.1f}, {untrained.effective_rank:.1f}), uniformity "
        f"{encoder.uniformity:.2f} ({components.uniformity:.2f}, {untrained.uniformity:.2f})"
    )
    metrics = {
        f"{name}_{key}": value
        for name, found in (("encoder", encoder), ("components", components), ("untrained", untrained))
        for key, value in asdict(found).items()
    }
    if encoder.effective_rank < max(1.5, least_rank / 4):
        collapsed = "its representations have collapsed: lower the learning rate, train longer, or take another encoder"
        return Verdict("encoder", "broken", reason, collapsed, metrics)
    if encoder.agreement < untrained.agreement - _noise(untrained.agreement, n):
        return Verdict("encoder", "broken", reason, "it is worse than an untrained network: take another one", metrics)
    if encoder.agreement <= best + _noise(best, n) and encoder.agreement < 1 - 2 / n:
        advice = "no better than its baselines: train it longer, or take a pretrained one"
        advice = "it is a baseline itself: train an encoder, or take a pretrained one" if is_baseline else advice
        return Verdict("encoder", "usable", reason, advice, metrics)
    return Verdict("encoder", "good", reason, "", metrics)


def tokenizer_verdict(
    rfd: float, real: float, psnr: float, blank_psnr: float, codes: tuple[int, int] | None = None
) -> Verdict:
    """Grade an autoencoder by its reconstructions of evaluation images.

    Args:
        rfd: Fréchet distance of the reconstructions to their originals.
        real: Fréchet distance of evaluation to training images, in the same features.
        psnr: of the reconstructions, in dB.
        blank_psnr: of the mean training image in place of every reconstruction, in dB.
        codes: codes in use, and all codes; None for an autoencoder without codebook.
    """
    used = 1.0 if codes is None else codes[0] / codes[1]
    in_use = "" if codes is None else f", {codes[0]} of {codes[1]} codes in use"
    reason = f"rFD {rfd:.3g} (real images {real:.3g}), PSNR {psnr:.1f} dB (the mean image {blank_psnr:.1f} dB){in_use}"
    metrics = {"rfd": rfd, "rfd_of_real": real, "psnr": psnr, "psnr_of_mean": blank_psnr, "codes_in_use": used}
    if psnr <= blank_psnr + 1:
        return Verdict("tokenizer", "broken", reason, "it hardly reconstructs anything: train it longer", metrics)
    if used < 0.05:
        return Verdict("tokenizer", "broken", reason, "its codebook has collapsed: take fewer codes", metrics)
    if rfd > real:
        advice = "reconstructions limit the samples: train it longer, or compress less"
        return Verdict("tokenizer", "usable", reason, advice, metrics)
    if used < 0.5:
        return Verdict("tokenizer", "usable", reason, "most of its codes are unused: take fewer", metrics)
    return Verdict("tokenizer", "good", reason, "", metrics)


def rdm_verdict(fd: float, real: float, noise: float, n: int) -> Verdict:
    """Grade an RDM by ``n`` generated representations.

    Args:
        fd: their Fréchet distance to the training representations (rep-FD).
        real: the same of ``n`` training representations, chosen at random.
        noise: the same of Gaussian noise with the mean and variance of all entries.
    """
    gap = position(fd, real, noise)
    reason = f"rep-FD {fd:.3g} over {n} (real representations {real:.3g}, noise {noise:.3g})"
    metrics = {"rep_fd": fd, "rep_fd_of_real": real, "rep_fd_of_noise": noise, "gap": gap}
    if gap > 0.5:
        return Verdict("RDM", "broken", reason, "its representations are closer to noise: train it longer", metrics)
    if gap > 0.05 and fd > 2 * real:
        return Verdict("RDM", "usable", reason, "train it longer", metrics)
    return Verdict("RDM", "good", reason, "", metrics)


@dataclass(frozen=True)
class SampleMetrics:
    """Metrics of one set of ``n`` images against the training images.

    Attributes:
        fd: Fréchet distance.
        precision, recall: None where there are too few images.
        copies: number that are copies of training images; None where it was not measured.
        n: number of images of which copies were counted.
    """

    fd: float
    precision: float | None = None
    recall: float | None = None
    copies: int | None = None
    n: int = 0


def generator_verdict(
    samples: SampleMetrics,
    real: SampleMetrics,
    shuffled_fd: float,
    features: str,
    represented: bool = True,
    trained: bool = True,
) -> Verdict:
    """Grade a generator by its samples.

    Args:
        samples: of the generator.
        real: of as many evaluation images.
        shuffled_fd: of as many training images whose pixels were exchanged between images: no structure is left.
        features: name of the extractor's features, and whether they are independent of the run.
        represented: whether its condition holds representations, which a better encoder would improve.
        trained: whether the features are of a trained network. Others do not see content, and find nothing good.
    """
    gap = position(samples.fd, real.fd, shuffled_fd)
    metrics = {"fd": samples.fd, "fd_of_real": real.fd, "fd_of_shuffled": shuffled_fd, "gap": gap}
    words = [f"FD {samples.fd:.3g} in {features} (real images {real.fd:.3g}, shuffled pixels {shuffled_fd:.3g})"]
    faults: list[tuple[Grade, str]] = []
    inside = None not in (samples.precision, real.precision) and samples.precision >= real.precision / 2  # type: ignore[operator]
    if gap > 0.6 and not inside:  # a distance of untrained features is large for slightly wrong textures alone
        faults.append(("broken", "its samples are closer to noise than to images: train it longer"))
    elif gap > 0.1 and samples.fd > 1.5 * real.fd:  # of few images, real ones differ by as much
        faults.append(("usable", "train it longer" + (", or with a better encoder" if represented else "")))
    for name, found, expected, advice in (
        ("precision", samples.precision, real.precision, "many samples lie outside of the data: train it longer"),
        (
            "recall",
            samples.recall,
            real.recall,
            "it covers a part of the data only: lower the guidance, or train longer",
        ),
    ):
        if found is None or expected is None:
            continue
        metrics |= {name: found, f"{name}_of_real": expected}
        words.append(f"{name} {found:.2f} ({expected:.2f})")
        if found < expected / 2:
            faults.append(("broken" if found < expected / 20 else "usable", advice))
    faults += _copying(samples, real, words, metrics)
    if not (faults or trained):
        faults.append(("usable", "such features see textures, no content: look at the samples, or give an --extractor"))
    grade: Grade = "broken" if any(g == "broken" for g, _ in faults) else "usable" if faults else "good"
    advice = next((text for g, text in faults if g == grade), "")
    return Verdict("generator", grade, ", ".join(words), advice, metrics)


def _copying(
    samples: SampleMetrics, real: SampleMetrics, words: list[str], metrics: dict[str, float]
) -> list[tuple[Grade, str]]:
    """Return the fault of copying training images, if there is one; add words and metrics."""
    if samples.copies is None or real.copies is None:
        return []
    rate, expected = samples.copies / samples.n, real.copies / real.n
    low, high = proportion_bounds(samples.copies, samples.n)
    metrics |= {"copy_rate": rate, "copy_rate_upper": high, "copy_rate_of_real": expected}
    words.append(f"copies {rate:.3f}, 95 % upper bound {high:.3f} (real images {expected:.3f})")
    if low > 0.5:
        return [("broken", "most of its samples are copies of training images: train it shorter, or on more images")]
    if low > expected + COPIES:
        return [("usable", "it copies training images: train it shorter, augment, or add images")]
    return []


def position(value: float, best: float, worst: float) -> float:
    """Return where ``value`` lies on the way from ``best``, 0, to ``worst``, 1; not below 0.

    Where the references are in the wrong order, they distinguish nothing: then a value up to ``best`` is at 0, and any
    other at 1.
    """
    if not math.isfinite(value):
        return 1.0
    if worst <= best:
        return 0.0 if value <= best else 1.0
    return max(0.0, (value - best) / (worst - best))


def proportion_bounds(count: int, n: int) -> tuple[float, float]:
    """Return one-sided 95 % lower and upper bounds of a probability, after ``count`` of ``n`` (Clopper, Pearson)."""
    low = 0.0 if count == 0 else float(betaincinv(count, n - count + 1, 0.05))
    high = 1.0 if count == n else float(betaincinv(count + 1, n - count, 0.95))
    return low, high


def verdict_text(verdicts: Iterable[Verdict]) -> str:
    """Return a Markdown list of the verdicts."""
    return "".join(f"- **{found.stage}: {found.grade}.** {_sentence(found)}\n" for found in verdicts)


def _sentence(found: Verdict) -> str:
    advice = f" {found.advice[0].upper()}{found.advice[1:]}." if found.advice else ""
    return f"{found.reason[0].upper()}{found.reason[1:]}.{advice}"


def _noise(p: float, n: int) -> float:
    """Return two standard deviations of the difference of two proportions near ``p``, each of ``n``."""
    return 2 * math.sqrt(2 * p * (1 - p) / n)

"""Tag prediction for the images of a split, by a generator of word vectors."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from rcg_lightning.data.data_module import as_floats
from rcg_lightning.data.tag_data_module import TagDataModule, pairs_of
from rcg_lightning.evaluation.protocols import Protocol
from rcg_lightning.metrics import tag_prediction
from rcg_lightning.metrics.metric_name import metric_name
from rcg_lightning.pretrained.word_vectors import WordVectors, read_word_vectors, vocabulary_of
from rcg_lightning.sampling.loading import same_encoder
from rcg_lightning.stages.generator import Generator
from rcg_lightning.types import require

Split = Literal["train", "eval"]
Truth = Literal["tags", "annotations"]


@dataclass(frozen=True)
class Vocabulary:
    """The words that can be predicted: those of training first, then, if requested, all others of the file."""

    words: list[str]
    vectors: Tensor  # (V, D)
    trained: int  # number of training words

    @classmethod
    def read(cls, generator: Generator, path: Path, all_words: bool) -> "Vocabulary":
        """Read the vectors of a generator's words; ``all_words`` adds all others of the file."""
        assert generator.spec is not None
        assert isinstance(generator.codec, WordVectors)
        trained = vocabulary_of(generator.spec)
        vectors = generator.codec.use_vectors(path, generator.spec)
        if not all_words:
            return cls(trained, vectors, len(trained))
        everything, training_words = read_word_vectors(path), set(trained)
        others = [i for i, word in enumerate(everything.words) if word not in training_words]
        other_vectors = generator.codec.scaled(everything.vectors[others])
        return cls(
            [*trained, *(everything.words[i] for i in others)], torch.cat([vectors, other_vectors]), len(trained)
        )


def load_tagger(checkpoint: Path, data: TagDataModule, split: Split, device: torch.device) -> Generator:
    """Load a generator of word vectors and check that it fits the data."""
    generator = Generator.load(checkpoint, device)
    wrong = (
        f"{checkpoint} makes {generator.codec.makes}s, not words: give a generator that was trained with WordVectors"
    )
    require(isinstance(generator.codec, WordVectors), wrong)
    if "representation" in generator.condition.needs and "representation" in data.columns(split):
        store = data.columns(split)["representation"]
        same_encoder(generator, store.identity.get("representation"), str(store.path))
    return generator


class Tagging:
    """The images of a split and their true tags, which are to be predicted.

    A prediction holds scores of V words for N images, (N, V), or the same ones for all images, (V,).

    Args:
        generator: of word vectors.
        data: the images, with the stores of their representations.
        split: of the images.
        known: the words that can be predicted.
        truth: the correct answers: the images' own tags, or their annotations.
    """

    def __init__(
        self, generator: Generator, data: TagDataModule, split: Split, known: Vocabulary, truth: Truth
    ) -> None:
        self.generator, self.data, self.split, self.known, self.truth = generator, data, split, known, truth
        self.images = data.images(split)
        self.own = data.tags(split) if truth == "tags" else data.source.annotations(self.images)
        right = pairs_of(self.own, known.words[: known.trained])
        self.has = right.matrix(len(self.images), len(known.words))  # (N, V)
        self.left_out = {"images": int((~self.has.any(1)).sum()), truth: right.outside}

    @torch.no_grad()
    def generated(self, samples: int, nearest: int, first_seed: int) -> Tensor:
        """Return the votes (N, V) of every image's samples, on the CPU.

        Image i has the ``samples`` seeds from ``first_seed`` + i · ``samples``.
        """
        generator, device, found = self.generator, self.generator.device, []
        total = -(-len(self.images) // self.data.batch_size)
        batches = self.data.conditions(self.split, generator.condition.needs)
        for batch in tqdm(batches, f"tagging {self.split}", total, delay=3, leave=False):
            batch = as_floats({name: rows.to(device) for name, rows in batch.items()})  # type: ignore[arg-type, attr-defined]
            conditions = {
                name: rows.repeat_interleave(samples, 0) for name, rows in generator.observed_conditions(batch).items()
            }
            each = torch.arange(samples, device=device)
            seeds = first_seed + (batch["index"][:, None] * samples + each).flatten()
            made = generator.sample({"seed": seeds, **conditions})  # type: ignore[typeddict-item]
            found.append(tag_prediction.vote(made.unflatten(0, (-1, samples)), self.known.vectors, nearest).cpu())
        return torch.cat(found)

    def baselines(self, neighbours: int) -> dict[str, Tensor]:
        """Return the baselines' scores: tag frequencies and, with stores, the tags of neighbours."""
        data, known, count = self.data, self.known, len(self.data.images("train"))
        has = pairs_of(data.tags("train"), known.words[: known.trained]).matrix(count, len(known.words))
        found = {"frequency": tag_prediction.frequencies(has)}
        stores = [data.columns(part).get("representation") for part in (self.split, "train")]
        if neighbours and None not in stores and self.split != "train":  # a training image is its own neighbour
            images, training = (
                torch.from_numpy(store.read("representation", np.arange(store.size))).float().to(self.generator.device)
                for store in stores
                if store is not None
            )
            found["neighbours"] = tag_prediction.neighbours_vote(images, training, has, min(neighbours, count)).cpu()
        return found

    def metrics(self, predictions: Mapping[str, Tensor], tags: int) -> dict[str, float]:
        """Return the metrics of each prediction by full name, over the images with a correct word."""
        scored = self.has.any(1)
        count = int(scored.sum())
        require(count > 0, f"none of the {self.split} images has {self.truth} in the vocabulary")
        found = {}
        for name, scores in predictions.items():
            rows = scores if scores.ndim == 1 else scores[scored]
            for kind, value in tag_prediction.metrics(rows, self.has[scored], tags).items():
                found[metric_name(kind, name, count, self.split)] = value
        return found

    def predicted(self, scores: Tensor, tags: int) -> list[dict[str, Any]]:
        """Return each image's name, its best ``tags`` by ``scores`` (N, V), and the true ones."""
        best = scores.argsort(dim=1, descending=True, stable=True)[:, :tags].tolist()
        return [
            {
                "image": self.images.name(i),
                "predicted": [self.known.words[j] for j in row],
                self.truth: list(self.own[i]),
            }
            for i, row in enumerate(best)
        ]

    def record(self, samples: int) -> dict[str, Any]:
        """Return the metrics' record, for ``samples`` per image."""
        images = self.images
        spec = {"set": self.split, "identity": images.fingerprint, "images": len(images), "truth": self.truth}
        spec["resize"] = self.data.transform.describe(False)
        return Protocol("tags").record(self.generator.identity, spec, samples * len(images))

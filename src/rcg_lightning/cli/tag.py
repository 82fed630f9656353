"""`rcg tag`: words for images, by a generator of word vectors."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from rcg_lightning.cli.compare import pick_device
from rcg_lightning.cli.parsing import call, echo, progress_bar
from rcg_lightning.data.data_module import as_floats
from rcg_lightning.data.tag_data_module import TagDataModule, pairs_of
from rcg_lightning.evaluation.protocols import Protocol
from rcg_lightning.evaluation.results import content_of, report
from rcg_lightning.metrics import tag_prediction
from rcg_lightning.metrics.metric_name import metric_name
from rcg_lightning.pretrained.word_vectors import WordVectors, read_word_vectors, vocabulary_of
from rcg_lightning.sampling.loading import same_encoder
from rcg_lightning.stages.generator import Generator
from rcg_lightning.types import Batch, require

Split = Literal["train", "eval"]
Truth = Literal["tags", "annotations"]


@dataclass(frozen=True)
class Vocabulary:
    """The words that can be said: those of training first, then, if asked for, all others of the file."""

    words: list[str]
    vectors: Tensor  # (V, D)
    trained: int  # how many of them the generator was trained on


def tag(
    checkpoint: Path,
    data: TagDataModule,
    vectors: Path,
    split: Split = "eval",
    truth: Truth = "tags",
    samples: int = 100,
    nearest: int = 20,
    words: int = 10,
    all_words: bool = False,
    neighbours: int = 20,
    first_seed: int = 0,
    show: int = 5,
    out: Path | None = None,
    json: bool = False,
    accelerator: str = "auto",
) -> None:
    """Predict tags as published: many word vectors for each image, the words near them, the most frequent of these.

    Next to the metrics of the generator stand those of the most frequent words, the same for all images, of the tags
    of the nearest training images, and of a prediction that errs in nothing.

    Args:
        checkpoint: of the generator of word vectors.
        data: the images, with the stores that their representations are in.
        vectors: the word vectors that it was trained on.
        split: which images.
        truth: what is right: the images' own tags, or their annotations.
        samples: word vectors made for each image.
        nearest: how many words are near a vector, by cosine.
        words: how many words are said of a image, the most frequent ones.
        all_words: choose among all words of the file, not only those that were trained on.
        neighbours: training images whose tags are counted, for comparison; 0 leaves this out.
        first_seed: image i has the seeds first_seed + i · samples and following.
        show: print the words of that many images.
        out: JSON file to write metrics and the words of every image to.
        json: print the same JSON and nothing else.
        accelerator: cpu, gpu, mps or auto.
    """
    require(samples > 0, f"--samples is at least 1, not {samples}")
    data.prepare_data()
    generator = _load(checkpoint, data, split, pick_device(accelerator))
    known = _vocabulary(generator, vectors, all_words)
    images = data.images(split)
    own = data.tags(split) if truth == "tags" else data.source.annotations(images)
    right = pairs_of(own, known.words[: known.trained])
    has = right.of(len(images), len(known.words))
    scores = _generated(generator, data, split, known, samples, nearest, first_seed)
    rows = {"generated": scores, **_baselines(data, generator, split, known, neighbours), "perfect": has.double()}
    named = _named(rows, has, words, split, truth)
    content = content_of([named], _record(data, generator, split, truth, samples * len(images)))
    settings = {"samples": samples, "nearest": nearest, "words": words, "vocabulary": len(known.words)}
    content["settings"] = settings | {"neighbours": neighbours, "first_seed": first_seed}
    content["left_out"] = {"images": int((~has.any(1)).sum()), truth: right.outside}
    output = scores.argsort(dim=1, descending=True, stable=True)[:, :words].tolist()
    content["images"] = [
        {"image": images.name(i), "said": [known.words[j] for j in row], truth: list(own[i])}
        for i, row in enumerate(output)
    ]
    report(content, out, json)
    if not json:
        _show(content, truth, show)


def _named(rows: dict[str, Tensor], has: Tensor, words: int, split: Split, truth: Truth) -> dict[str, float]:
    """Return the metrics of each way to predict, by full names, over the images where something is right."""
    judged_of = has.any(1)
    count = int(judged_of.sum())
    require(count > 0, f"none of the {split} images has {truth} in the vocabulary: nothing is right")
    found = {}
    for name, scores in rows.items():
        kept = scores if scores.ndim == 1 else scores[judged_of]
        for kind, value in tag_prediction.metrics(kept, has[judged_of], words).items():
            found[metric_name(kind, name, count, split)] = value
    return found


def _load(checkpoint: Path, data: TagDataModule, split: Split, device: torch.device) -> Generator:
    """Return a generator of word vectors that fits the data."""
    generator = Generator.load(checkpoint, device)
    makes = f"{checkpoint} makes {generator.codec.makes}s, not words"
    require(isinstance(generator.codec, WordVectors), f"{makes}: give a generator that was trained with WordVectors")
    if "representation" in generator.condition.needs and "representation" in data.columns(split):
        store = data.columns(split)["representation"]
        same_encoder(generator, store.identity.get("representation"), str(store.path))
    return generator


def _vocabulary(generator: Generator, path: Path, all_words: bool) -> Vocabulary:
    assert generator.spec is not None
    assert isinstance(generator.codec, WordVectors)
    trained = vocabulary_of(generator.spec)
    vectors = generator.codec.use_vectors(path, generator.spec)
    if not all_words:
        return Vocabulary(trained, vectors, len(trained))
    everything, mine = read_word_vectors(path), set(trained)
    others = [i for i, word in enumerate(everything.words) if word not in mine]
    more = generator.codec.scaled(everything.vectors[others])
    return Vocabulary([*trained, *(everything.words[i] for i in others)], torch.cat([vectors, more]), len(trained))


@torch.no_grad()
def _generated(
    generator: Generator,
    data: TagDataModule,
    split: Split,
    known: Vocabulary,
    samples: int,
    nearest: int,
    first_seed: int,
) -> Tensor:
    """Return the votes (N, V) of the samples of every image, on the CPU."""
    device, found = generator.device, []
    for batch in _told(generator, data, split):
        batch = as_floats({name: rows.to(device) for name, rows in batch.items()})  # type: ignore[arg-type, attr-defined]
        conditions = {name: rows.repeat_interleave(samples, 0) for name, rows in generator.observed(batch).items()}
        each = torch.arange(samples, device=device)
        seeds = first_seed + (batch["index"][:, None] * samples + each).flatten()
        made = generator.sample({"seed": seeds, **conditions})  # type: ignore[typeddict-item]
        found.append(tag_prediction.vote(made.unflatten(0, (-1, samples)), known.vectors, nearest).cpu())
    return torch.cat(found)


def _told(generator: Generator, data: TagDataModule, split: Split) -> Iterator[Batch]:
    total = -(-len(data.images(split)) // data.batch_size)
    yield from progress_bar(data.conditions(split, generator.condition.needs), f"tagging {split}", total)


def _baselines(
    data: TagDataModule, generator: Generator, split: Split, known: Vocabulary, neighbours: int
) -> dict[str, Tensor]:
    """Return the scores of what needs no generator: frequencies (V,) and, from stores, neighbours' tags (N, V)."""
    count = len(data.images("train"))
    has = pairs_of(data.tags("train"), known.words[: known.trained]).of(count, len(known.words))
    found = {"frequency": tag_prediction.frequencies(has)}
    stores = [data.columns(part).get("representation") for part in (split, "train")]
    if neighbours and None not in stores and split != "train":  # a training image is its own neighbour
        images, training = (
            torch.from_numpy(store.read("representation", np.arange(store.size))).float().to(generator.device)
            for store in stores
            if store is not None
        )
        found["neighbours"] = tag_prediction.neighbours_vote(images, training, has, min(neighbours, count)).cpu()
    return found


def _record(data: TagDataModule, generator: Generator, split: Split, truth: Truth, number: int) -> dict[str, Any]:
    images = data.images(split)
    spec = {"set": split, "identity": images.fingerprint, "images": len(images), "truth": truth}
    return Protocol("tags").record(generator.identity, spec | {"resize": data.transform.says(False)}, number)


def _show(content: dict[str, Any], truth: Truth, show: int) -> None:
    left_out = content["left_out"]
    if any(left_out.values()):
        echo(
            f"left out: {left_out['images']} images without {truth} in the vocabulary, {left_out[truth]} {truth} "
            "outside of it"
        )
    for row in content["images"][:show]:
        echo(f"{row['image']}: {', '.join(row['output'])} ({truth}: {', '.join(row[truth]) or 'none'})")


def main(name: str, argv: list[str]) -> None:
    examples = [
        "rcg tag --checkpoint runs/tags/last.ckpt --vectors runs/words.txt --config digits/tags_data "
        "--data.stores [runs/store] --data.eval_stores [runs/eval_store] --nearest 3 --words 5",
    ]
    call(tag, name, argv, examples)

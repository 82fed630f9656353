"""`rcg tag`: words for pictures, by a generator of word vectors."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from rcg_lightning.commands.compare import pick_device
from rcg_lightning.commands.figures import content_of, report
from rcg_lightning.commands.generator import same_encoder
from rcg_lightning.commands.parsing import call, say, watched
from rcg_lightning.data.images import as_floats
from rcg_lightning.data.tags import TagData, pairs_of
from rcg_lightning.evaluation import tags as judged
from rcg_lightning.evaluation.metrics import metric_name
from rcg_lightning.evaluation.protocols import Protocol
from rcg_lightning.pretrained.words import WordVectors, read_words, vocabulary_of
from rcg_lightning.stages.generator import Generator
from rcg_lightning.types import Batch, require

Split = Literal["train", "heldout"]
Truth = Literal["tags", "annotations"]


@dataclass(frozen=True)
class Vocabulary:
    """The words that can be said: those of training first, then, if asked for, all others of the file."""

    words: list[str]
    vectors: Tensor  # (V, D)
    trained: int  # how many of them the generator was trained on


def tag(
    checkpoint: Path,
    data: TagData,
    vectors: Path,
    split: Split = "heldout",
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
    """Predict tags as published: many word vectors for each picture, the words near them, the most frequent of these.

    Beside the figures of the generator stand those of the most frequent words, the same for all pictures, of the tags
    of the nearest training pictures, and of a prediction that errs in nothing.

    Args:
        checkpoint: of the generator of word vectors.
        data: the pictures, with the stores that their representations are in.
        vectors: the word vectors that it was trained on.
        split: which pictures.
        truth: what is right: the pictures' own tags, or their annotations.
        samples: word vectors made for each picture.
        nearest: how many words are near a vector, by cosine.
        words: how many words are said of a picture, the most frequent ones.
        all_words: choose among all words of the file, not only those that were trained on.
        neighbours: training pictures whose tags are counted, for comparison; 0 leaves this out.
        first_seed: picture i has the seeds first_seed + i · samples and following.
        show: print the words of that many pictures.
        out: JSON file to write figures and the words of every picture to.
        json: print the same JSON and nothing else.
        accelerator: cpu, gpu, mps or auto.
    """
    require(samples > 0, f"--samples is at least 1, not {samples}")
    data.prepare_data()
    generator = _load(checkpoint, data, split, pick_device(accelerator))
    known = _vocabulary(generator, vectors, all_words)
    pictures = data.pictures(split)
    own = data.tags(split) if truth == "tags" else data.source.annotations(pictures)
    right = pairs_of(own, known.words[: known.trained])
    has = right.of(len(pictures), len(known.words))
    scores = _generated(generator, data, split, known, samples, nearest, first_seed)
    rows = {"generated": scores, **_baselines(data, generator, split, known, neighbours), "perfect": has.double()}
    named = _named(rows, has, words, split, truth)
    content = content_of([named], _record(data, generator, split, truth, samples * len(pictures)))
    settings = {"samples": samples, "nearest": nearest, "words": words, "vocabulary": len(known.words)}
    content["settings"] = settings | {"neighbours": neighbours, "first_seed": first_seed}
    content["left_out"] = {"pictures": int((~has.any(1)).sum()), truth: right.outside}
    said = scores.argsort(dim=1, descending=True, stable=True)[:, :words].tolist()
    content["pictures"] = [
        {"picture": pictures.name(i), "said": [known.words[j] for j in row], truth: list(own[i])}
        for i, row in enumerate(said)
    ]
    report(content, out, json)
    if not json:
        _show(content, truth, show)


def _named(rows: dict[str, Tensor], has: Tensor, words: int, split: Split, truth: Truth) -> dict[str, float]:
    """Return the figures of each way to predict, by full names, over the pictures where something is right."""
    judged_of = has.any(1)
    count = int(judged_of.sum())
    require(count > 0, f"none of the {split} pictures has {truth} in the vocabulary: nothing is right")
    found = {}
    for name, scores in rows.items():
        kept = scores if scores.ndim == 1 else scores[judged_of]
        for kind, value in judged.figures(kept, has[judged_of], words).items():
            found[metric_name(kind, name, count, split)] = value
    return found


def _load(checkpoint: Path, data: TagData, split: Split, device: torch.device) -> Generator:
    """Return a generator of word vectors that fits the data."""
    generator = Generator.load(checkpoint, device)
    makes = f"{checkpoint} makes {generator.codec.makes}s, not words"
    require(isinstance(generator.codec, WordVectors), f"{makes}: give a generator that was trained with WordVectors")
    if "representation" in generator.condition.needs and "representation" in data.columns(split):
        store = data.columns(split)["representation"]
        same_encoder(generator, store.identity.get("representation"), str(store.path))
    return generator


def _vocabulary(generator: Generator, path: Path, all_words: bool) -> Vocabulary:
    assert generator.facts is not None
    assert isinstance(generator.codec, WordVectors)
    trained = vocabulary_of(generator.facts)
    vectors = generator.codec.use_vectors(path, generator.facts)
    if not all_words:
        return Vocabulary(trained, vectors, len(trained))
    everything, mine = read_words(path), set(trained)
    others = [i for i, word in enumerate(everything.words) if word not in mine]
    more = generator.codec.scaled(everything.vectors[others])
    return Vocabulary([*trained, *(everything.words[i] for i in others)], torch.cat([vectors, more]), len(trained))


@torch.no_grad()
def _generated(
    generator: Generator, data: TagData, split: Split, known: Vocabulary, samples: int, nearest: int, first_seed: int
) -> Tensor:
    """Return the votes (N, V) of the samples of every picture, on the CPU."""
    device, found = generator.device, []
    for batch in _told(generator, data, split):
        batch = as_floats({name: rows.to(device) for name, rows in batch.items()})  # type: ignore[arg-type, attr-defined]
        told = {name: rows.repeat_interleave(samples, 0) for name, rows in generator.observed(batch).items()}
        each = torch.arange(samples, device=device)
        seeds = first_seed + (batch["index"][:, None] * samples + each).flatten()
        made = generator.sample({"seed": seeds, **told})  # type: ignore[typeddict-item]
        found.append(judged.vote(made.unflatten(0, (-1, samples)), known.vectors, nearest).cpu())
    return torch.cat(found)


def _told(generator: Generator, data: TagData, split: Split) -> Iterator[Batch]:
    total = -(-len(data.pictures(split)) // data.batch_size)
    yield from watched(data.told(split, generator.condition.needs), f"tagging {split}", total)


def _baselines(
    data: TagData, generator: Generator, split: Split, known: Vocabulary, neighbours: int
) -> dict[str, Tensor]:
    """Return the scores of what needs no generator: frequencies (V,) and, from stores, neighbours' tags (N, V)."""
    count = len(data.pictures("train"))
    has = pairs_of(data.tags("train"), known.words[: known.trained]).of(count, len(known.words))
    found = {"frequency": judged.frequencies(has)}
    stores = [data.columns(part).get("representation") for part in (split, "train")]
    if neighbours and None not in stores and split != "train":  # a training picture is its own neighbour
        pictures, training = (
            torch.from_numpy(store.read("representation", np.arange(store.size))).float().to(generator.device)
            for store in stores
            if store is not None
        )
        found["neighbours"] = judged.neighbours_vote(pictures, training, has, min(neighbours, count)).cpu()
    return found


def _record(data: TagData, generator: Generator, split: Split, truth: Truth, number: int) -> dict[str, Any]:
    pictures = data.pictures(split)
    facts = {"set": split, "identity": pictures.fingerprint, "pictures": len(pictures), "truth": truth}
    return Protocol("tags").record(generator.identity, facts | {"resize": data.geometry.says(False)}, number)


def _show(content: dict[str, Any], truth: Truth, show: int) -> None:
    left_out = content["left_out"]
    if any(left_out.values()):
        say(
            f"left out: {left_out['pictures']} pictures without {truth} in the vocabulary, {left_out[truth]} {truth} "
            "outside of it"
        )
    for row in content["pictures"][:show]:
        say(f"{row['picture']}: {', '.join(row['said'])} ({truth}: {', '.join(row[truth]) or 'none'})")


def main(name: str, argv: list[str]) -> None:
    examples = [
        "rcg tag --checkpoint runs/tags/last.ckpt --vectors runs/words.txt --config digits_tags_data "
        "--data.stores [runs/store] --data.heldout_stores [runs/heldout_store] --nearest 3 --words 5",
    ]
    call(tag, name, argv, examples)

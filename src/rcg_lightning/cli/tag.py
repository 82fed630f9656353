"""`rcg tag`: predict tags of images by a generator of word vectors."""

from pathlib import Path
from typing import Any

from rcg_lightning.arguments import NonNegativeInt, PositiveInt, Seed
from rcg_lightning.cli.messages import echo
from rcg_lightning.cli.parsing import call
from rcg_lightning.cli.results import report
from rcg_lightning.data.tag_data_module import TagDataModule
from rcg_lightning.evaluation.results import content_of
from rcg_lightning.sampling.tagging import Split, Tagging, Truth, Vocabulary, load_tagger
from rcg_lightning.trainer import pick_device


def tag(
    checkpoint: Path,
    data: TagDataModule,
    vectors: Path,
    split: Split = "eval",
    truth: Truth = "tags",
    samples: PositiveInt = 100,
    nearest: PositiveInt = 20,
    tags: PositiveInt = 10,
    all_words: bool = False,
    neighbours: PositiveInt = 20,
    first_seed: Seed = 0,
    show: NonNegativeInt = 5,
    out: Path | None = None,
    json: bool = False,
    accelerator: str = "auto",
) -> None:
    """Predict tags as published: sample word vectors for each image, and count the words nearest to them.

    The results include three baselines: the most frequent words (the same for all images), the tags of the nearest
    training images, and a prediction without error.

    Args:
        checkpoint: of the generator of word vectors.
        data: the images, with the stores of their representations.
        vectors: file of the word vectors that it was trained on.
        split: train, or eval for evaluation images.
        truth: the correct answers: the images' own tags, or their annotations.
        samples: word vectors per image.
        nearest: number of words nearest to a vector, by cosine, that get a vote.
        tags: number of predicted tags per image.
        all_words: choose among all words of the file, not only the training words.
        neighbours: number of nearest training images in the baseline of neighbours; 0 omits it.
        first_seed: image i has ``samples`` seeds from first_seed + i · samples.
        show: number of images whose tags are printed.
        out: JSON file for metrics and the tags of every image.
        json: print the same JSON and nothing else.
        accelerator: cpu, gpu, mps or auto.
    """
    data.prepare_data()
    generator = load_tagger(checkpoint, data, split, pick_device(accelerator))
    known = Vocabulary.read(generator, vectors, all_words)
    tagging = Tagging(generator, data, split, known, truth)
    scores = tagging.generated(samples, nearest, first_seed)
    rows = {"generated": scores, **tagging.baselines(neighbours), "perfect": tagging.has.double()}
    content = content_of([tagging.metrics(rows, tags)], tagging.record(samples))
    settings = {"samples": samples, "nearest": nearest, "tags": tags, "vocabulary": len(known.words)}
    content["settings"] = settings | {"neighbours": neighbours, "first_seed": first_seed}
    content |= {"left_out": tagging.left_out, "images": tagging.predicted(scores, tags)}
    report(content, out, json)
    if not json:
        _show(content, truth, show)


def _show(content: dict[str, Any], truth: Truth, show: int) -> None:
    left_out = content["left_out"]
    if any(left_out.values()):
        echo(
            f"left out: {left_out['images']} images without {truth} in the vocabulary, {left_out[truth]} {truth} "
            "outside of it"
        )
    for row in content["images"][:show]:
        echo(f"{row['image']}: {', '.join(row['predicted'])} ({truth}: {', '.join(row[truth]) or 'none'})")


def main(name: str, argv: list[str]) -> None:
    examples = [
        "rcg tag --checkpoint runs/tags/last.ckpt --vectors runs/words.txt --config digits/tags_data "
        "--data.stores [runs/store] --data.eval_stores [runs/eval_store] --nearest 3 --tags 5",
    ]
    call(tag, name, argv, examples)

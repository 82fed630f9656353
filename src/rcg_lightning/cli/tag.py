"""`rcg tag`: tags for images, by a generator of word vectors."""

from pathlib import Path
from typing import Any

from rcg_lightning.cli.messages import echo
from rcg_lightning.cli.parsing import call
from rcg_lightning.cli.results import report
from rcg_lightning.data.tag_data_module import TagDataModule
from rcg_lightning.evaluation.results import content_of
from rcg_lightning.sampling.tagging import Split, Tagging, Truth, Vocabulary, load_tagger
from rcg_lightning.trainer import pick_device
from rcg_lightning.types import require


def tag(
    checkpoint: Path,
    data: TagDataModule,
    vectors: Path,
    split: Split = "eval",
    truth: Truth = "tags",
    samples: int = 100,
    nearest: int = 20,
    tags: int = 10,
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
    of the nearest training images, and of a prediction without error.

    Args:
        checkpoint: of the generator of word vectors.
        data: the images, with the stores that their representations are in.
        vectors: the word vectors that it was trained on.
        split: which images.
        truth: what is right: the images' own tags, or their annotations.
        samples: word vectors made for each image.
        nearest: how many words are near a vector, by cosine.
        tags: how many tags are predicted of an image, the most frequent words.
        all_words: choose among all words of the file, not only those that were trained on.
        neighbours: training images whose tags are counted, for comparison; 0 leaves this out.
        first_seed: image i has the seeds first_seed + i · samples and following.
        show: print the tags of this many images.
        out: JSON file to write metrics and the tags of every image to.
        json: print the same JSON and nothing else.
        accelerator: cpu, gpu, mps or auto.
    """
    require(samples > 0, f"--samples is at least 1, not {samples}")
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

"""`rcg word-vectors`: skip-gram vectors of tags, for a generator of word vectors."""

from pathlib import Path

from torch.nn import functional as F

from rcg_lightning.arguments import PositiveInt, Width
from rcg_lightning.cli.messages import echo
from rcg_lightning.cli.parsing import call
from rcg_lightning.data.tag_data_module import TagDataModule
from rcg_lightning.pretrained.word_vectors import train_word_vectors
from rcg_lightning.types import require


def word_vectors(
    data: TagDataModule,
    out: Path,
    dim: Width = 200,
    window: PositiveInt | None = None,
    epochs: PositiveInt = 5,
    negative: PositiveInt = 5,
    seed: int = 0,
    threads: PositiveInt = 1,
) -> None:
    """Train word vectors, with each training image's tags as a sentence, and write a word2vec file.

    Args:
        data: the images with their tags; words of fewer than ``data.min_count`` images are omitted.
        out: file to write: binary where its name ends in .bin, text otherwise.
        dim: dimensions of a vector.
        window: number of predicted tags on each side; None for all tags of an image, as their order has no meaning.
        epochs: passes over the images.
        negative: number of negative samples per predicted word.
        seed: of the initial vectors and all other random numbers.
        threads: number of CPU threads; with more than one, runs are not reproducible.
    """
    require(data.vectors is None, "the vectors are trained here: omit data.vectors")
    data.prepare_data()
    known = set(data.vocabulary)
    data.pairs("train")  # warns of omitted words
    sentences = [[word for word in tags if word in known] for tags in data.tags("train")]
    vectors = train_word_vectors(sentences, dim, window, epochs, negative, seed, threads)
    vectors.save(out)
    echo(
        f"{out}: {len(vectors.words)} words, {dim} dimensions each, from the tags of {sum(map(bool, sentences))} images"
    )
    unit = F.normalize(vectors.vectors, dim=1)
    for word, row in list(zip(vectors.words, unit @ unit.T))[:5]:
        near = [vectors.words[i] for i in row.argsort(descending=True)[:4].tolist() if vectors.words[i] != word]
        echo(f"  near {word}: {', '.join(near[:3])}")


def main(name: str, argv: list[str]) -> None:
    examples = [
        "rcg word-vectors --config digits/tags_data --dim 16 --epochs 20 --out runs/words.txt",
        "rcg word-vectors --config mirflickr/data --data.min_count 20 --out runs/words.bin",
    ]
    call(word_vectors, name, argv, examples)

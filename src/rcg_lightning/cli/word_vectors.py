"""`rcg word-vectors`: skip-gram vectors of tags, for a generator of word vectors."""

from pathlib import Path

from torch.nn import functional as F

from rcg_lightning.cli.messages import echo
from rcg_lightning.cli.parsing import call
from rcg_lightning.data.tag_data_module import TagDataModule
from rcg_lightning.pretrained.word_vectors import train_word_vectors
from rcg_lightning.types import require


def word_vectors(
    data: TagDataModule,
    out: Path,
    dim: int = 200,
    window: int | None = None,
    epochs: int = 5,
    negative: int = 5,
    seed: int = 0,
    threads: int = 1,
) -> None:
    """Train word vectors, with each training image's tags as a sentence, and write a file of word2vec.

    Args:
        data: the images with their tags; words that occur ``least`` times are frequent enough.
        out: file to write: binary where its name ends in .bin, text otherwise.
        dim: dimensions of a vector.
        window: tags on each side that are predicted; None for all of an image's, as their order has no meaning.
        epochs: passes over the images.
        negative: words chosen at random for each one that is predicted.
        seed: of the first vectors and of all random numbers.
        threads: of the machine; with more than one no two runs give the same vectors.
    """
    require(data.vectors is None, "these vectors are to be trained: leave data.vectors out")
    data.prepare_data()
    known = set(data.vocabulary)
    data.pairs("train")  # warns of what is left out
    sentences = [[word for word in tags if word in known] for tags in data.tags("train")]
    made = train_word_vectors(sentences, dim, window, epochs, negative, seed, threads)
    made.save(out)
    echo(f"{out}: {len(made.words)} words, {dim} dimensions each, from the tags of {sum(map(bool, sentences))} images")
    unit = F.normalize(made.vectors, dim=1)
    for word, row in list(zip(made.words, unit @ unit.T))[:5]:
        near = [made.words[i] for i in row.argsort(descending=True)[:4].tolist() if made.words[i] != word]
        echo(f"  near {word}: {', '.join(near[:3])}")


def main(name: str, argv: list[str]) -> None:
    examples = [
        "rcg word-vectors --config digits/tags_data --dim 16 --epochs 20 --out runs/words.txt",
        "rcg word-vectors --config mirflickr/data --data.min_count 20 --out runs/words.bin",
    ]
    call(word_vectors, name, argv, examples)

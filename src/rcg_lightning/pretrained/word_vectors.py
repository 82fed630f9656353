"""Word vectors: the files of word2vec, skip-gram vectors of tags, and the codec of a generator of words."""

import mmap
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rcg_lightning.artifacts import fingerprint, replacing
from rcg_lightning.errors import UserError
from rcg_lightning.types import Batch, Codec, DataSpec, require

_LINE = 1 << 20  # bytes in which the first vector of a text file ends


@dataclass(frozen=True)
class WordVectorTable:
    """Words and their vectors.

    Attributes:
        words: N of them, all different.
        vectors: (N, D) float32.
    """

    words: list[str]
    vectors: Tensor

    @property
    def identity(self) -> str:
        """A short hash of words and vectors."""
        return fingerprint(self.words, [self.vectors.contiguous().numpy().data])

    def save(self, path: Path) -> None:
        """Write a file of word2vec, complete or not at all: binary where its name ends in .bin, text otherwise."""
        odd = next((word for word in self.words if word.split() != [word]), None)
        require(odd is None, f"a word of a word2vec file has no spaces, unlike {odd!r}")
        binary = path.suffix == ".bin"
        with replacing(path) as draft, open(draft, "wb") as file:
            file.write(f"{len(self.words)} {self.vectors.shape[1]}\n".encode())
            for word, vector in zip(self.words, self.vectors.numpy().astype("<f4")):
                values = vector.tobytes() if binary else " ".join(map(str, vector.tolist())).encode()
                file.write(word.encode() + b" " + values + b"\n")


# -- files -------------------------------------------------------------------------------------------------------------


def read_word_vectors(path: Path, only: Collection[str] | None = None) -> WordVectorTable:
    """Read a file of word2vec, text or binary, which its content tells; nothing in it is unpickled.

    Args:
        path: the file.
        only: keep these words alone, so that a file of millions takes no more memory than they do.

    Raises:
        UserError: no such file, not one of word2vec, cut short, or a vector that is not numbers.
    """
    wanted = None if only is None else set(only)
    found: dict[str, np.ndarray] = {}
    for word, values in _entries(Path(path).expanduser(), wanted):
        found.setdefault(word, values)
    rows = np.stack(list(found.values())) if found else np.zeros((0, dimension(path)), np.float32)
    vectors = torch.from_numpy(rows)
    broken = [word for word, whole in zip(found, vectors.isfinite().all(1).tolist()) if not whole]
    require(not broken, f"{path}: the vectors of {len(broken)} words hold NaN or infinity, such as {broken[:1]}")
    return WordVectorTable(list(found), vectors)


def dimension(path: Path) -> int:
    """Return how many dimensions each vector of a file has."""
    with _opened(Path(path).expanduser()) as file:
        return _header(file, path)[1]


def _opened(path: Path) -> mmap.mmap:
    try:
        with open(path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise UserError(
            f"no word vectors at {path} ({error.strerror or error}): make them with rcg word-vectors"
        ) from error
    except ValueError as error:  # an empty file cannot be mapped
        raise UserError(f"{path} is empty: give a file of word vectors") from error


def _header(file: mmap.mmap, path: Path) -> tuple[int, int, int]:
    """Return how many vectors there are, of how many dimensions, and where the first one begins."""
    line = file[: min(len(file), 64)].partition(b"\n")[0]
    numbers = line.split()
    says = (
        "its first line should be two numbers, count and size. A model of gensim is saved so by wv.save_word2vec_format"
    )
    require(len(numbers) == 2 and all(map(bytes.isdigit, numbers)), f"{path} is no file of word2vec: {says}")
    count, dim = map(int, numbers)
    require(count > 0 and dim > 0, f"{path} holds {count} vectors of {dim} dimensions")
    return count, dim, len(line) + 1


def _entries(path: Path, wanted: set[str] | None) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each wanted word with its vector (D,) float32, in the file's order."""
    with _opened(path) as file:
        count, dim, at = _header(file, path)
        read = _text if _is_text(file[at : at + _LINE].partition(b"\n")[0], dim) else _binary
        yield from read(file, path, count, dim, at, wanted)


def _is_text(line: bytes, dim: int) -> bool:
    try:
        return len([float(number) for number in line.split()[1:]]) == dim
    except ValueError:
        return False


def _text(
    file: mmap.mmap, path: Path, count: int, dim: int, at: int, wanted: set[str] | None
) -> Iterator[tuple[str, np.ndarray]]:
    file.seek(at)
    for number in range(count):
        line = file.readline().strip()
        require(bool(line), _short(path, number, count))
        name, _, rest = line.partition(b" ")
        word = name.decode(errors="replace")
        if wanted is not None and word not in wanted:
            continue
        try:
            values = np.array(rest.split(), dtype=np.float32)
        except ValueError:
            values = np.empty(0, np.float32)
        require(len(values) == dim, f"{path}, line {number + 2}: {word!r} should have {dim} numbers")
        yield word, values


def _binary(
    file: mmap.mmap, path: Path, count: int, dim: int, at: int, wanted: set[str] | None
) -> Iterator[tuple[str, np.ndarray]]:
    for number in range(count):
        end = file.find(b" ", at)
        require(end >= 0 and end + 1 + 4 * dim <= len(file), _short(path, number, count))
        word = file[at:end].lstrip(b"\n").decode(errors="replace")  # the C program ends vectors with a line break
        at = end + 1 + 4 * dim
        if wanted is None or word in wanted:
            yield word, np.frombuffer(file[end + 1 : at], "<f4").astype(np.float32)


def _short(path: Path, found: int, count: int) -> str:
    return f"{path} holds {found} of the {count} word vectors it announces: it was cut short, fetch it again"


# -- training ----------------------------------------------------------------------------------------------------------


def train_word_vectors(
    sentences: Sequence[Sequence[str]],
    dim: int = 200,
    window: int | None = None,
    epochs: int = 5,
    negative: int = 5,
    seed: int = 0,
    threads: int = 1,
) -> WordVectorTable:
    """Train skip-gram vectors (Mikolov et al. 2013) by gensim; with one thread the same call gives the same vectors.

    Args:
        sentences: lists of words, such as the tags of one image each.
        dim: dimensions of a vector.
        window: words on each side that are predicted; None for the whole list, as the order of tags has no meaning.
        epochs: passes over the sentences.
        negative: words drawn at random for each one that is predicted.
        seed: of the first vectors and of all draws.
        threads: of the machine.
    """
    try:
        from gensim.models import Word2Vec
    except ImportError as error:
        raise UserError("training word vectors needs gensim: pip install 'rcg-lightning[words]'") from error
    longest = max(map(len, sentences), default=0)
    require(longest > 1, "skip-gram learns from words that stand together, and no image has two tags")
    model = Word2Vec(
        [list(words) for words in sentences],
        vector_size=dim,
        window=longest if window is None else window,
        shrink_windows=window is not None,
        epochs=epochs,
        negative=negative,
        sg=1,
        min_count=1,
        seed=seed,
        workers=threads,
    )
    names = [str(word) for word in model.wv.index_to_key]
    return WordVectorTable(names, torch.from_numpy(model.wv.vectors.astype(np.float32)))


# -- what a generator of words makes -----------------------------------------------------------------------------------


class WordVectors(Codec):
    """The vector of a tag: what the conditional GAN of 2014 makes for a image. What is made stays a vector.

    A checkpoint holds neither the vectors nor where they lie, but a hash of those of the vocabulary, which must agree
    wherever vectors are given again.

    Args:
        vectors: file of word2vec, text or binary, with a vector for each tag; never part of a checkpoint.
        length: scale every vector to this Euclidean length; None leaves them as they are. Nearness is by cosine.
    """

    makes = "word"
    stream = 2
    needs = frozenset({"tag"})

    def __init__(self, vectors: Path | None = None, length: float | None = None) -> None:
        require(length is None or length > 0, f"the length of word vectors is positive, not {length}")
        self.vectors, self.length = vectors, length
        self._table: Tensor | None = None

    def extend_spec(self, spec: DataSpec) -> DataSpec:
        """Return data spec with the vectors of the data's vocabulary noted; those of a checkpoint stay as they are."""
        if self.makes in spec.columns:
            if self.vectors is not None:
                self.use_vectors(self.vectors, spec)
            return spec
        lacking = (
            "WordVectors needs a file of word vectors: make one with rcg word-vectors, give it as --model.codec.vectors"
        )
        require(self.vectors is not None, lacking)
        table = self._read(self.vectors, spec)  # type: ignore[arg-type]
        self._table = table.vectors
        columns = {**spec.columns, self.makes: {"shape": [table.vectors.shape[1]], "online": True}}
        return replace(spec, columns=columns, identities={**spec.identities, self.makes: table.identity})

    def shape(self, spec: DataSpec) -> tuple[int, ...]:
        known = spec if self.makes in spec.columns else self.extend_spec(spec)
        return tuple(known.columns[self.makes]["shape"])

    def use_vectors(self, path: Path, spec: DataSpec) -> Tensor:
        """Take the vectors of a vocabulary from ``path`` and return them, (V, D).

        Args:
            path: file of word2vec.
            data spec: of the generator that was trained on these vectors.

        Raises:
            UserError: they are of another size, or other vectors than the generator was trained on.
        """
        (dim,), found = spec.columns[self.makes]["shape"], dimension(path)
        fits = f"{path} has vectors of {found} dimensions, the generator makes {dim}"
        require(found == dim, f"{fits}: give the file that it was trained with")
        table, known = self._read(path, spec), spec.identities.get(self.makes)
        require(
            known in (None, table.identity),
            f"{path} has other word vectors ({table.identity}) than those trained on ({known}): give theirs",
        )
        self._table = table.vectors
        return self._table

    def scaled(self, vectors: Tensor) -> Tensor:
        """Vectors (N, D) as a file has them -> as they are modelled."""
        return vectors if self.length is None else F.normalize(vectors, dim=1) * self.length

    def _read(self, path: Path, spec: DataSpec) -> WordVectorTable:
        words = vocabulary_of(spec)
        found = read_word_vectors(path, words)
        place = {word: number for number, word in enumerate(found.words)}
        missing = [word for word in words if word not in place]
        require(
            not missing,
            f"{len(missing)} of the {len(words)} tags, such as {', '.join(missing[:3])}, have no vector in {path}: "
            "give the same file as data.vectors, which leaves such tags out, or vectors of these (rcg word-vectors)",
        )
        rows = torch.tensor([place[word] for word in words])
        return WordVectorTable(words, self.scaled(found.vectors[rows]))

    def encode(self, batch: Batch) -> Tensor:
        """``batch["tag"]`` (B,) -> the words' vectors (B, D)."""
        require(self._table is not None, "these word vectors are not at hand: give their file as codec.vectors")
        tag = batch["tag"]
        if self._table.device != tag.device:  # type: ignore[union-attr]
            self._table = self._table.to(tag.device)  # type: ignore[union-attr]
        return self._table[tag]  # type: ignore[index]

    def decode(self, z: Tensor) -> Tensor:
        """A vector is what it is: the words near it are found by evaluation."""
        return z


def vocabulary_of(spec: DataSpec) -> list[str]:
    """Return the words that ``tag`` counts, in order; UserError where the data have no tags."""
    tags = spec.columns.get("tag", {}).get("words")
    if tags is None:
        raise UserError("the data have no tags: use TagDataModule (data.class_path) with a source that has some")
    return list(tags)

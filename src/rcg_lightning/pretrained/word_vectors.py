"""Word vectors: word2vec files, skip-gram training on tags, and the codec of a tag generator."""

import mmap
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rcg_lightning.arguments import PositiveFloat
from rcg_lightning.artifacts import fingerprint, replacing
from rcg_lightning.errors import UserError
from rcg_lightning.types import Batch, Codec, DataSpec, require

_FIRST_LINE = 1 << 20  # bytes: the first vector of a text file is shorter


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
        """Write a word2vec file, complete or not at all: binary if its name ends in .bin, text otherwise."""
        spaced = next((word for word in self.words if word.split() != [word]), None)
        require(spaced is None, f"a word in a word2vec file has no spaces, unlike {spaced!r}")
        binary = path.suffix == ".bin"
        with replacing(path) as draft, open(draft, "wb") as file:
            file.write(f"{len(self.words)} {self.vectors.shape[1]}\n".encode())
            for word, vector in zip(self.words, self.vectors.numpy().astype("<f4")):
                values = vector.tobytes() if binary else " ".join(map(str, vector.tolist())).encode()
                file.write(word.encode() + b" " + values + b"\n")


# -- files -------------------------------------------------------------------------------------------------------------


def read_word_vectors(path: Path, only: Collection[str] | None = None) -> WordVectorTable:
    """Read a word2vec file; its content shows whether it is text or binary. Nothing in it is unpickled.

    Args:
        path: the file.
        only: words to read; None reads all. A file of millions then takes no more memory than these words.

    Raises:
        UserError: the file is missing, no word2vec file or cut short, or a vector is not finite.
    """
    wanted = None if only is None else set(only)
    found: dict[str, np.ndarray] = {}
    for word, values in _entries(Path(path).expanduser(), wanted):
        found.setdefault(word, values)
    table = np.stack(list(found.values())) if found else np.zeros((0, dimension(path)), np.float32)
    vectors = torch.from_numpy(table)
    broken = [word for word, finite in zip(found, vectors.isfinite().all(1).tolist()) if not finite]
    require(not broken, f"{path}: the vectors of {len(broken)} words hold NaN or infinity, such as {broken[:1]}")
    return WordVectorTable(list(found), vectors)


def dimension(path: Path) -> int:
    """Return the dimension of a file's vectors."""
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
    """Return the number of vectors, their dimension, and the offset of the first one in bytes."""
    line = file[: min(len(file), 64)].partition(b"\n")[0]
    fields = line.split()
    expected = "its first line should give count and dimension, as wv.save_word2vec_format of a gensim model writes it"
    require(len(fields) == 2 and all(map(bytes.isdigit, fields)), f"{path} is no word2vec file: {expected}")
    count, dim = map(int, fields)
    require(count > 0 and dim > 0, f"{path} holds {count} vectors of {dim} dimensions")
    return count, dim, len(line) + 1


def _entries(path: Path, wanted: set[str] | None) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each wanted word with its vector (D,) float32, in the file's order."""
    with _opened(path) as file:
        count, dim, at = _header(file, path)
        read = _text if _is_text(file[at : at + _FIRST_LINE].partition(b"\n")[0], dim) else _binary
        yield from read(file, path, count, dim, at, wanted)


def _is_text(line: bytes, dim: int) -> bool:
    try:
        return len([float(value) for value in line.split()[1:]]) == dim
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
        require(len(values) == dim, f"{path}, line {number + 2}: {word!r} should have {dim} values")
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
    """Train skip-gram vectors (Mikolov et al. 2013) with gensim; one thread makes the result reproducible.

    Args:
        sentences: lists of words, such as the tags of each image.
        dim: dimensions of a vector.
        window: words on each side that are predicted; None for the whole list, as the order of tags has no meaning.
        epochs: passes over the sentences.
        negative: random words for each predicted one.
        seed: of the initial vectors and all random choices.
        threads: CPU threads.
    """
    try:
        from gensim.models import Word2Vec
    except ImportError as error:
        raise UserError("training word vectors needs gensim: pip install 'rcg-lightning[words]'") from error
    longest = max(map(len, sentences), default=0)
    require(longest > 1, "skip-gram learns from tags of the same image, and no image has two")
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


# -- the codec of a tag generator -------------------------------------------------------------------------------------


class WordVectors(Codec):
    """The word vector of a tag, which the conditional GAN (Mirza and Osindero 2014) generates for an image.

    A checkpoint holds neither the vectors nor their path, but a hash of the vocabulary's vectors. Vectors that are
    given later must agree with it.

    Args:
        vectors: word2vec file, text or binary, with a vector for each tag; never part of a checkpoint.
        length: scale every vector to this Euclidean length; None leaves them unchanged. Neighbours are found by cosine.
    """

    makes = "word"
    stream = 2
    needs = frozenset({"tag"})

    def __init__(self, vectors: Path | None = None, length: PositiveFloat | None = None) -> None:
        self.vectors, self.length = vectors, length
        self._table: Tensor | None = None

    def extend_spec(self, spec: DataSpec) -> DataSpec:
        """Return ``spec`` with the vocabulary's vectors described; a checkpoint's description stays as it is."""
        if self.makes in spec.columns:
            if self.vectors is not None:
                self.use_vectors(self.vectors, spec)
            return spec
        require(
            self.vectors is not None,
            "WordVectors needs word vectors: make a file with rcg word-vectors, give it as --model.codec.vectors",
        )
        table = self._read(self.vectors, spec)  # type: ignore[arg-type]
        self._table = table.vectors
        columns = {**spec.columns, self.makes: {"shape": [table.vectors.shape[1]], "online": True}}
        return replace(spec, columns=columns, identities={**spec.identities, self.makes: table.identity})

    def shape(self, spec: DataSpec) -> tuple[int, ...]:
        known = spec if self.makes in spec.columns else self.extend_spec(spec)
        return tuple(known.columns[self.makes]["shape"])

    def use_vectors(self, path: Path, spec: DataSpec) -> Tensor:
        """Read the vocabulary's vectors (V, D) from ``path``, use and return them.

        Args:
            path: word2vec file.
            spec: of the generator that was trained on these vectors.

        Raises:
            UserError: the vectors have another size, or the generator was trained on other vectors.
        """
        (dim,), found = spec.columns[self.makes]["shape"], dimension(path)
        sizes = f"{path} has vectors of {found} dimensions, the generator makes {dim}"
        require(found == dim, f"{sizes}: give the file that it was trained with")
        table, known = self._read(path, spec), spec.identities.get(self.makes)
        require(
            known in (None, table.identity),
            f"{path} has other word vectors ({table.identity}) than the generator was trained on ({known}): give those",
        )
        self._table = table.vectors
        return self._table

    def scaled(self, vectors: Tensor) -> Tensor:
        """Vectors (N, D) of a file -> vectors as the generator models them."""
        return vectors if self.length is None else F.normalize(vectors, dim=1) * self.length

    def _read(self, path: Path, spec: DataSpec) -> WordVectorTable:
        words = vocabulary_of(spec)
        found = read_word_vectors(path, words)
        position = {word: number for number, word in enumerate(found.words)}
        missing = [word for word in words if word not in position]
        require(
            not missing,
            f"{len(missing)} of the {len(words)} tags, such as {', '.join(missing[:3])}, have no vector in {path}: "
            "give the same file as data.vectors, which leaves such tags out, or vectors of these (rcg word-vectors)",
        )
        chosen = torch.tensor([position[word] for word in words])
        return WordVectorTable(words, self.scaled(found.vectors[chosen]))

    def encode(self, batch: Batch) -> Tensor:
        """``batch["tag"]`` (B,) -> their word vectors (B, D)."""
        require(self._table is not None, "the word vectors are not loaded: give their file as codec.vectors")
        tag = batch["tag"]
        if self._table.device != tag.device:  # type: ignore[union-attr]
            self._table = self._table.to(tag.device)  # type: ignore[union-attr]
        return self._table[tag]  # type: ignore[index]

    def decode(self, z: Tensor) -> Tensor:
        """Return the vectors unchanged: evaluation finds the words near them."""
        return z


def vocabulary_of(spec: DataSpec) -> list[str]:
    """Return the words that ``tag`` indexes, in order; UserError if the data has no tags."""
    tags = spec.columns.get("tag", {}).get("words")
    if tags is None:
        raise UserError("the data has no tags: use TagDataModule (data.class_path) with a source that has some")
    return list(tags)

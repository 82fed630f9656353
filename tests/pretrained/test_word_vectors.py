"""Word vectors: files of word2vec and gensim, rejected files, and the codec of a tag generator."""

import struct

import pytest
import torch

from rcg_lightning.config import describe
from rcg_lightning.errors import UserError
from rcg_lightning.pretrained.word_vectors import (
    WordVectors,
    WordVectorTable,
    dimension,
    read_word_vectors,
    train_word_vectors,
)
from rcg_lightning.types import DataSpec

NAMES = ["sky", "clouds", "größe", "new_york"]
MADE = WordVectorTable(NAMES, torch.tensor([[1.5, -2.0, 1 / 3], [0.0, 1.0, 1e-20], [7.0, 8.0, 9.0], [1.0, 0.0, -1.0]]))


def spec(*words):
    return DataSpec((1, 8, 8), columns={"tag": {"shape": [], "count": len(words), "words": list(words)}})


@pytest.mark.parametrize("name", ["words.txt", "words.bin"])
def test_a_saved_table_is_read_back(name, tmp_path):
    MADE.save(tmp_path / name)
    found = read_word_vectors(tmp_path / name)
    assert found.words == NAMES
    assert torch.equal(found.vectors, MADE.vectors)
    assert dimension(tmp_path / name) == 3
    some = read_word_vectors(tmp_path / name, {"größe", "sky", "nowhere"})
    assert some.words == ["sky", "größe"]
    assert torch.equal(some.vectors, MADE.vectors[[0, 2]])


def test_binary_files_with_and_without_line_breaks(tmp_path):
    entries = [f"{word} ".encode() + struct.pack("<2f", i, -i) for i, word in enumerate(NAMES)]
    for separator in (b"", b"\n"):
        (tmp_path / "w").write_bytes(b"4 2\n" + separator.join(entries) + separator)
        assert read_word_vectors(tmp_path / "w").words == NAMES
        assert read_word_vectors(tmp_path / "w").vectors[:, 0].tolist() == [0, 1, 2, 3]


def test_files_are_exchanged_with_gensim(tmp_path):
    from gensim.models import KeyedVectors

    theirs = KeyedVectors(3)
    theirs.add_vectors(NAMES, MADE.vectors.numpy())
    for binary, name in ((False, "theirs.txt"), (True, "theirs.bin")):
        theirs.save_word2vec_format(str(tmp_path / name), binary=binary)
        found = read_word_vectors(tmp_path / name)
        assert found.words == NAMES
        assert torch.allclose(found.vectors, MADE.vectors)
        MADE.save(tmp_path / f"our_{name}")
        again = KeyedVectors.load_word2vec_format(str(tmp_path / f"our_{name}"), binary=binary)
        assert again.index_to_key == NAMES
        assert torch.allclose(torch.from_numpy(again.vectors), MADE.vectors)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, "no word vectors at"),
        (b"", "is empty"),
        (b"\x80\x04\x95gensim", "no word2vec file: .* count and dimension"),
        (b"sky 0.5 0.25\n", "no word2vec file"),
        (b"3 2\nsky 1 2\nsea 3 4\n", "holds 2 of the 3"),
        (b"2 2\nsky 1 2\nsea 3 x\n", "line 3: 'sea' should have 2 values"),
        (b"2 2\nsky 1 2\nsea 3\n", "line 3: 'sea' should have 2 values"),
        (b"1 2\nsky nan 2\n", "NaN or infinity, such as .'sky'"),
        (b"2 2\nsky " + struct.pack("<2f", 1, 2) + b"sea " + struct.pack("<f", 1), "holds 1 of the 2"),
    ],
)
def test_unreadable_files_are_reported(content, line, tmp_path):
    if content is not None:
        (tmp_path / "w.txt").write_bytes(content)
    with pytest.raises(UserError, match=line):
        read_word_vectors(tmp_path / "w.txt")


def test_a_word_with_a_space_is_rejected(tmp_path):
    with pytest.raises(UserError, match="no spaces, unlike 'new york'"):
        WordVectorTable(["new york"], torch.ones(1, 2)).save(tmp_path / "w.txt")
    assert not (tmp_path / "w.txt").exists()


def test_skip_gram_vectors_of_common_sentences_are_similar():
    sentences = [["cat", "dog", "pet"], ["car", "road", "bus"]] * 60
    made = train_word_vectors(sentences, dim=8, epochs=20, seed=3)
    assert sorted(made.words) == ["bus", "car", "cat", "dog", "pet", "road"]
    unit = torch.nn.functional.normalize(made.vectors, dim=1)
    cosine = {(a, b): float(unit[i] @ unit[j]) for i, a in enumerate(made.words) for j, b in enumerate(made.words)}
    assert min(cosine["cat", "dog"], cosine["car", "bus"]) > max(cosine["cat", "car"], cosine["dog", "road"])
    assert torch.equal(train_word_vectors(sentences, dim=8, epochs=20, seed=3).vectors, made.vectors)
    with pytest.raises(UserError, match="no image has two"):
        train_word_vectors([["cat"], ["dog"]])


def test_the_codec_maps_tags_to_vectors_in_the_vocabularys_order(tmp_path):
    MADE.save(tmp_path / "w.bin")
    codec = WordVectors(tmp_path / "w.bin", length=2.0)
    described = codec.extend_spec(spec("größe", "sky"))
    assert codec.shape(described) == (3,)
    z = codec.encode({"tag": torch.tensor([1, 0, 1])})
    assert torch.allclose(z, 2 * torch.nn.functional.normalize(MADE.vectors[[0, 2, 0]], dim=1))
    assert torch.equal(codec.decode(z), z)
    assert describe(codec)["init_args"] == {"vectors": None, "length": 2.0}
    # from a checkpoint: without a path, of known size; its vectors are given later
    later = WordVectors(length=2.0)
    assert later.extend_spec(described) is described
    assert later.shape(described) == (3,)
    with pytest.raises(UserError, match=r"codec\.vectors"):
        later.encode({"tag": torch.tensor([0])})
    MADE.save(tmp_path / "w.txt")  # the same vectors in another file
    assert torch.equal(
        later.use_vectors(tmp_path / "w.txt", described), codec.use_vectors(tmp_path / "w.bin", described)
    )


def test_other_vectors_are_rejected(tmp_path):
    MADE.save(tmp_path / "w.bin")
    codec = WordVectors(tmp_path / "w.bin")
    described = codec.extend_spec(spec("sky", "clouds"))
    WordVectorTable(NAMES, torch.ones(4, 5)).save(tmp_path / "wide.txt")
    with pytest.raises(UserError, match="5 dimensions, the generator makes 3"):
        codec.use_vectors(tmp_path / "wide.txt", described)
    WordVectorTable(NAMES, MADE.vectors + 1).save(tmp_path / "other.txt")
    with pytest.raises(UserError, match="has other word vectors"):
        codec.use_vectors(tmp_path / "other.txt", described)
    with pytest.raises(UserError, match="has other word vectors"):
        WordVectors(tmp_path / "other.txt").extend_spec(described)
    with pytest.raises(UserError, match="1 of the 2 tags, such as sea"):
        codec.extend_spec(spec("sky", "sea"))
    with pytest.raises(UserError, match="rcg word-vectors"):
        WordVectors().extend_spec(spec("sky"))
    with pytest.raises(UserError, match="no tags: use TagDataModule"):
        codec.extend_spec(DataSpec((1, 8, 8)))

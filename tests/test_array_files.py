"""Files of arrays: what they claim is compared with what they hold, before anything is allocated."""

import io
import zipfile

import numpy as np
import pytest

from rcg_lightning.array_files import mapped, read_npz
from rcg_lightning.errors import UserError
from rcg_lightning.evaluation.sample_readers import open_samples


def npy(array=None, header=None, data=b""):
    """The content of an .npy with an array, or with a header and data of its own."""
    file = io.BytesIO()
    if array is not None:
        np.save(file, array)
        return file.getvalue()
    text = header.encode("latin1")
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def claims(shape, dtype="'|u1'"):
    return f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}"


def archive(path, content, name="arr_0.npy"):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(name, content)
    return path


def test_arrays_are_read(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, one=np.arange(6).reshape(2, 3), name=np.asarray("x"), empty=np.zeros((0, 2)))
    found = read_npz(path, ("one", "name", "empty", "absent"), "arrays")
    assert found["one"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert str(found["name"]) == "x"
    assert found["empty"].shape == (0, 2)
    assert found.keys() == {"one", "name", "empty"}


@pytest.mark.parametrize(
    "content",
    [
        npy(header=claims("(1000000000000,)"), data=b"x" * 100),
        npy(header=claims("(-1,)"), data=b"x" * 100),
        npy(header=claims("(100,)"), data=b"x" * 99),
        npy(header=claims("(1,)", "'|O'"), data=b"x" * 8),
        npy(header=claims("(1,)", "[('a', '<f4')]"), data=b"x" * 4),
        npy(header="(" * 5000, data=b""),
        npy(header="{}"),
        b"\x93NUMPY\x03\x00\x10\x00\x00\x00",
        b"",
        npy(np.arange(4))[:20],
    ],
)
def test_hostile_headers_are_one_line(tmp_path, content):
    with pytest.raises(UserError, match=r"a\.npz is damaged \(arr_0\.npy") as caught:
        read_npz(archive(tmp_path / "a.npz", content), ["arr_0"], "images")
    assert "\n" not in str(caught.value)


def test_arrays_far_larger_than_their_file_are_rejected_before_they_are_unpacked(tmp_path, monkeypatch):
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file, file.open("arr_0.npy", "w") as member:
        size = 4000 * 64 * 64 * 3  # bytes
        member.write(npy(header=claims("(4000, 64, 64, 3)")))
        for _ in range(size // 2**16):
            member.write(bytes(2**16))
    with monkeypatch.context() as patched:
        patched.setattr("zipfile.ZipFile.open", None)
        patched.setattr("rcg_lightning.array_files._SMALL", 2**20)
        with pytest.raises(UserError, match=r"bomb\.npz \(49,152,128 bytes unpacked\) claims.*RCG_LIMIT_EXPANSION"):
            open_samples(path)
    assert len(open_samples(path)) == 4000  # small enough


def test_the_limit_of_expansion_can_be_raised(tmp_path, monkeypatch):
    monkeypatch.setattr("rcg_lightning.array_files._SMALL", 1000)
    path = archive(tmp_path / "a.npz", npy(np.zeros((10, 100, 100, 3), np.uint8)))
    with pytest.raises(UserError, match=r"times the bytes of its file, the limit is 100.*RCG_LIMIT_EXPANSION"):
        open_samples(path)
    monkeypatch.setenv("RCG_LIMIT_EXPANSION", "100000")
    assert len(open_samples(path)) == 10


def test_a_header_that_python_fails_to_parse_once_is_no_damage(tmp_path, monkeypatch):
    np.save(tmp_path / "one.npy", np.arange(3))
    load, failures = np.load, [SystemError("AST constructor recursion depth mismatch")]

    def failing_once(*args, **settings):
        if failures:
            raise failures.pop()
        return load(*args, **settings)

    monkeypatch.setattr(np, "load", failing_once)
    assert mapped(tmp_path / "one.npy").tolist() == [0, 1, 2]

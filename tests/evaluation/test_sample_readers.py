import logging

import numpy as np
import pytest
import torch
from PIL import Image

from rcg_lightning.data.decode import decode, to_pil
from rcg_lightning.data.store_writer import StoreWriter
from rcg_lightning.data.transforms import CenterCrop
from rcg_lightning.errors import UserError
from rcg_lightning.evaluation.reference import reference_of
from rcg_lightning.evaluation.sample_readers import open_samples
from rcg_lightning.evaluation.scorer import score


def write_folder(folder, images, suffix="png"):
    folder.mkdir(parents=True)
    for number, image in enumerate(images.numpy()):
        to_pil(image).save(folder / f"{number:06d}.{suffix}")


def test_saved_images_score_exactly_as_in_memory(data, extractor, samples, tmp_path):
    write_folder(tmp_path / "png", samples)
    np.savez(tmp_path / "samples.npz", arr_0=samples.permute(0, 2, 3, 1).numpy())
    reference = reference_of(data, extractor, None)
    in_memory = score(samples, reference, extractor)
    for path in (tmp_path / "png", tmp_path / "samples.npz"):
        opened = open_samples(path)
        assert (len(opened), opened.shape) == (300, (1, 8, 8))
        assert score(opened, reference, extractor) == in_memory


def test_a_store_of_samples_is_read(samples, tmp_path):
    images = samples.permute(0, 2, 3, 1).numpy()
    writer = StoreWriter(tmp_path / "store", len(images), 1, 128, {})
    for shard in writer.pending(0, 1):
        writer.write(shard, {"image": images[shard.start : shard.stop, None]})
    writer.finish({"image": {}})
    opened = open_samples(tmp_path / "store")
    assert torch.equal(torch.cat(list(opened)), samples)
    assert torch.equal(opened.first(5), samples[:5])


def test_colour_folders_and_chosen_channels(tmp_path):
    colour = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    write_folder(tmp_path / "colour", colour)
    assert torch.equal(open_samples(tmp_path / "colour").first(9), colour)
    assert open_samples(tmp_path / "colour", channels=1).shape == (1, 8, 8)


def test_mixed_formats_are_warned_of(samples, tmp_path, caplog):
    write_folder(tmp_path / "mixed", samples[:3])
    write_folder(tmp_path / "mixed" / "more", samples[:2], "jpg")
    with caplog.at_level(logging.WARNING):
        assert len(open_samples(tmp_path / "mixed")) == 5
    assert "3 PNG, 2 JPEG" in caplog.text


def test_unusable_samples_are_rejected(samples, tmp_path):
    (tmp_path / "empty").mkdir()
    write_folder(tmp_path / "broken", samples[:3])
    (tmp_path / "broken" / "000001.png").write_bytes(b"not an image")
    write_folder(tmp_path / "sizes", samples[:2])
    Image.new("L", (9, 9)).save(tmp_path / "sizes" / "9.png")
    np.savez(tmp_path / "floats.npz", arr_0=np.zeros((2, 8, 8, 3)))
    np.savez(tmp_path / "named.npz", other=np.zeros((2, 8, 8, 3), np.uint8))
    (tmp_path / "note.txt").write_text("hello")
    cases = {
        "empty": "no images",
        "broken": "000001.png is broken",
        "sizes": "one size",
        "floats.npz": "not uint8",
        "named.npz": "not arr_0",
        "note.txt": "neither",
        "absent": "no samples",
    }
    for name, words in cases.items():
        with pytest.raises(UserError, match=words):
            list(open_samples(tmp_path / name))


def test_images_of_mixed_sizes_are_resized(samples, tmp_path):
    folder = tmp_path / "mixed"
    write_folder(folder, samples[:2])
    Image.fromarray(np.arange(300, dtype=np.uint16).reshape(20, 15).astype(np.uint8)).save(folder / "9.png")
    with pytest.raises(UserError, match=r"9\.png is 15x20, .* one size; rcg evaluate gives them one with --resize"):
        list(open_samples(folder))
    resized = open_samples(folder, resize=12)
    assert (resized.shape, resized.resize) == ((1, 12, 12), "shorter side 12, centre 12")
    expected = [CenterCrop(12)(decode(file.read_bytes(), 1)) for file in sorted(folder.iterdir())]
    assert torch.equal(resized.first(3), torch.stack(expected))
    np.savez(tmp_path / "it.npz", arr_0=samples.permute(0, 2, 3, 1).numpy())
    assert torch.equal(open_samples(tmp_path / "it.npz", resize=12).first(1), CenterCrop(12)(samples[0])[None])
    assert open_samples(tmp_path / "it.npz").resize == "as is"
    with pytest.raises(UserError, match="--resize is a number of pixels, not 0"):
        open_samples(folder, resize=0)

"""Word vectors trained on tags, a generator of word vectors, and the tags that it predicts."""

import json

import numpy as np
import pytest
import torch

from rcg_lightning.data.data_module import ImageDataModule
from rcg_lightning.data.datasets import Digits
from rcg_lightning.data.store_writer import StoreWriter
from rcg_lightning.data.tag_data_module import TagDataModule
from rcg_lightning.data.tagged_datasets import DigitTags
from rcg_lightning.metrics import tag_prediction
from rcg_lightning.pretrained.word_vectors import WordVectorTable, read_word_vectors
from rcg_lightning.stages.adversarial import AdversarialStage

QUICK = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.logger=false"]
SOON = ["--samples", "5", "--nearest", "2", "--tags", "4", "--accelerator", "cpu"]


@pytest.fixture(scope="module")
def folder_of_stores(tmp_path_factory):
    """A folder with stores whose representations are the digits' classes with a little noise."""
    folder = tmp_path_factory.mktemp("tags")
    data = ImageDataModule(Digits(limit=200))
    for split in ("train", "eval"):
        labels = data.images(split).labels
        rows = np.eye(10, dtype=np.float32)[labels] + np.random.default_rng(0).normal(0, 0.1, (len(labels), 10))
        writer = StoreWriter(folder / split, len(rows), 1, 512, {**data.store_identity(split), "representation": "it"})
        writer.write(writer.shards[0], {"representation": rows[:, None].astype(np.float32)})
        writer.finish({})
    return folder


@pytest.fixture
def data_options(folder_of_stores):
    return [
        "--data.source.limit=200",
        f"--data.stores=[{folder_of_stores / 'train'}]",
        f"--data.eval_stores=[{folder_of_stores / 'eval'}]",
    ]


@pytest.fixture(scope="module")
def trained(folder_of_stores):
    """Checkpoint of a generator trained by the commands, and its word vectors."""
    from rcg_lightning.cli.main import main

    words, run = folder_of_stores / "words.txt", folder_of_stores / "run"
    limit = "--data.source.limit=200"
    assert (
        main(["word-vectors", "--config", "digits/tags_data", limit, "--dim", "6", "--epochs", "5", f"--out={words}"])
        == 0
    )
    stores = [f"--data.stores=[{folder_of_stores / 'train'}]", f"--data.eval_stores=[{folder_of_stores / 'eval'}]"]
    fit = [limit, *stores, f"--model.codec.vectors={words}", "--trainer.max_steps=30", *QUICK]
    assert main(["fit", "--config", "digits/tags", *fit, f"--trainer.default_root_dir={run}"]) == 0
    return run / "last.ckpt", words


def test_word_vectors_are_trained_on_the_frequent_tags(rcg, tmp_path):
    out = tmp_path / "w.bin"
    settings = ["--config", "digits/tags_data", "--data.source.limit=200", "--dim", "6", "--epochs", "2"]
    code, output, error = rcg("word-vectors", *settings, "--data.min_count", "60", "--out", out)
    assert code == 0, error
    known = TagDataModule(DigitTags(limit=200), min_count=60).vocabulary
    assert 3 < len(known) < 22
    found = read_word_vectors(out)
    assert set(found.words) == set(known)
    assert found.vectors.shape[1] == 6
    assert f"{out}: {len(known)} words, 6 dimensions each, from the tags of 200 images" in output
    assert "near " in output


def test_a_generator_is_trained_saved_without_paths_and_predicts_tags(rcg, trained, data_options, tmp_path):
    checkpoint, words = trained
    content = torch.load(checkpoint, weights_only=True)
    assert str(words) not in str(content["stage"])
    assert len(content["data_spec"]["identities"]["word"]) == 16
    settings = ["--checkpoint", checkpoint, "--vectors", words, "--config", "digits/tags_data", *data_options, *SOON]
    code, output, error = rcg("tag", *settings, "--show", "2", "--out", tmp_path / "it.json")
    assert code == 0, error
    found = json.loads((tmp_path / "it.json").read_text())
    assert len(found["images"]) == 451
    assert all(len(row["predicted"]) == 4 for row in found["images"])
    metrics = found["metrics"]
    assert set(metrics) == {
        f"{kind}/{row}_451_eval"
        for kind in ("precision@4", "recall@4", "map")
        for row in ("generated", "frequency", "neighbours", "perfect")
    }
    assert metrics["map/perfect_451_eval"] == metrics["precision@4/perfect_451_eval"] == 1
    assert metrics["map/neighbours_451_eval"] > 0.95  # these representations are the classes
    right = [set(row["predicted"]) & set(row["tags"]) for row in found["images"]]
    assert metrics["precision@4/generated_451_eval"] == pytest.approx(np.mean([len(words) / 4 for words in right]))
    assert output.count("Digits evaluation[") == 2
    # seeds determine the samples, for any batches
    again = tmp_path / "again.json"
    assert rcg("tag", *settings, "--data.batch_size", "37", "--out", again)[0] == 0
    assert json.loads(again.read_text())["images"] == found["images"]


def test_votes_come_from_the_generators_samples(rcg, trained, data_options, folder_of_stores, tmp_path):
    checkpoint, words = trained
    settings = ["--checkpoint", checkpoint, "--vectors", words, "--config", "digits/tags_data", *data_options, *SOON]
    assert rcg("tag", *settings, "--first_seed", "7", "--out", tmp_path / "it.json")[0] == 0
    row = json.loads((tmp_path / "it.json").read_text())["images"][3]
    generator = AdversarialStage.load(checkpoint)
    vectors = generator.codec.use_vectors(words, generator.spec)
    representation = torch.from_numpy(np.load(next(folder_of_stores.glob("eval/*representation.npy")))[3]).expand(5, -1)
    generated = generator.sample({"seed": 7 + 15 + torch.arange(5), "representation": representation})
    order = tag_prediction.vote(generated[None], vectors, 2)[0].argsort(descending=True, stable=True)
    known = generator.spec.columns["tag"]["words"]
    assert row["predicted"] == [known[i] for i in order[:4]]


def test_all_words_of_the_file_can_be_predicted(rcg, trained, data_options, tmp_path):
    checkpoint, words = trained
    table = read_word_vectors(words)
    more = WordVectorTable([*table.words, "unknown"], torch.cat([table.vectors, table.vectors[:1]]))
    more.save(tmp_path / "more.bin")
    settings = ["--checkpoint", checkpoint, "--vectors", tmp_path / "more.bin", "--config", "digits/tags_data"]
    settings += [*data_options, *SOON, "--out", tmp_path / "it.json"]
    counts = []
    for words in ([], ["--all_words", "true"]):
        assert rcg("tag", *settings, *words)[0] == 0
        counts.append(json.loads((tmp_path / "it.json").read_text())["settings"]["vocabulary"])
    assert counts == [22, 23]


def test_unusable_inputs_are_rejected_in_one_line(raised, trained, data_options, tmp_path):
    checkpoint, words = trained
    settings = ["--checkpoint", checkpoint, "--config", "digits/tags_data", *SOON, "--vectors"]
    WordVectorTable(["odd"], torch.ones(1, 5)).save(tmp_path / "wide.txt")
    assert "has vectors of 5 dimensions, the generator makes 6" in raised(
        "tag", *settings, tmp_path / "wide.txt", *data_options
    )
    table = read_word_vectors(words)
    WordVectorTable(table.words, table.vectors + 1).save(tmp_path / "other.txt")
    assert "has other word vectors" in raised("tag", *settings, tmp_path / "other.txt", *data_options)
    assert "DigitTags has no annotations" in raised("tag", *settings, words, *data_options, "--truth", "annotations")
    assert "make one with rcg extract" in raised("tag", *settings, words, *data_options[:2])
    assert "30 nearest words were asked for" in raised("tag", *settings, words, *data_options, "--nearest", "30")


def test_a_generator_of_images_predicts_no_tags(raised, data_options, make_stage, save, digits, tmp_path):
    stage = make_stage().build(digits().spec)
    settings = ["--vectors", tmp_path / "w.txt", "--config", "digits/tags_data", *data_options]
    output = raised("tag", "--checkpoint", save(stage, tmp_path / "it.ckpt"), *settings)
    assert "makes images, not words: give a generator that was trained with WordVectors" in output


def test_training_continues_only_with_the_same_words(raised, rcg, trained, data_options, tmp_path):
    checkpoint, words = trained
    settings = ["fit", "--config", "digits/tags", *data_options, *QUICK, "--trainer.max_steps=31"]
    settings += [f"--trainer.default_root_dir={tmp_path}", f"--ckpt_path={checkpoint}"]
    table = read_word_vectors(words)
    WordVectorTable(table.words, table.vectors * 2 + 1).save(tmp_path / "other.txt")
    assert "the stage was trained on word" in raised(*settings, f"--model.codec.vectors={tmp_path / 'other.txt'}")
    fewer = raised(*settings, f"--model.codec.vectors={words}", "--data.min_count=30")
    assert fewer.startswith(("the stage was trained on tag", "the stage was trained on word"))  # both are others
    assert rcg(*settings, f"--model.codec.vectors={words}")[0] == 0
    assert "give it as --model.codec.vectors" in raised(*settings[:-1])

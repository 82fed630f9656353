import jsonargparse
import pytest
from jsonargparse import ArgumentParser

from rcg_lightning.pretrained.encoders import Encoder


@pytest.mark.parametrize(
    "config",
    [
        {"class_path": "rcg_lightning.pretrained.encoders.MoCoV3Encoder", "init_args": {"weights": "vit-b.pth.tar"}},
        {"class_path": "rcg_lightning.pretrained.encoders.DINOEncoder", "init_args": {"head": False}},
        {"class_path": "rcg_lightning.pretrained.timm_encoder.TimmEncoder", "init_args": {"name": "resnet50.a1_in1k"}},
        {
            "class_path": "rcg_lightning.pretrained.trained_encoder.TrainedEncoder",
            "init_args": {
                "folder": "runs/encoder",
                "normalise": {"class_path": "rcg_lightning.pretrained.normalisation.UnitLength"},
            },
        },
    ],
)
def test_every_encoder_can_be_written_in_a_config(config):
    parser = ArgumentParser()
    parser.add_argument("--encoder", type=Encoder)
    encoder = parser.instantiate_classes(parser.parse_object({"encoder": config})).encoder
    assert type(encoder).__name__ == config["class_path"].rpartition(".")[2]
    expected = config["init_args"].get("normalise", {"class_path": ".PerSample"})["class_path"]
    assert type(encoder.normalise).__name__ == expected.rpartition(".")[2]


def test_unknown_settings_are_errors():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--encoder", type=Encoder)
    config = {"class_path": "rcg_lightning.pretrained.encoders.MoCoV3Encoder", "init_args": {"wieghts": "x"}}
    with pytest.raises(jsonargparse.ArgumentError):
        parser.parse_object({"encoder": config})

import numpy as np
import pytest
import timm
import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from rcg_lightning.errors import UserError
from rcg_lightning.metrics.feature_extractors import (
    ClassifierExtractor,
    EncoderExtractor,
    InceptionExtractor,
)
from rcg_lightning.networks.convnet import SmallConvNet
from rcg_lightning.pretrained.encoders import Encoder
from rcg_lightning.pretrained.network_folder import save_network
from rcg_lightning.pretrained.normalisation import Identity
from rcg_lightning.pretrained.preprocess import Preprocess
from rcg_lightning.pretrained.timm_encoder import TimmEncoder
from rcg_lightning.pretrained.trained_encoder import TrainedEncoder, encoder_settings


def test_inception_equals_torch_fidelitys_on_colour_and_grey(inception_weights):
    theirs = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(inception_weights)
    )
    ours = InceptionExtractor(inception_weights)
    grey = torch.randint(0, 256, (2, 1, 32, 32), dtype=torch.uint8)
    features, logits, spatial = ours(grey)
    expected = theirs(grey.repeat(1, 3, 1, 1))
    shapes = features.shape[1], logits.shape[1], spatial.shape[1]
    assert shapes == (ours.dim, ours.classes, ours.spatial_dim) == (2048, 1008, 2023)
    for our, their in ((features, expected[0]), (logits, expected[1])):  # normalisations are in the convolutions
        assert float((our - their).abs().max()) < 1e-5 * float(their.abs().max())
    assert ours.identity.startswith("inception-")


def test_spatial_features_are_seven_channels_of_the_adm_suites_layer_with_channels_last(inception_weights):
    network = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(inception_weights)
    )
    seen = {}
    network.Mixed_6d.register_forward_hook(lambda block, inputs, output: seen.update(joined=output))
    images = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    network(images)
    expected = seen["joined"][:, :7].permute(0, 2, 3, 1).numpy()  # the 1 x 1 branch comes first, (2, 17, 17, 7)
    spatial = InceptionExtractor(inception_weights)(images).spatial.reshape(2, 17, 17, 7)
    np.testing.assert_allclose(spatial, expected, rtol=1e-3, atol=1e-5)
    assert expected.std() > 0


def test_inception_weights_are_never_unpickled(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "touched"), "w"))

    torch.save({"Conv2d_1a_3x3.conv.weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="objects in addition to weights"):
        InceptionExtractor(tmp_path / "evil.pth").setup()
    assert not (tmp_path / "touched").exists()


def test_wrong_weights_are_rejected(tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="does not hold"):
        InceptionExtractor(tmp_path / "other.pth").setup()
    with pytest.raises(UserError, match=r"no Inception weights at .*none\.pth: get https"):
        InceptionExtractor(tmp_path / "none.pth").setup()


def test_a_classifier_reads_the_images_it_was_trained_on(extractor):
    features, logits, _ = extractor(torch.zeros(3, 1, 8, 8, dtype=torch.uint8))
    assert (features.shape, logits.shape) == ((3, 12), (3, 5))
    with pytest.raises(UserError, match="train one"):
        extractor(torch.zeros(3, 1, 9, 9, dtype=torch.uint8))
    with pytest.raises(UserError, match="to_uint8"):
        extractor(torch.zeros(3, 1, 8, 8))


def test_a_network_of_another_kind_is_no_classifier(tmp_path):
    save_network(tmp_path / "net", SmallConvNet(1, 8), {"mean": [0.5]})
    with pytest.raises(UserError, match="no classifier"):
        ClassifierExtractor(tmp_path / "net").setup()


class Brightness(Encoder):
    """Each channel's mean, as a representation."""

    dim = 3
    identity = "brightness"

    def setup(self):
        pass

    def __call__(self, image):
        return image.mean((2, 3))


def test_an_encoders_representation_is_a_feature():
    images = torch.full((4, 3, 8, 8), 51, dtype=torch.uint8)
    extractor = EncoderExtractor(Brightness())
    features, logits, _ = extractor(images)
    assert logits is None
    torch.testing.assert_close(features, torch.full((4, 3), 0.2))
    assert (extractor.dim, extractor.classes, extractor.identity) == (3, None, "encoder-brightness")


def test_a_timm_model_from_a_local_file_is_an_extractor(tmp_path):
    torch.manual_seed(0)
    name, size = "vit_small_patch14_dinov2.lvd142m", 28
    theirs = timm.create_model(name, img_size=size, num_classes=0).eval()
    torch.save(theirs.state_dict(), tmp_path / "dinov2.pth")
    extractor = EncoderExtractor(TimmEncoder(name, tmp_path / "dinov2.pth", size=size, normalise=Identity()))
    extractor.setup()
    images = torch.randint(0, 256, (3, 3, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(theirs.pretrained_cfg[name])[:, None, None] for name in ("mean", "std"))
    with torch.no_grad():
        expected = theirs((images / 255 - mean) / std)
    features, logits, spatial = extractor(images)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    assert (extractor.dim, logits, spatial) == (384, None, None)
    other = EncoderExtractor(TimmEncoder(name, tmp_path / "dinov2.pth", size=size))
    assert other.identity != extractor.identity  # another normalisation gives other metrics


def test_the_message_about_missing_weights_of_an_encoder_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"none\.pth") as caught:
        EncoderExtractor(TimmEncoder("vit_tiny_patch16_224", tmp_path / "none.pth")).setup()
    assert "\n" not in str(caught.value)


def test_an_encoder_trained_here_is_an_extractor(tmp_path):
    torch.manual_seed(0)
    network = SmallConvNet(1, 8, (8, 12))
    save_network(tmp_path / "encoder", network, encoder_settings(Preprocess((0.5,), (0.5,)), head=False))
    extractor = EncoderExtractor(TrainedEncoder(tmp_path / "encoder", normalise=Identity()))
    images = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(extractor(images).pooled, network.eval()(images / 255 * 2 - 1), rtol=1e-5, atol=1e-6)
    assert extractor.dim == 12

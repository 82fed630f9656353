import pytest
import torch

from rcg_lightning.errors import UserError
from rcg_lightning.evaluation.extractors import (
    INCEPTION_FILE,
    ClassifierExtractor,
    EncoderExtractor,
    InceptionExtractor,
)
from rcg_lightning.networks.convnet import SmallConvNet
from rcg_lightning.pretrained.encoders import Encoder
from rcg_lightning.pretrained.network_folder import save_network


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory):
    """Random weights in torch-fidelity's layout."""
    from torch_fidelity import feature_extractor_inceptionv3 as theirs

    class Empty(theirs.FeatureExtractorInceptionV3):
        def load_state_dict(self, *args, **kwargs):
            return None

    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save({}, path)
    torch.manual_seed(0)
    network = Empty("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path))
    torch.save(network.state_dict(), path)
    return path


def test_inception_is_torch_fidelitys_on_colour_and_grey(inception_weights):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    theirs = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(inception_weights)
    )
    ours = InceptionExtractor(inception_weights)
    grey = torch.randint(0, 256, (2, 1, 32, 32), dtype=torch.uint8)
    features, logits, spatial = ours(grey)
    expected = theirs(grey.repeat(1, 3, 1, 1))
    assert (features.shape[1], logits.shape[1]) == (ours.dim, ours.classes) == (2048, 1008)
    torch.testing.assert_close(features, expected[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(logits, expected[1], rtol=1e-4, atol=1e-5)
    assert ours.identity.startswith("inception-")


def test_missing_inception_weights_say_what_to_fetch_and_where_to_put_it(tmp_path, monkeypatch):
    def offline(url, path, *args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError) as caught:
        InceptionExtractor().setup()
    message = str(caught.value)
    assert "\n" not in message
    for part in ("https://", INCEPTION_FILE, str(tmp_path / "checkpoints"), "weights"):
        assert part in message


def test_inception_weights_are_never_unpickled(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "touched"), "w"))

    torch.save({"Conv2d_1a_3x3.conv.weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="not opened"):
        InceptionExtractor(tmp_path / "evil.pth").setup()
    assert not (tmp_path / "touched").exists()


def test_wrong_weights_are_told_apart(tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="does not hold"):
        InceptionExtractor(tmp_path / "other.pth").setup()
    with pytest.raises(UserError, match="correct the path"):
        InceptionExtractor(tmp_path / "none.pth").setup()


def test_a_classifier_reads_the_pictures_it_was_trained_on(extractor):
    features, logits, spatial = extractor(torch.zeros(3, 1, 8, 8, dtype=torch.uint8))
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
    features, logits, spatial = extractor(images)
    assert logits is None
    torch.testing.assert_close(features, torch.full((4, 3), 0.2))
    assert (extractor.dim, extractor.classes, extractor.identity) == (3, None, "encoder-brightness")

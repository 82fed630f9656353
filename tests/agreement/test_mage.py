"""RCG's MAGE: masks, forward, loss, gradients and parallel decoding from the recorded noise."""

import json
import re

import pytest
import torch

from rcg_lightning.core.guidance import Guidance
from rcg_lightning.core.masking import (
    MaskRatio,
    ParallelDecoding,
    mask_schedule,
    masked_cross_entropy,
    masked_positions,
)
from rcg_lightning.networks.conditioner import Conditioner
from rcg_lightning.networks.mage import MAGE
from rcg_lightning.official.mage import LABELS, NULL, UNUSED, mage_name, mage_weights
from rcg_lightning.pretrained.checkpoints import load_strictly, read_checkpoint
from rcg_lightning.stages.optimization import AdamW
from rcg_lightning.types import Classes, Vector

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
pytestmark = pytest.mark.golden("mage")


class Model:
    """Our network and conditioner with the weights of an official file."""

    def __init__(self, golden):
        arch = golden.arch
        self.io, self.codes = golden.io, golden.config["vocabulary"]["codebook"]
        self.official = read_checkpoint(golden.checkpoint, "MAGE")["model"]
        self.parts = ()
        if arch["use_rep"]:
            self.parts = (Vector(arch["rep_dim"]),)
        elif arch["use_class_label"]:
            self.parts = (Classes(len(self.official[LABELS])),)
        self.drop = arch["rep_drop_prob"]
        self.network = MAGE(
            arch["embed_dim"],
            arch["depth"],
            arch["num_heads"],
            arch["decoder_embed_dim"],
            arch["decoder_depth"],
            arch["decoder_num_heads"],
            arch["mlp_ratio"],
            arch["dropout"],
        )
        self.conditioner = Conditioner(drop=0.1 if arch["use_rep"] else 0.0)
        self.weights = mage_weights({"model": self.official}, self.parts)
        self.network.build(arch["seq_len"], self.codes, self.conditioner.build(self.parts, arch["embed_dim"]))
        load_strictly(self.network, self.weights.network, "the file")
        load_strictly(self.conditioner, self.weights.conditioner, "the file")
        self.network.eval()
        self.conditioner.eval()

    def raw(self, vector, label):
        """The recorded condition, from the entry ``vector`` or ``label``."""
        names = [label if isinstance(part, Classes) else vector for part in self.parts]
        return tuple(self.io[name] for name in names)

    def condition(self, vector, n, label="in.class_label", dropped=None):
        c = self.conditioner(self.raw(vector, label), n)
        return c if dropped is None else torch.where(dropped[:, None], self.conditioner.null(n), c)

    def training(self, run, count):
        """Inputs of a recorded training step: tokens, masked, visible, c."""
        tokens = self.io["out.gt_indices"]
        masked, visible = masked_positions(self.io[f"in.{run}.mask_noise"], self.io[f"in.{run}.mask_rate"], count)
        uniform = self.io.get(f"in.{run}.rep_drop_uniform")
        dropped = None if uniform is None else uniform < self.drop
        if dropped is not None:
            assert torch.equal(dropped, self.io[f"out.{run}.rep_dropped"])
        return tokens, masked, visible, self.condition("out.rep_from_images", len(tokens), dropped=dropped)

    def all_scores(self, h):
        """Logits over the whole vocabulary, which training and sampling never need."""
        return self.network.head(h, self.network.words.weight)


def runs(golden, kind):
    found = sorted({name.split(".")[1] for name in golden.io if name.startswith(f"in.{kind}")})
    assert found
    return found


def dropped_count(golden):
    ratio = golden.arch["mask_ratio"]
    return MaskRatio(ratio["mu"], ratio["std"], ratio["min"], ratio["max"]).dropped(golden.arch["seq_len"])


@pytest.mark.golden("schedules")
def test_mask_rates(golden):
    """The inverse of the truncated normal, at the recorded u, and back from the recorded distribution."""
    recorded = [(float(name.partition("_mu")[2]), name) for name in golden.io if name.startswith("maskratio.ppf_mu")]
    assert recorded
    for mean, name in recorded:
        ratio = MaskRatio(mean)
        torch.testing.assert_close(ratio(golden.io["maskratio.u"]), golden.io[name], rtol=1e-6, atol=1e-8)
        reached = golden.io[name.replace("ppf", "cdf")]
        rates = torch.linspace(ratio.low, ratio.high, len(reached), dtype=torch.float64)
        torch.testing.assert_close(ratio(reached), rates, rtol=1e-6, atol=1e-8)


def test_masks(golden):
    model = Model(golden)
    for run in runs(golden, "train"):
        _, masked, visible, _ = model.training(run, dropped_count(golden))
        assert torch.equal(masked, golden.io[f"out.{run}.token_all_mask"][:, 1:])
        seen = ~golden.io[f"out.{run}.token_drop_mask"][:, 1:]
        assert torch.equal(torch.zeros_like(seen).scatter(1, visible, True), seen)
        assert torch.equal(visible, visible.sort(1).values)


def test_training_forward_and_loss(golden):
    model, io = Model(golden), golden.io
    for run in runs(golden, "train"):
        tokens, masked, visible, c = model.training(run, dropped_count(golden))
        with torch.no_grad():
            encoded = model.network.encode(model.network.embed(tokens, masked, c), visible)
            scores = model.all_scores(model.network.decode(encoded, masked, visible))
            logits = model.network(tokens, masked, c, visible)
        torch.testing.assert_close(encoded[:1], io[f"out.{run}.encoder_output_first_sample"], **CLOSE)
        torch.testing.assert_close(scores[:2, :3], io[f"out.{run}.logits_full_first3pos"], **CLOSE)
        stride = -(-logits.shape[1] // io[f"out.{run}.logits_codebook_stride4"].shape[1])
        torch.testing.assert_close(logits[:, ::stride], io[f"out.{run}.logits_codebook_stride4"], **CLOSE)
        torch.testing.assert_close(logits, scores[:, 1:, : model.codes])
        loss = masked_cross_entropy(logits, tokens, masked, golden.arch["label_smoothing"]).mean()
        torch.testing.assert_close(loss, io[f"out.{run}.loss"], **CLOSE)


def test_forward_of_a_whole_sequence(golden):
    model, io = Model(golden), golden.io
    tokens, masked = io["in.fixed.token_ids"], io["in.fixed.masked"]
    c = model.condition("in.fixed.rep", len(tokens))
    hidden_tokens = torch.where(masked, torch.zeros_like(tokens), tokens)
    with torch.no_grad():
        logits = model.network(hidden_tokens, masked, c)
        hidden = model.network.decode(model.network.encode(model.network.embed(tokens, masked, c)), masked)
        everything = model.network(tokens, masked, c, torch.arange(tokens.shape[1]).expand_as(tokens))
    expected = io["out.fixed.logits_stride4"]
    torch.testing.assert_close(logits[:, :: -(-logits.shape[1] // expected.shape[1])], expected, **CLOSE)
    first = io["out.fixed.logits_full_pos0_first_sample"]
    torch.testing.assert_close(model.all_scores(hidden[:1, : first.shape[1]]), first, **CLOSE)
    torch.testing.assert_close(everything, logits)


def our_parameter(model, name):
    """Our parameter for an official tensor; None if it has no counterpart."""
    conditioner = dict(model.conditioner.named_parameters())
    ours = {
        NULL: "parts.0.fake",
        LABELS: "parts.0.table.weight",
        "latent_prior_proj.weight": "parts.0.linear.weight",
        "latent_prior_proj.bias": "parts.0.linear.bias",
    }
    if name in ours or name in UNUSED:
        return conditioner.get(ours.get(name))
    return dict(model.network.named_parameters())[mage_name(name)]


def our_gradient(model, name):
    found = our_parameter(model, name)
    return None if found is None else found.grad


def test_gradients(golden):
    model = Model(golden)
    model.network.requires_grad_()
    model.conditioner.requires_grad_()
    tokens, masked, visible, c = model.training("train0", dropped_count(golden))
    logits = model.network(tokens, masked, c, visible)
    masked_cross_entropy(logits, tokens, masked, golden.arch["label_smoothing"]).mean().backward()
    norms = json.loads((golden.folder / "grad_norms.json").read_text())
    assert norms
    for name, norm in norms.items():
        gradient = our_gradient(model, name)
        assert (gradient is None) == (norm is None), name
        if norm is not None:
            assert float(gradient.norm()) == pytest.approx(norm, rel=1e-3, abs=1e-5), name
    whole = {name.removeprefix("grad."): tensor for name, tensor in golden.io.items() if name.startswith("grad.")}
    parts = {"mlm_layer.bias_codebook": "mlm_layer.bias", "class_emb_rows": LABELS}
    assert whole
    for name, expected in whole.items():
        ours = our_gradient(model, parts.get(name, name))
        if name == "class_emb_rows":
            ours = ours[golden.io["in.class_label"]]
        ours = ours.flatten()[: len(expected)] if expected.ndim == 1 else ours[: len(expected)]
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-5)


def test_weight_decay_applies_to_the_official_tensors(golden):
    path = golden.folder.parent / "schedules" / "config.json"
    if not path.is_file():
        pytest.skip("the groups are not recorded")
    recorded = json.loads(path.read_text())["mage_weight_decay_groups"]
    model = Model(golden)
    model.network.requires_grad_()
    model.conditioner.requires_grad_()
    optimizer, _ = AdamW(weight_decay=0.05, decay_vectors=False).make([model.network, model.conditioner], 10)
    groups = {group["weight_decay"]: {id(p) for p in group["params"]} for group in optimizer.param_groups}
    assert groups.keys() == {0.05, 0.0}
    named = dict(json.loads((golden.folder / "grad_norms.json").read_text()))
    for kind, decay in (("decay", 0.05), ("no_decay", 0.0)):
        ours = [our_parameter(model, name) for name in recorded[kind] if name in named]
        assert {id(p) for p in ours if p is not None} <= groups[decay]
    listed = {*recorded["decay"], *recorded["no_decay"], LABELS}
    assert not [name for name, norm in named.items() if norm is not None and name not in listed]


class Recorded:
    """Mock of SeededDecodingNoise with the recorded tokens and noise, (steps, B, N) each."""

    def __init__(self, tokens, noise):
        self.recorded, self.noise, self.rows, self.device = tokens.long(), noise, tokens.shape[1], tokens.device

    def tokens(self, step, log_p):
        return self.recorded[step]

    def gumbel(self, step, count):
        return self.noise[step]


def decode(golden, model, run):
    settings, io = golden.config["runs"][run], golden.io
    noise = Recorded(io[f"in.{run}.sampled_ids"], io[f"in.{run}.gumbel"])
    n = noise.rows
    c = model.condition(f"in.{run}.rep", n, f"in.{run}.class_label")
    guidance = Guidance(1 + settings["cfg"], ramp=True)

    def predict(tokens, masked, progress):
        logits = model.network(tokens, masked, c)
        if guidance.scale == 1:
            return logits
        return guidance(logits, model.network(tokens, masked, model.conditioner.null(n)), progress)

    sampler = ParallelDecoding(settings["num_iter"], settings["choice_temperature"])
    return list(sampler.rounds(predict, noise, golden.arch["seq_len"]))


def test_parallel_decoding(golden):
    """Every decision is the recorded one: tokens stay or are masked again, with and without guidance."""
    model, io = Model(golden), golden.io
    for run in runs(golden, "gen"):
        rounds = decode(golden, model, run)
        tokens, masks = io[f"out.{run}.ids_at_step_start"], io[f"out.{run}.mask_after_step"]
        assert mask_schedule(tokens.shape[2], len(rounds)) == io[f"out.{run}.mask_len"].int().tolist()
        unknown = golden.config["vocabulary"]["mask_token"]
        for step, state in enumerate(rounds):
            assert torch.equal(state.masked, masks[step]), step
            if step + 1 < len(rounds):
                entering = torch.where(state.masked, unknown, state.tokens)
                assert torch.equal(entering, tokens[step + 1].long()), step
        assert torch.equal(rounds[-1].tokens, io[f"out.{run}.final_ids"])
        recorded = [name for name in io if re.fullmatch(rf"out\.{run}\.logits_step\d+_stride\d+", name)]
        assert recorded
        for name in recorded:
            step, stride = map(int, re.findall(r"step(\d+)_stride(\d+)", name)[0])
            torch.testing.assert_close(rounds[step].logits[:, ::stride], io[name], **CLOSE)

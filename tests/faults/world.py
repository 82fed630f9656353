"""Undisturbed runs of all stages at toy size: what faults are injected into, and what their results must equal."""

import shlex
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .process import Ended, start
from .results import results

DATA = "--data.source.limit 96"
FIT = f"{DATA} --data.batch_size 16 --trainer.accelerator cpu --trainer.enable_progress_bar false"
STEPS = "--trainer.max_steps 6 --trainer.checkpoint_every 2"
SMALL = "--model.denoiser.network.width 32 --model.sampler.steps 3"
STORES = "--data.stores [{store}] --data.eval_stores [{eval_store}]"
DIT = "--model.denoiser.network.depth 1 --model.denoiser.network.heads 2 --model.sampler.steps 3"
MAGE = " ".join(f"--model.transformer.{part}{name} {n}" for part in ("", "decoder_") for name, n in (("depth", 1),))
CLASSIFIER = "--extractor ClassifierExtractor --extractor.folder {classifier}/classifier"
ENCODER = "--encoder TrainedEncoder --encoder.folder {encoder}/encoder"
TOKENIZER = "--codec {codec} --codec.folder {{tokenizer}}/tokenizer"

# name -> the command; {name} is the folder of another run
COMMANDS = {
    "encoder": f"fit --config digits/encoder {FIT} {STEPS}",
    "classifier": f"fit --config digits/classifier {FIT} {STEPS}",
    "tokenizer": f"fit --config digits/tokenizer {FIT} {STEPS}",
    "store": f"extract --config digits/data {DATA} --shard_rows 16 {ENCODER}",
    "eval_store": f"extract --config digits/data {DATA} --split eval {ENCODER}",
    "tokens": f"extract --config digits/data {DATA} --shard_rows 16 {TOKENIZER.format(codec='VQTokens')}",
    "latents": f"extract --config digits/data {DATA} {TOKENIZER.format(codec='VQLatents')}",
    "clusters": "cluster --store {store} --count 4",
    "gan": f"fit --config digits/gan {FIT} {STEPS}",
    "rdm": f"fit --config digits/rdm {FIT} {STEPS} {SMALL} {STORES}",
    "generator": f"fit --config digits/generator {FIT} {STEPS} {SMALL}",
    "flow": f"fit --config digits/flow {FIT} {STEPS} {SMALL}",
    "dit": f"fit --config digits/dit {FIT} {STEPS} {SMALL} {DIT} --model.condition ClassCondition",
    "unet": f"fit --config digits/unet {FIT} {STEPS} --model.sampler.steps 2",
    "conditioned": f"fit --config digits/generator {FIT} {STEPS} {SMALL} {STORES} "
    "--model.condition RepresentationCondition",
    "mage": f"fit --config digits/mage {FIT} {STEPS} {MAGE} --data.stores [{{tokens}}]",
    "latent": f"fit --config digits/latent {FIT} {STEPS} --model.sampler.steps 2 --data.stores [{{latents}}]",
    "samples": "sample --checkpoint {conditioned}/last.ckpt --prior {rdm}/last.ckpt --number 1100 --npz true "
    "--png false --accelerator cpu",
    "metrics": f"evaluate --samples {{samples}} --data.source Digits {DATA} {CLASSIFIER} --reference {{out}}/reference",
    "scored": f"evaluate --samples {{generator}}/last.ckpt --number 300 --data.source Digits {DATA} {CLASSIFIER} "
    "--reference {out}/reference --accelerator cpu",
    "bundle": "bundle --generator {conditioned}/last.ckpt --prior {rdm}/last.ckpt --encoder {encoder}/encoder",
    "pipeline": f"pipeline {Path(__file__).with_name('small.yaml')}",
}
STAGES = ("gan", "tokenizer", "encoder", "classifier", "rdm", "generator", "conditioned", "flow", "dit", "unet", "mage")
STAGES += ("latent",)


@dataclass(frozen=True)
class Undisturbed:
    """A run without faults.

    Attributes:
        ended: how it ended.
        begun: CPU seconds it took before it wrote its first file.
        results: what it wrote, as ``results`` sums it up.
    """

    ended: Ended
    begun: float
    results: dict[str, str]


class World:
    """The undisturbed runs, each in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs: dict[str, Undisturbed] = {}
        self.commands = COMMANDS

    def path(self, name: str) -> Path:
        return self.folder / name

    def argv(self, name: str, out: Path, resumed: bool = False) -> list[str]:
        """Return the command of run ``name`` that writes to ``out``; ``resumed`` continues a killed one."""
        words = self.filled(COMMANDS[name], out)
        if words[0] == "fit":
            words += ["--trainer.default_root_dir", str(out)]
            return [*words, "--ckpt_path", "last"] if resumed and (out / "last.ckpt").exists() else words
        option = "--root" if words[0] == "pipeline" else "--out"
        return [*words, option, str(out / "metrics.json" if words[0] == "evaluate" else out)]

    def filled(self, command: str, out: Path | None = None) -> list[str]:
        """Return the words of a command, with the folders of the runs that it names."""
        return shlex.split(command.format(out=out, **{name: self.path(name) for name in COMMANDS}))

    def run(self, names: Iterable[str]) -> None:
        """Make the runs ``names``, and those that they read."""
        for name in closure(names):
            if name not in self.runs:
                self.runs[name] = self._undisturbed(name)

    def _undisturbed(self, name: str) -> Undisturbed:
        out, log = self.path(name), self.folder / "logs" / name
        running, begun = start(self.argv(name, out), log), None
        while not running.poll():
            if begun is None and out.exists():
                begun = running.cpu()
            time.sleep(0.001)
        ended = running.wait()
        if ended.code != 0:
            raise SystemExit(f"the undisturbed run of {name} failed with {ended.code}:\n{ended.output[-2000:]}")
        return Undisturbed(ended, begun or ended.cpu, results(out))


def closure(names: Iterable[str]) -> list[str]:
    """Return the names and those of all runs that they read, in an order in which they can run."""
    wanted = set(names)
    for name in reversed(COMMANDS):  # every run reads earlier ones only
        if name in wanted:
            wanted |= {other for other in COMMANDS if f"{{{other}}}" in COMMANDS[name]}
    return [name for name in COMMANDS if name in wanted]

"""The pipeline file of a run: each stage of the plan as an ordinary `rcg` command."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rcg_lightning.planning.encoder_choice import MOCO, EncoderChoice
from rcg_lightning.planning.plan import BASELINES, COMPARED, EVALUATED, EVALUATION_ENCODER, ROWS, SAMPLES

PRINCIPAL_SIZE = 32  # pixels: more dimensions than 4096 take gigabytes
CLUSTERS = 50  # of the cluster row of a comparison
STORES = " --data.stores [{store}] --data.eval_stores [{eval_store}]"


@dataclass
class PipelineFile:
    """Makes the content of ``plan.yaml``.

    Args:
        configs: folder of the configs.
        encoder: None where the condition needs no representations.
        steps: of each trained stage that the run has.
        version: identity of the data set.
        seeds: of generator, RDM and samples.
        accelerator: of all steps.
        dim: of principal components.
        images: to train on.
        compare: also train the conditions none and cluster, and score all by a second encoder.
    """

    configs: Path
    encoder: EncoderChoice | None
    steps: Mapping[str, int]
    version: str
    seeds: int
    accelerator: str
    dim: int
    images: int
    compare: bool = False
    arguments: dict[str, str] = field(default_factory=dict)

    def content(self, name: str) -> dict[str, Any]:
        """Return the content of the pipeline file called ``name``."""
        self.arguments = {"configs": str(self.configs)}
        found = self._encoder() if self.encoder is not None else {}
        stores = STORES if self.encoder is not None else ""
        if "generator" in self.steps:
            found["generator"] = self._fit("generator", stores)
        if "rdm" in self.steps:
            found["rdm"] = self._fit("rdm", stores)
        if "generator" in self.steps:
            found["samples"] = self._sample("generator", self._prior, SAMPLES)
        table = {"table": self._comparison(found)} if self.compare else {}
        found |= self._results(stores) if "generator" in self.steps else {}
        return {"name": name, "arguments": self.arguments, "steps": found, **table}

    def _encoder(self) -> dict[str, Any]:
        """Return the steps of the encoder and its stores."""
        encoder, found = self.encoder, dict[str, Any]()
        assert encoder is not None
        if encoder.kind == MOCO:
            found["encoder"] = self._fit_encoder("encoder")
        elif encoder.trained_here:
            run = f"principal --config {{configs}}/data.yaml --dim {self.dim} --size {PRINCIPAL_SIZE}"
            found["encoder"] = self._shared(run)
        words = self._encoder_options()
        for store, split in (("store", "train"), ("eval_store", "eval")):
            run = f"extract --config {{configs}}/data.yaml --split {split} {words} --accelerator {self.accelerator}"
            found[store] = self._shared(run) | {"version": self.version}
        return found

    def _encoder_options(self) -> str:
        """Return the words that name the encoder; values that come from the user are arguments of the file."""
        assert self.encoder is not None, "a run without representations has no encoder"
        configured = self.encoder.configured()
        words = [f"--encoder {configured['class_path']}"]
        for name, value in configured["init_args"].items():
            own = str(value).startswith("{encoder}")  # the folder of a step stays a placeholder
            self.arguments |= {} if own else {f"encoder_{name}": str(value)}
            words.append(f"--encoder.{name} {value if own else f'{{encoder_{name}}}'}")
        return " ".join(words)

    def _results(self, stores: str) -> dict[str, Any]:
        """Return the steps that show and evaluate the result."""
        data = f"--samples {{samples}} --config {{configs}}/data.yaml{stores} --accelerator {self.accelerator}"
        encoder = f" {self._encoder_options()}" if self.encoder is not None else ""
        extractor = f" --extractor EncoderExtractor {_evaluation_encoder()}" if self.compare else ""
        runs = {
            "gallery": f"gallery --checkpoint {{generator}}/last.ckpt{self._prior} {data}",
            "verdict": f"verdict{encoder}{self._prior}{extractor} --number {EVALUATED} {data}",
        }
        return {name: self._once(run) for name, run in runs.items()}

    def _comparison(self, found: dict[str, Any]) -> dict[str, Any]:
        """Add the steps of a comparison to ``found``; return its table."""
        count = min(COMPARED, self.images)
        found[EVALUATION_ENCODER] = self._fit_encoder(EVALUATION_ENCODER)
        clusters = min(CLUSTERS, self.images // 10)
        found["clusters"] = self._once(f"cluster --store {{store}} --count {clusters} --seed {{seed}}")
        found["eval_clusters"] = self._once("cluster --store {eval_store} --centres {clusters}")
        stores = STORES.replace("{store}", "{clusters}").replace("{eval_store}", "{eval_clusters}")
        steps = {"steps": self.steps["generator"]}
        fit = "fit --config {configs}/generator.yaml --model.condition"
        found["none"] = self._once(f"{fit} NoCondition") | steps | {"version": self.version}
        found["cluster"] = self._once(f"{fit} ClusterCondition{stores}") | steps
        given = {"representation": self._prior, "oracle": " --representations {eval_store}"}
        for row in ROWS:
            generator = row if row in BASELINES else "generator"
            found[f"compared_{row}"] = self._sample(generator, given.get(row, ""), count, " --png false")
        run = (
            f"compare --config {{configs}}/data.yaml --extractor EncoderExtractor {_evaluation_encoder()} "
            f"--accelerator {self.accelerator}"
        )
        return {"run": run, "rows": {row: f"compared_{row}" for row in ROWS}}

    def _fit_encoder(self, stage: str) -> dict[str, Any]:
        """Return a training that goes on where images are added: its result does not depend on their version."""
        return self._shared(f"fit --config {{configs}}/{stage}.yaml") | {"steps": self.steps[stage]}

    def _fit(self, stage: str, stores: str) -> dict[str, Any]:
        step = self._once(f"fit --config {{configs}}/{stage}.yaml{stores}") | {"steps": self.steps[stage]}
        return step if stores else step | {"version": self.version}

    @property
    def _prior(self) -> str:
        return " --prior {rdm}/last.ckpt" if "rdm" in self.steps else ""

    def _sample(self, generator: str, given: str, count: int, more: str = "") -> dict[str, Any]:
        options = f"--number {count} --first_seed {{run}}00000{more} --accelerator {self.accelerator}"
        return self._once(f"sample --checkpoint {{{generator}}}/last.ckpt{given} {options}")

    def _shared(self, run: str) -> dict[str, Any]:
        return {"run": run, "shared": True}

    def _once(self, run: str) -> dict[str, Any]:
        """Return a step that runs once for each seed."""
        return {"run": run, "shared": self.seeds == 1}


def _evaluation_encoder() -> str:
    return f"--extractor.encoder TrainedEncoder --extractor.encoder.folder {{{EVALUATION_ENCODER}}}/encoder"

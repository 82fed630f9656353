"""Options out of range, of the wrong type, or unknown."""

from collections.abc import Iterator

from ..hostile import Given
from ..world import DATA, FIT, SMALL, STEPS

FITS = f"fit --config digits/generator {FIT} {STEPS} {SMALL} --trainer.default_root_dir {{out}}"
GAN = f"fit --config digits/gan {FIT} {STEPS} --trainer.default_root_dir {{out}}"
SAMPLE = "sample --checkpoint {generator}/last.ckpt --png false --accelerator cpu --out {out}"
SCORE = f"evaluate --samples {{samples}} --data.source Digits {DATA} --extractor ClassifierExtractor "
SCORE += "--extractor.folder {classifier}/classifier"
EXTRACT = f"extract --config digits/data {DATA} --encoder TrainedEncoder --encoder.folder {{encoder}}/encoder "
EXTRACT += "--out {out}"
OPTIONS = {
    FITS: {
        "trainer.max_steps": ("0", "-5", "1.5", "many", "nan"),
        "trainer.checkpoint_every": ("0", "-1"),
        "trainer.val_check_interval": ("0", "-1"),
        "trainer.devices": ("0", "-3", "lots"),
        "trainer.accelerator": ("warp",),
        "trainer.precision": ("7-bit", "16-mixed"),
        "trainer.strategy": ("warp",),
        "trainer.limit_train_batches": ("0", "-1"),
        "trainer.gradient_clip_val": ("-1", "nan"),
        "trainer.accumulate_grad_batches": ("0", "-2"),
        "trainer.seed": ("-1", str(2**70), "x"),
        "trainer.unknown": ("1",),
        "data.batch_size": ("0", "-1", "x", "1.5", str(10**12)),
        "data.source.limit": ("0", "-1"),
        "data.workers": ("-1",),
        "data.source": ("Nothing", "os.system"),
        "model.ema.decay": ("-0.1", "1", "2", "nan"),
        "model.conditioner.drop": ("-0.1", "1.5", "nan"),
        "model.conditioner.noise": ("-1", "inf"),
        "model.denoiser.network.width": ("0", "-1"),
        "model.denoiser.network.depth": ("-1",),
        "model.denoiser.network.time_dim": ("0",),
        "model.optimizer.lr": ("-1", "nan", "inf"),
        "model.optimizer.lr_schedule.warmup": ("-1",),
        "model.sampler.steps": ("0", "-1", str(10**12)),
        "model.sampler.eta": ("-1", "nan"),
        "model.tile": ("0", "-1"),
        "model.condition": ("Nothing", "7"),
        "seed_everything": ("-1", str(2**70)),
        "ckpt_path": ("/nothing/x.ckpt", ""),
        "init_from": ("/nothing",),
    },
    GAN: {
        "model.n_critic": ("0", "-1"),
        "model.accumulate": ("0",),
        "model.optimizer.betas": ("[2, 3]", "[0.5]", "x"),
        "model.generator.channels": ("0", "-4"),
        "model.generator.noise_dim": ("0", "-1"),
    },
    SAMPLE: {
        "number": ("0", "-1", "x", "1.5", "nan"),
        "first_seed": ("-1", str(2**70), "x"),
        "guidance": ("-1", "nan", "inf", "x"),
        "interval": ("0.8,0.2", "2,3", "0.1", "a,b"),
        "guided_channels": ("0", "-1"),
        "batch_size": ("0", "-1"),
        "tile": ("0", "-1"),
        "prior_tile": ("0", "-1"),
        "classes": ("99", "-1", "x"),
        "sampler": ("Nothing",),
        "devices": ("0", "-1", "x"),
        "accelerator": ("warp",),
        "precision": ("7-bit",),
        "prior": ("/nothing",),
        "weak": ("/nothing",),
        "representations": ("/nothing",),
        "variations_of": ("/nothing.png",),
    },
    SCORE: {
        "number": ("0", "-1"),
        "seeds": ("0", "-1", "x"),
        "batch_size": ("0", "-1"),
        "protocol": ("nothing",),
        "labels": ("nothing",),
        "memorisation": ("-1",),
        "against": ("/nothing.json",),
        "statistics": ("/nothing.npz",),
        "out": ("/proc/nothing/x.json",),
    },
    EXTRACT: {
        "shard_rows": ("0", "-1", "x"),
        "split": ("nothing",),
        "floats": ("float8",),
        "devices": ("0",),
        "out": ("/proc/nothing", "/dev/null"),
    },
}
HARMLESS = {("trainer.max_steps", "0"), ("trainer.limit_train_batches", "0"), ("first_seed", "-1"), ("guidance", "-1")}


def inputs() -> Iterator[Given]:
    for command, options in OPTIONS.items():
        verb = command.split()[0]
        for option, values in options.items():
            for value in values:
                words = f"{command} --{option} '{value}'".replace(f"--{option.split()[0]} {{out}}", "")
                name = f"{verb} --{option} {value or 'empty'}"
                shown = option.rpartition(".")[2]
                mentions = (option, shown, shown.replace("_", " "), shown.replace("_", "-"), value or option)
                codes = (0,) if (option, value) in HARMLESS else ()
                yield Given("option", name, lambda world, at: None, words, mentions, codes)

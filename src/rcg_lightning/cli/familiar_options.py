"""Names of options in other programs, and their names here."""

from collections.abc import Collection

_STEPS = "training is counted in steps: "
# names elsewhere | names here, of which a command has at most one in its own options | a remark
_TABLE = (
    ("max_epochs epochs num_epochs num_train_epochs n_epochs epoch min_epochs", "trainer.max_steps epochs", _STEPS),
    ("steps iterations iters max_iters num_steps max_train_steps train_steps", "trainer.max_steps sampler.steps", ""),
    ("num_inference_steps sampling_steps ddim_steps timesteps", "sampler.steps model.sampler.steps", ""),
    ("batch bs train_batch_size per_device_train_batch_size batch_size", "data.batch_size batch_size", ""),
    ("lr learning_rate", "model.optimizer.lr", ""),
    ("wd weight_decay", "model.optimizer.weight_decay", ""),
    ("warmup warmup_steps num_warmup_steps", "model.optimizer.lr_schedule.warmup", ""),
    ("max_grad_norm grad_clip clip_grad clip_grad_norm gradient_clip", "model.optimizer.clip", ""),
    ("ema ema_decay", "model.ema.decay", ""),
    ("gpus num_gpus n_gpus ngpus nproc_per_node num_processes world_size", "trainer.devices devices", ""),
    ("gpu cuda device cpu use_cuda no_cuda", "trainer.accelerator accelerator", ""),
    ("nodes nnodes", "trainer.num_nodes num_nodes", ""),
    ("fp16 bf16 amp half use_amp mixed_precision autocast dtype", "trainer.precision precision", ""),
    ("tf32 allow_tf32 float32_matmul_precision matmul_precision", "trainer.float32_precision", ""),
    ("seed random_seed", "trainer.seed first_seed", ""),
    (
        "output_dir output outdir out out_dir output_path save_dir save_path log_dir logdir logging_dir run_dir",
        "trainer.default_root_dir out",
        "",
    ),
    (
        "resume resume_from resume_from_checkpoint ckpt checkpoint checkpoint_path model_path load_from",
        "ckpt_path checkpoint samples",
        "",
    ),
    ("pretrained init init_weights finetune finetune_from", "init_from", ""),
    ("num_workers n_workers workers", "data.workers", ""),
    ("num_samples n_samples num_images n count", "number", ""),
    ("cfg cfg_scale guidance_scale scale", "guidance model.guidance.scale", ""),
    ("gradient_accumulation_steps accumulation_steps accumulate grad_accum", "trainer.accumulate_grad_batches", ""),
    ("dataset dataset_name", "data.source", ""),
    ("root data_dir data_path data_root dataset_dir train_data_dir image_dir", "data.source.root", ""),
    ("image_size img_size resolution size", "data.transform.size", ""),
    ("eval_every val_every eval_steps eval_interval val_interval", "trainer.val_check_interval", ""),
    ("save_every save_steps save_interval checkpoint_interval", "trainer.checkpoint_every", ""),
    ("log_every logging_steps log_interval", "trainer.log_every_n_steps", ""),
    ("wandb tensorboard", "trainer.logger", ""),
)
_HERE = {word: (names.split(), remark) for words, names, remark in _TABLE for word in words.split()}


def familiar_option(key: str, known: Collection[str]) -> str | None:
    """Describe the option that does what ``key`` does in other programs; None where there is none.

    Args:
        known: options of the command; one that takes a class, such as ``model``, stands for all of its arguments.
    """
    names, remark = _HERE.get(key.rpartition(".")[2].lower(), ((), ""))
    for name in names:
        if name in known or ("." in name and name.partition(".")[0] in known):
            return f"{remark}{name}" if remark else f"did you mean {name}?"
    return None

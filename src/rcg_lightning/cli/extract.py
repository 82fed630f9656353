"""`rcg extract`: representations, tokens and latents of a data set, as a store."""

from pathlib import Path
from typing import Literal

from rcg_lightning.arguments import PositiveInt
from rcg_lightning.callbacks.prediction_writer import predict_store
from rcg_lightning.cli.messages import echo
from rcg_lightning.cli.parsing import call
from rcg_lightning.data.data_module import ImageDataModule
from rcg_lightning.data.store_writer import StoreWriter
from rcg_lightning.pretrained.autoencoder_codec import AutoencoderCodec
from rcg_lightning.pretrained.encoders import Encoder
from rcg_lightning.stages.extract import Extraction
from rcg_lightning.trainer import Devices, Trainer


def extract(
    data: ImageDataModule,
    out: Path,
    encoder: Encoder | None = None,
    codec: AutoencoderCodec | list[AutoencoderCodec] | None = None,
    split: Literal["train", "eval"] = "train",
    shard_rows: PositiveInt = 16384,
    floats: Literal["float16", "float32"] = "float32",
    accelerator: str = "auto",
    devices: Devices = 1,
    num_nodes: PositiveInt = 1,
    precision: str | None = None,
) -> None:
    """Encode a data set by an encoder and autoencoders into a store; each image is read once for all of them.

    After an interruption, the same command continues. Any number of processes write the same store.

    Args:
        data: the images, and the views of each to encode.
        out: folder of the store.
        encoder: writes the column ``representation``.
        codec: VQTokens writes the column ``tokens``, VQLatents or KLLatents ``latent``; several by --codec+=.
        split: train, or eval for evaluation images.
        shard_rows: images per file.
        floats: dtype of stored representations and latents.
        accelerator: cpu, gpu, mps or auto.
        devices: processes on this machine.
        num_nodes: number of machines of the job.
        precision: outside the frozen networks; theirs are --encoder.precision and --codec.precision: highest, which is
            float32, high (TF32) or bf16. The store records them.
    """
    data.prepare_data()
    codecs = codec if isinstance(codec, list) else [codec] if codec else []
    extraction = Extraction(encoder, codecs)
    meta = extraction.columns(data.spec.image)
    identity = {**data.store_identity(split), **extraction.identities}
    writer = StoreWriter(out, len(data.images(split)), data.view_count(split), shard_rows, identity, floats)
    trainer = Trainer(
        out,
        accelerator=accelerator,
        devices=devices,
        num_nodes=num_nodes,
        precision=precision,
        logger=False,
    )
    if trainer.is_global_zero:
        echo(extraction.report())
    data.extract(split, writer.pending(trainer.global_rank, trainer.world_size))
    store = predict_store(trainer, extraction, data, writer, meta)
    if trainer.is_global_zero:
        columns = ", ".join(f"{name} of shape {spec['shape']}" for name, spec in store.columns.items())
        echo(f"{out}: {store.size} images, {store.views} views, {columns}")


def main(name: str, argv: list[str]) -> None:
    examples = [
        "rcg extract --config imagenet256/extract --out runs/store",
        "rcg extract --data.source FlatFolder --data.source.root images --encoder TimmEncoder "
        "--encoder.name vit_small_patch16_dinov3.lvd1689m --out runs/store",
        "rcg extract --config digits/data --codec VQTokens --codec.folder runs/tokenizer/tokenizer --out runs/tokens",
        "rcg extract … --encoder … --codec+=VQTokens --codec.folder … --codec+=KLLatents --codec.hub "
        "stabilityai/sd-vae-ft-ema",
    ]
    call(extract, name, argv, examples)

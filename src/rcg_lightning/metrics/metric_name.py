"""The full name of a metric: what it depends on."""


def metric_name(kind: str, extractor: str, count: int, reference: str | None = None) -> str:
    """Return a name that says all that a metric depends on: ``fid/inception_5k_train``, ``fd/classifier_1346_val``.

    Args:
        kind: ``fd``, ``sfd`` or ``kd`` (``fid``, ``sfid``, ``kid`` where the extractor is Inception), ``is``, …
        extractor: the extractor's name.
        count: number of images scored.
        reference: what they are compared with, None where it is nothing.
    """
    if extractor == "inception" and kind.split("_")[0] in ("fd", "sfd", "rfd", "kd"):
        kind = kind.replace("d", "id", 1)
    size = f"{count // 1000}k" if count >= 1000 and count % 1000 == 0 else str(count)
    return f"{kind}/{extractor}_{size}" + (f"_{reference}" if reference else "")

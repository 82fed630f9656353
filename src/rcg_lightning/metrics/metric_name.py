"""The full name of a metric, with everything that it depends on."""

_WITH_INCEPTION = {"fd": "fid", "sfd": "sfid", "rfd": "rfid", "kd": "kid", "kd_std": "kid_std"}


def metric_name(kind: str, extractor: str, count: int, reference: str | None = None) -> str:
    """Return a metric's name, such as ``fid/inception_5k_train`` or ``fd/classifier_1346_val``.

    Args:
        kind: ``fd``, ``sfd`` or ``kd`` (``fid``, ``sfid``, ``kid`` where the extractor is Inception), ``is``, …
        extractor: the extractor's name.
        count: number of scored images.
        reference: the set that they are compared with, None where there is none.
    """
    if extractor == "inception":
        kind = _WITH_INCEPTION.get(kind, kind)
    size = f"{count // 1000}k" if count >= 1000 and count % 1000 == 0 else str(count)
    return f"{kind}/{extractor}_{size}" + (f"_{reference}" if reference else "")

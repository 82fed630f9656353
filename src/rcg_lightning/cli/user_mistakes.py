"""Errors of libraries that the user's input causes, each as one line. Nothing here imports torch."""

import errno
import traceback
from pathlib import Path

from rcg_lightning.errors import one_line

_OWN_CODE = Path(__file__).resolve().parents[1]
_LOCAL = {  # errors of the file system that a path or its permissions cause
    *(errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP),
    *(errno.ENAMETOOLONG, errno.EINVAL, errno.ENOTEMPTY, errno.EBUSY, errno.ENXIO, errno.ENODEV, errno.EXDEV),
}


def mistake(error: BaseException) -> str | None:
    """Describe what the user did wrong; None for a fault of this program.

    Only errors that name a file of the user's, a setting or a package are described, so a fault stays one.
    """
    if isinstance(error, OSError) and error.filename is not None and error.errno in _LOCAL:
        path = Path(str(error.filename))
        return None if path.is_relative_to(_OWN_CODE) else f"{path or '.'}: {_lowered(str(error.strerror))}"
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        if package and package != "rcg_lightning":
            return f"this needs the package {package}, which is not installed: pip install {package}"
        return None if error.name else one_line(error)  # raised by a library, which names the package
    return f"the trainer's settings: {one_line(error)}" if _is_rejected_setting(error) else None


def _is_rejected_setting(error: BaseException) -> bool:
    """Whether Lightning rejects a setting, or one of its callbacks, which only a user chooses, a metric's name."""
    if type(error).__name__ == "MisconfigurationException":  # by name: Lightning is not imported here
        return True
    frames = traceback.extract_tb(error.__traceback__)
    raised_in = Path(frames[-1].filename).parent.parts[-3:] if frames else ()
    return isinstance(error, RuntimeError | ValueError) and raised_in == ("lightning", "pytorch", "callbacks")


def _lowered(text: str) -> str:
    return text[:1].lower() + text[1:]

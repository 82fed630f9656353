"""Errors of libraries that the user's input causes, each as one line. Nothing here imports torch."""

import errno
from pathlib import Path

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
    # by name: torch and Lightning are not imported here
    return f"the trainer's settings: {one_line(error)}" if is_misconfiguration(error) else None


def is_misconfiguration(error: BaseException) -> bool:
    """Whether Lightning rejects its settings."""
    return type(error).__name__ == "MisconfigurationException"


def one_line(error: BaseException, limit: int = 300) -> str:
    """Return an error's message without line breaks, cut at a word where it is long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[:limit].rpartition(" ")[0] + " …"


def _lowered(text: str) -> str:
    return text[:1].lower() + text[1:]

"""Downloads: a short wait for the network, a checksum before use, and one line of advice where either fails."""

import os
import queue
import re
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import huggingface_hub
import torch
from huggingface_hub import constants as hub

from rcg_lightning.artifacts import file_sha256
from rcg_lightning.errors import UserError, one_line
from rcg_lightning.integrity import unless_verified
from rcg_lightning.types import require

WAIT = 4.0  # seconds for the first answer, all addresses and tries together


def require_answer(*urls: str) -> None:
    """Raise ConnectionError unless a server answers for one of ``urls`` within ``WAIT`` seconds.

    Libraries wait for each address, each try and each name on its own, up to a minute, and for names without a limit.
    """
    answers: queue.Queue[str | None] = queue.Queue()
    for url in urls:
        # a thread, because looking up a name can be neither limited nor interrupted
        threading.Thread(target=lambda url=url: answers.put(_failure(url)), daemon=True).start()
    end, reason = time.monotonic() + WAIT, None
    for _ in urls:
        try:
            reason = answers.get(timeout=max(0.0, end - time.monotonic()))
        except queue.Empty:
            reason = f"no answer from {', '.join(urls)} in {WAIT:g} seconds"
            break
        if reason is None:
            return
    raise ConnectionError(reason)


def _failure(url: str) -> str | None:
    """Return why the server of ``url`` cannot be reached; None if it answers anything."""
    try:
        with urlopen(Request(url, method="HEAD"), timeout=WAIT):
            return None
    except HTTPError:
        return None  # the download itself will say more
    except Exception as error:  # a proxy or a broken server can raise more than OSError
        return reason_of(error)


@contextmanager
def short_waits() -> Iterator[None]:
    """Limit how long urllib waits for further bytes of a download inside the block."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(WAIT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def reason_of(error: BaseException) -> str:
    """Return type and message of an error in one short line."""
    return f"{type(error).__name__}: {one_line(error, 120)}"


# -- files at a fixed address, whose checksum is known -----------------------------------------------------------------


def published(what: str, url: str, path: Path, sha256: str, otherwise: str) -> Path:
    """Return ``path``, downloaded from ``url`` if it is missing: complete and checked, or not at all.

    Args:
        what: the file's content, for messages.
        url: its address.
        path: where it belongs; a file that is there is compared with the checksum, once per process.
        sha256: the beginning of its SHA-256, in hexadecimal.
        otherwise: what the user can do without it, after "or".

    Raises:
        UserError: there is no network, or the file is another one.
    """
    advice = f"get {url} and put it at {path}, or {otherwise}"
    if not path.is_file():
        try:
            require_answer(url)
            path.parent.mkdir(parents=True, exist_ok=True)
            with short_waits():
                torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256, progress=False)
        except (OSError, RuntimeError) as error:
            raise UserError(f"{what} could not be downloaded ({reason_of(error)}): {advice}") from error
    require_sha256(path, sha256, f"{what} are not in it, or damaged: remove it, {advice}")
    return path


def require_sha256(path: Path, sha256: str, remedy: str) -> None:
    """Raise a UserError unless the SHA-256 of a file begins with ``sha256``, in hexadecimal."""

    def check() -> None:
        found = file_sha256(path)[: len(sha256)]
        require(found == sha256, f"{path} has another SHA-256, {found} instead of {sha256}: {remedy}")

    unless_verified([path], check, sha256)


# -- the Hugging Face hub ----------------------------------------------------------------------------------------------


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids to ask the hub, since before or after its client was imported."""
    return hub.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on")


def hub_file(repository: str, names: Sequence[str], revision: str | None, what: str, use: str) -> Path:
    """Return the first of the files ``names`` that a repository has: from the hub's cache, or else from the hub.

    The cache names every large file by its SHA-256, but the hub's own client compares no more than sizes; here a wrong
    file is removed from the cache.

    Args:
        repository: owner and name.
        names: files, the preferred one first.
        revision: branch, tag or commit; None is the main branch.
        what: the files' content, for messages.
        use: what the user should do with a file that was fetched elsewhere.

    Raises:
        UserError: there is no network, no such file or no access; or the file is damaged.
    """
    advice = (
        f"fetch {names[0]} from {hub.ENDPOINT}/{repository} on a machine that has a network and {use}, or copy that "
        f"machine's cache to {hub.HF_HUB_CACHE}"
    )
    for name in names:
        cached = huggingface_hub.try_to_load_from_cache(repository, name, revision=revision)
        if isinstance(cached, str):
            return _checked(Path(cached), advice)
    missing = f"{what} are not on this machine: {advice}"
    require(not is_offline(), f"{missing} (HF_HUB_OFFLINE is set)")
    reason: Exception | None = None
    try:
        require_answer(hub.ENDPOINT)
        for name in names:
            try:
                found = huggingface_hub.hf_hub_download(repository, name, revision=revision, etag_timeout=WAIT)
            except huggingface_hub.errors.EntryNotFoundError as error:
                reason = error
            else:
                return _checked(Path(found), advice)
    except UserError:
        raise
    except Exception as error:  # its type depends on the version of the hub's client: no such repository, no access
        reason = error
    raise UserError(f"{missing} ({reason_of(reason) if reason else 'no such file'})") from reason


def _checked(path: Path, advice: str) -> Path:
    content = path.resolve()
    if re.fullmatch("[0-9a-f]{64}", content.name):
        try:
            require_sha256(content, content.name, f"it was damaged and is removed; run it again, or {advice}")
        except UserError:
            for file in (path, content):
                file.unlink(missing_ok=True)
            raise
    return path

"""The one exception whose message is written for the user."""


class UserError(Exception):
    """The user's input cannot work. The message is one line: what is wrong, where, and how to fix it.

    The command line prints it without a traceback and exits with code 2.
    """


def one_line(error: BaseException, limit: int = 300) -> str:
    """Return an error's message without line breaks, cut at a word where it is long; its type where it has none."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[:limit].rpartition(" ")[0] + " …"

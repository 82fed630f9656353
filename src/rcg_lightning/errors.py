"""The one exception whose message is written for the user."""


class UserError(Exception):
    """The user's input cannot work. The message is one line: what is wrong, where, and how to fix it.

    The command line prints it without a traceback and exits with code 2.
    """

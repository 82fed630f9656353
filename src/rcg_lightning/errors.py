"""The one exception that is meant for the person at the keyboard."""


class UserError(Exception):
    """Something the user gave cannot work: one line that says what, where and what to do about it.

    The command line prints it without a traceback and leaves with exit code 2.
    """

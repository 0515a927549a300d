"""Why nothing can be said."""


class Unreadable(Exception):
    """What is needed can't be read; its text is one line for whoever asked."""

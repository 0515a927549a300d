"""Reading of list files that options name."""

from chatd.config.values import BadValue


def read_list(option: str, path: str) -> str:
    """Return the text, UTF-8 with or without a byte order mark. Raise BadValue, one line that names the file."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise BadValue(f"{option} {path}: {why}") from error

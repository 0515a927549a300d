"""Write docs/options.md from the tables of options and internal bounds in ``chatd/config``."""

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

from chatd.config.settings import SECTIONS, bounds, options
from chatd.config.tuning import Tuning

FILE = Path(__file__).with_name("options.md")

START = """# Options

For operators. This page is generated from the tables that `twistd chatd --help` uses. The command
line overrides the environment, which overrides the configuration file. A variable has the name of
the option: `CHATD_REDIS_PREFIX` for `--redis-prefix`. Several values are separated by spaces.
"""


def lines() -> Iterator[str]:
    """Return the lines of the page."""
    yield START
    for section, title in SECTIONS.items():
        yield f"## {title}{f' `[{section}]`' if section else ''}\n"
        if section == "tuning":
            about = descriptions()
            yield 'Set with `--tuning NAME=VALUE` or `CHATD_TUNING="NAME=VALUE …"` too.\n'
            yield "| key | what it sets | unit | default |\n|---|---|---|---|"
            for bound in bounds():
                yield f"| `{bound.key}` | {about[bound.key]} | {bound.help} | {bound.shown_default} |"
            return
        yield "| command line | key | what it does | default |\n|---|---|---|---|"
        for option in (option for option in options() if option.section == section):
            flag = f"`--{option.flag}{f' {option.value}' if option.value else ''}`"
            yield f"| {flag} | `{option.key}` | {option.help} | {option.shown_default} |"
        yield ""


def descriptions() -> dict[str, str]:
    """Return the descriptions of the internal bounds: the texts below them in the source."""
    (tuning,) = ast.parse(inspect.getsource(Tuning)).body
    assert isinstance(tuning, ast.ClassDef)
    found, name = {}, ""
    for node in tuning.body[1:]:
        if isinstance(node, ast.AnnAssign):
            name = ast.unparse(node.target)
        elif isinstance(node, ast.Expr):
            found[name] = " ".join(ast.literal_eval(node.value).split())
    return found


def page() -> str:
    """Return the page."""
    return "\n".join(lines()) + "\n"


if __name__ == "__main__":
    FILE.write_text(page(), encoding="utf-8")

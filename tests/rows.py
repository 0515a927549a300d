"""A table of cases as one test that reports every row that fails."""

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

TestFunction = Callable[..., None]


def rows(names: str | Sequence[str], values: Iterable[Any]) -> Callable[[TestFunction], TestFunction]:
    """Run a test once for each row, within one test; the arguments are those of ``pytest.mark.parametrize``.

    Use it for tables of tests that have no fixture to which a row leaves traces.
    """
    parameters = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    table = [row if len(parameters) > 1 else (row,) for row in values]

    def decorate(test: TestFunction) -> TestFunction:
        @functools.wraps(test)
        def all_rows(**fixtures: Any) -> None:
            failures = []
            for row in table:
                arguments = dict(zip(parameters, row, strict=True))
                try:
                    test(**fixtures, **arguments)
                except Exception as failure:  # noqa: BLE001 - every failing row is reported
                    failure.add_note(f"row: {arguments!r}"[:500])
                    failures.append(failure)
            if failures:
                raise ExceptionGroup(f"{len(failures)} of {len(table)} rows fail", failures)

        signature = inspect.signature(test)
        kept = [parameter for name, parameter in signature.parameters.items() if name not in parameters]
        all_rows.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
        return all_rows

    return decorate

import resource

import pytest

from chatd.config.settings import Config
from chatd.runtime.rlimits import max_worker_connections, raise_open_files_limit
from tests.rows import rows


@pytest.mark.parametrize(("hard", "files"), [(5000, 5000), (resource.RLIM_INFINITY, 0)])
def test_the_limit_is_raised_as_far_as_it_goes(monkeypatch: pytest.MonkeyPatch, hard: int, files: int) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1000, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: asked.append(limits))
    assert raise_open_files_limit() == files
    assert asked == [(hard, hard)]


def test_a_limit_that_cannot_be_raised_is_kept_to(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(kind: int, limits: tuple[int, int]) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1000, 5000))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert raise_open_files_limit() == 1000


@rows(("files", "most"), [(65_536, 10_000), (0, 10_000), (1000, 872), (100, 1), (10, 1)])
def test_connections_leave_files_for_the_rest_and_for_those_who_are_refused(files: int, most: int) -> None:
    assert max_worker_connections(Config(), files) == most


def test_a_worker_accepts_its_share_and_no_more_than_one_worker_may() -> None:
    assert max_worker_connections(Config(worker_connections=50), 65_536) == 50
    assert max_worker_connections(Config(max_connections=21, workers=2), 65_536) == 10
    assert max_worker_connections(Config(max_connections=1, workers=2), 65_536) == 1
    assert max_worker_connections(Config(max_connections=200, worker_connections=50, workers=2), 65_536) == 50

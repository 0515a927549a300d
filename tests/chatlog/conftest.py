from tests.supervisor.conftest import said  # noqa: F401 - a fixture

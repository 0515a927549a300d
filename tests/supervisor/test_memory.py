"""How much memory there is: of the machine, and of the control groups that this process is in."""

import os
from pathlib import Path

from chatd.supervisor.memory import available_memory

PHYSICAL = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
MIB = 1_048_576


def written(root: Path, **files: str) -> Path:
    """Make files under a root; ``__`` in a name stands for a slash and ``_DOT_`` for a dot."""
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_without_control_groups_it_is_the_memory_of_the_machine(tmp_path: Path) -> None:
    assert available_memory(tmp_path) == PHYSICAL


def test_a_container_has_what_its_group_may_use(tmp_path: Path) -> None:
    root = written(tmp_path, proc__self__cgroup="0::/\n", sys__fs__cgroup__memory_DOT_max=f"{64 * MIB}\n")
    assert available_memory(root) == 64 * MIB


def test_a_group_has_no_more_than_those_that_it_is_in(tmp_path: Path) -> None:
    root = written(
        tmp_path,
        proc__self__cgroup="0::/system.slice/chatd.service\n",
        sys__fs__cgroup__system_DOT_slice__memory_DOT_max=f"{96 * MIB}\n",
    )
    (root / "sys/fs/cgroup/system.slice/chatd.service").mkdir()
    (root / "sys/fs/cgroup/system.slice/chatd.service/memory.max").write_text("max\n")
    assert available_memory(root) == 96 * MIB


def test_the_older_kind_of_group_counts_too(tmp_path: Path) -> None:
    root = written(
        tmp_path,
        proc__self__cgroup="5:cpu,cpuacct:/a\n4:memory:/docker/b\n1:name=systemd:/a\n",
        sys__fs__cgroup__memory__memory_DOT_limit_in_bytes="9223372036854771712\n",
    )
    (root / "sys/fs/cgroup/memory/docker/b").mkdir(parents=True)
    (root / "sys/fs/cgroup/memory/docker/b/memory.limit_in_bytes").write_text(f"{80 * MIB}\n")
    assert available_memory(root) == 80 * MIB


def test_a_group_that_may_use_more_than_there_is_has_what_there_is(tmp_path: Path) -> None:
    root = written(tmp_path, proc__self__cgroup="0::/\n", sys__fs__cgroup__memory_DOT_max=f"{2 * PHYSICAL}\n")
    assert available_memory(root) == PHYSICAL

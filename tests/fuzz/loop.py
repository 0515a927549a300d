"""The loop of one run, which ends its process: ``python -m tests.fuzz.loop TARGET FOLDERS OPTIONS`` of libFuzzer's."""

import sys

import atheris

with atheris.instrument_imports(include=["chatd", "jwt"]):
    from tests.fuzz.targets import TARGETS

atheris.Setup([sys.argv[0], *sys.argv[2:]], TARGETS[sys.argv[1]].run)
atheris.Fuzz()

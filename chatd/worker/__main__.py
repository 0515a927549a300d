"""Run one worker: ``python -m chatd.worker``, started by the supervisor."""

import gc
import sys

gc.disable()  # imports leave little garbage: a search through 600 modules takes a tenth of the start
from chatd.worker.worker import main  # noqa: E402

gc.freeze()  # nor at the exit, where it takes as long
gc.enable()
sys.exit(main())

"""Run one worker: ``python -m chatd.worker``, started by the supervisor."""

import sys

from chatd.worker.worker import main

sys.exit(main())

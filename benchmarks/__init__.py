"""chatd measured side by side with its peers: ``make bench``, or ``python -m benchmarks``.

==============  =====
``load.c``      the load generator: clients that send, receive and check
``peers/``      the servers chatd is held against
``generator``   runs the load generator
``visitor``     asks for the chat page
``processes``   CPU time and memory of a server's processes
``candidates``  how each server is started and stopped
``measure``     one measurement of one server
``rows``        what is measured: the rows with their bounds, the growth curves
``record``      what a run wrote down: every sample, the machine, the versions
``machine``     which machine and which versions these are
``results``     medians, ratios, which bounds hold; ``RESULTS.md``
``plot``        the drawings in ``docs/``
``__main__``    a run from the command line
==============  =====

Peers are interleaved: a round measures each row with all its servers one after the other, then the next round
begins. Rooms, sizes, rates and bounds are data in ``rows``; nothing else knows them.
"""

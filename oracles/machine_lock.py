"""A file's lock that is held while a comparison is timed, so that builds on the same machine, started by `flock FILE cargo ...`, run
between the rounds and not in them.

Python 3.9 or newer, no seeds. Used by the `*_peers.py` scripts' `--lock FILE`; without it nothing is held.
"""

import contextlib
import fcntl


@contextlib.contextmanager
def held(path):
    if not path:
        yield
        return
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

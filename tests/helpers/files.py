"""A disk that is nearly full."""

import resource
from contextlib import contextmanager


@contextmanager
def room_for(size):
    "Files cannot grow beyond `size` bytes, as on a disk that is nearly full."
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

"""Arrays in files, mapped into memory without an open file each, which Python's `mmap` would keep.

A rank maps five files per unit of the corpus, tens of thousands, and many systems let a process
have 1,024 files open (`ulimit -n`).
"""

import ctypes
import math
import mmap
import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_FAILED = ctypes.c_void_p(-1).value  # of mmap


def map_array(path: Path) -> NDArray[Any]:
    """Maps a one-dimensional `.npy` file into memory, read-only, until no array needs it.

    Raises:
        OSError: it cannot be opened, or the system allows no more maps (vm.max_map_count).
    """
    with open(path, "rb") as file:
        version = np.lib.format.read_magic(file)
        assert version == (1, 0)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        if 0 in shape:  # nothing to map
            return np.zeros(shape, dtype)
        num_bytes = os.fstat(file.fileno()).st_size
        flags = (mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
        address = _libc.mmap(None, num_bytes, *flags)
        if address == _FAILED:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), str(path))
        memory = (ctypes.c_ubyte * num_bytes).from_address(address)
        weakref.finalize(memory, _libc.munmap, address, num_bytes).atexit = False
        array = np.frombuffer(memoryview(memory), dtype, math.prod(shape), file.tell())
    array.flags.writeable = False
    return array

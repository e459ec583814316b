"""How files beside the database get onto the disk, so that they outlast a power failure and hold up no commit.

A commit waits for its own sync, and while that of a large file goes on it waits for this one, too: for all of it, if
it has been written as fast as memory takes it. So it is synced piece by piece, with time for others in between.
"""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

PIECE = 2**20  # bytes that are written before they are synced: some milliseconds
LONGEST_REST = 0.1  # seconds
CANNOT = {errno.EINVAL, errno.ENOTSUP, errno.EACCES}  # some network shares, and a folder in which one may only write


def sync_piece(file: int) -> None:
    """Has on the disk what was written to this open file, and leaves the disk to others for as long as that took."""
    began = time.monotonic()
    os.fsync(file)
    time.sleep(min(time.monotonic() - began, LONGEST_REST))


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder survive a power failure, where that can be: Windows cannot open folders."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in CANNOT:
            raise

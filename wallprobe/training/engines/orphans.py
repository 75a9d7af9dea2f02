"""A worker ends with its parent, however that ends: the kernel is asked to see to it, where it can (Linux)."""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int) -> bool:
    """Have this process killed when its parent dies.

    Args:
        parent: the parent's process id, as the parent told it; if that is gone already, this process ends at once.

    Returns:
        Whether the kernel knows how; a pipe that ends with the parent has to do elsewhere.
    """
    if sys.platform != "linux":
        return False
    asked = ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0
    if asked and os.getppid() != parent:  # it died before the question
        os._exit(1)
    return bool(asked)

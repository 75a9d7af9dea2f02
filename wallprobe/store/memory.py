"""What cannot fit is refused from its predicted bytes, before the system has to kill the process."""

from wallprobe.errors import ConfigError

GIB = 1 << 30


def available_bytes() -> int:
    """Memory that is free for use now, without swapping."""
    import psutil

    return int(psutil.virtual_memory().available)


def require(needed: float, what: str, less: str) -> None:
    """Refuse what the memory that is free now does not hold.

    Args:
        needed: bytes it takes at least.
        what: what takes them ("100,000 sequences of 16 tokens"), for the message.
        less: what to ask less of, for the message.

    Raises:
        ConfigError: if there are fewer.
    """
    there = available_bytes()
    if needed > there:
        raise ConfigError(f"{what} take about {needed / GIB:,.1f} GiB of memory, {there / GIB:,.1f} are free; give {less}")

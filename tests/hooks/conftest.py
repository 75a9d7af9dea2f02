"""What the tests of hooks share."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def nnsight_unmounted() -> Iterator[None]:
    """nnsight adds `.save` to every object when it is imported first; the tests of other modules, in the same process, go without."""
    pytest.importorskip("nnsight", reason="the nnsight backend needs it: pip install 'wallprobe[remote]'")
    yield
    if hasattr(object(), "save"):  # an earlier module of this process may have taken it off, and nnsight does not put it back
        from nnsight._c import unmount

        unmount("save")
    assert not hasattr(object(), "save")

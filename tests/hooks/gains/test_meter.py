"""The meter: gains of passes as they come are the gains of all of them together."""

import pytest
import torch
from torch.testing import assert_close

import wallprobe as wp
from wallprobe.hooks.gains.report import LONG_NAMES


@pytest.fixture(scope="module")
def loaded():
    return wp.load("c0")


@pytest.fixture(scope="module")
def ids():
    return torch.randint(17, (7, 8), generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("definition", ["sublayer", "sublayer_unit", "update_ratio", "resid_ratio"])
def test_a_batch_at_a_time_is_all_at_once(loaded, ids, definition):
    whole = wp.gains(loaded, ids, definition, "geomean")
    meter = wp.GainMeter(loaded, definition, "geomean")
    for part in (ids[:1], ids[1:4], ids[4:]):
        with meter, torch.no_grad():
            loaded.model(part)
    found = meter.result()
    for name in LONG_NAMES:
        wanted, seen = torch.tensor(whole.data[name].values), torch.tensor(found.data[name].values)
        assert_close(seen, wanted, rtol=1e-6, atol=1e-9, equal_nan=True)
    per_prompt = torch.tensor(whole.data["mlp_gain_by_prompt"].values)
    half = 1.96 * per_prompt.std(dim=1) / 7**0.5
    assert_close(torch.tensor(found.data["mlp_gain_high"].values), per_prompt.mean(dim=1) + half, rtol=1e-6, atol=1e-9)
    assert found.manifest["weight_hash"] == loaded.weight_hash


def test_memory_does_not_grow_and_a_meter_begins_anew(loaded, ids):
    meter = wp.GainMeter(loaded)

    def held():
        return sum(value.numel() for value in (*meter._mean.values(), *meter._spread.values())), len(meter.last)

    with meter, torch.no_grad():
        loaded.model(ids)
        before = held()
        first = meter.result().values
        loaded.model(ids)
        assert held() == before
    assert meter.result().summary["n_sequences"] == 14
    meter.reset()
    with meter, torch.no_grad():
        loaded.model(ids)
    assert meter.result().values == first


def test_what_a_meter_cannot_tell_is_refused(loaded, ids):
    with pytest.raises(wp.WallprobeError, match=r"takes more than those; use wallprobe\.gains"):
        wp.GainMeter(loaded, "jacobian")
    with pytest.raises(wp.WallprobeError, match="no gain definition"):
        wp.GainMeter(loaded, "loud")
    meter = wp.GainMeter(loaded)
    with pytest.raises(wp.WallprobeError, match="no pass of c0 was seen"):
        meter.result()
    with pytest.raises(wp.WallprobeError, match="the final norm did not"), meter, torch.no_grad():
        loaded.model(ids, stop_at_layer=1)
    assert not any(point.fwd_hooks for point in loaded.points.values())

"""Products strip by strip equal whole ones, whoever they are for; passes side by side neither mix nor wait for ever."""

import threading

import pytest
import torch
import torch.nn.functional as F

from wallprobe.models import strips
from wallprobe.models.strips import Crew, StripLinear


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.fixture
def crew(monkeypatch):
    monkeypatch.setattr(strips, "STRIP", 64 * 96)  # several strips of a small weight
    with Crew(2) as made:
        yield made


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("onednn", [False, True])
def test_equals_the_whole_product(crew, dtype, transposed, biased, onednn, monkeypatch):
    if not onednn:
        monkeypatch.setattr(strips, "available", lambda: False)
    weight, bias, x = drawn(200, 96).to(dtype), drawn(200) if biased else None, drawn(3, 5, 96)
    layer = StripLinear(weight.T.contiguous() if transposed else weight, bias, crew, transposed=transposed)
    torch.testing.assert_close(layer(x), F.linear(x, weight.float(), bias), rtol=1e-5, atol=1e-5)
    assert (layer.in_features, layer.out_features) == (96, 200)
    torch.testing.assert_close(layer.weight.T if transposed else layer.weight, weight.float(), rtol=0, atol=0)


def test_a_device_multiplies_whole_matrices(monkeypatch):
    monkeypatch.setattr(Crew, "cast", lambda *_: pytest.fail("no strips"))
    with Crew(0) as crew:
        for transposed in (False, True):
            weight, bias, x = drawn(200, 96).half(), drawn(200), drawn(3, 5, 96)
            layer = StripLinear(weight.T.contiguous() if transposed else weight, bias, crew, transposed=transposed)
            wanted = F.linear(x, weight.float(), bias)
            for found in crew.side_by_side([lambda layer=layer, x=x: layer(x)] * 2):
                torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert Crew(device="meta").size == 0


def test_what_is_multiplied_is_cast_once_for_all_passes(crew):
    first, second = (StripLinear(drawn(128, 96).half(), drawn(128), crew), StripLinear(drawn(96, 128).half(), None, crew))
    seen = []
    crew.cast = lambda strip: seen.append(len(strip)) or strip.float()
    inputs = [drawn(1, length, 96) for length in (2, 7, 3)]
    alone = [second(first(x).relu()) for x in inputs]
    rows, seen[:] = sum(seen) // 3, []
    together = crew.side_by_side([lambda x=x: second(first(x).relu()) for x in inputs])
    assert sum(seen) == rows == 128 + 96
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert crew.meeting is None


def test_the_same_bits_whoever_comes_first(crew):
    layer, inputs = StripLinear(drawn(128, 96), None, crew), [drawn(1, length, 96) for length in (2, 7, 3, 5)]
    gates = [threading.Event() for _ in inputs]

    def held(place: int, order: list[int]) -> torch.Tensor:
        here = order.index(place)
        if here:
            gates[order[here - 1]].wait()
        gates[place].set()
        return layer(inputs[place])

    found = []
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        for gate in gates:
            gate.clear()
        found.append(crew.side_by_side([lambda place=place, order=order: held(place, order) for place in range(4)]))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_passes_that_take_other_ways_do_not_wait_for_ever(crew):
    experts, x = [StripLinear(drawn(64, 96 + place)[:, :96].contiguous(), None, crew) for place in range(3)], drawn(1, 4, 96)
    ways = [[0, 1, 2], [1], [], [2, 2, 0, 1]]
    found = crew.side_by_side([lambda way=way: [experts[place](x) for place in way] for way in ways])
    for way, made in zip(ways, found, strict=True):
        for place, one in zip(way, made, strict=True):
            torch.testing.assert_close(one, F.linear(x, experts[place].weight), rtol=1e-5, atol=1e-5)


def test_the_first_error_is_raised_once_all_have_ended(crew):
    layer, ended = StripLinear(drawn(64, 96), None, crew), []

    def fails() -> None:
        raise ValueError("this one")

    def goes_on() -> None:
        layer(drawn(1, 2, 96))
        ended.append(True)

    with pytest.raises(ValueError, match="this one"):
        crew.side_by_side([goes_on, fails, goes_on])
    assert ended == [True, True]
    with pytest.raises(RuntimeError):
        crew.side_by_side([lambda: layer.product(drawn(2, 95)), lambda: layer(drawn(1, 2, 96))])


def test_torch_keeps_its_threads(crew):
    before = torch.get_num_threads()
    crew.side_by_side([torch.get_num_threads, torch.get_num_threads])
    assert crew.side_by_side([torch.get_num_threads, torch.get_num_threads]) == [1, 1]
    assert torch.get_num_threads() == before
    told: list[int] = []
    later = threading.Thread(target=lambda: told.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert told == [before]

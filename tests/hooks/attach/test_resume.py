"""A pass from the middle equals a whole pass of the model itself with one hook, for every architecture, layer, index and site."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.hooks import tiny_models
from wallprobe import models
from wallprobe.errors import InstrumentError
from wallprobe.hooks.attach import cache, resume, sites, stacks
from wallprobe.models import products
from wallprobe.store.runs import find_run
from wallprobe.training.wall import lean

PAIRS, LENGTH = 3, 5


@pytest.fixture(scope="module", params=["run", *tiny_models.ARCHITECTURES])
def both(request, tmp_path_factory):
    """The model with its hooks, the same in steps, and donor and base tokens."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "run":
        run = find_run(tiny_models.save_run(folder, layers=3), folder)
        loaded = models.load_run(run)
        # A trained run's scales and biases are too near 1 and 0 to show an omission.
        state = {
            name: tensor + 0.3 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1))
            for name, tensor in run.tensors().items()
        }
        loaded.model.load_state_dict(state, strict=False)
        shape = run.manifest["shape"]
        stack = stacks.of_run(state, lean.Shape(**shape))
        vocabulary = shape["vocabulary"]
    else:
        tiny_models.save_model(request.param, folder)
        loaded = models.load(str(folder))
        stack = stacks.of_transformers(AutoModelForCausalLM.from_pretrained(folder).eval())
        vocabulary = 20
    tokens = torch.randint(vocabulary, (2, PAIRS, LENGTH), generator=torch.Generator().manual_seed(3))
    return loaded, stack, tokens[0], tokens[1]


def plain(loaded, tokens, name, index, patched):
    def put(value, hook):
        value = value.clone()
        value[:, index] = patched.view(value[:, index].shape)
        return value

    return cache.run(loaded, tokens, {name: put})[:, -1]


@pytest.mark.parametrize("worth", [1, products.WORTH])
@torch.no_grad()
def test_every_cell_equals_a_whole_pass_with_one_hook(both, worth, monkeypatch):
    loaded, stack, donor, base = both
    monkeypatch.setattr(products, "WORTH", worth)
    clean, other = resume.observe(stack, base), resume.observe(stack, donor)
    compared = 0
    for site in models.SITES:
        if site == "resid_mid" and stack.parallel:
            continue
        for index in range(LENGTH):
            cells, entries = [], []
            for layer in range(stack.n_layers):
                patched = sites.value_at(stack, other, layer, index, site)
                cells.append((layer, patched))
                entries.append(sites.enter(stack, clean, layer, index, site, patched))
            logits = resume.walk(stack, clean, index, entries, lambda values: values)
            for (layer, patched), got in zip(cells, logits, strict=True):
                at = site
                if site == "resid_mid" and loaded.tokenizer is not None:
                    # The bridge's hook_resid_mid is what the MLP's norm is given; the residual stream passes it by. What attention
                    # adds does reach both.
                    at, patched = "attn_out", patched - clean.residual[layer][:, index]
                wanted = plain(loaded, base, models.hook_name(layer, at), index, patched)
                torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max().clamp(min=1)))
                compared += 1
    assert compared == (5 if stack.parallel else 6) * LENGTH * stack.n_layers


@torch.no_grad()
def test_what_stands_at_a_site_is_what_its_hook_sees(both):
    loaded, stack, donor, _ = both
    clean = resume.observe(stack, donor)
    for site in models.SITES:
        if site == "resid_mid" and stack.parallel:
            with pytest.raises(InstrumentError, match="resid_mid"):
                sites.value_at(stack, clean, 0, 0, site)
            continue
        name = models.hook_name(1, site)
        seen = cache.capture(loaded, donor, [name])[name]
        for index in range(LENGTH):
            torch.testing.assert_close(
                sites.value_at(stack, clean, 1, index, site), seen[:, index], rtol=0, atol=1e-5 * float(seen.abs().max())
            )


@torch.no_grad()
def test_cells_do_not_touch_each_other(both):
    _, stack, donor, base = both
    clean, other = resume.observe(stack, base), resume.observe(stack, donor)
    entries = [resume.Entry(layer, other.residual[layer][:, 1]) for layer in (0, 1, 1, 2)]
    together = resume.walk(stack, clean, 1, entries, lambda values: values)
    alone = torch.cat([resume.walk(stack, clean, 1, [entry], lambda values: values) for entry in entries])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    assert not torch.equal(together[0], together[1])


@torch.no_grad()
def test_entries_alike_go_once_and_blocks_of_pairs_change_nothing(both, monkeypatch):
    _, stack, donor, base = both
    clean, other = resume.observe(stack, base), resume.observe(stack, donor)
    entries = [
        sites.enter(stack, clean, layer, 2, site, sites.value_at(stack, other, layer, 2, site))
        for layer, site in ((0, "resid_pre"), (0, "resid_post"), (1, "resid_pre"), (1, "resid_post"))
    ]
    walked = []
    heads = type(stack).heads

    def counted(self, layer, rows, *rest):
        walked.append(rows.shape[:-2].numel())
        return heads(self, layer, rows, *rest)

    monkeypatch.setattr(type(stack), "heads", counted)
    logits = resume.walk(stack, clean, 2, entries, lambda values: values)
    torch.testing.assert_close(logits[1], logits[2], rtol=1e-6, atol=1e-6)
    if stack.n_layers == 3:
        # the block an entry comes in at sees its patched index apart: 1, then 1 beside 1 that is inside, then 2 beside 1
        assert walked == [PAIRS, PAIRS, PAIRS, 2 * PAIRS, PAIRS]
    monkeypatch.setattr(resume, "TILE", 1)
    torch.testing.assert_close(resume.walk(stack, clean, 2, entries, lambda values: values), logits, rtol=1e-5, atol=1e-5)


def test_an_unknown_layout_has_no_steps():
    class Odd:
        class config:
            model_type = "bloom"

    assert stacks.of_transformers(Odd()) is None

"""What an interchange takes beside whole swaps of one layer on prompts of one length, against plain calls with torch's own hooks."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.hooks import tiny_models
from wallprobe import models
from wallprobe.errors import ConfigError, InstrumentError, UnknownNameError
from wallprobe.hooks.attach import stacks
from wallprobe.hooks.interchange import engines
from wallprobe.hooks.interchange.pairs import Pairs
from wallprobe.hooks.interchange.places import TEXT_SITES
from wallprobe.hooks.interchange.request import Request
from wallprobe.hooks.interchange.run import interchange, plan
from wallprobe.hooks.interchange.texts import read_pairs

ROWS = [
    {"clean": "the quick brown fox", "corrupt": "the dog", "answer": "jumps over", "wrong": "river", "slots": {"last word": [4, 7]}},
    {
        "clean": "the capital of",
        "corrupt": "near the bank of paris",
        "answer": "paris",
        "wrong": "near the",
        "slots": {"last word": 1},
    },
    {"clean": "the tower is known", "corrupt": "the fox is lazy", "answer": "for", "wrong": "near", "slots": {"last word": 2}},
    {"clean": "a lazy dog is", "corrupt": "the fox is lazy", "answer": "brown", "wrong": "river bank", "slots": {"last word": 1}},
]
ROWS[0]["slots"] = {"last word": {"clean": "fox", "corrupt": "dog"}}


@pytest.fixture(scope="module", params=list(tiny_models.ARCHITECTURES))
def folder(request, tmp_path_factory):
    return tiny_models.save_model(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def neox(tmp_path_factory):
    return tiny_models.save_model("neox", tmp_path_factory.mktemp("neox"))


def write(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


@torch.no_grad()
def forced(model, tokens, answer, edits=()):
    """Log-probability of the answer's tokens after `tokens`, one plain call; edits: (module, given, index, value)."""
    handles = []
    for module, given, index, value in edits:

        def put(here, index=index, value=value):
            here = here.clone()
            here[0, index] = value
            return here

        if given:
            handles.append(module.register_forward_pre_hook(lambda _, args, put=put: (put(args[0]), *args[1:])))
        else:
            handles.append(
                module.register_forward_hook(lambda _, __, out, put=put: (put(out[0]), *out[1:]) if isinstance(out, tuple) else put(out))
            )
    log = model(torch.cat([tokens, answer])[None]).logits[0].double().log_softmax(-1)
    for handle in handles:
        handle.remove()
    return sum(float(log[len(tokens) - 1 + step, token]) for step, token in enumerate(answer.tolist()))


@torch.no_grad()
def stood(model, tokens, module, given, index):
    """What stands at a module's input or output."""
    kept = []
    if given:
        handle = module.register_forward_pre_hook(lambda _, args: kept.append(args[0][0, index].clone()))
    else:
        handle = module.register_forward_hook(lambda _, __, out: kept.append((out[0] if isinstance(out, tuple) else out)[0, index].clone()))
    model(tokens[None])
    handle.remove()
    return kept[0]


def by_hand(folder, rows, site, layers, spot, donor_of=None):
    """Mean of log p(answer) - log p(wrong), each of all its tokens, with the donor's activations of these layers put in place.

    Args:
        spot: indices in the donor and in the base of each pair.
        donor_of: whose donor each pair gets; its own by default.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    tokenizer = tiny_models.PreTrainedTokenizerFast.from_pretrained(folder)
    ids = [
        {name: torch.tensor(tokenizer(row[name], add_special_tokens=False)["input_ids"]) for name in row if name != "slots"} for row in rows
    ]
    steps, found = stacks.of_transformers(model), []
    for pair, row in enumerate(ids):
        giver = pair if donor_of is None else donor_of[pair]
        edits = []
        for layer in layers:
            module, given = steps.point(layer, site)
            edits.append((module, given, spot[1][pair], stood(model, ids[giver]["clean"], module, given, spot[0][giver])))
        found.append(forced(model, row["corrupt"], row["answer"], edits) - forced(model, row["corrupt"], row["wrong"], edits))
    return sum(found) / len(found)


SPOT = ([3, 1, 2, 1], [1, 1, 2, 1])


@pytest.mark.parametrize("site", ["resid_pre", "attn_out"])
def test_slots_and_answers_of_several_tokens_equal_plain_calls(folder, site, tmp_path):
    file = write(tmp_path / "pairs.jsonl", ROWS)
    result = interchange(Request(str(folder), str(folder), (1, 2), ("last word",), (site,), pairs=str(file)))
    assert result.data["index"].values.tolist() == ["last word"]
    for layer in (1, 2):
        cell = result.data.sel(site=site, layer=layer, index="last word")
        assert float(cell["logit_difference"]) == pytest.approx(by_hand(folder, ROWS, site, [layer], SPOT), abs=2e-4)
    pairs = read_pairs(file, models.load_plain(str(folder)).tokenizer)
    random, _ = pairs.other_donors(0)
    other = by_hand(folder, ROWS, site, [1], SPOT, random.tolist())
    base, top = result.summary["base_logit_difference"], result.summary["clean_logit_difference"]
    found = float(result.data["restored_random"].sel(site=site, layer=1, index="last word"))
    assert found == pytest.approx((other - base) / (top - base), abs=1e-3)


def test_every_file_with_slots_has_the_last_token_too(neox, tmp_path):
    file = str(write(tmp_path / "pairs.jsonl", ROWS))
    result = interchange(Request(str(neox), str(neox), (2,), None, ("resid_post",), pairs=file))
    assert result.data["index"].values.tolist() == ["last", "last word"]
    last = by_hand(neox, ROWS, "resid_post", [2], ([3, 2, 3, 3], [1, 4, 3, 3]))
    assert float(result.data["logit_difference"].sel(site="resid_post", layer=2, index="last")) == pytest.approx(last, abs=2e-4)
    with pytest.raises(ConfigError, match="index 1: the sequences differ in length, where an index means nothing; give a slot: last"):
        plan(Request(str(neox), str(neox), (2,), (1,), pairs=file))
    with pytest.raises(ConfigError, match="no slot named 'verb' in these pairs; there are: last, last word"):
        plan(Request(str(neox), str(neox), (2,), ("verb",), pairs=file))


def test_a_window_patches_its_layers_at_once(folder, tmp_path):
    file = str(write(tmp_path / "pairs.jsonl", ROWS))
    result = interchange(Request(str(folder), str(folder), None, ("last word",), ("attn_out",), pairs=file, window=2))
    assert result.data["layer"].values.tolist() == [0, 1]
    assert result.manifest["engine"]["passes"] == "whole"
    for layer in (0, 1):
        found = float(result.data["logit_difference"].sel(site="attn_out", layer=layer, index="last word"))
        assert found == pytest.approx(by_hand(folder, ROWS, "attn_out", [layer, layer + 1], SPOT), abs=2e-4)
    with pytest.raises(ConfigError, match="--window 4 is more than the 3 layers"):
        plan(Request(str(folder), str(folder), pairs=file, window=4))


PLAIN = [
    {"clean": "the quick brown fox", "corrupt": "the lazy brown dog", "answer": "jumps", "wrong": "over"},
    {"clean": "the capital of france", "corrupt": "the bank of paris", "answer": "paris", "wrong": "river"},
    {"clean": "the tower is known", "corrupt": "the fox is known", "answer": "for", "wrong": "near"},
]


def test_three_engines_agree(folder, tmp_path, monkeypatch):
    file = str(write(tmp_path / "pairs.jsonl", PLAIN))
    request = Request(str(folder), str(folder), (1,), (1, 3), TEXT_SITES, pairs=file, reads=("p", "kl"))
    quick = interchange(request)
    traced = interchange(Request(str(folder), str(folder), (1,), (1, 3), TEXT_SITES, pairs=file, backend="nnsight", reads=("p", "kl")))
    monkeypatch.setattr("wallprobe.hooks.interchange.sides.Resumed", lambda whole, steps: engines.Looped(whole))
    whole = interchange(request)
    how = [result.manifest["engine"]["passes"] for result in (quick, whole, traced)]
    assert how == ["from the middle", "whole", "whole"]
    for name in ("logit_difference", "p_answer", "logit_difference_low", "p_wrong", "kl_donor", "kl_base_mismatched", "p_answer_norm"):
        for other in (whole, traced):
            torch.testing.assert_close(torch.tensor(quick.data[name].values), torch.tensor(other.data[name].values), rtol=1e-5, atol=1e-5)


def test_noise_is_the_other_direction(neox, tmp_path):
    pairs = read_pairs(write(tmp_path / "pairs.jsonl", PLAIN), models.load_plain(str(neox)).tokenizer)
    noise = interchange(Request(str(neox), str(neox), (1,), pairs=pairs, direction="noise"))
    turned = [{"clean": row["corrupt"], "corrupt": row["clean"], "answer": row["wrong"], "wrong": row["answer"]} for row in PLAIN]
    other = interchange(Request(str(neox), str(neox), (1,), pairs=str(write(tmp_path / "turned.jsonl", turned))))
    torch.testing.assert_close(
        torch.tensor(noise.data["restored"].values), torch.tensor(other.data["restored"].values), rtol=1e-6, atol=1e-7
    )
    assert "of the corrupt answer" in noise.summary["finding"]
    assert noise.identity != interchange(Request(str(neox), str(neox), (1,), pairs=pairs)).identity


def test_pairs_that_are_not_answered_rightly_are_counted_and_left_out(neox, tmp_path):
    plain = models.load_plain(str(neox))
    words = [word for word in tiny_models.WORDS if word != "the"]

    def best(prompt):
        ids = torch.tensor([plain.tokenizer(prompt, add_special_tokens=False)["input_ids"]])
        return plain.tokenizer.decode([int(plain.model(ids).logits[0, -1, 2:22].argmax()) + 2])

    rows = []
    for number in range(0, 10, 2):
        clean, corrupt = f"the {words[number]}", f"the {words[number + 1]}"
        if best(clean) != best(corrupt):
            rows.append({"clean": clean, "corrupt": corrupt, "answer": best(clean), "wrong": best(corrupt)})
    assert len({row["answer"] for row in rows}) > 1
    right = len(rows)
    rows.append(rows[0] | {"answer": rows[0]["wrong"], "wrong": rows[0]["answer"]})
    file = str(write(tmp_path / "pairs.jsonl", rows))
    every = interchange(Request(str(neox), str(neox), (1,), pairs=file))
    assert (every.summary["n_pairs"], every.summary["n_capable"]) == (right + 1, right)
    some = interchange(Request(str(neox), str(neox), (1,), pairs=file, capable=True))
    assert (some.summary["n_pairs"], some.summary["n_capable"]) == (right, right)


def test_of_two_models_and_whole_answers_those_counted_are_those_kept(tmp_path):
    one, other = (str(tiny_models.save_model(kind, tmp_path / kind)) for kind in ("neox", "gpt2"))
    words = tiny_models.WORDS
    rows = [
        {"clean": f"the {words[n]}", "corrupt": f"the {words[n + 1]}", "answer": f"{words[n]} {words[-1 - n]}", "wrong": words[n + 2]}
        for n in range(14)
    ]
    rows += [row | {"answer": row["wrong"], "wrong": row["answer"]} for row in rows]
    file = str(write(tmp_path / "pairs.jsonl", rows))
    every = interchange(Request(one, other, (1,), (1,), pairs=file))
    assert 1 < every.summary["n_capable"] < len(rows)
    some = interchange(Request(one, other, (1,), (1,), pairs=file, capable=True))
    assert some.summary["n_pairs"] == some.summary["n_capable"] == every.summary["n_capable"]


def test_several_answers_may_be_right(neox, tmp_path):
    rows = [PLAIN[0] | {"answer": ["jumps", "near"]}, *PLAIN[1:]]
    result = interchange(Request(str(neox), str(neox), (1,), (3,), pairs=str(write(tmp_path / "pairs.jsonl", rows))))
    one, other = (
        interchange(
            Request(
                str(neox), str(neox), (1,), (3,), pairs=str(write(tmp_path / f"{word}.jsonl", [PLAIN[0] | {"answer": word}, *PLAIN[1:]]))
            )
        )
        for word in ("jumps", "near")
    )
    p = [float(found.data["example_p_answer"].sel(example=0, site="resid_pre", layer=1, index=3)) for found in (one, other, result)]
    assert p[0] + p[1] == pytest.approx(p[2], abs=1e-6)


def own_pairs():
    rng = torch.Generator().manual_seed(3)
    donor, base = (torch.randint(2, 22, (6, 5), generator=rng) for _ in range(2))
    return Pairs(donor, base, {"import": torch.arange(2, 8), "own": torch.arange(8, 14)}, slots={"middle": torch.full((6,), 2)})


def test_pairs_of_ones_own_on_any_model_with_a_read_and_an_intervention_of_ones_own(neox):
    """The bridge of a model and the model itself, both ways of patching, and what a function reads."""
    pairs, loaded = own_pairs(), models.load(str(neox))

    def margin(logits, pairs):
        return logits.amax(-1) - logits.mean(-1)

    def half(base, source):
        return (base + source) / 2

    made = [
        interchange(
            Request(model, model, (1, 2), ("middle", 4), ("resid_pre", "mlp_out"), pairs=pairs, reads=(margin, "rank"), intervention=half)
        )
        for model in (loaded, models.load_plain(str(neox)))
    ]
    assert [result.kind for result in made] == ["patches", "patches"]
    assert [result.manifest["engine"]["passes"] for result in made] == ["whole", "from the middle"]
    assert {"p_import", "p_own", "p_import_random", "base_p_own", "margin", "margin_low", "p_value_margin", "q_value_margin"} <= set(
        made[0].data
    )
    for name in ("p_import", "p_own", "margin", "margin_norm", "rank_import"):
        torch.testing.assert_close(*(torch.tensor(result.data[name].values) for result in made), rtol=1e-4, atol=1e-5, equal_nan=True)
    model, bucket = loaded.model, pairs.buckets[0]
    kept = {}
    model.run_with_hooks(bucket.donor, fwd_hooks=[("blocks.1.hook_resid_pre", lambda value, hook: kept.update(value=value.clone()))])

    def put(value, hook):
        value = value.clone()
        value[:, 2] = (value[:, 2] + kept["value"][:, 2]) / 2
        return value

    with torch.no_grad():
        logits = model.run_with_hooks(bucket.base, fwd_hooks=[("blocks.1.hook_resid_pre", put)])[:, -1]
    cell = made[0].data.sel(site="resid_pre", layer=1, index="middle")
    assert float(cell["margin"]) == pytest.approx(float(margin(logits, None).mean()), abs=1e-5)
    chosen = logits.softmax(-1).gather(1, pairs.answers["import"][:, None]).mean()
    assert float(cell["p_import"]) == pytest.approx(float(chosen), abs=1e-6)


def test_zeroing_is_an_intervention_by_name(neox):
    loaded, pairs = models.load(str(neox)), own_pairs()
    found = interchange(Request(loaded, loaded, (1,), (4,), ("mlp_out",), pairs=pairs, intervention="zero"))

    def zero(value, hook):
        value = value.clone()
        value[:, 4] = 0
        return value

    with torch.no_grad():
        logits = loaded.model.run_with_hooks(pairs.base, fwd_hooks=[("blocks.1.hook_mlp_out", zero)])[:, -1]
    expected = logits.softmax(-1).gather(1, pairs.answers["own"][:, None]).mean()
    assert float(found.data["p_own"].sel(site="mlp_out", layer=1, index=4)) == pytest.approx(float(expected), abs=1e-6)


def test_what_nobody_knows_is_one_line(neox):
    for wrong, said in (
        ({"reads": ("loudness",)}, "no read named 'loudness'; there are: p, log_p, logit_difference, rank, kl"),
        ({"intervention": "shout"}, "no intervention named 'shout'; there are: swap, zero, mean"),
    ):
        with pytest.raises(UnknownNameError, match=said):
            Request("p5", "c0", **wrong)
    for wrong, said in (
        ({"reads": (3,)}, "3 is no read; give a name"),
        ({"intervention": 3}, "3 is no intervention; give a name"),
        ({"direction": "up"}, "--direction up is none of denoise, noise"),
        ({"window": 0}, "--window 0 patches nothing"),
        ({"window": 2, "align": "ridge"}, "--align ridge goes with whole swaps of one layer"),
    ):
        with pytest.raises(ConfigError, match=said):
            Request("p5", "c0", **wrong)
    with pytest.raises(ConfigError, match="is no run of a task whose answers are known; give pairs"):
        plan(Request(models.load_plain(str(neox)), models.load_plain(str(neox))))


def test_a_read_of_another_shape_is_refused(neox):
    model = models.load_plain(str(neox))
    with pytest.raises(ConfigError, match="it must give one figure a pair"):
        interchange(Request(model, model, (1,), (4,), pairs=own_pairs(), reads=(lambda logits, pairs: logits,)))


def test_pairs_that_do_not_fit_each_other_are_refused():
    ids = torch.ones(3, 4, dtype=torch.int64)
    for wrong, said in (
        ({"base": list(ids[:2])}, "3 donors, but base has 2"),
        ({"answers": {}}, "there are 0 answers"),
        ({"slots": {"x": torch.tensor([0, 1, 4])}}, "slot x has 3 indices for 3 pairs; in pair 3 it lies outside the donor"),
        ({"donors": "b"}, "donors 'b' is none of the answers: a"),
    ):
        with pytest.raises(ConfigError, match=said):
            Pairs(**({"donor": ids, "base": ids, "answers": {"a": ids[:, 0]}} | wrong))


def test_what_is_read_earlier_is_cut_off(neox):
    pairs, model = own_pairs(), models.load_plain(str(neox))
    early = Pairs(pairs.donor, pairs.base, pairs.answers, read=3)
    cut = Pairs(pairs.donor[:, :4], pairs.base[:, :4], pairs.answers)
    one, other = (interchange(Request(model, model, (1,), (2,), pairs=some)).data["p_import"].values for some in (early, cut))
    torch.testing.assert_close(torch.tensor(one), torch.tensor(other), rtol=1e-5, atol=1e-7)


def test_a_plan_says_what_it_would_take_and_computes_no_cell(neox, monkeypatch):
    model = models.load_plain(str(neox))
    monkeypatch.setattr(engines.Resumed, "patched", lambda *_: pytest.fail("a plan patched something"))
    made = plan(Request(model, model, pairs=own_pairs()))
    cost = made.cost()
    assert cost["cells"] == len(made.places) == 3 * 5
    assert cost["arms"] == 4
    assert 0 < cost["passes"] < 4 * 15
    assert cost["minutes"] > 0


def test_a_model_with_blocks_of_another_kind_is_patched_between_them(tmp_path):
    """What has no known steps goes whole: the engine says so, and the self-patch holds."""
    model = tiny_models.ARCHITECTURES["llama"]()
    model.config.model_type = "unheard-of"
    plain = models.Plain("odd", "wrapped", model.eval(), None, None)
    found = interchange(Request(plain, plain, (1,), (2,), pairs=own_pairs()))
    assert found.manifest["engine"]["passes"] == "whole"
    assert found.summary["self_patch_max_change"] == 0.0
    with pytest.raises(InstrumentError, match="what mlp_out is in a unheard-of is not known here"):
        interchange(Request(plain, plain, (1,), (2,), ("mlp_out",), pairs=own_pairs()))

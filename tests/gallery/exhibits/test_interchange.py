"""An interchange's page: an example pair's answers before and after the patch, and the donor's."""

from dataclasses import replace

import numpy as np
import pytest

from tests.gallery import samples
from wallprobe.gallery.exhibits import interchange
from wallprobe.store.results import dataset

VOCABULARY = 17


def with_answers():
    made = samples.interchange()
    sizes = made.data.sizes
    rng = np.random.default_rng(1)
    after = rng.dirichlet(np.ones(VOCABULARY), (sizes["example"], sizes["layer"], sizes["index"]))
    cells = ("example", "layer", "index", "answer")
    more = {
        "example_after": (cells, after, "probability", "patched"),
        "example_before": (("example", "answer"), np.eye(VOCABULARY)[: sizes["example"]], "probability", "base"),
        "example_donor": (("example", "answer"), np.eye(VOCABULARY)[8 : 8 + sizes["example"]], "probability", "donor"),
    }
    for shift, key in enumerate(("own", "import", "rule")):
        more[f"example_{key}_answer"] = (("example",), np.arange(sizes["example"]) + 8 * (shift == 1) + 4 * (shift == 2), "token", key)
    coords = {name: made.data[name].values for name in ("example", "layer", "index")} | {"answer": np.arange(VOCABULARY)}
    return replace(made, data=made.data.merge(dataset(coords, more)))


def test_a_pairs_answers_before_and_after_the_strongest_patch():
    result = with_answers()
    layer, index = interchange.strongest(result)
    figure = interchange.exhibit(result).sections[-1]
    assert figure.title.startswith("Before and after: what c0 answers when layer 5, index 4 is p5's")
    assert [frame.label for frame in figure.frames[:2]] == ["pair 1 of 8", "pair 2 of 8"]
    before, after, donor = figure.frames[1].panels
    assert before.label == "before, c0 on its own sequence: 1 with 1.000"
    assert donor.label == "the donor, p5 on its own sequence: 9 with 1.000"
    wanted = result.data["example_after"].values[1, layer, index]
    assert after.spec["values"] == pytest.approx(wanted, abs=1e-4)
    assert after.label == f"after the patch: {int(wanted.argmax())} with {wanted.max():.3f}"
    assert [token.strip() for token in after.spec["tokens"]] == [
        {1: "1 own", 9: "9 donor's", 5: "5 rule"}.get(value, str(value)) for value in range(VOCABULARY)
    ]

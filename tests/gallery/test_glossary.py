"""The glossary: every link on a page has its entry, hostile text stays text, and the keys that reports promise are explained."""

import re
from pathlib import Path
from typing import Any

import pytest

from wallprobe.gallery import glossary
from wallprobe.gallery.terms import HEADINGS

TERMS = [term for _, group in HEADINGS for term in group]
LINK = re.compile(r'<a class="term" href="\.\./glossary\.html#([^"]+)" title="[^"]+">([^<]*)</a>')
PROMISED = """
src dst site align p_rule p_import p_own noise_floor self_patch_max_change final_mlp_gain final_mlp_gain_no_sink
sink_positions regime l_star net_contracting attn_contracting alpha alpha_se r2 p ci_low bootstrap_high verdict h_ratio
g_ratio gamma_clamped gamma_exact accuracy_minus_frozen trained_mae untrained_mae wall_ratio kl_nats eta lens_entropy_last
erank_min_no_sink map_v_high energy_first worst_delta_nll identity_change selectivity ece_confidence_unsupervised
t_star_unsupervised
""".split()  # noqa: SIM905


def test_entries_are_short_and_can_be_pointed_at() -> None:
    anchors = [glossary.slug(term) for term in TERMS]
    assert len(set(anchors)) == len(anchors)
    for term, anchor in zip(TERMS, anchors, strict=True):
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", anchor), term.name
        sentences = [part for part in re.split(r"[.!?](?:\s|$)", term.meaning) if part.strip()]
        assert 1 <= len(sentences) <= 3, term.name


def test_no_spelling_or_key_means_two_things() -> None:
    keys = [key for term in TERMS for key in term.keys]
    spellings = [word.lower() for term in TERMS for word in (term.name, *term.also)]
    assert sorted(set(keys)) == sorted(keys)
    assert sorted(set(spellings)) == sorted(spellings)


@pytest.mark.parametrize("key", PROMISED)
def test_what_reports_promise_is_explained(key: str) -> None:
    assert LINK.fullmatch(str(glossary.linked_key(key))), key


def test_the_first_mention_is_linked_the_longest_spelling_wins_and_the_rest_is_as_it_was() -> None:
    text = "Sink tokens of the residual stream; other sinks. 95 % bootstrap interval. Unsinkable."
    made = str(glossary.linked(text))
    assert LINK.findall(made) == [
        ("sink", "Sink tokens"),
        ("residual-stream", "residual stream"),
        ("95-interval", "95 % bootstrap interval"),
    ]
    assert LINK.sub(r"\2", made) == text


def test_hostile_text_stays_text() -> None:
    text = '<script>alert("gain")</script> & <b>sink</b> \'"'
    made = str(glossary.linked(text))
    assert "<script" not in made
    assert [found[0] for found in LINK.findall(made)] == ["gain", "sink"]
    bare = LINK.sub(r"\2", made)
    assert "<" not in bare
    assert str(glossary.linked_key("<img src=x onerror=1>")) == "&lt;img src=x onerror=1&gt;"


def test_every_link_of_a_built_site_has_its_entry(site: Path) -> None:
    page = (site / glossary.PAGE).read_text()
    anchors = set(re.findall(r'<div id="([^"]+)"><dt>', page))
    assert anchors == {glossary.slug(term) for term in TERMS}
    linked = {
        name: set(re.findall(r"\.\./glossary\.html#([^\"]+)\"", (site / "results" / name).read_text()))
        for name in (path.name for path in (site / "results").glob("*.html"))
    }
    assert all(found <= anchors for found in linked.values())
    gains = next(found for name, found in linked.items() if name.startswith("gains-hugging"))
    assert {"contraction", "95-interval", "sublayer-gain"} <= gains
    interchange = next(found for name, found in linked.items() if name.startswith("interchange-p5"))
    assert {"p-rule", "p-import", "noise-floor"} <= interchange
    assert 'href="glossary.html"' in (site / "index.html").read_text()


@pytest.mark.browser
@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 375)])
def test_a_link_leads_to_its_entry_by_keyboard(browser: Any, site: Path, scheme: str, width: int) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    (start,) = (path for path in (site / "results").glob("gains-hugging*.html"))
    page.goto(start.as_uri())
    link = page.locator("a.term", has_text="contracts").first
    assert "below 1" in (link.get_attribute("title") or "")
    link.focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/glossary.html#contraction")
    entry = page.locator("#contraction")
    assert entry.is_visible()
    for _ in range(40):  # scrolling is smooth
        if 0 <= entry.bounding_box()["y"] < 900:
            break
        page.wait_for_timeout(100)
    assert 0 <= entry.bounding_box()["y"] < 900
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    assert complaints == []
    context.close()

"""The gallery's files: what they say, that they are escaped, and that no Result stops the build."""

import csv
import io
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from wallprobe.errors import StoreError
from wallprobe.gallery import Exhibit, build, build_site
from wallprobe.gallery.build import page_stem
from wallprobe.gallery.longtable import columns
from wallprobe.plugins import load_group


def page(site: Path, start: str) -> str:
    return next(path for path in sorted((site / "results").glob("*.html")) if path.name.startswith(start)).read_text(encoding="utf-8")


def figures(text: str) -> list[dict[str, Any]]:
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', text, re.DOTALL)
    assert found
    return json.loads(found.group(1))


def panels(text: str, element: str) -> list[dict[str, Any]]:
    return [panel for figure in figures(text) for frame in figure["frames"] for panel in frame["panels"] if panel["element"] == element]


def test_index_has_a_card_with_the_finding_of_each_result(site: Path) -> None:
    text = (site / "index.html").read_text(encoding="utf-8")
    assert text.count('class="card"') == 9
    assert "the wall stands (ratio 32)" in text
    assert "2026-01-02 03:04" in text
    links = re.findall(r'href="(results/[^"]+\.html)"', text)
    assert len(links) == 9
    assert all((site / link).is_file() for link in links)
    headings = re.findall(r'<h2 id="kind-\d"><bdi>([^<]+)', text)
    assert headings == ["Interchange", "Evaluation", "Gains", "Attention", "Echo"]


def test_damaged_result_is_listed_with_its_reason_and_no_machine_path(site: Path) -> None:
    text = (site / "index.html").read_text(encoding="utf-8")
    assert re.search(r"<bdi>eval-broken-[0-9a-f]{8}</bdi>.*it was altered", text, re.DOTALL)
    assert str(site.parent) not in text


def test_nothing_points_at_the_network(site: Path) -> None:
    for path in [site / "index.html", *(site / "results").glob("*.html")]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", text), path.name
        assert "connect-src 'none'" in text


def test_hostile_strings_reach_no_page_as_markup(site: Path, samples: ModuleType) -> None:
    for path in [site / "index.html", *(site / "results").glob("*.html")]:
        text = path.read_text(encoding="utf-8")
        assert "<img" not in text
        assert not re.search(r"<script>|<s>", text)
        assert len(re.findall(r"<script", text)) == len(re.findall(r"</script>", text))
    assert "&lt;script&gt;window.pwned=2&lt;/script&gt;" in page(site, "echo-")


def test_circuitsvis_gets_escaped_tokens_where_it_writes_html_and_raw_ones_on_canvas(site: Path, samples: ModuleType) -> None:
    text = page(site, "attention-hostile")
    colored = panels(text, "ColoredTokens")[0]["spec"]["tokens"]
    assert colored[2] == "&lt;s&gt;"
    assert not any("<" in token for token in colored)
    heads = panels(text, "AttentionHeads")[0]["spec"]
    assert heads["tokens"][2] == "<s>"
    assert len(heads["attention"]) == 2


def test_interchange_page_shows_both_answers_the_floor_and_the_controls(site: Path) -> None:
    text = page(site, "interchange-p5")
    heat = panels(text, "plotly")[0]["spec"]
    assert [trace["type"] for trace in heat["data"]] == ["heatmap", "heatmap"]
    assert heat["data"][0]["z"][5][1] == pytest.approx(0.3888, abs=1e-9)
    share = float(heat["layout"]["coloraxis"]["colorscale"].removeprefix("@anchored:"))
    assert share == pytest.approx((1 / 17) / 0.3888, rel=1e-4)
    assert "0.059 chance" in heat["layout"]["coloraxis"]["colorbar"]["ticktext"]
    bars = figures(text)[1]
    assert bars["frames"][bars["first"]]["label"] == "layer 5, index 4"
    spec = bars["frames"][bars["first"]]["panels"][0]["spec"]
    assert [trace["name"] for trace in spec["data"]] == [
        "donor's state",
        "no patch",
        "random donor",
        "mismatched donor",
        "norm-matched noise",
    ]
    assert spec["data"][0]["error_y"]["array"] == pytest.approx([0.012] * 3, abs=1e-9)
    assert spec["layout"]["shapes"][0]["y0"] == pytest.approx(1 / 17, abs=1e-12)
    assert "1,500 pairs" in text


def test_tokens_are_coloured_at_the_patched_indices_only(site: Path, samples: ModuleType) -> None:
    result = samples.interchange()
    tokens = figures(page(site, "interchange-p5"))[-1]
    assert [frame["label"] for frame in tokens["frames"]][:2] == ["example 1 of 8", "example 2 of 8"]
    spec = tokens["frames"][3]["panels"][0]["spec"]
    assert spec["tokens"] == [str(token) for token in result.data["example_src_token"].values[3]]
    assert spec["values"][:3] == [0.0, 0.0, 0.0]
    assert spec["values"][3:] == pytest.approx(result.data["example_p_import"].values[3, 5], abs=1e-4)
    assert spec["maxValue"] >= 0.5  # a token at chance must not be dark


def test_eval_page_draws_the_wall_after_the_horizon(site: Path) -> None:
    text = page(site, "eval-c0")
    first = panels(text, "plotly")[0]["spec"]
    shade, wall = first["layout"]["shapes"]
    assert (wall["x0"], shade["x0"], shade["x1"]) == (5.5, 0.5, 5.5)
    assert first["data"][-1]["y"][4:6] == [0.05, 1.6]
    assert first["layout"]["yaxis"]["title"]["text"] == "mean entropy error (bits)"
    posterior = next(trace for trace in panels(text, "plotly")[2]["spec"]["data"] if trace.get("name") == "exact posterior")
    assert posterior["y"][0] is None  # NaN is a gap, not a zero
    assert re.search(r"Wall ratio.*?<td class=n><bdi>32</bdi>.*?30.*?34", text, re.DOTALL)


def test_gains_bars_start_at_one_and_show_both_token_sets(site: Path, samples: ModuleType) -> None:
    result = samples.gains()
    attention, mlp = (panel["spec"] for panel in panels(page(site, "gains-hugging"), "plotly")[:2])
    assert [trace["name"] for trace in mlp["data"]] == ["all tokens", "without sink tokens"]
    assert mlp["data"][0]["base"] == 1
    assert mlp["data"][0]["y"][-1] == pytest.approx(80.6, abs=1e-9)
    assert (mlp["layout"]["yaxis"]["type"], attention["layout"]["yaxis"]["type"]) == ("log", "linear")
    assert mlp["layout"]["shapes"][0]["y0"] == 1
    assert mlp["data"][0]["error_y"]["array"] == pytest.approx(result.data["mlp_gain"].values * 0.1, rel=1e-9)


def test_specs_are_valid_plotly(site: Path) -> None:
    graph_objects = pytest.importorskip("plotly.graph_objects")
    theme = re.compile(r"^@[a-z0-9:.-]+$")

    def concrete(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: concrete(item) for key, item in value.items()}
        if isinstance(value, list):
            return [concrete(item) for item in value]
        if isinstance(value, str) and theme.match(value):
            return "Viridis" if value.startswith(("@ramp", "@anchored")) else "#123456"
        return value

    for start in ("interchange-p5", "eval-c0", "gains-hugging", "attention-c0"):
        for panel in panels(page(site, start), "plotly"):
            # Raises for a property plotly does not have.
            assert graph_objects.Figure(concrete(panel["spec"])).data


def test_data_files_stand_beside_the_page(site: Path, samples: ModuleType) -> None:
    stem = samples.evaluation().identity
    stored = json.loads((site / "results" / f"{stem}.json").read_text(encoding="utf-8"))
    assert stored["kind"] == "eval"
    assert len(stored["values"]) == 15
    rows = list(csv.DictReader(io.StringIO((site / "results" / f"{stem}.csv").read_text(encoding="utf-8"))))
    assert float(rows[5]["mae"]) == pytest.approx(1.6, abs=1e-12)
    assert rows[0]["best_posterior"] == ""


def test_same_store_gives_the_same_bytes_and_rewrites_nothing(samples: ModuleType, makers: dict[str, Any], tmp_path: Path) -> None:
    store = tmp_path / "results"
    for result in (samples.interchange(), samples.evaluation(samples.ATTACK), samples.plugin()):
        result.save(store)
    first = build(store, tmp_path / "a", exhibits=makers)
    build(store, tmp_path / "b", exhibits=makers)
    files = [path.relative_to(tmp_path / "a") for path in sorted((tmp_path / "a").rglob("*")) if path.is_file()]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)
    before = first.stat().st_mtime_ns
    build(store, tmp_path / "a", exhibits=makers)
    assert first.stat().st_mtime_ns == before


def test_pages_of_vanished_results_go_and_foreign_files_stay(samples: ModuleType, makers: dict[str, Any], tmp_path: Path) -> None:
    store, out = tmp_path / "results", tmp_path / "site"
    kept, gone = samples.evaluation("c0").save(store), samples.evaluation("p5").save(store)
    build(store, out, exhibits=makers)
    (out / "results" / "mine.html").write_text("mine")
    for path in gone.iterdir():
        path.unlink()
    gone.rmdir()
    build(store, out, exhibits=makers)
    assert sorted(path.name for path in (out / "results").glob("*.html")) == sorted([f"{kept.name}.html", "mine.html"])


def test_stale_list_cannot_delete_outside_the_site(samples: ModuleType, makers: dict[str, Any], tmp_path: Path) -> None:
    store, out = tmp_path / "results", tmp_path / "site"
    samples.evaluation().save(store)
    build(store, out, exhibits=makers)
    victim = tmp_path / "victim.html"
    victim.write_text("keep me")
    (out / ".wallprobe-gallery.json").write_text(json.dumps(["../victim.html", "results/../../victim.html", str(victim), 7]))
    build(store, out, exhibits=makers)
    assert victim.read_text() == "keep me"


def test_failing_exhibit_becomes_a_table_page_that_names_the_failure(samples: ModuleType, tmp_path: Path) -> None:
    def broken(result: object) -> Exhibit:
        raise KeyError("<b>no such variable</b>")

    def unserialisable(result: object) -> Any:
        return "not an exhibit"

    store = tmp_path / "results"
    samples.plugin("alpha", "fine").save(store)
    samples.plugin("beta", "fine").save(store)
    made = build_site(store, tmp_path / "site", exhibits={"alpha": broken, "beta": unserialisable})
    assert (made.pages, made.damaged) == (2, 0)
    text = page(tmp_path / "site", "alpha-")
    assert "The exhibit for &#39;alpha&#39; failed" in text
    assert "<b>no such" not in text
    assert "<table>" in text
    assert "The exhibit for &#39;beta&#39; failed" in page(tmp_path / "site", "beta-")


def test_empty_store_says_which_command_makes_a_result(tmp_path: Path) -> None:
    made = build_site(tmp_path / "none", tmp_path / "site", exhibits={})
    assert made.pages == 0
    assert "wallprobe interchange --src p5 --dst c0 --layer 3" in made.index.read_text(encoding="utf-8")


def test_unwritable_out_is_a_store_error(samples: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="cannot write"):
        build(tmp_path / "none", tmp_path / "file" / "site", exhibits={})


@pytest.mark.parametrize("name", ["a b#c?d", "x" * 300, "ü", "..", "a/../b"])
def test_page_stem_is_a_safe_short_unique_file_name(name: str) -> None:
    stem = page_stem(name)
    assert re.fullmatch(r"[A-Za-z0-9@_-][A-Za-z0-9@._-]*", stem)
    assert len(stem) <= 129
    assert stem != name
    assert page_stem("eval-c0-12345678") == "eval-c0-12345678"


def test_built_in_exhibits_register_as_plugins_do(makers: dict[str, Any]) -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no TOML reader")
    declared = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["entry-points"]
    found = declared.get("wallprobe.exhibits")
    registered = load_group("wallprobe.exhibits")
    assert found.items() <= {kind: f"{maker.__module__}:{maker.__name__}" for kind, maker in registered.items()}.items()
    assert makers.items() <= registered.items()


def test_an_attention_of_a_long_sequence_is_capped_and_says_so(samples: ModuleType, makers: dict[str, Any]) -> None:
    exhibit = makers["attention"](samples.attention("long", layers=1, heads=40, length=80))
    heads = exhibit.sections[1]
    assert "the first 64 of 80 tokens, the first 32 of 40 heads" in heads.caption
    spec = heads.frames[0].panels[0].spec
    assert (len(spec["attention"]), len(spec["attention"][0]), len(spec["tokens"])) == (32, 64, 64)


def test_long_table_agrees_with_the_values_of_the_result(samples: ModuleType) -> None:
    for result in (samples.interchange(), samples.evaluation(), samples.plugin(), samples.attention(layers=1, heads=2, length=5)):
        table = columns(result)
        assert [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)] == result.values

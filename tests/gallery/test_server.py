"""`wallprobe gallery serve`: to this machine alone, nothing but the site's files, and pages that learn of new results."""

import http.client
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from wallprobe.errors import ConfigError
from wallprobe.gallery import build_site
from wallprobe.gallery.server import Gallery


@pytest.fixture
def served(samples: ModuleType, tmp_path: Path) -> Iterator[Gallery]:
    samples.evaluation().save(tmp_path / "results")
    (tmp_path / "secret.html").write_text("secret")
    with Gallery(lambda: build_site(tmp_path / "results", tmp_path / "site"), tmp_path / "site", 0) as gallery:
        yield gallery


def ask(gallery: Gallery, path: str, *, method: str = "GET", host: str | None = None) -> tuple[int, str, str]:
    """Status, type and body; the path is sent as it stands."""
    port = int(gallery.url.split(":")[2].split("/")[0])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.putrequest(method, path, skip_host=True)
    connection.putheader("Host", host or f"127.0.0.1:{port}")
    connection.endheaders()
    answer = connection.getresponse()
    found = (answer.status, answer.headers.get("Content-Type", ""), answer.read().decode())
    connection.close()
    return found


def test_serves_pages_with_the_watcher_and_the_policy(served: Gallery) -> None:
    status, kind, body = ask(served, "/")
    assert (status, kind) == (200, "text/html; charset=utf-8")
    assert '<script defer src="/live/watch.js"></script>' in body
    assert "connect-src 'none'" in body
    assert ask(served, "/assets/gallery.js")[1] == "text/javascript; charset=utf-8"
    assert ask(served, "/live/watch.js")[0] == 200
    assert ask(served, "/index.html", method="HEAD")[2] == ""


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.html",
        "/%2e%2e/secret.html",
        "/results/..%2f..%2fsecret.html",
        "/.wallprobe-gallery.json",
        "/nothing.html",
        "/results",
        "/%00",
    ],
)
def test_serves_nothing_else(served: Gallery, path: str) -> None:
    status, _, body = ask(served, path)
    assert status == 404
    assert "secret" not in body.replace("secret.html", "")


def test_no_link_leads_out_of_the_site(served: Gallery, tmp_path: Path) -> None:
    (tmp_path / "site" / "results" / "out.html").symlink_to(tmp_path / "secret.html")
    assert ask(served, "/results/out.html")[0] == 404


def test_a_foreign_name_for_this_address_is_refused_and_so_is_writing(served: Gallery) -> None:
    assert ask(served, "/", host="evil.example")[0] == 403
    assert ask(served, "/", host="localhost:1")[0] == 200
    assert ask(served, "/", method="POST")[0] == 501


def test_a_page_learns_that_it_has_changed_and_others_do_not(served: Gallery, samples: ModuleType, tmp_path: Path) -> None:
    page = next((tmp_path / "site" / "results").glob("eval-c0*.html")).name
    before = {name: ask(served, f"/live/answer.js?page=/{name}")[2] for name in ("index.html", f"results/{page}")}
    assert not served.refresh()
    samples.evaluation("p5").save(tmp_path / "results")
    assert served.refresh()
    assert served.site.pages == 2
    after = {name: ask(served, f"/live/answer.js?page=/{name}")[2] for name in before}
    assert [before[name] == after[name] for name in before] == [False, True]
    assert ask(served, "/live/answer.js?page=/../../secret.html")[2] == 'wallprobeLive("gone");'


def test_a_taken_port_is_told_in_one_line(served: Gallery, tmp_path: Path) -> None:
    port = int(served.url.split(":")[2].split("/")[0])
    with pytest.raises(ConfigError, match=f"port {port} on 127.0.0.1 cannot be had"):
        Gallery(lambda: build_site(tmp_path / "results", tmp_path / "site"), tmp_path / "site", port)


@pytest.mark.browser
def test_an_open_page_shows_a_result_as_it_arrives(served: Gallery, samples: ModuleType, tmp_path: Path, browser: Any) -> None:
    page = browser.new_page()
    asked: list[str] = []
    problems: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    with page.expect_response("**/live/answer.js*"):
        page.goto(served.url)
    assert page.locator(".card").count() == 1
    samples.evaluation("p5").save(tmp_path / "results")
    assert served.refresh()
    page.locator(".card").nth(1).wait_for(timeout=15_000)
    assert problems == []
    assert all(url.startswith(("http://127.0.0.1:", "data:")) for url in asked)
    page.close()

"""The console in Chromium: a real server, the embedded bundle's verdicts on a few videos, hands on the keyboard."""

import io
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from servers import SAMPLES, serving
from small import PROVENANCE, verdict

from safelens.service.conclude import Frames
from safelens.service.queue import Queue
from safelens.service.settings import Settings
from safelens.service.start import prepare
from safelens.service.supervise import exported
from safelens.verdict import Caption

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")

CHECKS = (Path(__file__).parent / "console_checks.js").read_text()
HOSTILE = '<img src=x onerror="window.owned=1">'
PAGES = ["queue?decision=", "audit", "dashboard?period=hour"]


@pytest.fixture(scope="module")
def console(tmp_path_factory):
    """A server with four videos: one with hostile text, three that the embedded bundle has looked at."""
    settings = Settings(data=tmp_path_factory.mktemp("console"))
    prepare(settings, bundle=None, policy=None, tau=None)
    with serving(settings) as served:
        with served.http() as http:
            sent = {"name": f"{HOSTILE}.mp4", "reference": HOSTILE}
            http.post("/v1/jobs", params=sent, content=(SAMPLES / "abuse.mp4").read_bytes())
            _hostile(served)
            for name in ("violence", "hard-twin", "real-film"):
                video = (SAMPLES / f"{name}.mp4").read_bytes()
                http.post("/v1/jobs", params={"name": f"{name}.mp4"}, content=video)
        _moderated(served)
        yield served


def _hostile(served):
    claimed = Queue(served.database, 30.0).claim("test", 1).jobs[0]
    said = verdict(
        claimed.name, flagged=True, score=0.97, description=HOSTILE, explanation=f"{HOSTILE}\n</p>",
        captions=[Caption(time_s=1.0, text=f"a sign that says {HOSTILE}")],
        decided_by="deliberate", provenance=PROVENANCE,
    )  # fmt: skip
    assert Queue(served.database, 30.0).finish("test", claimed.id, said, Frames([], None))


def _moderated(served):
    """Let a model process look at all that waits."""
    worker = subprocess.Popen(
        [sys.executable, "-m", "safelens.service.worker"],
        env={**os.environ, **exported(served.settings)},
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        with served.http("moderator") as http:
            until = time.monotonic() + 120
            while len(http.get("/v1/jobs", params={"state": "done"}).json()["jobs"]) < 4:
                assert worker.poll() is None
                assert time.monotonic() < until
                time.sleep(0.2)
    finally:
        worker.terminate()
        worker.communicate()


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium, console):
    """Open a browser that has signed in; what it complains of fails the test."""
    contexts, complaints = [], []

    def open_(**options):
        context = chromium.new_context(base_url=console.url, **options)
        context.set_default_timeout(10_000)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        page.goto("/console/queue")
        page.fill("#key", console.keys["moderator"].key)
        page.keyboard.press("Enter")
        page.wait_for_selector("#queue-title")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert complaints == []


def review(page, name):
    page.goto("/console/queue?decision=")
    page.get_by_role("link", name=name).click()
    page.wait_for_selector("#decide-title")


def decisions(console, name):
    with console.http("moderator") as http:
        job = http.get("/v1/jobs", params={"search": name}).json()["jobs"][0]["id"]
        return http.get(f"/v1/jobs/{job}/decisions").json()


def test_from_the_queue_to_a_decision_by_keyboard(opened, console):
    page = opened()
    names = page.locator("#results tbody th a").all_inner_texts()
    assert names[0] == "real-film.mp4"  # what was not decided comes first
    assert names[-1] == "hard-twin.mp4"
    page.keyboard.press("j")
    page.keyboard.press("j")
    assert page.evaluate("document.activeElement.textContent") == names[1]
    page.keyboard.press("/")
    page.keyboard.type("twin")
    page.wait_for_function("() => document.querySelectorAll('#results tbody tr').length === 1")
    assert "1 video" in page.text_content("#said")
    page.keyboard.press("Enter")
    page.wait_for_selector("#results a:focus")
    page.keyboard.press("Enter")
    page.wait_for_selector("h1:has-text('hard-twin.mp4')")
    page.keyboard.press("o")
    assert page.is_disabled("#overturned")
    page.keyboard.press("3")
    page.keyboard.press("0")  # safe and a category exclude each other
    page.keyboard.press("3")
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    page.wait_for_selector("#status:has-text('hard-twin.mp4: overturned to sexual, violence')")
    assert decisions(console, "twin")[-1]["labels"] == ["sexual", "violence"]
    page.keyboard.press("u")
    page.wait_for_selector("text=Now overturned to sexual, violence by moderator")
    page.goto("/console/audit")
    assert "decision.overturn" in page.locator("tbody tr").first.inner_text()


def test_tab_and_enter_alone_will_do(opened, console):
    page = opened()

    def tab_to(words):
        for _ in range(60):
            page.keyboard.press("Tab")
            if words in page.evaluate("document.activeElement.textContent"):
                return
        raise AssertionError(f"Tab does not reach {words}")

    page.evaluate("localStorage.setItem('shortcuts', 'off')")
    tab_to("violence.mp4")
    page.keyboard.press("Enter")
    page.wait_for_selector("h1:has-text('violence.mp4')")
    page.keyboard.press("c")  # switched off
    tab_to("Escalate")
    page.keyboard.press("Enter")
    page.wait_for_selector("#status:has-text('violence.mp4: escalated')")
    assert [d["kind"] for d in decisions(console, "violence")] == ["escalate"]


def test_media_is_covered_until_asked_for(opened):
    page = opened()
    review(page, "violence.mp4")
    page.wait_for_function("() => document.getElementById('video').readyState >= 1")
    filters = "[...document.querySelectorAll('.media video, .media img')].map(x => getComputedStyle(x).filter)"
    covered = page.evaluate(filters)
    assert len(covered) > 3
    assert all("blur" in one and "grayscale(1)" in one for one in covered)
    assert page.evaluate("document.getElementById('video').muted")
    page.keyboard.press("b")
    page.wait_for_timeout(300)
    assert not any("blur" in one for one in page.evaluate(filters))
    assert page.locator("[data-cover=blur]").get_attribute("aria-pressed") == "false"
    page.keyboard.press("g")
    page.wait_for_timeout(300)
    assert set(page.evaluate(filters)) == {"none"}
    page.locator(".sheet button").nth(2).click()
    page.wait_for_function("() => document.getElementById('video').currentTime > 1")
    page.wait_for_function(
        "() => Number(document.querySelector('.lane .head').getAttribute('x1')) > 10"
    )
    page.reload()
    assert all("blur" in one for one in page.evaluate(filters))


def test_text_from_videos_is_only_text(opened):
    page = opened()
    for place in (*PAGES, None):
        if place:
            page.goto(f"/console/{place}")
        else:
            review(page, HOSTILE)
            assert HOSTILE in page.inner_text("h1")
            assert HOSTILE in page.inner_text(".captions")
            assert page.locator(f"p.text:has-text('{HOSTILE}')").count() == 2
        assert page.locator("img[src=x]").count() == 0
        assert page.evaluate("window.owned") is None


def test_what_the_bundle_knows_is_said_wherever_its_verdicts_are(opened):
    page = opened()
    for place in PAGES:
        page.goto(f"/console/{place}")
        assert "SafeWorld" in page.inner_text(".limits")
    review(page, "real-film.mp4")
    assert "SafeWorld" in page.inner_text(".limits")
    assert page.is_disabled("button[value=confirm]")


def test_another_site_decides_nothing(opened, console):
    page = opened()
    review(page, "real-film.mp4")
    target = page.evaluate("document.getElementById('decision').action")
    evil = f"""<form method=post action="{target}"><input name=kind value=escalate></form>
        <script>document.forms[0].submit()</script>"""
    page.context.route(
        "http://evil.test/*", lambda r: r.fulfill(body=evil, content_type="text/html")
    )
    before = decisions(console, "real-film")
    other = page.context.new_page()
    with other.expect_response("**/decision*") as answer:
        other.goto("http://evil.test/")
    assert answer.value.status in (401, 403)
    assert decisions(console, "real-film") == before


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_names_alternatives_and_contrast(opened, scheme):
    page = opened(color_scheme=scheme, reduced_motion="reduce")
    for name in (*PAGES, "violence.mp4", "hard-twin.mp4"):
        if name.endswith("mp4"):
            review(page, name)
            page.keyboard.press("o")
        else:
            page.goto(f"/console/{name}")
        assert page.evaluate(CHECKS) == [], name


@pytest.mark.parametrize("width", [320, 390])
def test_a_phone_scrolls_down_only(opened, width):
    page = opened(viewport={"width": width, "height": 700}, has_touch=True)
    for name in (*PAGES, "violence.mp4", HOSTILE):
        if name in PAGES:
            page.goto(f"/console/{name}")
        else:
            review(page, name)
            box = page.locator("button[value=confirm]").bounding_box()
            assert box["y"] + box["height"] <= 700  # decisions stay in reach
            assert box["height"] >= 44
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name


def test_screenshots(chromium, request, tmp_path):
    """Take the pictures in docs/ anew: `pytest tests/service/test_console_browser.py --screenshots docs`."""
    folder = request.config.getoption("--screenshots")
    if folder is None:
        pytest.skip("only with --screenshots FOLDER")
    command = [sys.executable, "-u", "-m", "recipes.serve_demo", "--port", "0", "--data", tmp_path]
    demo = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    said = {}
    try:
        for line in demo.stdout:
            said |= dict([line.split(maxsplit=1)])
            if line.startswith("All"):
                break
        page = chromium.new_context(viewport={"width": 1280, "height": 860}).new_page()
        page.goto(said["console"].strip())
        page.fill("#key", said["API"].split()[-1])
        page.keyboard.press("Enter")
        page.wait_for_selector("#queue-title")
        _picture(page, Path(folder) / "console-queue.webp")
        page.goto(said["console"].strip() + "/queue?decision=&search=hard.mp4")
        page.get_by_role("link", name="hard.mp4").click()
        page.wait_for_function("() => document.getElementById('video').readyState >= 2")
        page.keyboard.press("b")
        page.wait_for_timeout(500)
        _picture(page, Path(folder) / "console-review.webp")
        page.goto(said["console"].strip() + "/dashboard?period=hour")
        page.focus("#tau")
        for _ in range(4):
            page.keyboard.press("ArrowRight")
        _picture(page, Path(folder) / "console-dashboard.webp")
    finally:
        demo.terminate()
        demo.wait(timeout=60)


def _picture(page, path):
    from PIL import Image

    Image.open(io.BytesIO(page.screenshot())).save(path, quality=80, method=6)
    assert path.stat().st_size < 150_000

import base64
import hashlib
import re
from collections import Counter
from html.parser import HTMLParser

import pytest

from safelens.cascade import Moderation
from safelens.report import ReportWriter, Tally, in_words, outcome, printable
from safelens.safeworld import sample_scene
from safelens.safeworld.encode import USUAL, encode
from safelens.verdict import Caption, CategoryScore, Evidence, Provenance, Verdict
from safelens.video import ClipOptions, VideoReader

KNOWS = "It knows only the generated SafeWorld, no real video."
HOSTILE = '<script>alert(1)</script><img src=x onerror="alert(2)">\' & \u202egpj.mp4'


class Page(HTMLParser):
    """What a browser would see: open tags, the text, and whether tags are balanced."""

    VOID = frozenset(("meta", "input", "img", "br", "link"))

    def __init__(self, path):
        super().__init__()
        self.tags, self.open, self.words = [], [], []
        self.feed(path.read_text("utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def all(self, tag, kind=None):
        found = [a for t, a in self.tags if t == tag]
        return [a for a in found if kind is None or kind in (a.get("class") or "").split()]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clips") / "fight.mp4"
    encode(sample_scene(5, 0, label="violence"), USUAL, path)
    with VideoReader(ClipOptions(max_side=96)) as reader:
        return reader.read(path)


@pytest.fixture
def verdict(policy, clip):
    def make(label="violence", video="fight.mp4", **fields):
        decided = fields.get("status", "ok") == "ok" or label not in (None, "safe")
        values = {
            "video": video,
            "sha256": clip.sha256,
            "status": "ok",
            "flagged": label != "safe" if decided else None,
            "label": label if decided else None,
            "confidence": 0.9 if decided else None,
            "decided_by": "screen" if decided else None,
            "categories": [
                CategoryScore(
                    id=c.id,
                    name=c.name,
                    score=0.9 if c.id == label else 0.01,
                    flagged=c.id == label if decided else None,
                )
                for c in policy.categories
            ],
            "timing": {"decode": 0.5, "screen": 1.5},
            "provenance": Provenance(
                package="0.1.0",
                bundle="tiny 1",
                bundle_sha256="ab" * 32,
                policy="default",
                policy_sha256=policy.sha256,
                tau=0.8,
                layout="policy_first",
                knows=KNOWS,
            ),
        }
        return Verdict(**(values | fields))

    return make


@pytest.fixture
def failed(verdict):
    return verdict(
        None,
        "gone.mp4",
        status="video_error",
        sha256=None,
        categories=[],
        error={"code": "not_found", "message": "gone.mp4: no such file; check the path"},
    )


def test_the_page_tells_all_of_a_deliberated_verdict(tmp_path, clip, verdict):
    end = float(clip.timestamps[-1])
    told = verdict(
        decided_by="deliberate",
        in_domain=0.25,
        description="Two people stand in a room.",
        explanation="One shoots\nat the other.",
        captions=[Caption(time_s=1.2, text="An orange person holds a gun.")],
        evidence=[Evidence(start_s=end / 2, end_s=end, category="violence", score=0.77)],
        timing={"decode": 0.5, "screen": 1.5, "caption": 2.25, "deliberate": 3.0},
        cost={"gflops": 12.5, "prompt_tokens": 900, "generated_tokens": 41},
    )
    path = tmp_path / "report.html"
    with ReportWriter(path, "Night run") as report:
        report.add(Moderation(told, clip))
        assert not path.exists()
    page = Page(path)
    for words in (
        "Night run", "1 video ", f"Limits of this bundle. {KNOWS}", "fight.mp4", "90.0% sure",
        "Violates the policy: Threats, Violence & Harm", "256×256", "Two people stand in a room.",
        "One shoots at the other.", "1.2 s An orange person holds a gun.", "Decode 0.50 s",
        "Screen (S1) 1.50 s", "Caption 2.25 s", "Deliberate (S2) 3.00 s", "tau = 0.8", "score 0.77",
        "In domain 0.250", "12.50 GFLOPs, 900 prompt and 41 generated tokens", clip.sha256, "ab" * 32,
        "7.2 s of work", "S2 deliberated 1",
    ):  # fmt: skip
        assert words in page.text, words
    (image,) = page.all("img")
    assert image["src"].startswith("data:image/jpeg;base64,")
    assert base64.b64decode(image["src"].split(",")[1]).startswith(b"\xff\xd8")
    assert "evidence at" in image["alt"]
    widths = [float(re.search(r"width: ([\d.]+)%", a["style"])[1]) for a in page.all("i")[-8:-1]]
    assert 90.0 in widths
    assert 1.0 in widths
    assert list(tmp_path.iterdir()) == [path]


def test_frames_are_covered_unless_the_video_is_safe(tmp_path, clip, verdict):
    strange = verdict(
        None,
        status="out_of_domain",
        categories=[],
        error={"code": "out_of_domain", "message": "use --model"},
    )
    with ReportWriter(tmp_path / "r.html") as report:
        for one in (verdict("abuse"), verdict("safe"), strange):
            report.add(Moderation(one, clip))
    page = Page(tmp_path / "r.html")
    assert [a["class"] for a in page.all("figure")] == ["sheet covered", "sheet", "sheet covered"]
    boxes = [a["id"] for a in page.all("input") if (a.get("id") or "").startswith("reveal")]
    assert boxes == ["reveal-all", "reveal1", "reveal3"]
    assert [a["for"] for a in page.all("label", "reveal")] == ["reveal1", "reveal3"]


def test_nothing_from_outside_becomes_markup(tmp_path, clip, verdict):
    told = verdict(
        video=f"/videos/{HOSTILE}\udcff",
        description=HOSTILE,
        explanation="</p></article>" + HOSTILE,
        captions=[Caption(time_s=0, text=HOSTILE)],
        error={"code": "truncated", "message": HOSTILE},
        status="partial",
        provenance=Provenance(
            package="0", bundle=HOSTILE, policy=HOSTILE, policy_sha256="0", knows=HOSTILE
        ),
    )
    path = tmp_path / "r.html"
    with ReportWriter(path, HOSTILE) as report:
        report.add(Moderation(told, clip))
    page = Page(path)
    assert Counter(t for t, _ in page.tags)["script"] == 1
    assert len(page.all("img")) == 1
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert page.text.count("<script>alert(1)</script>") >= 7
    assert "\u202e" not in path.read_text()
    # Besides, the page lets a browser run its own script only, and load nothing.
    (rule,) = [a["content"] for a in page.all("meta") if "http-equiv" in a]
    script = re.search(r"<script>(.*?)</script>", path.read_text(), re.S)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert rule.startswith("default-src 'none'; img-src data:;")
    assert f"script-src 'sha256-{digest}'" in rule
    assert not re.search(r"(src|href)=\"(?!data:)", path.read_text())


def test_what_is_not_decided_never_looks_safe(tmp_path, verdict, failed):
    cut = {"code": "truncated", "message": "cut off"}
    half = verdict("safe", status="partial", error=cut, decided_by="screen")
    strange = verdict(None, status="out_of_domain", error=cut)
    broken = verdict(None, status="model_error", error={"code": "E", "message": "no memory"})
    bad_half = verdict("abuse", status="partial", error=cut)
    all_of_them = [half, strange, broken, failed, bad_half, verdict("safe")]
    assert [outcome(v) for v in all_of_them] == [
        "undecided", "undecided", "error", "error", "flagged", "safe",
    ]  # fmt: skip
    assert [in_words(v).startswith("Safe") for v in all_of_them] == [False] * 5 + [True]
    assert in_words(bad_half).endswith("(only the part that decoded was judged)")
    with ReportWriter(tmp_path / "r.html") as report:
        for one in all_of_them:
            report.add(Moderation(one, None))
    page = Page(tmp_path / "r.html")
    assert [a["data-outcome"] for a in page.all("article")] == [outcome(v) for v in all_of_them]
    assert "gone.mp4: no such file; check the path" in page.text
    counted = re.findall(r'class="tile (\w+)"><b>(\d+)<', (tmp_path / "r.html").read_text())
    assert dict(counted) == {"flagged": "1", "undecided": "2", "error": "2", "safe": "1"}


def test_counts_are_those_of_the_verdicts(verdict, failed):
    tally = Tally()
    for one in (verdict(), verdict("safe"), verdict("safe", decided_by="deliberate"), failed):
        tally.add(one)
    assert tally.videos == 4
    assert tally.labels == {"Threats, Violence & Harm": 1, "Safe": 2}
    assert tally.routes == {
        "S1 alone decided": 2, "S2 deliberated": 1, "nothing was decided": 1,
    }  # fmt: skip
    assert tally.statuses == {"ok": 3, "video_error": 1}
    assert tally.seconds == pytest.approx(8.0)
    assert list(tally.knows) == [KNOWS]


def test_a_report_of_nothing_and_one_closed_twice(tmp_path, failed):
    report = ReportWriter(tmp_path / "r.html")
    report.close()
    report.close()
    assert "0 videos" in Page(tmp_path / "r.html").text
    with pytest.raises(ValueError, match="closed; open a new one"):
        report.add(Moderation(failed, None))


def test_control_characters_are_made_visible():
    assert printable("a\x1b[31m\u202eb\r\n\udc80 ü 漢 \U0001f600") == (
        "a\\x1b[31m\\u202eb\\r\\n\\udc80 ü 漢 \U0001f600"
    )


def test_the_route_names_the_tau_of_the_answered_class(verdict, policy):
    from safelens.report import Section

    def route(reader=None, **fields):
        provenance = Provenance(
            package="0.1.0",
            policy="default",
            policy_sha256=policy.sha256,
            tau=0.99,
            taus={"violence": 0.85},
            screen_reader=reader,
        )
        return Section(verdict(provenance=provenance, **fields), None, 1).route

    assert "not below tau, 0.85" in route()
    assert "below its class's tau, or" in route(decided_by="deliberate")
    assert "label answers" in route("labels")
    assert "label answers" not in route()

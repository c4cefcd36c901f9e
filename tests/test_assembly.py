"""Systems for policies and encodings that are not the bundle's own."""

import dataclasses

import pytest
import torch

from safelens.assembly import EncodingError
from safelens.bundle import BundleError
from safelens.cascade import SafeLens
from safelens.policy import Category, Policy, Rule
from safelens.screen import LabelReader, ProbeReader

torch.set_num_threads(1)


def unseen(count, name="Kind"):
    rules = (Rule("blocked", "Flag what is shown."),)
    made = (Category(f"c{i}", f"{name} {i}", "Safety.", rules) for i in range(count))
    return Policy(id="unseen", name="Unseen", version="1", categories=tuple(made))


@pytest.fixture(scope="module")
def parallel_dir(make_bundle):
    return make_bundle(policy_encoding="parallel", prune={"keep": 0.2}, taus={"abuse": 0.5})


@pytest.fixture(scope="module")
def open_dir(make_bundle):
    return make_bundle(other_policies=True)


def test_a_policy_of_unseen_categories_is_routed_by_its_label_answers(open_dir, videos, tmp_path):
    (tmp_path / "my.yaml").write_text(unseen(3).to_yaml())
    with SafeLens.load(open_dir, policy=tmp_path / "my.yaml", device="cpu") as lens:
        lens.screener.guard = None
        assert isinstance(lens.screener.reader, LabelReader)
        assert lens.thresholds.tau == 0.9
        found = lens.moderate(videos[0]).verdict
        assert [c.id for c in found.categories] == ["c0", "c1", "c2"]
        assert (found.status, found.provenance.screen_reader) == ("ok", "labels")
    with SafeLens.load(open_dir, policy=tmp_path / "my.yaml", tau=0.0, device="cpu") as lens:
        lens.screener.guard = None
        assert lens.moderate(videos[0]).verdict.decided_by == "screen"


def test_a_bundle_that_learned_one_policy_judges_by_no_other(bundle_dir, tmp_path, policy):
    """It would call safe what breaks another; texts may differ, since what a category means is the policy's to say."""
    (tmp_path / "own.yaml").write_text(policy.to_yaml().replace("Core Value", "Value"))
    turned = dataclasses.replace(policy, categories=policy.categories[::-1])
    with SafeLens.load(bundle_dir, policy=tmp_path / "own.yaml", device="cpu") as lens:
        assert lens.policy == Policy.load(tmp_path / "own.yaml")
        for other in (unseen(3), turned):
            with pytest.raises(BundleError, match="does not match the probe"):
                lens.for_policy(other)
            with pytest.raises(
                BundleError, match="in this order, a bundle that says other_policies"
            ):
                SafeLens.load(bundle_dir, policy=other, device="cpu")
    with pytest.raises(BundleError, match="does not match the probe"):
        SafeLens.load("tiny", policy=unseen(1), device="cpu")


def test_whose_order_counts(open_dir, parallel_dir, policy):
    """The probe knows its classes in any order where none is read first, and only in its own otherwise."""
    turned = dataclasses.replace(policy, categories=policy.categories[::-1])
    with SafeLens.load(open_dir, policy=turned, device="cpu") as lens:
        assert isinstance(lens.screener.reader, LabelReader)
        assert lens.provenance.screen_reader == "labels"
    with SafeLens.load(parallel_dir, policy=turned, device="cpu") as lens:
        assert isinstance(lens.screener.reader, ProbeReader)
        assert lens.provenance.screen_reader is None
        assert lens.thresholds.taus == {"abuse": 0.5}


def test_a_parallel_bundle_gives_the_same_verdict_for_any_order(parallel_dir, policy, videos):
    found = []
    for categories in (policy.categories, policy.categories[::-1]):
        turned = dataclasses.replace(policy, categories=categories)
        with SafeLens.load(parallel_dir, policy=turned, tau=1.01, device="cpu") as lens:
            lens.screener.guard = None
            found.append([lens.moderate(path).verdict for path in videos[:3]])
            assert [m.verdict.label for m in lens.moderate_many(videos[:3])] == [
                verdict.label for verdict in found[-1]
            ]
    for one, other in zip(*found, strict=True):
        assert (one.label, one.explanation) == (other.label, other.explanation)
        assert {c.id: c.score for c in one.categories} == pytest.approx(
            {c.id: c.score for c in other.categories}, abs=1e-5
        )
        assert one.provenance.policy_encoding == "parallel"
        assert one.provenance.prune_keep == 0.2
        if one.flagged:
            assert {r.category for r in one.regions} == {c.id for c in one.categories if c.flagged}
            assert one.regions[0].model_dump() in other.model_dump()["regions"]
    assert any(verdict.flagged for verdict in found[0])


def test_tenants_share_blocks_and_a_category_more_is_one_block(vlm_dir, tmp_path, videos):
    options = {"policy_encoding": "parallel", "device": "cpu", "policy_cache": tmp_path / "cache"}
    options |= {"tau": 0.0}
    with SafeLens.zero_shot(vlm_dir, policy=unseen(20), **options) as lens:
        blocks = lens.screener.prompt.blocks
        assert blocks.read == 20
        with (
            lens.for_policy(unseen(21), tau=0.0) as more,
            lens.for_policy(unseen(7), tau=0.0) as fewer,
        ):
            assert blocks.read == 21
            assert more.screener.vlm is lens.screener.vlm
            assert len(fewer.moderate(videos[0]).verdict.categories) == 7
            assert len(more.moderate(videos[0]).verdict.categories) == 21
            wanted = more.moderate(videos[0]).verdict
    with SafeLens.zero_shot(vlm_dir, policy=unseen(22), **options) as again:
        assert again.screener.prompt.blocks.read == 1
        with again.for_policy(unseen(21), tau=0.0) as same:
            found = same.moderate(videos[0]).verdict
    scores = [c.score for c in wanted.categories]
    assert [c.score for c in found.categories] == pytest.approx(scores, abs=1e-5)


def test_a_sequential_system_changes_its_policy_too(open_dir, policy):
    with SafeLens.load(open_dir, device="cpu") as lens, lens.for_policy(unseen(2)) as other:
        assert isinstance(lens.screener.reader, ProbeReader)
        assert isinstance(other.screener.reader, LabelReader)
        assert other.screener.guard is lens.screener.guard
        with other.for_policy(policy) as back:
            assert isinstance(back.screener.reader, ProbeReader)
            assert back.provenance == lens.provenance


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"prune": 0.1}, "prune measures relevance .* needs policy_encoding: parallel"),
        ({"policy_cache": "x"}, "no blocks to keep on disk"),
        ({"prune": 0.0}, "keep 0; expected a share above 0"),
    ],
)
def test_what_does_not_fit_together_is_refused(bundle_dir, vlm_dir, options, match):
    with pytest.raises(BundleError, match=match):
        SafeLens.load(bundle_dir, device="cpu", **options)
    with pytest.raises(EncodingError, match=match):
        SafeLens.zero_shot(vlm_dir, device="cpu", **options)


def test_a_bundle_prunes_only_a_parallel_policy(make_bundle):
    with pytest.raises(BundleError, match="prune is only for policy_encoding: parallel"):
        make_bundle(prune={"keep": 0.5})

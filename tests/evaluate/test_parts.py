"""Parts share no video and no group, whatever is left out."""

import pytest

from safelens.data.records import Record
from safelens.evaluate.cases import EvaluationError
from safelens.evaluate.parts import divide_samples
from safelens.evaluate.run import Sample


def sample(index, digest=None, **fields):
    record = Record(id=f"v{index}", video=f"/v{index}", source="t", **({"labels": ()} | fields))
    return Sample(record, digest or f"{index:064x}")


@pytest.fixture
def samples(policy):
    found = []
    for i in range(240):
        labels = () if i % 2 else (policy.categories[i // 2 % len(policy.categories)].id,)
        twin = f"v{i - 1}" if i % 10 == 1 else None
        group = f"film{i // 40}-{i % 3}" if i % 5 == 0 else None
        found.append(sample(i, labels=labels, twin_of=twin, group=group))
    return found


def ids(part):
    return {sample.record.id for sample in part}


@pytest.mark.parametrize("temperature", [True, False])
def test_no_video_and_no_group_is_in_two_parts(samples, policy, temperature):
    parts = divide_samples(samples, policy, temperature=temperature, seed=3)
    three = [parts.temperature, parts.tau, parts.test]
    assert sum(map(len, three)) == len(set().union(*map(ids, three))) == 240
    assert list(parts.counts.values()) == ([60, 120, 60] if temperature else [0, 160, 80])
    place = {name: k for k, part in enumerate(three) for name in ids(part)}
    for one in samples:
        if one.record.twin_of:
            assert place[one.record.id] == place[one.record.twin_of]
        alike = [s for s in samples if one.record.group and s.record.group == one.record.group]
        assert len({place[s.record.id] for s in alike}) <= 1
    assert sum(parts.groups.values()) < 240
    for part in three[not temperature :]:  # every class in its share
        flagged = sum(bool(s.record.labels) for s in part)
        assert abs(flagged - len(part) / 2) <= 3
        assert {s.record.label for s in part} == set(policy.labels)


def test_the_seed_divides_and_the_digest_is_of_videos_and_truth(samples, policy):
    def divided(samples, seed=0):
        return divide_samples(samples, policy, temperature=True, seed=seed)

    first = divided(samples)
    assert divided(samples) == first
    assert ids(divided(samples, 1).tau) != ids(first.tau)
    assert divided(samples[::-1], 1).sha256 == first.sha256
    assert divided([*samples[:-1], sample(239, labels=("abuse",))]).sha256 != first.sha256
    assert divided([*samples[:-1], sample(239, "f" * 64)]).sha256 != first.sha256


def test_what_serves_for_nothing_is_counted(samples, policy):
    lost = Sample(sample(0).record.model_copy(update={"id": "lost"}), None, "gone")
    more = [
        lost,
        sample(500, asked=("abuse",)),  # nothing flagged, but not all was asked
        sample(501, f"{1:064x}"),  # a copy of v1, which is safe
        sample(502, f"{3:064x}", labels=("abuse",)),  # one of v3, which is safe as well
        sample(503, f"{5:064x}", group="linked"),  # links v5 to v504
        sample(504, group="linked"),
    ]
    parts = divide_samples([*samples, *more], policy, temperature=True, seed=0)
    assert parts.left_out == {
        "of unknown truth": 1,
        "unreadable": 1,
        "copies of others": 2,
        "of one video with other labels": 2,
    }
    used = [ids(part) for part in (parts.temperature, parts.tau, parts.test)]
    assert set().union(*used) == ids(samples) - {"v3"} | {"v504"}
    assert any({"v5", "v504"} <= part for part in used)
    with pytest.raises(EvaluationError, match="known truth"):
        divide_samples([more[1]], policy, temperature=True, seed=0)

import subprocess
import sys

import numpy as np
import pytest

from safelens.domain import DomainGuard


def world(rows, seed):
    """Six clusters on a circle in two of 24 directions, little variance in the others."""
    rng = np.random.default_rng(seed)
    angle = rng.integers(0, 6, rows) * np.pi / 3
    plane = np.stack([np.cos(angle), np.sin(angle)], axis=1) * 5 + rng.normal(size=(rows, 2)) * 0.4
    latent = np.concatenate(
        [plane, rng.normal(size=(rows, 4)), rng.normal(size=(rows, 18)) * 0.02], 1
    )
    mix = np.linalg.qr(np.random.default_rng(99).normal(size=(24, 24)))[0]
    return latent @ mix * 3 + 7, mix


@pytest.fixture(scope="module")
def guard():
    return DomainGuard.fit(world(1500, 1)[0], world(600, 2)[0])


def test_distance_equals_a_reference(guard):
    from scipy.spatial.distance import mahalanobis
    from sklearn.decomposition import PCA
    from sklearn.neighbors import NearestNeighbors
    from sklearn.preprocessing import StandardScaler

    train, held, fresh = world(1500, 1)[0], world(600, 2)[0], world(40, 5)[0]
    scaler = StandardScaler().fit(train)
    pca = PCA(n_components=0.99, svd_solver="full").fit(scaler.transform(train))
    assert guard.views[0].references.shape == (1500, pca.n_components_)
    neighbours = NearestNeighbors().fit(pca.transform(scaler.transform(train)))
    covariance = np.cov(scaler.transform(train).T, bias=True)
    inverse = np.linalg.inv(covariance + 0.01 * np.trace(covariance) / 24 * np.eye(24))

    def readings(x):
        x = scaler.transform(x)
        near = neighbours.kneighbors(pca.transform(x), 5)[0][:, 4]
        return np.stack([near, [mahalanobis(row, np.zeros(24), inverse) for row in x]], axis=1)

    middle, high = np.quantile(readings(held), [0.5, 0.95], axis=0)
    expected = np.maximum(0, 1 + ((readings(fresh) - middle) / (high - middle)).max(axis=1))
    np.testing.assert_allclose(guard.distance(fresh), expected, rtol=1e-4, atol=1e-4)
    assert guard.distance(fresh[3]) == pytest.approx(expected[3], rel=1e-4)


def test_refuses_about_as_many_as_asked_for(guard):
    fresh = world(20_000, 3)[0]
    assert 0.004 < 1 - guard.accepts(fresh).mean() < 0.02
    loose = DomainGuard.fit(world(1500, 1)[0], world(600, 2)[0], false_refusal_rate=0.1)
    assert 0.07 < 1 - loose.accepts(fresh).mean() < 0.13
    assert loose.threshold < guard.threshold


def test_refuses_the_gap_between_clusters_and_new_directions(guard):
    fresh, mix = world(300, 4)
    moved = (fresh - 7) / 3 @ mix.T
    moved[:, :2] = 0
    moved = moved @ mix * 3 + 7
    assert guard.accepts(moved).mean() < 0.05
    gaussian = guard._readings(moved)[:, 0, 1]
    assert np.median(gaussian) < guard.medians[0, 1]  # one Gaussian would call the gap home
    moved = (fresh - 7) / 3 @ mix.T
    moved[:, 6:] += 0.3
    assert guard.accepts(moved @ mix * 3 + 7).mean() < 0.02


def test_in_domain_is_the_share_of_held_out_clips_as_far(guard):
    fresh = world(4000, 6)[0]
    share = guard.in_domain(fresh)
    assert share.min() >= 0
    assert share.max() <= 1
    assert np.abs(np.quantile(share, [0.1, 0.5, 0.9]) - [0.1, 0.5, 0.9]).max() < 0.06
    body = guard.held_out[::50][:9]
    counted = [(guard.held_out >= d).mean() for d in body]
    np.testing.assert_allclose(guard.share_beyond(body), counted, atol=0.005)
    assert guard.share_beyond(guard.threshold) == pytest.approx(0.01, abs=0.006)


def test_in_domain_falls_smoothly_to_nothing(guard):
    d = np.linspace(0, guard.held_out[-1] * 4, 4000)
    share = guard.share_beyond(d)
    assert (np.diff(share) <= 1e-12).all()
    assert np.abs(np.diff(share)).max() < 0.05
    assert share[0] == 1
    assert 0 < share[-1] < 1e-4
    assert guard.share_beyond(np.inf) == 0


def test_unusable_features_are_never_in_domain(guard):
    broken = world(1, 7)[0][0]
    broken[3] = np.nan
    assert guard.distance(broken) == np.inf
    assert not guard.accepts(broken)
    assert guard.in_domain(broken) == 0


def test_a_constant_feature_is_watched(tmp_path):
    rng = np.random.default_rng(0)
    train, fresh = rng.normal(size=(500, 4)), rng.normal(size=(200, 4))
    train[:, 2] = fresh[:, 2] = 1.5
    guard = DomainGuard.fit(train, fresh)
    assert guard.accepts(fresh).mean() > 0.98
    fresh[:, 2] = 4
    assert not guard.accepts(fresh).any()


def test_a_view_hears_what_all_features_drown():
    def clips(rows, seed, shift=0.0):
        found = np.random.default_rng(seed).normal(size=(rows, 60))
        found[:, 58:] += shift
        return found

    train, held, moved = clips(1500, 1), clips(800, 2), clips(500, 3, shift=3.5)
    drowned = DomainGuard.fit(train, held)
    heard = DomainGuard.fit(train, held, views=[(0, 60), (58, 60)])
    assert drowned.accepts(moved).mean() > 0.4
    assert heard.accepts(moved).mean() < 0.2
    assert heard.accepts(clips(4000, 4)).mean() > 0.975
    alone = DomainGuard.fit(train[:, 58:], held[:, 58:])
    np.testing.assert_allclose(
        heard._readings(moved)[:, 1], alone._readings(moved[:, 58:])[:, 0], rtol=1e-9
    )
    with pytest.raises(ValueError, match=r"view \(58, 61\) is no range of 60 features"):
        DomainGuard.fit(train, held, views=[(58, 61)])


def test_saves_and_loads(tmp_path):
    guard = DomainGuard.fit(world(600, 1)[0], world(200, 2)[0], views=[(0, 24), (3, 10)])
    path = tmp_path / "domain.safetensors"
    guard.save(path)
    again = DomainGuard.load(path)
    fresh = world(50, 8)[0]
    np.testing.assert_array_equal(again.distance(fresh), guard.distance(fresh))
    np.testing.assert_array_equal(again.in_domain(fresh), guard.in_domain(fresh))
    assert again.threshold == guard.threshold
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"domain\.safetensors: not a domain guard"):
        DomainGuard.load(path)
    with pytest.raises(FileNotFoundError):
        DomainGuard.load(tmp_path / "other")


def test_references_are_bounded():
    guard = DomainGuard.fit(world(1500, 1)[0], world(200, 2)[0], max_references=300)
    assert len(guard.views[0].references) == 300
    assert guard.accepts(world(500, 3)[0]).mean() > 0.95


def test_refusals(guard):
    train = world(100, 1)[0]
    with pytest.raises(ValueError, match="at least 99"):
        DomainGuard.fit(train, world(50, 2)[0])
    with pytest.raises(ValueError, match="24 columns and held_out 3"):
        DomainGuard.fit(train, np.zeros((200, 3)))
    with pytest.raises(ValueError, match="row 1 is not finite"):
        DomainGuard.fit([[0.0], [np.nan]], np.zeros((200, 1)))
    with pytest.raises(ValueError, match=r"x must be \(24,\)"):
        guard.distance(np.zeros(5))


def test_needs_no_heavy_import():
    code = "import sys, safelens.domain; sys.exit(bool({'torch', 'sklearn'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0

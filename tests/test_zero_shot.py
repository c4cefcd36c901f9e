"""Real videos through a model without probe or training: random weights, the whole pipeline."""

import pytest

from safelens.cascade import SafeLens


@pytest.mark.shared
def test_real_videos_go_through_the_whole_pipeline(shared_videos, vlm_dir, captioner_dir):
    paths = sorted((shared_videos / "plain").glob("*.*"))
    paths += sorted((shared_videos / "fights").glob("*.mp4"))[::20]
    with SafeLens.zero_shot(vlm_dir, captioner=captioner_dir, tau=1.01) as lens:
        lens.screener.vlm.frame_pixels = 96 * 96
        lens.deliberator.max_new_tokens = 16
        verdicts = [m.verdict for m in lens.moderate_many(paths)]
    assert [v.status for v in verdicts] == ["ok"] * len(paths)
    assert {v.decided_by for v in verdicts} == {"deliberate"}
    assert all(len(v.categories) == 6 and v.captions and v.in_domain is None for v in verdicts)

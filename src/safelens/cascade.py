"""The cascade: S1 where it is sure and at home, S2 for the rest (the paper's Algorithm 2).

Knows routing, and how a system is put together from a bundle or a model. Everything that fails becomes
a Verdict that says so; nothing that failed is ever safe.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from safelens import __version__
from safelens.bundle import Bundle, BundleError, ClipSettings
from safelens.outcome import Decision, Decoded, Outcome
from safelens.policy import Policy
from safelens.thresholds import Thresholds
from safelens.verdict import Caption, Evidence, Provenance, Verdict
from safelens.video import Clip, ClipOptions, VideoError, VideoReader
from safelens.vlm_cost import Spent

if TYPE_CHECKING:
    from safelens.captioner import Captioner
    from safelens.deliberate import Deliberator
    from safelens.domain import DomainGuard
    from safelens.screen import Layout, ProbeReader, Screened, Screener

BATCH = 8
"""Most videos that are screened together; twice as many are decoded ahead."""


@dataclass(frozen=True)
class Moderation:
    """A verdict and the clip it is about, for contact sheets; None where nothing decoded."""

    verdict: Verdict
    clip: Clip | None


class SafeLens:
    """The whole system for one policy. Use as a context manager: it owns a decoding process.

    Args:
        screener: S1.
        deliberator: S2.
        captioner: Florence-2, or None to deliberate without captions.
        thresholds: from which confidence on S1's answer stands.
        provenance: stands in every verdict.
        clip: sampling of frames.
        outside_domain: what happens to a clip that the domain guard does not know.
    """

    def __init__(
        self,
        screener: Screener,
        deliberator: Deliberator,
        captioner: Captioner | None,
        *,
        thresholds: Thresholds,
        provenance: Provenance,
        clip: ClipSettings,
        outside_domain: Literal["escalate", "refuse"] = "escalate",
    ) -> None:
        self.screener = screener
        self.deliberator = deliberator
        self.captioner = captioner
        self.thresholds = thresholds
        self.provenance = provenance
        self.outside_domain = outside_domain
        self.policy = screener.policy
        self._outcome = Outcome(screener.policy, provenance)
        self._reader = VideoReader(ClipOptions(**clip.model_dump()))

    # -- construction -----------------------------------------------------------------------------

    @classmethod
    def load(
        cls,
        bundle: str | Path = "tiny",
        *,
        policy: str | Path | Policy | None = None,
        tau: float | None = None,
        keyframe_shift_s: float | None = None,
        device: str | None = None,
    ) -> SafeLens:
        """Build from a bundle.

        Args:
            bundle: name, directory or hub id.
            policy: policy, file or name in place of the bundle's; its category ids must be the probe's classes.
            tau: in place of the bundle's, for all classes.
            keyframe_shift_s: in place of the bundle's; see `ClipOptions`.
            device: where the models run; the accelerator if there is one, by default.

        Raises:
            BundleError: the bundle or the policy cannot be used.
            ModelLoadError: a vision-language model or adapter of it cannot be loaded.
            CaptionerError: its captioner cannot be loaded.
            PolicyError: the policy file is wrong.
            ValueError: `keyframe_shift_s` is out of range.
        """
        from safelens.captioner import Captioner
        from safelens.deliberate import ADAPTER, Deliberator
        from safelens.screen import Screener
        from safelens.vlm import VisionLanguageModel
        from safelens.vlm_loading import quiet

        found = Bundle.load(bundle)
        s, screen, deliberate = found.settings, found.settings.screen, found.settings.deliberate
        chosen = found.policy if policy is None else policy
        if not isinstance(chosen, Policy):
            chosen = Policy.load(chosen)
        found.check_policy(chosen)
        device = device or default_device()
        pixels = screen.frame_pixels
        vlm = VisionLanguageModel.load(found.path(screen.model), device=device, frame_pixels=pixels)
        reader, guard = _reader_and_guard(found, vlm.hidden_size, device)
        reasoner = vlm
        if deliberate.model is not None:
            reasoner = VisionLanguageModel.load(
                found.path(deliberate.model), device=device, frame_pixels=pixels
            )
        if deliberate.adapter is not None:
            reasoner.load_adapter(found.path(deliberate.adapter), ADAPTER)
        with quiet():
            captioner = Captioner.load(
                found.path(deliberate.captioner),
                device,
                max_new_tokens=deliberate.max_caption_tokens,
            )
        thresholds = s.thresholds if tau is None else Thresholds(tau)
        clip = s.clip.with_keyframes(keyframe_shift_s)
        return cls(
            Screener(vlm, chosen, reader=reader, guard=guard, layout=s.layout),
            Deliberator(
                reasoner,
                chosen,
                adapter=None if deliberate.adapter is None else ADAPTER,
                max_new_tokens=deliberate.max_new_tokens,
                layout=s.layout,
            ),
            captioner,
            thresholds=thresholds,
            provenance=_provenance(
                chosen,
                thresholds,
                s.layout,
                clip,
                bundle=f"{s.name} {s.version}",
                sha256=found.sha256,
                knows=s.knows,
            ),
            clip=clip,
            outside_domain=s.outside_domain,
        )

    @classmethod
    def zero_shot(
        cls,
        model: str | Path,
        *,
        captioner: str | Path | None = None,
        policy: str | Path = "default",
        tau: float | None = None,
        layout: Layout = "policy_first",
        keyframe_shift_s: float | None = None,
        device: str | None = None,
    ) -> SafeLens:
        """Build from any model of the `families`, without probe or training.

        Args:
            model: hub id or directory.
            captioner: Florence-2's hub id or directory; None deliberates without captions.
            policy: file or name.
            tau: 0.9 by default.
            layout: order of the prompt.
            keyframe_shift_s: 0 by default; see `ClipOptions`.
            device: where the models run.

        Raises:
            ModelLoadError: the model cannot be loaded.
            CaptionerError: the captioner cannot be loaded.
            PolicyError: the policy file is wrong.
            ValueError: `keyframe_shift_s` is out of range.
        """
        from safelens.captioner import Captioner
        from safelens.deliberate import Deliberator
        from safelens.screen import Screener
        from safelens.vlm import VisionLanguageModel
        from safelens.vlm_loading import quiet

        chosen = Policy.load(policy)
        device = device or default_device()
        vlm = VisionLanguageModel.load(model, device=device)
        with quiet():
            eyes = None if captioner is None else Captioner.load(captioner, device)
        thresholds = Thresholds(0.9 if tau is None else tau)
        clip = ClipSettings().with_keyframes(keyframe_shift_s)
        return cls(
            Screener(vlm, chosen, layout=layout),
            Deliberator(vlm, chosen, adapter=None, layout=layout),
            eyes,
            thresholds=thresholds,
            provenance=_provenance(chosen, thresholds, layout, clip, bundle=f"zero-shot {model}"),
            clip=clip,
        )

    def __enter__(self) -> SafeLens:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the decoding process."""
        self._reader.close()

    # -- moderation -------------------------------------------------------------------------------

    def moderate(self, path: str | Path) -> Moderation:
        """Moderate one video; never raises for what the video or a model does."""
        return next(self.moderate_many([path]))

    def moderate_many(self, paths: Iterable[str | Path]) -> Iterator[Moderation]:
        """Moderate videos in order; memory stays bounded however many there are.

        While the model works, the next videos are decoded, at most ``2 * BATCH`` ahead. Whatever has
        been decoded is screened together; a video that takes long to decode holds up none before it.
        Closing the iterator early waits for the file that is being decoded, and starts no other.
        """
        decoder = ThreadPoolExecutor(max_workers=1, thread_name_prefix="safelens-decode")
        waiting: deque[Future[Decoded]] = deque()
        source = iter(paths)
        try:
            while True:
                for path in itertools.islice(source, 2 * BATCH - len(waiting)):
                    waiting.append(decoder.submit(self._decode, str(path)))
                if not waiting:
                    return
                batch = [waiting.popleft().result()]
                while waiting and len(batch) < BATCH and waiting[0].done():
                    batch.append(waiting.popleft().result())
                yield from self._moderate_batch(batch)
        finally:
            decoder.shutdown(wait=True, cancel_futures=True)

    def _decode(self, path: str) -> Decoded:
        began = time.perf_counter()
        clip: Clip | None = None
        error: VideoError | None = None
        try:
            clip = self._reader.read(path)
        except VideoError as failure:
            error = failure
        except Exception as failure:
            message = f"{path}: the video could not be read ({failure or type(failure).__name__})"
            error = VideoError("unreadable", message)
        return Decoded(path, {"decode": time.perf_counter() - began}, clip, error)

    def _moderate_batch(self, batch: list[Decoded]) -> Iterator[Moderation]:
        ready = self._screen([d for d in batch if d.clip is not None])
        for video in batch:
            if video.clip is None:
                yield Moderation(self._outcome.video_error(video), None)
                continue
            try:
                s1 = ready.popleft() if ready else self._screen([video], alone=True)[0]
                verdict = self._route(video, video.clip, s1)
            except Exception as error:
                verdict = self._outcome.model_error(video, error)
            yield Moderation(verdict, video.clip)

    def _screen(self, batch: list[Decoded], *, alone: bool = False) -> deque[Screened]:
        """S1's results in order; none where a batch fails, whose clips are then screened alone."""
        began = time.perf_counter()
        found: deque[Screened] = deque()
        try:
            if batch:
                found.extend(self.screener.screen([d.clip for d in batch if d.clip is not None]))
        except Exception:
            if alone:
                raise
        for video in batch:
            video.timing["screen"] = (time.perf_counter() - began) / len(batch)
        return found

    def _route(self, video: Decoded, clip: Clip, s1: Screened) -> Verdict:
        """Algorithm 2 from line 5 on, with the domain guard's condition added."""
        if not s1.familiar and self.outside_domain == "refuse":
            return self._outcome.out_of_domain(video, s1)
        if s1.familiar and self.thresholds.passed(s1.label, s1.confidence):
            flags = {c.id: c.id == s1.label for c in self.policy.categories}
            decision = Decision("screen", flags, s1.scores)
            evidence = self._evidence(video, clip, s1, decision)
            return self._outcome.decided(video, s1, decision, evidence=evidence, spent=[s1.spent])
        watching = Spent()
        captions = self._captions(video, clip, watching)
        began = time.perf_counter()
        spent = [s1.spent, watching]
        if self.deliberator.vlm is self.screener.vlm:
            context = s1.context
        else:
            context = self.deliberator.read_video(clip)
            spent.append(context.spent)
        s2 = self.deliberator.deliberate(context, captions, s1.scores)
        video.timing["deliberate"] = time.perf_counter() - began
        decision = Decision("deliberate", s2.flags, s2.scores)
        evidence = self._evidence(video, clip, s1, decision)
        return self._outcome.decided(
            video, s1, decision, evidence=evidence, spent=spent, captions=captions, s2=s2
        )

    def _captions(self, video: Decoded, clip: Clip, spent: Spent) -> tuple[Caption, ...]:
        if self.captioner is None:
            return ()
        began = time.perf_counter()
        [captions] = self.captioner.describe([clip], spent=spent)
        video.timing["caption"] = time.perf_counter() - began
        return captions

    def _evidence(
        self, video: Decoded, clip: Clip, s1: Screened, decision: Decision
    ) -> list[Evidence]:
        if not decision.flagged:
            return []
        began = time.perf_counter()
        found = [e for name in decision.flagged for e in self.screener.evidence(s1, clip, name)]
        video.timing["evidence"] = time.perf_counter() - began
        return found


def _reader_and_guard(
    found: Bundle, width: int, device: str
) -> tuple[ProbeReader | None, DomainGuard | None]:
    """The bundle's probe and domain guard, made for hidden states of this width.

    Raises:
        BundleError: they are damaged or belong to another model.
    """
    from safelens.domain import DomainGuard
    from safelens.domain_features import domain_width
    from safelens.probe import RollingAttentionProbe
    from safelens.screen import ProbeReader

    name, screen = found.settings.name, found.settings.screen
    reader, guard = None, None
    try:
        if screen.probe is not None:
            probe = RollingAttentionProbe.load(found.path(screen.probe), device)
            reader = ProbeReader(probe, screen.temperature)
        if screen.domain is not None:
            guard = DomainGuard.load(found.path(screen.domain))
    except (FileNotFoundError, ValueError) as error:
        raise BundleError(f"bundle {name}: {error}") from error
    if reader is not None and reader.probe.config.input_dim != width:
        raise BundleError(
            f"bundle {name}: the probe {screen.probe!r} reads states of width "
            f"{reader.probe.config.input_dim}, but the model {screen.model!r} gives {width}; "
            "use the model that the probe was trained on"
        )
    if guard is not None and guard.width != domain_width(width):
        raise BundleError(
            f"bundle {name}: the domain guard {screen.domain!r} reads {guard.width} features, "
            f"but the model {screen.model!r} gives {domain_width(width)}; use the model that it was fitted on"
        )
    return reader, guard


def _provenance(
    policy: Policy,
    thresholds: Thresholds,
    layout: str,
    clip: ClipSettings,
    *,
    bundle: str,
    sha256: str | None = None,
    knows: str | None = None,
) -> Provenance:
    return Provenance(
        package=__version__,
        bundle=bundle,
        bundle_sha256=sha256,
        policy=policy.id,
        policy_sha256=policy.sha256,
        tau=thresholds.tau,
        taus=dict(thresholds.taus) or None,
        layout=layout,
        keyframe_shift_s=clip.keyframe_shift_s or None,
        knows=knows,
    )


def default_device() -> str:
    """Where models run if nothing else is asked for: the accelerator if there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"

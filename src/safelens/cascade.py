"""The cascade: S1 where it is sure and at home, S2 for the rest (the paper's Algorithm 2).

Knows routing, and how a result becomes a Verdict. Everything that fails becomes a Verdict that says
so; nothing that failed is ever safe.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safelens import __version__
from safelens.bundle import Bundle, ClipSettings
from safelens.policy import SAFE, Policy
from safelens.verdict import Caption, CategoryScore, Cost, ErrorInfo, Evidence, Provenance, Verdict
from safelens.video import Clip, ClipOptions, VideoError, VideoReader

if TYPE_CHECKING:
    from safelens.captioner import Captioner
    from safelens.deliberate import Deliberated, Deliberator
    from safelens.screen import Layout, Screened, Screener

BATCH = 8
"""Videos that are screened together; twice as many are decoded ahead."""


@dataclass(frozen=True)
class Moderation:
    """A verdict and the clip it is about, for contact sheets; None where nothing decoded."""

    verdict: Verdict
    clip: Clip | None


@dataclass
class _Decoded:
    path: str
    seconds: float
    clip: Clip | None
    error: VideoError | None


class SafeLens:
    """The whole system for one policy. Use as a context manager: it owns a decoding process.

    Args:
        screener: S1.
        deliberator: S2.
        captioner: Florence-2, or None to deliberate without captions.
        tau: confidence at or above which S1's answer stands.
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
        tau: float,
        provenance: Provenance,
        clip: ClipSettings,
        outside_domain: Literal["escalate", "refuse"] = "escalate",
    ) -> None:
        self.screener = screener
        self.deliberator = deliberator
        self.captioner = captioner
        self.tau = tau
        self.provenance = provenance
        self.outside_domain = outside_domain
        self.policy = screener.policy
        self._reader = VideoReader(ClipOptions(**clip.model_dump()))

    # -- construction -----------------------------------------------------------------------------

    @classmethod
    def load(
        cls,
        bundle: str | Path = "tiny",
        *,
        policy: str | Path | None = None,
        tau: float | None = None,
        device: str | None = None,
    ) -> SafeLens:
        """Build from a bundle.

        Args:
            bundle: name, directory or hub id.
            policy: file or name in place of the bundle's; its category ids must be the probe's classes.
            tau: in place of the bundle's.
            device: where the models run; the accelerator if there is one, by default.

        Raises:
            BundleError: the bundle or the policy cannot be used.
            ModelLoadError: a model of it cannot be loaded.
            PolicyError: the policy file is wrong.
        """
        from safelens.captioner import Captioner
        from safelens.deliberate import ADAPTER, Deliberator
        from safelens.domain import DomainGuard
        from safelens.probe import RollingAttentionProbe
        from safelens.screen import ProbeReader, Screener
        from safelens.vlm import VisionLanguageModel

        found = Bundle.load(bundle)
        s, screen, deliberate = found.settings, found.settings.screen, found.settings.deliberate
        chosen = found.policy if policy is None else Policy.load(policy)
        found.check_policy(chosen)
        device = device or _device()
        vlm = VisionLanguageModel.load(
            found.path(screen.model), device=device, frame_pixels=screen.frame_pixels
        )
        reader = None
        if screen.probe is not None:
            probe = RollingAttentionProbe.load(found.path(screen.probe), device)
            reader = ProbeReader(probe, screen.temperature)
        guard = None if screen.domain is None else DomainGuard.load(found.path(screen.domain))
        reasoner = vlm
        if deliberate.model is not None:
            reasoner = VisionLanguageModel.load(
                found.path(deliberate.model), device=device, frame_pixels=screen.frame_pixels
            )
        adapter = None
        if deliberate.adapter is not None:
            adapter = ADAPTER
            reasoner.load_adapter(found.path(deliberate.adapter), ADAPTER)
        tau = s.tau if tau is None else tau
        return cls(
            Screener(vlm, chosen, reader=reader, guard=guard, layout=s.layout),
            Deliberator(
                reasoner,
                chosen,
                adapter=adapter,
                max_new_tokens=deliberate.max_new_tokens,
                layout=s.layout,
            ),
            Captioner.load(
                found.path(deliberate.captioner),
                device,
                max_new_tokens=deliberate.max_caption_tokens,
            ),
            tau=tau,
            provenance=_provenance(
                chosen, tau, s.layout, bundle=f"{s.name} {s.version}", sha256=found.sha256, knows=s.knows
            ),
            clip=s.clip,
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
        device: str | None = None,
    ) -> SafeLens:
        """Build from any Qwen3-VL-like model, without probe or training.

        Args:
            model: hub id or directory.
            captioner: Florence-2's hub id or directory; None deliberates without captions.
            policy: file or name.
            tau: 0.9 by default.
            layout: order of the prompt.
            device: where the models run.

        Raises:
            ModelLoadError: the model cannot be loaded.
            CaptionerError: the captioner cannot be loaded.
            PolicyError: the policy file is wrong.
        """
        from safelens.captioner import Captioner
        from safelens.deliberate import Deliberator
        from safelens.screen import Screener
        from safelens.vlm import VisionLanguageModel

        chosen = Policy.load(policy)
        device = device or _device()
        vlm = VisionLanguageModel.load(model, device=device)
        tau = 0.9 if tau is None else tau
        return cls(
            Screener(vlm, chosen, layout=layout),
            Deliberator(vlm, chosen, adapter=None, layout=layout),
            None if captioner is None else Captioner.load(captioner, device),
            tau=tau,
            provenance=_provenance(chosen, tau, layout, bundle=f"zero-shot {model}"),
            clip=ClipSettings(),
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

        The next videos are decoded while the model works on a batch.
        """
        with ThreadPoolExecutor(max_workers=1) as decoder:
            waiting: deque[Any] = deque()
            source = iter(paths)
            while True:
                for path in itertools.islice(source, 2 * BATCH - len(waiting)):
                    waiting.append(decoder.submit(self._decode, str(path)))
                if not waiting:
                    return
                batch = [waiting.popleft().result() for _ in range(min(BATCH, len(waiting)))]
                yield from self._moderate_batch(batch)

    def _decode(self, path: str) -> _Decoded:
        began = time.perf_counter()
        try:
            clip, error = self._reader.read(path), None
        except VideoError as failure:
            clip, error = None, failure
        return _Decoded(path, time.perf_counter() - began, clip, error)

    def _moderate_batch(self, batch: list[_Decoded]) -> Iterator[Moderation]:
        clips = [d.clip for d in batch if d.clip is not None]
        began = time.perf_counter()
        try:
            screened: list[Screened] | None = self.screener.screen(clips) if clips else []
        except Exception:
            screened = None  # one clip spoils the batch: each is tried alone below
        seconds = (time.perf_counter() - began) / max(1, len(clips))
        ready = iter(screened or [])
        for decoded in batch:
            timing = {"decode": decoded.seconds}
            if decoded.clip is None:
                yield Moderation(self._video_error(decoded, timing), None)
                continue
            try:
                if screened is None:
                    began = time.perf_counter()
                    result = self.screener.screen([decoded.clip])[0]
                    seconds = time.perf_counter() - began
                else:
                    result = next(ready)
                timing["screen"] = seconds
                verdict = self._route(decoded.path, decoded.clip, result, timing)
            except Exception as error:
                verdict = self._model_error(decoded.path, decoded.clip, error, timing)
            yield Moderation(verdict, decoded.clip)

    def _route(self, path: str, clip: Clip, s1: Screened, timing: dict[str, float]) -> Verdict:
        """Algorithm 2 from line 5 on, with the domain guard's condition added."""
        if not s1.familiar and self.outside_domain == "refuse":
            return self._out_of_domain(path, clip, s1, timing)
        if s1.familiar and s1.confidence >= self.tau:
            flags = {c.id: c.id == s1.label for c in self.policy.categories}
            return self._decided(path, clip, s1, timing, "screen", flags, s1.scores)
        captions: list[Caption] = []
        if self.captioner is not None:
            began = time.perf_counter()
            texts = self.captioner.caption(clip.frames)
            captions = [
                Caption(time_s=float(t), text=text)
                for t, text in zip(clip.timestamps, texts, strict=True)
            ]
            timing["caption"] = time.perf_counter() - began
        began = time.perf_counter()
        context = s1.context
        if self.deliberator.vlm is not self.screener.vlm:
            context = self.deliberator.read_video(clip)
        s2 = self.deliberator.deliberate(context, captions, s1.scores)
        timing["deliberate"] = time.perf_counter() - began
        if context is not s1.context:
            context.spent.prompt += s1.context.spent.prompt
            context.spent.flops += s1.context.spent.flops
            s1.context.spent = context.spent
        return self._decided(
            path, clip, s1, timing, "deliberate", s2.flags, s2.scores, captions=captions, s2=s2
        )

    # -- verdicts ---------------------------------------------------------------------------------

    def _decided(
        self,
        path: str,
        clip: Clip,
        s1: Screened,
        timing: dict[str, float],
        stage: Literal["screen", "deliberate"],
        flags: dict[str, bool],
        scores: dict[str, float],
        *,
        captions: list[Caption] | None = None,
        s2: Deliberated | None = None,
    ) -> Verdict:
        flagged = [name for name in flags if flags[name]]
        label = max(flagged, key=lambda name: scores[name]) if flagged else SAFE
        if s2 is None or flagged:
            confidence = scores[label]
        else:
            confidence = 1 - max(scores.values())
        evidence = self._evidence(s1, clip, flagged, timing)
        # What did not decode may violate: a truncated video is never called safe.
        undecided = clip.truncated and not flagged
        return Verdict(
            video=path,
            sha256=clip.sha256,
            status="partial" if clip.truncated else "ok",
            flagged=None if undecided else bool(flagged),
            label=None if undecided else label,
            confidence=None if undecided else min(1.0, max(0.0, confidence)),
            categories=[
                CategoryScore(
                    id=c.id,
                    name=c.name,
                    flagged=None if undecided else flags[c.id],
                    score=min(1.0, max(0.0, scores[c.id])),
                )
                for c in self.policy.categories
            ],
            decided_by=stage,
            in_domain=s1.in_domain,
            description=s2.description if s2 else None,
            explanation=s2.explanation if s2 else None,
            captions=captions or [],
            evidence=evidence,
            error=_truncated(clip) if clip.truncated else None,
            timing=timing,
            cost=_cost(s1),
            provenance=self.provenance,
        )

    def _evidence(
        self, s1: Screened, clip: Clip, flagged: list[str], timing: dict[str, float]
    ) -> list[Evidence]:
        if not flagged:
            return []
        began = time.perf_counter()
        found = [e for name in flagged for e in self.screener.evidence(s1, clip, name)]
        timing["evidence"] = time.perf_counter() - began
        return found

    def _out_of_domain(
        self, path: str, clip: Clip, s1: Screened, timing: dict[str, float]
    ) -> Verdict:
        knows = self.provenance.knows or "its training data"
        return Verdict(
            video=path,
            sha256=clip.sha256,
            status="out_of_domain",
            in_domain=s1.in_domain,
            error=ErrorInfo(
                code="out_of_domain",
                message=f"{path} does not look like what this bundle was trained on ({knows}); nothing "
                "was decided. Use --model with a model that knows such videos, or train a bundle",
            ),
            timing=timing,
            cost=_cost(s1),
            provenance=self.provenance,
        )

    def _video_error(self, decoded: _Decoded, timing: dict[str, float]) -> Verdict:
        assert decoded.error is not None
        return Verdict(
            video=decoded.path,
            sha256=decoded.error.sha256,
            status="video_error",
            error=ErrorInfo(code=decoded.error.code, message=decoded.error.message),
            timing=timing,
            provenance=self.provenance,
        )

    def _model_error(
        self, path: str, clip: Clip, error: Exception, timing: dict[str, float]
    ) -> Verdict:
        return Verdict(
            video=path,
            sha256=clip.sha256,
            status="model_error",
            error=ErrorInfo(
                code=type(error).__name__,
                message=f"{path} decoded, but the model failed: {error or type(error).__name__}. Try "
                "again; if it fails again, report the video's SHA-256 and this message",
            ),
            timing=timing,
            provenance=self.provenance,
        )


def _truncated(clip: Clip) -> ErrorInfo:
    notes = "; ".join(clip.notes) or "it ends early"
    return ErrorInfo(
        code="truncated", message=f"the video is damaged or cut off ({notes}); only what decoded was judged"
    )


def _cost(s1: Screened) -> Cost:
    spent = s1.context.spent
    return Cost(
        gflops=spent.flops / 1e9, prompt_tokens=spent.prompt, generated_tokens=spent.generated
    )


def _provenance(
    policy: Policy,
    tau: float,
    layout: str,
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
        tau=tau,
        layout=layout,
        knows=knows,
    )


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"

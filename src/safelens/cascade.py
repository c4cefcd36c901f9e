"""The cascade: S1 where it is sure and at home, S2 for the rest (the paper's Algorithm 2).

Knows routing; how a system is put together is the matter of `assembly`. Everything that fails becomes
a Verdict that says so; nothing that failed is ever safe.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Literal

from safelens.assembly import Encoding, EncodingError, Parts, PolicyEncoding, default_device
from safelens.bundle import Bundle, BundleError, ClipSettings
from safelens.outcome import Decision, Decoded, Outcome
from safelens.pipeline import Case, Pipeline
from safelens.policy import Policy
from safelens.remote_batch import RemoteBatch
from safelens.remote_deliberate import Remote, RemoteDeliberator
from safelens.remote_file import local_file
from safelens.thresholds import Thresholds
from safelens.verdict import Evidence, Provenance, Region, Verdict
from safelens.video import Clip, ClipOptions, VideoError, VideoReader
from safelens.vlm_cost import Spent

if TYPE_CHECKING:
    from safelens.captioner import Captioner
    from safelens.deliberate import Deliberated, Deliberator
    from safelens.reading import Layout
    from safelens.screen import Screened, Screener
    from safelens.vlm_cache import Context
    from safelens.vlm_decoding import Decoding, Finished

    UnderWay = Decoding["Case", "Deliberated"] | RemoteBatch["Case"]


@dataclass(frozen=True)
class Moderation:
    """A verdict and the clip it is about, for contact sheets; None where nothing decoded."""

    verdict: Verdict
    clip: Clip | None


class SafeLens:
    """The whole system for one policy. Use as a context manager: it owns decoding processes.

    Args:
        screener: S1.
        deliberator: S2, here or on a server; None where only S1 runs here.
        captioner: Florence-2, or None to deliberate without captions.
        thresholds: from which confidence on S1's answer stands.
        provenance: stands in every verdict.
        clip: sampling of frames.
        outside_domain: what happens to a clip that the domain guard does not know.
        decoders: processes that decode, each a video at a time; one for every four cores by default.
    """

    def __init__(
        self,
        screener: Screener,
        deliberator: Deliberator | RemoteDeliberator | None,
        captioner: Captioner | None,
        *,
        thresholds: Thresholds,
        provenance: Provenance,
        clip: ClipSettings,
        outside_domain: Literal["escalate", "refuse"] = "escalate",
        decoders: int | None = None,
    ) -> None:
        self.screener = screener
        self._s2 = deliberator
        self.captioner = captioner
        self.thresholds = thresholds
        self.provenance = provenance
        self.outside_domain = outside_domain
        self.policy = screener.policy
        self._outcome = Outcome(screener.policy, provenance)
        options = ClipOptions(**clip.model_dump())
        self.decoders = decoders or max(1, (os.cpu_count() or 1) // 4)
        self._readers = [VideoReader(options) for _ in range(self.decoders)]
        self._idle: SimpleQueue[VideoReader] = SimpleQueue()
        for reader in self._readers:
            self._idle.put(reader)
        self._decoding = ThreadPoolExecutor(self.decoders, thread_name_prefix="safelens-decode")
        self._parts: Parts | None = None

    # -- construction -----------------------------------------------------------------------------

    @classmethod
    def load(
        cls,
        bundle: str | Path = "tiny",
        *,
        policy: str | Path | Policy | None = None,
        tau: float | None = None,
        prune: float | None = None,
        policy_cache: str | Path | None = None,
        keyframe_shift_s: float | None = None,
        device: str | None = None,
        remote: Remote | None = None,
        deliberate: bool = True,
    ) -> SafeLens:
        """Build from a bundle, which says how its policy is read: its model was trained so.

        Args:
            bundle: name, directory or hub id.
            policy: policy, file or name in place of the bundle's. Its classes must be the probe's, or the
                bundle's models be made for other policies: then S1 scores the label answers, and tau is at least
                that of a model without calibration.
            tau: in place of the bundle's, for all classes.
            prune: share of a video's tokens to keep, in place of the bundle's.
            policy_cache: folder in which categories that were read alone are kept for the next time.
            keyframe_shift_s: in place of the bundle's; see `ClipOptions`.
            device: where the models run; the accelerator if there is one, by default.
            remote: the server on which S2 runs; the bundle's own reasoner is not loaded then, and the
                policy is one text there.
            deliberate: False loads nothing of S2, for a process that runs S1 alone.

        Raises:
            BundleError: the bundle cannot be used, or not in this way.
            EndpointStop: the server's address or key cannot be used.
            ModelLoadError: a vision-language model or adapter of it cannot be loaded.
            CaptionerError: its captioner cannot be loaded.
            PolicyError: the policy file is wrong.
            ValueError: `keyframe_shift_s` is out of range.
            OSError: the policy cache cannot be written.
        """
        found = Bundle.load(bundle)
        s = found.settings
        keep, layer = (None, None) if s.prune is None else (s.prune.keep, s.prune.layer)
        chosen = found.policy if policy is None else policy
        if not isinstance(chosen, Policy):
            chosen = Policy.load(chosen)
        found.check_policy(chosen)
        try:
            encoding = Encoding(
                s.policy_encoding,
                keep=keep if prune is None else prune,
                layer=layer,
                folder=None if policy_cache is None else Path(policy_cache).expanduser(),
            )
        except EncodingError as error:
            raise BundleError(f"bundle {s.name}: {error}") from error
        parts = Parts.of_bundle(
            found,
            encoding=encoding,
            clip=s.clip.with_keyframes(keyframe_shift_s),
            device=device or default_device(),
            remote=remote,
            deliberate=deliberate,
        )
        return cls._of(parts, chosen, tau)

    @classmethod
    def zero_shot(
        cls,
        model: str | Path,
        *,
        captioner: str | Path | None = None,
        policy: str | Path | Policy = "default",
        tau: float | None = None,
        layout: Layout = "policy_first",
        policy_encoding: PolicyEncoding = "sequential",
        prune: float | None = None,
        policy_cache: str | Path | None = None,
        keyframe_shift_s: float | None = None,
        device: str | None = None,
        remote: Remote | None = None,
        deliberate: bool = True,
    ) -> SafeLens:
        """Build from any model of the `families`, without probe or training.

        Args:
            model: hub id or directory.
            captioner: Florence-2's hub id or directory; None deliberates without captions.
            policy: policy, file or name.
            tau: 0.9 by default.
            layout: order of the prompt.
            policy_encoding: whether the policy is one text, or each category is read alone.
            prune: share of a video's tokens to keep; all by default.
            policy_cache: see :meth:`load`.
            keyframe_shift_s: 0 by default; see `ClipOptions`.
            device: where the models run.
            remote: the server on which S2 runs, in place of this model.
            deliberate: see :meth:`load`.

        Raises:
            EndpointStop: the server's address or key cannot be used.
            ModelLoadError: the model cannot be loaded.
            CaptionerError: the captioner cannot be loaded.
            PolicyError: the policy file is wrong.
            EncodingError: `prune` is out of range, or it or the cache needs categories that are read alone.
            ValueError: `keyframe_shift_s` is out of range.
            OSError: the policy cache cannot be written.
        """
        chosen = policy if isinstance(policy, Policy) else Policy.load(policy)
        folder = None if policy_cache is None else Path(policy_cache).expanduser()
        encoding = Encoding(policy_encoding, keep=prune, folder=folder)
        parts = Parts.of_model(
            model,
            captioner=captioner,
            encoding=encoding,
            layout=layout,
            clip=ClipSettings().with_keyframes(keyframe_shift_s),
            device=device or default_device(),
            remote=remote,
            deliberate=deliberate,
        )
        return cls._of(parts, chosen, tau)

    def for_policy(self, policy: str | Path | Policy, *, tau: float | None = None) -> SafeLens:
        """The same models under another policy, such as another tenant's, beside this system.

        Categories that were read alone are shared: only those that are new are read.

        Args:
            policy: policy, file or name.
            tau: as in :meth:`load`.

        Raises:
            PolicyError: the policy file is wrong.
            BundleError: the bundle is not made for this policy.
            RuntimeError: this system was not made by :meth:`load` or :meth:`zero_shot`.
        """
        if self._parts is None:
            raise RuntimeError("only what was loaded from a bundle or model can change its policy")
        chosen = policy if isinstance(policy, Policy) else Policy.load(policy)
        if self._parts.bundle is not None:
            self._parts.bundle.check_policy(chosen)
        return self._of(self._parts, chosen, tau)

    @classmethod
    def _of(cls, parts: Parts, policy: Policy, tau: float | None) -> SafeLens:
        thresholds = parts.thresholds(policy) if tau is None else Thresholds(tau)
        screener = parts.screener(policy)
        deliberator = parts.deliberator(policy, screener)
        server = deliberator if isinstance(deliberator, RemoteDeliberator) else None
        lens = cls(
            screener,
            deliberator,
            parts.captioner,
            thresholds=thresholds,
            provenance=parts.provenance(policy, thresholds, server),
            clip=parts.clip,
            outside_domain="escalate"
            if parts.bundle is None
            else parts.bundle.settings.outside_domain,
        )
        lens._parts = parts
        return lens

    def __enter__(self) -> SafeLens:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the decoding processes, and connections to a server."""
        self._decoding.shutdown(cancel_futures=True)
        for reader in self._readers:
            reader.close()
        if self.remote is not None:
            self.remote.close()

    @property
    def remote(self) -> RemoteDeliberator | None:
        """S2 on a server; None where it runs here."""
        return self._s2 if isinstance(self._s2, RemoteDeliberator) else None

    @property
    def deliberator(self) -> Deliberator:
        """S2 where it runs here; RuntimeError where it does not."""
        if self._s2 is None or isinstance(self._s2, RemoteDeliberator):
            raise RuntimeError(
                "S2 runs elsewhere, and none is loaded here; build with `deliberate` and without `remote`"
            )
        return self._s2

    # -- moderation -------------------------------------------------------------------------------

    def moderate(self, path: str | Path) -> Moderation:
        """Moderate one video; never raises for what the video or a model does."""
        return next(self.moderate_many([path]))

    def moderate_many(self, paths: Iterable[str | Path]) -> Iterator[Moderation]:
        """Moderate videos in order; memory stays bounded however many there are.

        While the model works, the next videos are decoded; see :class:`Pipeline`. Closing the iterator early
        waits for the files that are being decoded, and starts no other.
        """
        for case in Pipeline(self, paths).run():
            assert case.verdict is not None
            yield Moderation(case.verdict, case.video.clip)

    # -- the stages, as the pipeline calls them -----------------------------------------------------

    def decoding(self, path: str) -> Future[Decoded]:
        """Have a video decoded, as many at a time as there are processes for it; see :meth:`decode`."""
        return self._decoding.submit(self.decode, path)

    def decode(self, path: str) -> Decoded:
        """Sample a video's frames; a file or address that gives none becomes an error.

        Threads may call it together.
        """
        reader = self._idle.get()
        began = time.perf_counter()
        clip: Clip | None = None
        error: VideoError | None = None
        try:
            with local_file(path) as file:
                clip = replace(reader.read(file), path=path)
        except VideoError as failure:
            error = failure
        except Exception as failure:
            message = f"{path}: the video could not be read ({failure or type(failure).__name__})"
            error = VideoError("unreadable", message)
        finally:
            self._idle.put(reader)
        return Decoded(path, {"decode": time.perf_counter() - began}, clip, error)

    def unreadable(self, video: Decoded) -> Verdict:
        """The verdict of a video without frames."""
        return self._outcome.video_error(video)

    def screen(self, cases: Sequence[Case]) -> None:
        """S1 on a batch: whose answer stands, or who may not be answered, has a verdict afterwards.

        The rest has what S2 needs of S1, in `Case.s1`. Where the batch fails, each video is screened alone.
        Cases that S1 left unsure in another process stay so: only what S2 needs is made anew.
        """
        began = time.perf_counter()
        findings = [case.finding for case in cases if case.finding is not None]
        try:
            clips = [case.clip for case in cases]
            screener = self.screener
            found = screener.take_up(clips, findings) if findings else screener.screen(clips)
        except Exception as error:
            if len(cases) == 1:
                cases[0].verdict = self._outcome.model_error(cases[0].video, error)
            else:
                for case in cases:
                    self.screen([case])
            return
        seconds = (time.perf_counter() - began) / len(cases)
        for case, s1 in zip(cases, found, strict=True):
            case.video.timing["screen" if case.finding is None else "take_up"] = seconds
            try:
                if case.finding is None:
                    case.verdict = self._verdict_of_s1(case.video, case.clip, s1)
                if case.verdict is None:
                    case.s1 = s1.apart()
            except Exception as error:
                case.verdict = self._outcome.model_error(case.video, error)

    def deliberations(self) -> UnderWay:
        """A batch of S2, in which several videos are under way."""
        if self.remote is not None:
            return RemoteBatch(self.remote)
        return self.deliberator.decoding()

    def begin(self, cases: Sequence[Case], under_way: UnderWay) -> None:
        """Describe the frames of some videos and hand them to S2; what fails becomes the verdict."""
        self._watch(cases)
        for case in cases:
            if case.verdict is None:
                try:
                    self._admit(case, under_way)
                except Exception as error:
                    case.verdict = self._outcome.model_error(case.video, error)

    def conclude(self, ended: Finished[Case, Deliberated]) -> None:
        """Make the verdict of a video that S2 is done with.

        What failed here in company is tried once alone; a server's failures are of one video each.
        """
        case, s2 = ended.key, ended.result
        case.video.timing["deliberate"] += ended.seconds
        try:
            if ended.error is not None and self.remote is not None:
                raise ended.error
            if s2 is None:
                began = time.perf_counter()
                context, _ = self._context(case)
                s2 = self.deliberator.deliberate(context, case.captions, case.screened.scores)
                case.video.timing["deliberate"] += time.perf_counter() - began
            case.verdict = self._verdict_of_s2(case, s2)
        except Exception as error:
            case.verdict = self._outcome.model_error(case.video, error)

    # -- inside -----------------------------------------------------------------------------------

    def _verdict_of_s1(self, video: Decoded, clip: Clip, s1: Screened) -> Verdict | None:
        """Algorithm 2, lines 5-7, with the domain guard's condition added; None leaves it to S2."""
        if not s1.familiar:
            refused = self.outside_domain == "refuse"
            return self._outcome.out_of_domain(video, s1) if refused else None
        if not self.thresholds.passed(s1.label, s1.confidence):
            return None
        flags = {c.id: c.id == s1.label for c in self.policy.categories}
        decision = Decision("screen", flags, s1.scores)
        evidence = self._evidence(video, clip, s1, decision)
        return self._outcome.decided(
            video,
            s1,
            decision,
            evidence=evidence,
            regions=self._regions(clip, s1, decision),
            spent=[s1.spent],
        )

    def _verdict_of_s2(self, case: Case, s2: Deliberated) -> Verdict:
        """Algorithm 2, line 12 on."""
        decision = Decision("deliberate", s2.flags, s2.scores)
        evidence = self._evidence(case.video, case.clip, case.screened, decision)
        return self._outcome.decided(
            case.video,
            case.screened,
            decision,
            evidence=evidence,
            regions=self._regions(case.clip, case.screened, decision),
            spent=case.spent if s2.spent is None else [*case.spent, s2.spent],
            captions=case.captions,
            s2=s2,
        )

    def _context(self, case: Case) -> tuple[Context, list[Spent]]:
        """What S2 continues, and what that and S1 are charged: S1's cache, or its own where it is another model."""
        s1 = case.screened
        if self.deliberator.vlm is self.screener.vlm:
            return s1.context, [s1.spent]
        context = self.deliberator.read_video(case.clip)
        return context, [s1.spent, context.spent]

    def _watch(self, cases: Sequence[Case]) -> None:
        """Give videos their captions. Where several together fail, each is tried alone."""
        if self.captioner is None:
            return
        began = time.perf_counter()
        meters = [Spent() for _ in cases]
        try:
            found = self.captioner.describe([case.clip for case in cases], spent=meters)
        except Exception as error:
            if len(cases) == 1:
                cases[0].verdict = self._outcome.model_error(cases[0].video, error)
            else:
                for case in cases:
                    self._watch([case])
            return
        for case, captions, spent in zip(cases, found, meters, strict=True):
            case.captions, case.spent = captions, [spent]
            case.video.timing["caption"] = (time.perf_counter() - began) / len(cases)

    def _admit(self, case: Case, under_way: UnderWay) -> None:
        """Hand a video and its captions to S2."""
        scores = case.screened.scores
        if isinstance(under_way, RemoteBatch):
            case.spent = [case.screened.spent, *case.spent]
            case.video.timing["deliberate"] = 0.0
            under_way.admit(case, case.clip, case.captions, scores)
            return
        began = time.perf_counter()
        context, spent = self._context(case)
        case.spent = [*spent, *case.spent]
        case.video.timing["deliberate"] = time.perf_counter() - began
        program = self.deliberator.program(case.captions, scores, context.spent)
        under_way.admit(case, context, program)

    def _evidence(
        self, video: Decoded, clip: Clip, s1: Screened, decision: Decision
    ) -> list[Evidence]:
        if not decision.flagged:
            return []
        began = time.perf_counter()
        found = [e for name in decision.flagged for e in self.screener.evidence(s1, clip, name)]
        video.timing["evidence"] = time.perf_counter() - began
        return found

    def _regions(self, clip: Clip, s1: Screened, decision: Decision) -> list[Region]:
        return [r for name in decision.flagged for r in self.screener.regions(s1, clip, name)]

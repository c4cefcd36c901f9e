"""How a system is put together from a bundle or a model, and what systems for several policies share.

Knows parts and how they fit: when the probe reads a policy, and when the label answers are scored instead.
Does not know routing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from safelens import __version__
from safelens.bundle import Bundle, BundleError, ClipSettings
from safelens.policy import Policy
from safelens.remote_deliberate import Remote, RemoteDeliberator
from safelens.thresholds import Thresholds
from safelens.verdict import Provenance

if TYPE_CHECKING:
    from safelens.captioner import Captioner
    from safelens.deliberate import Deliberator
    from safelens.domain import DomainGuard
    from safelens.probe import RollingAttentionProbe
    from safelens.reading import Layout, Prompt
    from safelens.safewatch.blocks import PolicyBlocks
    from safelens.screen import ProbeReader, Screener
    from safelens.vlm import VisionLanguageModel

UNCALIBRATED_TAU = 0.9
"""S1's answer stands from here on where nothing was calibrated: the label answers of a model, or of a bundle
on classes that are not its own."""

PolicyEncoding = Literal["sequential", "parallel"]


class EncodingError(ValueError):
    """Settings for reading policy and video that do not fit together."""


@dataclass(frozen=True)
class Encoding:
    """How a model reads policy and video.

    Attributes:
        policy: as one text, or each category alone (see `safewatch.blocks`).
        keep: share of a video's tokens that stay in its cache; None keeps all.
        layer: at which relevance is measured; None for the middle one.
        folder: where the categories' blocks are kept on disk; None keeps them in memory alone.

    Raises:
        EncodingError: the share is out of range, or something belongs to categories read alone that are not.
    """

    policy: PolicyEncoding = "sequential"
    keep: float | None = None
    layer: int | None = None
    folder: Path | None = None

    def __post_init__(self) -> None:
        if self.keep is not None and not 0 < self.keep <= 1:
            raise EncodingError(
                f"prune: keep {self.keep:g}; expected a share above 0 and at most 1"
            )
        if self.policy == "sequential" and self.keep is not None:
            raise EncodingError(
                "prune measures relevance by the queries of categories that are read alone; "
                "it needs policy_encoding: parallel"
            )
        if self.policy == "sequential" and self.folder is not None:
            raise EncodingError(
                "a policy that is read as one text has no blocks to keep on disk; the policy cache "
                "needs policy_encoding: parallel"
            )

    def blocks(self, vlm: VisionLanguageModel) -> PolicyBlocks | None:
        """A model's blocks; None where the policy is read as one text.

        Raises:
            ModelLoadError: the model has no such layer.
        """
        from safelens.safewatch.blocks import PolicyBlocks
        from safelens.vlm_loading import ModelLoadError

        if self.policy == "sequential":
            return None
        try:
            return PolicyBlocks(vlm, layer=self.layer, folder=self.folder)
        except ValueError as error:
            raise ModelLoadError(f"prune: {error}") from error

    def prompt(self, vlm: VisionLanguageModel, policy: Policy, layout: Layout) -> Prompt:
        """A policy put to a model, with blocks of its own.

        Raises:
            ModelLoadError: the model has no such layer.
        """
        from safelens.reading import SequentialPrompt
        from safelens.safewatch.parallel import ParallelPrompt

        blocks = self.blocks(vlm)
        if blocks is None:
            return SequentialPrompt(vlm, policy, layout)
        return ParallelPrompt(blocks, policy, layout=layout, keep=self.keep)


@dataclass(frozen=True)
class Parts:
    """What systems for different policies share.

    Attributes:
        name: of the bundle or model, for people.
        bundle: None where a model is used as it is.
        embedder: S1's model.
        reasoner: S2's model, often the same; None where S2 runs on a server.
        adapter: of the reasoner, switched on after the question.
        captioner: None deliberates without captions.
        deliberate: False where only S1 runs here, and neither reasoner nor captioner is loaded.
        probe: None scores the label answers.
        guard: the domain guard.
        encoding: how policy and video are read.
        blocks: the categories that the embedder has read alone.
        reasoner_blocks: the same of the reasoner.
        layout: order of the prompt.
        clip: sampling of frames.
        remote: the server on which S2 runs.
    """

    name: str
    bundle: Bundle | None
    embedder: VisionLanguageModel
    reasoner: VisionLanguageModel | None
    adapter: str | None
    captioner: Captioner | None
    probe: RollingAttentionProbe | None
    guard: DomainGuard | None
    encoding: Encoding
    blocks: PolicyBlocks | None
    reasoner_blocks: PolicyBlocks | None
    layout: Layout
    clip: ClipSettings
    remote: Remote | None
    deliberate: bool = True

    def __post_init__(self) -> None:
        """Nothing is trained from here on, so weights may lie as kernels read them."""
        from safelens.freed_memory import keep_freed_memory
        from safelens.packed import pack

        for part in (self.embedder, self.reasoner, self.captioner):
            if part is not None:
                pack(part.model)
        keep_freed_memory()

    @classmethod
    def of_bundle(
        cls,
        bundle: Bundle,
        *,
        encoding: Encoding,
        clip: ClipSettings,
        device: str,
        remote: Remote | None,
        deliberate: bool = True,
    ) -> Parts:
        """Load a bundle's parts.

        Raises:
            BundleError: a part is damaged or belongs to another model.
            ModelLoadError: a vision-language model or adapter of it cannot be loaded.
            CaptionerError: its captioner cannot be loaded.
        """
        from safelens.captioner import Captioner
        from safelens.deliberate import ADAPTER
        from safelens.vlm import VisionLanguageModel
        from safelens.vlm_loading import quiet

        screen, slow = bundle.settings.screen, bundle.settings.deliberate
        pixels = screen.frame_pixels
        embedder = VisionLanguageModel.load(
            bundle.path(screen.model), device=device, frame_pixels=pixels
        )
        probe, guard = _probe_and_guard(bundle, embedder.hidden_size, device)
        reasoner: VisionLanguageModel | None = None
        if remote is None and deliberate:
            reasoner = embedder
            if slow.model is not None:
                reasoner = VisionLanguageModel.load(
                    bundle.path(slow.model), device=device, frame_pixels=pixels
                )
            if slow.adapter is not None:
                reasoner.load_adapter(bundle.path(slow.adapter), ADAPTER)
        captioner: Captioner | None = None
        if deliberate:
            with quiet():
                captioner = Captioner.load(
                    bundle.path(slow.captioner), device, max_new_tokens=slow.max_caption_tokens
                )
        blocks = encoding.blocks(embedder)
        own = reasoner is not None and reasoner is not embedder
        return cls(
            name=f"{bundle.settings.name} {bundle.settings.version}",
            bundle=bundle,
            embedder=embedder,
            reasoner=reasoner,
            adapter=None if slow.adapter is None else ADAPTER,
            captioner=captioner,
            probe=probe,
            guard=guard,
            encoding=encoding,
            blocks=blocks,
            reasoner_blocks=encoding.blocks(reasoner) if own and reasoner else blocks,
            layout=bundle.settings.layout,
            clip=clip,
            remote=remote,
            deliberate=deliberate,
        )

    @classmethod
    def of_model(
        cls,
        model: str | Path,
        *,
        captioner: str | Path | None,
        encoding: Encoding,
        layout: Layout,
        clip: ClipSettings,
        device: str,
        remote: Remote | None,
        deliberate: bool = True,
    ) -> Parts:
        """Load a model that is used as it is.

        Raises:
            ModelLoadError: it cannot be loaded.
            CaptionerError: the captioner cannot be loaded.
        """
        from safelens.captioner import Captioner
        from safelens.vlm import VisionLanguageModel
        from safelens.vlm_loading import quiet

        vlm = VisionLanguageModel.load(model, device=device)
        eyes: Captioner | None = None
        if captioner is not None and deliberate:
            with quiet():
                eyes = Captioner.load(captioner, device)
        blocks = encoding.blocks(vlm)
        return cls(
            name=f"zero-shot {model}",
            bundle=None,
            embedder=vlm,
            reasoner=vlm if remote is None and deliberate else None,
            adapter=None,
            captioner=eyes,
            probe=None,
            guard=None,
            encoding=encoding,
            blocks=blocks,
            reasoner_blocks=blocks,
            layout=layout,
            clip=clip,
            remote=remote,
            deliberate=deliberate,
        )

    def own(self, policy: Policy) -> bool:
        """Whether probe, temperature and tau were made for this policy's classes, read in this way.

        Texts may differ: what a category means is then the policy's to say. Their order counts only where
        the policy is read as one text.
        """
        return self.bundle is not None and knows_classes(self.bundle, policy)

    def thresholds(self, policy: Policy) -> Thresholds:
        """See :func:`thresholds_of`; one tau where nothing was calibrated."""
        if self.bundle is None:
            return Thresholds(UNCALIBRATED_TAU)
        return thresholds_of(self.bundle, policy)

    def screener(self, policy: Policy) -> Screener:
        """S1 for a policy."""
        from safelens.screen import ProbeReader, Screener

        reader: ProbeReader | None = None
        if self.probe is not None and self.bundle is not None and self.own(policy):
            temperature = self.bundle.settings.screen.temperature
            reader = ProbeReader(self.probe, temperature, labels=policy.labels)
        return Screener(
            self.embedder,
            policy,
            reader=reader,
            guard=self.guard,
            layout=self.layout,
            prompt=self._prompt(policy, self.blocks),
        )

    def deliberator(
        self, policy: Policy, screener: Screener
    ) -> Deliberator | RemoteDeliberator | None:
        """S2 for a policy, on S1's prompt where they share a model; None where only S1 runs here.

        Raises:
            EndpointStop: the server's address or key cannot be used.
        """
        from safelens.deliberate import Deliberator

        if self.reasoner is None:
            if self.remote is None:
                return None
            return RemoteDeliberator(self.remote, policy, layout=self.layout)
        shared = self.reasoner is self.embedder
        fields = {}
        if self.bundle is not None:
            fields["max_new_tokens"] = self.bundle.settings.deliberate.max_new_tokens
        return Deliberator(
            self.reasoner,
            policy,
            adapter=self.adapter,
            layout=self.layout,
            prompt=screener.prompt if shared else self._prompt(policy, self.reasoner_blocks),
            **fields,
        )

    def _prompt(self, policy: Policy, blocks: PolicyBlocks | None) -> Prompt | None:
        from safelens.safewatch.parallel import ParallelPrompt

        if blocks is None:
            return None
        return ParallelPrompt(blocks, policy, layout=self.layout, keep=self.encoding.keep)

    def provenance(
        self, policy: Policy, thresholds: Thresholds, server: RemoteDeliberator | None
    ) -> Provenance:
        """What the verdicts of a system depend on."""
        bundle = self.bundle
        return Provenance(
            package=__version__,
            bundle=self.name,
            bundle_sha256=None if bundle is None else bundle.sha256,
            policy=policy.id,
            policy_sha256=policy.sha256,
            tau=thresholds.tau,
            taus=dict(thresholds.taus) or None,
            layout=self.layout,
            policy_encoding="parallel" if self.encoding.policy == "parallel" else None,
            prune_keep=self.encoding.keep,
            screen_reader=None if bundle is None or self.own(policy) else "labels",
            keyframe_shift_s=self.clip.keyframe_shift_s or None,
            knows=None if bundle is None else bundle.settings.knows,
            remote=None if server is None else server.provenance,
        )


def knows_classes(bundle: Bundle, policy: Policy) -> bool:
    """Whether a bundle's probe, temperature and tau were made for a policy's classes; see :meth:`Parts.own`."""
    labels, own = policy.labels, bundle.policy.labels
    parallel = bundle.settings.policy_encoding == "parallel"
    return labels == own or (parallel and set(labels) == set(own))


def thresholds_of(bundle: Bundle, policy: Policy) -> Thresholds:
    """A bundle's for its own classes; else one tau, at least that of what is not calibrated."""
    found = bundle.settings.thresholds
    if knows_classes(bundle, policy):
        return found
    return Thresholds(max(UNCALIBRATED_TAU, found.tau))


def _probe_and_guard(
    found: Bundle, width: int, device: str
) -> tuple[RollingAttentionProbe | None, DomainGuard | None]:
    """The bundle's probe and domain guard, made for hidden states of this width.

    Raises:
        BundleError: they are damaged or belong to another model.
    """
    from safelens.domain import DomainGuard
    from safelens.domain_features import domain_width
    from safelens.probe import RollingAttentionProbe

    name, screen = found.settings.name, found.settings.screen
    probe, guard = None, None
    try:
        if screen.probe is not None:
            probe = RollingAttentionProbe.load(found.path(screen.probe), device)
        if screen.domain is not None:
            guard = DomainGuard.load(found.path(screen.domain))
    except (FileNotFoundError, ValueError) as error:
        raise BundleError(f"bundle {name}: {error}") from error
    if probe is not None and probe.config.input_dim != width:
        raise BundleError(
            f"bundle {name}: the probe {screen.probe!r} reads states of width "
            f"{probe.config.input_dim}, but the model {screen.model!r} gives {width}; "
            "use the model that the probe was trained on"
        )
    if guard is not None and guard.width != domain_width(width):
        raise BundleError(
            f"bundle {name}: the domain guard {screen.domain!r} reads {guard.width} features, "
            f"but the model {screen.model!r} gives {domain_width(width)}; use the model that it was fitted on"
        )
    return probe, guard


def default_device() -> str:
    """Where models run if nothing else is asked for: the accelerator if there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"

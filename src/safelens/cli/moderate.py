"""`safelens moderate`: videos in, verdicts out.

Knows which files are meant, the file of verdicts and how it is continued, and what is printed. What
a verdict is, and how a report looks, is the matter of others.
"""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from safelens.cli._interrupt import Interrupt
from safelens.cli._log import VerdictLog, log_key
from safelens.cli._options import FAILED, INTERRUPTED, EncodingName, LayoutName, fail
from safelens.cli._paths import UsageError, expand
from safelens.cli._progress import progress
from safelens.cli._ray import (
    Address,
    DeliberateActors,
    DeliberateCpus,
    DeliberateGpus,
    ScreenActors,
    ScreenCpus,
    ScreenGpus,
    Shards,
    check_ray_options,
    moderate_on_ray,
)
from safelens.cli._remote import (
    ApiKeyEnv,
    BaseUrl,
    Concurrency,
    Engine,
    EngineOption,
    FramesOption,
    Logprobs,
    MaxNewTokens,
    ServedModel,
    StructuredOption,
    Timeout,
    remote_settings,
)
from safelens.cli._service import KEY_VARIABLE, needs_service
from safelens.cli._service import api_key as service_key
from safelens.cli._table import Row, print_table

if TYPE_CHECKING:
    from safelens.cascade import Moderation, SafeLens
    from safelens.remote_deliberate import Remote
    from safelens.report import ReportWriter, Tally
    from safelens.service.remote_lens import RemoteLens
    from safelens.verdict import Verdict

app = typer.Typer(add_completion=False, rich_markup_mode=None)

_PIPE_WIDTH = 10_000
_MAX_NOTES = 20
_HERE = (
    *("bundle", "policy", "tau", "model", "captioner", "layout"),
    *("policy_encoding", "prune", "policy_cache", "keyframes", "device"),
)
"""Options that a server leaves no room for."""


@app.command()
def moderate(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH...",
            help="Videos, also as addresses such as s3://bucket/a.mp4; folders, of which every file is taken that is "
            "not hidden; - to read a list of paths from standard input, one a line; with --engine ray also "
            "manifests: .jsonl, .csv or .parquet with a column video and, where known, sha256.",
        ),
    ],
    bundle: Annotated[
        str | None,
        typer.Option(help="Name, directory or hub id of a bundle.", show_default="tiny"),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            help="Policy file or name. With --model, or a bundle made for policies it has not seen, S1 scores "
            "the answer for each category in one forward pass; other bundles take their own categories alone.",
            show_default="the bundle's",
        ),
    ] = None,
    tau: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="S1's answer stands at this confidence or above; a value above 1 sends all to S2.",
            show_default="the bundle's",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="ID_OR_DIR",
            help="In place of a bundle: a Qwen3-VL, InternVL or LFM2-VL, without training.",
        ),
    ] = None,
    captioner: Annotated[
        str | None,
        typer.Option(metavar="ID_OR_DIR", help="With --model: a Florence-2 that captions for S2."),
    ] = None,
    layout: Annotated[
        LayoutName | None,
        typer.Option(help="With --model: order of the prompt.", show_default="policy_first"),
    ] = None,
    policy_encoding: Annotated[
        EncodingName | None,
        typer.Option(
            help="With --model: sequential, the policy is one text; or parallel, each category is read alone, so "
            "that their order has no effect, and a new category costs reading that one.",
            show_default="sequential",
        ),
    ] = None,
    prune: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            min=0.0,
            max=1.0,
            help="Keep this share of a video's tokens, those that the policy looks at most, such as 0.1; "
            "with a parallel policy. The report then shows where each flagged category looked.",
            show_default="the bundle's, or all",
        ),
    ] = None,
    policy_cache: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder that keeps the categories of parallel policies as the model has read them, for the "
            "next run; it can be deleted at any time.",
        ),
    ] = None,
    keyframes: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            min=0.0,
            max=86400.0,
            help="Look at keyframes in place of frames at exact times, which is several times faster, in "
            "videos that have one within so many seconds of every time; half the distance between "
            "keyframes is enough for all times but the last, which may need all of it. 0 is exact.",
            show_default="the bundle's",
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="Where models run, such as cpu or cuda:1.", show_default="automatic"),
    ] = None,
    engine: EngineOption = Engine.local,
    base_url: BaseUrl = None,
    served_model: ServedModel = None,
    api_key_env: ApiKeyEnv = None,
    frames: FramesOption = None,
    structured: StructuredOption = None,
    logprobs: Logprobs = False,
    max_new_tokens: MaxNewTokens = None,
    concurrency: Concurrency = None,
    timeout: Timeout = None,
    ray_address: Address = None,
    screen_actors: ScreenActors = None,
    screen_cpus: ScreenCpus = None,
    screen_gpus: ScreenGpus = None,
    deliberate_actors: DeliberateActors = None,
    deliberate_cpus: DeliberateCpus = None,
    deliberate_gpus: DeliberateGpus = None,
    shards: Shards = None,
    server: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Send the videos to this `safelens serve`, whose bundle, policy and tau decide; "
            f"{KEY_VARIABLE} holds the key.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="File to which each verdict is added as a line of JSON; with --engine ray a folder of such files, "
            "which the same command continues."
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue --out: skip the videos that it has a verdict for; what ended in a "
            "model error is tried again.",
        ),
    ] = False,
    report: Annotated[
        Path | None, typer.Option(help="HTML page to write, with contact sheets and reasons.")
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print verdicts as JSON Lines as they come, in place of the table."
        ),
    ] = False,
    null: Annotated[
        bool, typer.Option("-0", "--null", help="Paths on standard input end with a zero byte.")
    ] = False,
) -> None:
    """Moderate videos, each with a verdict: nothing that failed is ever called safe.

    Exit code 0: every video was moderated (out of domain is an answer too); 1: some could not be
    read or a model failed; 2: wrong use; 130: interrupted, --out --resume continues.
    """
    try:
        given = dict(locals())
        _check_options(given)
        remote = remote_settings(given)
        if engine is Engine.ray:
            raise typer.Exit(moderate_on_ray(given, remote))
        files = expand(paths, null=null, leave_out=[p for p in (out, report) if p is not None])
        log = None if out is None else VerdictLog(out, resume=resume)
        with ExitStack() as stack:
            if log is not None:
                stack.callback(log.close)
            lens: SafeLens | RemoteLens
            if server is not None:
                lens = stack.enter_context(_connect(server))
            else:
                lens = stack.enter_context(
                    _load(
                        bundle,
                        policy,
                        tau,
                        model,
                        captioner,
                        layout,
                        keyframes,
                        device,
                        remote,
                        policy_encoding=None if policy_encoding is None else policy_encoding.value,
                        prune=prune,
                        policy_cache=policy_cache,
                    )
                )
            if lens.provenance.screen_reader == "labels":
                from safelens.verdict import LABELS_READ

                typer.echo(f"note: {LABELS_READ}", err=True)
            run = Run(files, log, as_json)
            if log is not None:
                log.check(lens.provenance)
            raise typer.Exit(run.go(lens, report))
    except UsageError as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail("stopped before the first video", INTERRUPTED)
    except BrokenPipeError:
        raise
    except OSError as error:
        hint = "" if out is None else f"; {out} holds what was done, and --resume continues it"
        fail(f"cannot write: {error}{hint}", FAILED)


def _check_options(given: dict[str, object]) -> None:
    if given["model"] is not None and given["bundle"] is not None:
        raise UsageError("--bundle and --model exclude each other; give one of them")
    check_ray_options(given, ray=given["engine"] is Engine.ray)
    if given["server"] is not None:
        for name in _HERE:
            if given[name] is not None:
                raise UsageError(
                    f"--{name.replace('_', '-')} is about models here; with --server, the server's decide"
                )
        if given["engine"] is not Engine.local:
            raise UsageError("--engine is about models here; with --server, the server's decide")
    for name in ("captioner", "layout", "policy_encoding"):
        if given[name] is not None and given["model"] is None:
            option = name.replace("_", "-")
            raise UsageError(f"--{option} belongs to --model; a bundle brings its own")
    if given["resume"] and given["out"] is None:
        raise UsageError("--resume continues a file of verdicts; name it with --out")
    page = given["report"]
    if isinstance(page, Path) and page.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--report {page}: expected a name that ends in .html")
    paths = given["paths"]
    if given["null"] and isinstance(paths, list) and "-" not in paths:
        raise UsageError("-0 is about the list on standard input; name that with -")


def _connect(server: str) -> RemoteLens:
    """A service in place of models. Raises UsageError if it does not answer."""
    with needs_service("remote"):
        from safelens.service.client import ServiceClient, ServiceError
        from safelens.service.remote_lens import RemoteLens
    try:
        return RemoteLens(ServiceClient(server, service_key()))
    except ServiceError as error:
        raise UsageError(f"--server {server}: {error}") from error


def _load(
    bundle: str | None,
    policy: str | None,
    tau: float | None,
    model: str | None,
    captioner: str | None,
    layout: LayoutName | None,
    keyframes: float | None,
    device: str | None,
    remote: Remote | None,
    *,
    policy_encoding: Literal["sequential", "parallel"] | None,
    prune: float | None,
    policy_cache: Path | None,
) -> SafeLens:
    """Build the system.

    Raises:
        UsageError: a part of it cannot be used.
    """
    from safelens.policy import Policy, PolicyError

    try:
        if policy is not None:
            Policy.load(policy)  # before the models, whose libraries take seconds to import
        import torch
        from transformers.utils import logging

        from safelens.assembly import EncodingError
        from safelens.bundle import BundleError
        from safelens.captioner import CaptionerError
        from safelens.cascade import SafeLens
        from safelens.chat_errors import EndpointStop
        from safelens.vlm import ModelLoadError
    except PolicyError as error:
        raise UsageError(str(error)) from error
    if device is not None:
        try:
            torch.empty(1, device=device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = str(error).splitlines()[0]
            raise UsageError(f"--device {device}: cannot be used here ({reason})") from error
    logging.disable_progress_bar()
    try:
        if model is None:
            return SafeLens.load(
                bundle or "tiny",
                policy=policy,
                tau=tau,
                prune=prune,
                policy_cache=policy_cache,
                keyframe_shift_s=keyframes,
                device=device,
                remote=remote,
            )
        return SafeLens.zero_shot(
            model,
            captioner=captioner,
            policy=policy or "default",
            tau=tau,
            layout=(layout or LayoutName.policy_first).value,
            policy_encoding=policy_encoding or "sequential",
            prune=prune,
            policy_cache=policy_cache,
            keyframe_shift_s=keyframes,
            device=device,
            remote=remote,
        )
    except (
        BundleError,
        ModelLoadError,
        CaptionerError,
        PolicyError,
        EncodingError,
        EndpointStop,
    ) as error:
        raise UsageError(str(error)) from error


@dataclass
class Run:
    """One run over some files; `go` does it and gives the exit code.

    Attributes:
        files: what is asked for.
        log: file of verdicts, or None.
        as_json: print verdicts as they come, in place of the table at the end.
    """

    files: list[str]
    log: VerdictLog | None
    as_json: bool
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def go(self, lens: SafeLens | RemoteLens, report: Path | None) -> int:
        """Moderate what has no verdict yet; print, write the log and the report.

        Raises:
            OSError: something cannot be written.
        """
        from safelens.cascade import Moderation
        from safelens.report import ReportWriter, Tally

        began = time.perf_counter()
        tally, interrupted = Tally(), False
        page: ReportWriter | None = None
        if report is not None:
            report.parent.mkdir(parents=True, exist_ok=True)
            page = ReportWriter(report)
        left = self.files
        if self.log is not None:
            done = self.log.done
            left = [file for file in self.files if log_key(file) not in done]
            for verdict in self.log.earlier(self.files):
                tally.add(verdict)
                self._keep(verdict)
                if page is not None:
                    page.add(Moderation(verdict, None))
        skipped = len(self.files) - len(left)
        if skipped and self.log is not None:
            typer.echo(f"{skipped} of {len(self.files)} are in {self.log.path} already", err=True)
        try:
            self._moderate(lens, left, tally, page)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            if page is not None:
                page.close()
        self._summary(tally, time.perf_counter() - began)
        if report is not None:
            typer.echo(f"report: {report}", err=self.as_json)
        if self.log is not None:
            typer.echo(f"verdicts: {self.log.path}", err=self.as_json)
        if interrupted:
            how = (
                "name a file with --out next time, and --resume continues it"
                if self.log is None
                else "give the same command with --resume to continue"
            )
            typer.echo(f"stopped after {tally.videos} of {len(self.files)} videos; {how}", err=True)
            return INTERRUPTED
        return FAILED if tally.outcomes["error"] else 0

    def _moderate(
        self,
        lens: SafeLens | RemoteLens,
        files: list[str],
        tally: Tally,
        page: ReportWriter | None,
    ) -> None:
        # A bar among lines of JSON on one terminal would tear both.
        hidden = self.as_json and sys.stdout.isatty()
        with Interrupt() as interrupt, progress("moderating", len(files), hidden=hidden) as bar:
            for moderation in lens.moderate_many(files):
                with interrupt.whole():
                    self._take(moderation, tally, page)
                counts = tally.outcomes
                bar.note(", ".join(f"{counts[k]} {k}" for k in ("flagged", "error") if counts[k]))
                bar.advance()

    def _take(self, moderation: Moderation, tally: Tally, page: ReportWriter | None) -> None:
        verdict = moderation.verdict
        if self.log is not None:
            self.log.add(verdict)
        tally.add(verdict)
        self._keep(verdict)
        if page is not None:
            page.add(moderation)
        if self.as_json:
            typer.echo(verdict.to_json())

    def _keep(self, verdict: Verdict) -> None:
        if self.as_json:
            return
        from safelens.report import printable

        self.rows.append(Row.of(verdict))
        if len(self.notes) <= _MAX_NOTES:
            if verdict.error is not None:
                name = verdict.video
                text = verdict.error.message
                self.notes.append(printable(text if name in text else f"{name}: {text}"))
            elif verdict.decided_by == "deliberate" and verdict.explanation:
                self.notes.append(printable(f"{verdict.video}: {verdict.explanation}"))

    def _summary(self, tally: Tally, seconds: float) -> None:
        from rich.console import Console

        from safelens.report import OUTCOMES

        if not self.as_json:
            # In a file or a pipe no name is broken over lines, so that it is found by searching.
            console = Console() if sys.stdout.isatty() else Console(width=_PIPE_WIDTH)
            print_table(self.rows, console)
            for note in self.notes[:_MAX_NOTES]:
                console.print(f"- {note}", markup=False, highlight=False, soft_wrap=True)
            if len(self.notes) > _MAX_NOTES:
                console.print("- and more; see --out or --report", highlight=False)
        counts = ", ".join(
            f"{tally.outcomes[key]} {words.lower()}"
            for key, words in OUTCOMES.items()
            if tally.outcomes[key]
        )
        total = f"{tally.videos} video{'' if tally.videos == 1 else 's'} in {seconds:.1f} s"
        typer.echo(f"{total}: {counts}" if counts else total, err=self.as_json)
        for text in tally.knows:
            typer.echo(f"Limits of this bundle: {text}", err=self.as_json)

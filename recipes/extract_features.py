"""Audio manifests to a feature store: runs a speech encoder once over all the audio.

Later stages read frames from the store and never touch audio. Every stretch of audio is encoded
once, however many rows refer to it. A run that was interrupted continues where it stopped, and a
run with further manifests adds to the store.
"""

import dataclasses
import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor
from torchtune import training, utils
from tqdm import tqdm

from torchtune_speech import config
from torchtune_speech.data import AudioCut, BadRow, Sample, load_manifest, resolve_audio
from torchtune_speech.datasets import check_speeds
from torchtune_speech.encoders import Encoder, audio_seconds, load_audio
from torchtune_speech.errors import InputError
from torchtune_speech.features import (
    FeatureWriter,
    averaged_length,
    check_store,
    finalize_store,
    stored_seconds,
)
from torchtune_speech.files import write_jsonl
from torchtune_speech.threads import TimedTask, TimedThreads
from torchtune_speech.training import find_device, join_processes, only_run

KEYS = {
    "data_dir": "folder that other keys may refer to",
    "manifest": "manifest whose audio is to be encoded, or a list of manifests",
    "where": "rows of the manifest that count, column: value or list; default: all",
    "output_dir": "folder of the feature store; an unfinished or older one is added to",
    "encoder": "component that turns waveforms into frames; it gets device from the recipe",
    "device": "cpu or cuda; default: cuda where there is one",
    "frame_average": "neighbouring frames averaged into one; default: 1",
    "dtype": "of the stored frames: bf16, fp16 or fp32; default: bf16",
    "speeds": "speed perturbation factors, each stored beside the others; default: [1.0]",
    "batch_seconds": "seconds of audio encoded at once, padding included; default: 240",
    "num_workers": "threads that read audio ahead of the encoder; default: 4",
    "read_timeout_s": "longest time to read a file; then it is a bad sample; default: 120",
    "shard_mb": "size of a shard in megabytes; default: 512",
    "on_bad_sample": "fail, or skip (go on; bad_samples.jsonl lists them); default: fail",
    "dry_run": "print what would be done, load no weights, write nothing; default: false",
}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# Batches of similar lengths are made within so many cuts; the store keeps the manifest's order
# beyond that, which keeps reading local.
BLOCK = 8192
BATCHES_AHEAD = 3
MAX_PADDING = 0.03
BAD_SAMPLES_FILE = "bad_samples.jsonl"


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """One stretch of audio to encode: key in the store, file, seconds (after speed)."""

    cut: AudioCut
    path: Path
    seconds: float = 0.0

    def measure(self) -> "Job":
        """The same with its duration read from the file's header."""
        cut = self.cut
        seconds = audio_seconds(self.path, cut.offset_s, cut.duration_s, cut.speed)
        return dataclasses.replace(self, seconds=seconds)


class ExtractFeaturesRecipe:
    """Encodes the audio of manifests into a feature store.

    One process or many (``tune run --nproc_per_node N``): each takes its share of the audio and
    writes shards of its own; the first merges the index at the end. All audio files are looked at
    before the first is encoded, so that a wrong path is reported before anything is written.

    Args:
        cfg: the config, with the keys in ``KEYS``.

    Raises:
        InputError: for an unknown, missing or impossible key.
    """

    def __init__(self, cfg: DictConfig) -> None:
        config.check_keys(cfg, KEYS)
        for key in ("manifest", "output_dir", "encoder"):
            if not cfg.get(key):
                raise InputError(f"config: no {key}; add {key}=... ({KEYS[key]})")
        manifests = cfg.manifest if isinstance(cfg.manifest, ListConfig) else [cfg.manifest]
        self.manifests = [str(m) for m in manifests]
        self.where = OmegaConf.to_container(cfg.where) if cfg.get("where") else None
        self.output_dir = Path(cfg.output_dir)
        self.frame_average = _number(cfg, "frame_average", 1, 1)
        self.batch_seconds = _number(cfg, "batch_seconds", 240.0, 0.1)
        self.num_workers = _number(cfg, "num_workers", 4, 1)
        self.read_timeout_s = _number(cfg, "read_timeout_s", 120.0, 0.01)
        self.shard_mb = _number(cfg, "shard_mb", 512.0, 0.001)
        speeds = cfg.get("speeds") or [1.0]
        check_speeds(speeds, "speeds")
        self.speeds = [float(s) for s in speeds]
        self.dtype = DTYPES[_choice(cfg, "dtype", "bf16", DTYPES)]
        self.on_bad_sample = _choice(cfg, "on_bad_sample", "fail", ("fail", "skip"))
        self.dry_run = bool(cfg.get("dry_run", False))
        self.log = utils.get_logger("INFO")
        self.bad_rows: list[BadRow] = []  # of the manifests; each process reads them all
        self.bad_audio: list[str] = []  # of this process's share

    def setup(self, cfg: DictConfig) -> None:
        """Reads the manifests, builds the encoder, and checks that the store will take its frames.

        Args:
            cfg: the config.

        Raises:
            InputError: for a bad manifest, encoder or store.
        """
        # Processes exchange a few numbers only, so gloo will do beside any device; and wait for
        # the slowest of them, which may take hours.
        if training.is_distributed():
            join_processes("gloo", timeout=timedelta(days=30))
        self.world_size, self.rank = utils.get_world_size_and_rank()
        self.jobs = self._setup_jobs()
        device = torch.device("meta") if self.dry_run else find_device(cfg.get("device"))
        self.encoder: Encoder = config.instantiate(cfg.encoder, device=device)
        if self.dry_run:
            return
        fingerprint = {**self.encoder.fingerprint(), "frame_average": self.frame_average}
        check_store(self.output_dir, fingerprint, self.dtype)

    def _setup_jobs(self) -> list[Job]:
        """Every stretch of audio of the manifests, once, at each speed."""
        jobs: dict[str, Job] = {}
        for manifest in self.manifests:
            for sample in self._samples(manifest):
                for cut in sample.audio:
                    path = resolve_audio(manifest, cut)
                    for speed in self.speeds if cut.speed == 1.0 else [1.0]:
                        copy = dataclasses.replace(cut, speed=cut.speed * speed)
                        known = jobs.setdefault(copy.key, Job(copy, path))
                        if known.path != path:
                            raise InputError(
                                f"{manifest}: audio {cut.path!r} is {path}, but an earlier "
                                f"manifest calls {known.path} so too; features are stored under "
                                "the path as written: rename one, or extract into two stores"
                            )
        if not jobs:
            raise InputError(f"{self.manifests[0]}: no row has 'audio'; nothing to encode")
        return list(jobs.values())

    def _samples(self, manifest: str) -> list[Sample]:
        if self.dry_run and not os.path.exists(manifest):
            self._log(f"{manifest} is not there: 1000 synthetic stretches of 1 to 20 s instead")
            cuts = [AudioCut(f"{manifest}/{n}.wav", 0.0, 1 + 19 * n / 999) for n in range(1000)]
            return [Sample(cut.path, "asr", "", (cut,)) for cut in cuts]
        return load_manifest(
            manifest,
            where=self.where,
            on_bad_sample=self.on_bad_sample,
            bad=self.bad_rows,
            check_audio=not self.dry_run,
            require_target=False,
        )

    def extract(self) -> None:
        """Encodes what is not in the store yet, and makes the index.

        Raises:
            InputError: for audio that cannot be read, unless it is to be skipped.
        """
        if self.dry_run:
            self._print_plan()
            return
        with only_run(self.output_dir, self.rank == 0):
            self._extract()

    def _extract(self) -> None:
        self.stored_seconds = stored_seconds(self.output_dir)
        # All have looked at what is done before any writes: their shares must not overlap.
        self._barrier()
        # Those that are done come last, so that each process gets its share of the others.
        new, done = [], []
        for job in self.jobs:
            (done if job.cut.key in self.stored_seconds else new).append(job)
        self._log(
            f"{len(self.jobs)} stretches of audio, {len(done)} of them in {self.output_dir} "
            f"already; {self.world_size} process(es)"
        )
        jobs = self._measure((new + done)[self.rank :: self.world_size])
        writer = FeatureWriter(
            self.output_dir,
            self.encoder.fingerprint(),
            frame_average=self.frame_average,
            dtype=self.dtype,
            shard_mb=self.shard_mb,
            rank=self.rank,
        )
        start = time.perf_counter()
        seconds = 0.0
        with writer, self._progress(sum(job.seconds for job in jobs)) as progress:
            for batch, waveforms in self._load(make_batches(jobs, self.batch_seconds)):
                durations = [len(w) / self.encoder.sampling_rate for w in waveforms]
                keys = [job.cut.key for job in batch]
                writer.add_batch(keys, self.encoder(waveforms), durations)
                seconds += sum(durations)
                rate = seconds / (time.perf_counter() - start)
                progress.set_postfix_str(f"{rate:.0f} x real time", refresh=False)
                progress.update(sum(durations) / 3600)
        self._finish(writer, seconds, start)

    def _measure(self, jobs: list[Job]) -> list[Job]:
        """Looks at the header of every file, so that faults come to light before anything is done.

        Args:
            jobs: what this process sees to, with what the store has already.

        Returns:
            What is to be encoded, with durations.

        Raises:
            InputError: in all processes if one has found a fault, unless it is to be skipped.
        """
        measured: list[Job] = []
        fault: str | None = None
        show = self.rank == 0 and len(jobs) > 1000
        with TimedThreads(self.num_workers, self.read_timeout_s) as threads:
            tasks = [(job, threads.submit(job.measure)) for job in jobs]
            for unmeasured, task in tqdm(tasks, desc="looking at audio files", disable=not show):
                try:
                    job = self._result(threads, unmeasured, task)
                except InputError as error:
                    if self.on_bad_sample == "skip":
                        self._skip(error)
                        continue
                    fault = f"{error}, or set on_bad_sample=skip"
                else:
                    fault = self._name_clash(job)
                if fault:
                    break
                if job.cut.key not in self.stored_seconds:
                    measured.append(job)
        faults: list[str | None] = [fault] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(faults, fault)
        fault = next((f for f in faults if f), None)
        if fault:
            raise InputError(fault)
        return measured

    def _name_clash(self, job: Job) -> str | None:
        """Says what is wrong if the store has frames of other audio under a job's name."""
        seconds = self.stored_seconds.get(job.cut.key)
        # Headers of compressed files estimate; another recording of that very length goes unseen.
        if seconds is None or abs(seconds - job.seconds) <= 0.1 + 0.01 * seconds:
            return None
        return (
            f"{job.path}: {job.seconds:.2f} s long, but {self.output_dir} holds other audio of "
            f"{seconds:.2f} s as {job.cut.key!r}; rename the file, or extract into another store"
        )

    def _load(self, batches: Iterable[list[Job]]) -> Iterator[tuple[list[Job], list[Tensor]]]:
        """Yields batches with their waveforms, which threads read ahead of the encoder."""
        waiting: deque[list[tuple[Job, TimedTask]]] = deque()
        with TimedThreads(self.num_workers, self.read_timeout_s) as threads:
            for batch in batches:
                tasks = [threads.submit(partial(self._load_one, job)) for job in batch]
                waiting.append(list(zip(batch, tasks, strict=True)))
                if len(waiting) > BATCHES_AHEAD:
                    yield self._ready(threads, waiting.popleft())
            while waiting:
                yield self._ready(threads, waiting.popleft())

    def _load_one(self, job: Job) -> Tensor:
        cut = job.cut
        return load_audio(
            job.path, self.encoder.sampling_rate, cut.offset_s, cut.duration_s, cut.speed
        )

    def _result(self, threads: TimedThreads, job: Job, task: TimedTask) -> Any:
        try:
            return threads.result(task)
        except TimeoutError as error:
            raise InputError(
                f"{job.path}: reading it {error}; restore it, or raise read_timeout_s"
            ) from error

    def _ready(
        self, threads: TimedThreads, batch: list[tuple[Job, TimedTask]]
    ) -> tuple[list[Job], list[Tensor]]:
        """Waits for the waveforms of a batch; leaves out what cannot be read if that is wanted."""
        jobs, waveforms = [], []
        for job, task in batch:
            try:
                waveforms.append(self._result(threads, job, task))
                jobs.append(job)
            except InputError as error:
                if self.on_bad_sample == "fail":
                    raise
                self._skip(error)
        return jobs, waveforms

    def _skip(self, error: InputError) -> None:
        self.bad_audio.append(str(error))
        if len(self.bad_audio) <= 10:
            self.log.warning(f"skipped: {error}")

    def _finish(self, writer: FeatureWriter, seconds: float, start: float) -> None:
        """Makes the index once all are done, and says what was done."""
        sums = torch.tensor(
            [seconds, writer.frames_written, writer.bytes_written], dtype=torch.float64
        )
        bad_audio = [self.bad_audio] * self.world_size
        if self.world_size > 1:
            try:
                dist.all_reduce(sums)
                dist.all_gather_object(bad_audio, self.bad_audio)
            except RuntimeError:
                # Another process has failed and has said why.
                sys.exit(1)
        seconds, frames, size = sums.tolist()
        bad = [row.message for row in self.bad_rows] + sum(bad_audio, [])
        if self.rank == 0:
            writer.discard_if_empty()
            if not self.output_dir.exists():
                raise InputError(
                    f"{self.manifests[0]}: no audio could be read, {len(bad)} skipped; see the "
                    "reasons above"
                )
            bad_samples = self.output_dir / BAD_SAMPLES_FILE
            bad_samples.unlink(missing_ok=True)
            if bad:
                write_jsonl(bad_samples, ({"message": message} for message in bad))
            count = finalize_store(self.output_dir)
            elapsed = time.perf_counter() - start
            self.log.info(
                f"{self.output_dir}: {seconds / 3600:.2f} h of audio in {elapsed:.0f} s "
                f"({seconds / elapsed:.0f} x real time), {frames:.0f} frames, "
                f"{size / 1e6:.1f} MB; {count} utterances in the store"
                + (f"; {len(bad)} skipped, see {BAD_SAMPLES_FILE} there" if bad else "")
            )
        self._barrier()

    def _progress(self, seconds: float) -> "tqdm[None]":
        share = f" (process 1 of {self.world_size})" if self.world_size > 1 else ""
        return tqdm(
            total=seconds / 3600,
            desc=f"extract_features{share}",
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:.2f}/{total:.2f} h of audio "
            "[{elapsed}<{remaining}{postfix}]",
            mininterval=1.0,
            disable=self.rank != 0,
        )

    def _print_plan(self) -> None:
        """Says what a run would do."""
        # In a dry run no file is opened: cuts without a duration count as 10 s.
        seconds = sum((job.cut.duration_s or 10.0) / job.cut.speed for job in self.jobs)
        frames = averaged_length(int(seconds * self.encoder.frames_per_second), self.frame_average)
        size = frames * self.encoder.dim * self.dtype.itemsize
        module = self.encoder if isinstance(self.encoder, torch.nn.Module) else torch.nn.Module()
        parameters = list(module.parameters())
        weights = sum(p.numel() * p.itemsize for p in parameters)
        batches = int(seconds / self.batch_seconds) + 1
        self._log(
            f"dry run: {len(self.jobs)} stretches of audio, about {seconds / 3600:.1f} h in "
            f"{batches} batches; encoder {sum(p.numel() for p in parameters):,} parameters "
            f"({weights / 1e9:.2f} GB), frames of {self.encoder.dim} x {self.dtype}, "
            f"{self.encoder.frames_per_second / self.frame_average:.1f} a second; store of about "
            f"{size / 1e9:.2f} GB in {self.output_dir}; nothing was written"
        )

    def _log(self, message: str) -> None:
        utils.log_rank_zero(self.log, message)

    def _barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()

    def cleanup(self) -> None:
        """Leaves the process group."""
        if dist.is_initialized():
            dist.destroy_process_group()


def make_batches(jobs: list[Job], batch_seconds: float) -> Iterator[list[Job]]:
    """Batches of similar lengths, of which at most 3 % is padding.

    Args:
        jobs: what to encode.
        batch_seconds: longest times number of a batch, at most, in seconds. What is longer comes
            alone.

    Yields:
        Lists of jobs, longest first within blocks of the given order.
    """
    for start in range(0, len(jobs), BLOCK):
        batch: list[Job] = []
        seconds = 0.0
        for job in sorted(jobs[start : start + BLOCK], key=lambda job: -job.seconds):
            padded = (len(batch) + 1) * batch[0].seconds if batch else job.seconds
            too_uneven = padded - seconds - job.seconds > MAX_PADDING * padded
            if batch and (padded > batch_seconds or too_uneven):
                yield batch
                batch, seconds = [], 0.0
            batch.append(job)
            seconds += job.seconds
        if batch:
            yield batch


def _number(cfg: DictConfig, key: str, default: float, least: float) -> float:
    value = default if cfg.get(key) is None else cfg[key]
    kinds = int if isinstance(default, int) else (int, float)
    if not isinstance(value, kinds) or isinstance(value, bool) or value < least:
        what = "a whole number" if isinstance(default, int) else "a number"
        raise InputError(f"config: {key} is {value!r}; it must be {what}, at least {least}")
    return value


def _choice(cfg: DictConfig, key: str, default: str, choices: Iterable[str]) -> str:
    value = cfg.get(key) or default
    if value not in choices:
        raise InputError(f"config: {key} is {value!r}; use one of {', '.join(choices)}")
    return value


@config.parse
def recipe_main(cfg: DictConfig) -> None:
    """Runs the recipe; see the top of the file."""
    recipe = ExtractFeaturesRecipe(cfg)
    recipe.setup(cfg)
    recipe.extract()
    recipe.cleanup()


if __name__ == "__main__":
    sys.exit(recipe_main())

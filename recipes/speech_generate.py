"""Answers of a SpeechLLM: for the rows of a manifest, or for one audio file.

With `dataset` set, predictions are written as JSON lines in manifest order. They come on disk batch
by batch, in `NAME.partial.jsonl` beside them; a run that was killed goes on from there when it is
started again, also with another batch size or number of processes. Several processes (`tune run
--nproc_per_node N`) share the samples; `shard_llm=true` splits the weights instead, for an LLM that
one GPU cannot hold. With `audio=file.wav
instruction="Transcribe the English content."` the answer to that one file is printed: the audio
goes through the encoder named in the config, so no feature store is needed. A long file is heard in
windows, and so are long samples after `torchtune-speech segment`: their answers are joined.
"""

import contextlib
import hashlib
import json
import sys
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import nn
from torchtune import utils
from torchtune.models.llama3 import Llama3Tokenizer
from torchtune.utils import get_logger
from tqdm import tqdm

from torchtune_speech import config, training
from torchtune_speech.data import (
    JOINED_TASKS,
    ChatFormat,
    PromptTemplates,
    chat_format,
    data_fingerprint,
    mcif_task,
    spread,
    text_token_rows,
    write_mcif_output,
)
from torchtune_speech.encoders import load_audio, silence_windows
from torchtune_speech.errors import InputError
from torchtune_speech.generation import (
    Decoding,
    PartialPredictions,
    answer_audio,
    join_segment_rows,
    plan_batches,
    predict,
    speech_token_limit,
)
from torchtune_speech.models import NearestEmbeddings

KEYS = {
    "output": "predictions to write, JSON lines",
    "checkpoint": "run or checkpoint to take projector and LoRA from; short for the next two keys",
    "projector_checkpoint": "run or checkpoint to take the projector from",
    "adapter_checkpoint": "run, checkpoint or PEFT folder to take LoRA from; null: checkpoint's",
    "llm_dir": "Hugging Face folder of the LLM",
    "model": "component: builder of the SpeechLLM",
    "projector": "component: builder of the projector; null to read text alone",
    "tokenizer": "component: tokenizer of the LLM",
    "dataset": "component: what to answer; null with audio=...",
    "limit": "answer this many samples only, spread over the data; null for all",
    "mcif_output": "also write the official XML here, when the manifest is an official source file",
    "audio": "one audio file to answer, instead of a data set",
    "instruction": "what to do with that file",
    "encoder": "component: encoder for audio=...; the one the projector was trained on",
    "frame_average": "frames averaged for audio=..., as in the feature store",
    "keep_checkpoint": "stage 1 that drops the pads of audio=..., as keep does; null: all are read",
    "window_s": "audio=... longer than this is heard in windows, cut where it is quiet",
    "long_answer": "of those: join the windows' texts, whole (one answer), or auto: by instruction",
    "templates": "prompt set whose wrapping goes around audio and instruction",
    "max_seq_len": "longest prompt, in tokens",
    "max_new_tokens": "longest answer, in tokens",
    "speech_tokens_per_second": "answers to speech: at most so many a second; null: no limit",
    "num_beams": "hypotheses of beam search; 1: greedy or sampling",
    "length_penalty": "beams compare log-probability / length ** this: more, for longer ones",
    "temperature": "of sampling; 0 takes the best token",
    "top_p": "sampling draws from the best tokens that hold this share of the probability",
    "seed": "of sampling; a sample's draws depend on it and the sample's id only",
    "loops": "answers that repeat themselves: none (let run), cut, forbid (go back, decode on)",
    "lora_on_text": "false answers text samples by the LLM without LoRA",
    "nearest_tokens": "true: for each speech vector the LLM reads the nearest token's embedding",
    "batch_size": "samples decoded together",
    "shard_llm": "split the weights over the processes instead of the samples",
    "device": "cpu or cuda",
    "dtype": "fp32 or bf16",
    "quantize": "nf4 (4 bits) or float8 for the matrices of the frozen LLM; null for neither",
}
# No prediction of a data set.
_CHANGE_NOTHING = ("output", "mcif_output", "limit", "batch_size", "shard_llm", "device")
_CHANGE_NOTHING += ("instruction", "encoder", "frame_average", "window_s", "long_answer")
_NAME_A_TASK = {"track", "target_lang"}  # of the official files in one
_log = get_logger("INFO")


class SpeechGenerateRecipe:
    """Generates; see the module's docstring.

    Args:
        cfg: see ``KEYS``.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg = cfg
        # The others are waited for, and they may have hours of longer answers to give.
        self.process = training.start_process(cfg.device, timeout=timedelta(days=30))
        self.dtype = training.compute_dtype(cfg.dtype, self.process.device)

    def setup(self) -> None:
        """Read the data and load the model."""
        cfg = self.cfg
        training.check_settings(cfg)
        self.decoding = Decoding(
            max_new_tokens=cfg.max_new_tokens,
            num_beams=cfg.num_beams,
            length_penalty=cfg.length_penalty,
            temperature=cfg.temperature,
            top_p=cfg.top_p,
            seed=cfg.seed,
            loops=cfg.loops,
        )
        if cfg.speech_tokens_per_second is not None:
            speech_token_limit(1.0, cfg.speech_tokens_per_second)  # refuses what is no rate
        found = {"llm": training.llm_fingerprint(cfg.llm_dir), "store": None, "kept": None}
        projector = config.instantiate(cfg.projector)
        tokenizer = config.instantiate(cfg.tokenizer)
        self.chat = chat_format(tokenizer)
        if cfg.nearest_tokens and cfg.shard_llm:
            raise InputError(
                "nearest_tokens: needs the whole embedding table in each process; set "
                "shard_llm=false, or nearest_tokens=false"
            )
        if (cfg.audio is None) == (cfg.dataset is None):
            raise InputError("dataset, audio: give one of the two, and set the other to null")
        unused = ("instruction",) if cfg.audio is None else ("mcif_output", "limit")
        for key in unused:
            if cfg[key] is not None:
                other = "audio" if cfg.audio is None else "dataset"
                raise InputError(f"{key}: goes with {other}=..., which is null; set it to null")
        if cfg.keep_checkpoint is not None and cfg.audio is None:
            raise InputError(
                "keep_checkpoint: drops the pads of audio=...; for a data set run torchtune-speech "
                "keep, give its file as dataset.kept, and set keep_checkpoint=null"
            )
        self.keep: training.NonPads | None = None
        if cfg.audio is not None:
            found["store"] = self._read_audio(projector)
            if cfg.keep_checkpoint is not None:
                self.keep = training.NonPads(
                    cfg.keep_checkpoint, found["store"], process=self.process, llm_dir=cfg.llm_dir
                )
                found["kept"] = self.keep.fingerprint
        else:
            found["store"] = self._read_dataset(projector, tokenizer)
            found["kept"] = training.kept_fingerprint(self.dataset)
        projector_from = None if projector is None else cfg.projector_checkpoint or cfg.checkpoint
        adapter_from = cfg.adapter_checkpoint or cfg.checkpoint
        if found["store"] is not None and projector is not None and not projector_from:
            raise InputError(
                "checkpoint: null, so the projector would be untrained; give a run of projector "
                "or multimodal_fuse"
            )
        self.fingerprint = found | {
            "projector": _files(projector_from),
            "adapter": _files(adapter_from),
        }
        if projector_from:
            if found["store"] is not None:  # there is speech
                self._check_kept(projector_from, found["kept"])
            training.check_checkpoint_fits(
                projector_from, found, store=True, projector=cfg.projector
            )
        if adapter_from:
            training.check_checkpoint_fits(adapter_from, found, store=False)
        if cfg.nearest_tokens:
            pad_token = self._pad_token(projector_from, found)
        self.model = training.build_speech_llm(
            cfg.model,
            llm_dir=cfg.llm_dir,
            projector=projector,
            projector_checkpoint=projector_from,
            adapter_checkpoint=adapter_from,
            process=self.process,
            dtype=self.dtype,
            quantize=cfg.quantize,
            shard=cfg.shard_llm,
        )
        if cfg.nearest_tokens:
            embedding = self.model.decoder.tok_embeddings
            is_text = text_token_rows(self.chat, embedding.num_embeddings)
            self.model.projector = NearestEmbeddings(
                self.model.projector, embedding, pad_token, is_text
            )

    def _pad_token(self, projector_from: str | None, found: dict[str, Any]) -> int:
        """The token that the projector was taught to say behind a transcript."""
        if found["store"] is None:
            raise InputError(
                "nearest_tokens: true, but there is no speech to round; set nearest_tokens=false"
            )
        stage_1 = training.stage_1_fingerprint(projector_from, self.chat).get("stage_1")
        if stage_1 is None and found["kept"] is None:
            raise InputError(
                f"nearest_tokens: {projector_from} tells of no stage 1 of SpeechMapper, in which a "
                "projector learns tokens; set nearest_tokens=false"
            )
        return (stage_1 or found["kept"])["pad_token"]

    def _check_kept(self, projector_from: str, kept: dict[str, Any] | None) -> None:
        """Refuse pads where the projector was trained without, and what other projectors keep."""
        stage = training.read_stage(projector_from)
        if self.cfg.audio is None:
            training.check_kept(projector_from, kept)
        elif kept is None and stage["fingerprints"].get("kept"):
            raise InputError(
                f"audio: {projector_from} was trained with pads dropped; give the stage-1 run that "
                "decided as keep_checkpoint"
            )
        else:
            training.check_kept(projector_from, kept, key="keep_checkpoint")

    def _read_audio(self, projector: nn.Module | None) -> dict[str, Any]:
        """Read the one audio file; returns the fingerprint that its frames will have."""
        cfg = self.cfg
        if projector is None:
            raise InputError("projector: null, but audio needs one; name its builder")
        if not cfg.instruction:
            raise InputError(
                'instruction: missing; say what to do, e.g. instruction="Transcribe the English '
                'content."'
            )
        self.encoder = config.instantiate(cfg.encoder)
        training.check_frame_width(projector, self.encoder.dim, "the frames of encoder")
        if cfg.long_answer not in ("auto", "join", "whole"):
            raise InputError(f"long_answer: {cfg.long_answer!r}; use auto, join or whole")
        rate = self.encoder.sampling_rate
        self.waveform = load_audio(cfg.audio, rate)
        self.windows = silence_windows(self.waveform, rate, cfg.window_s)
        return {**self.encoder.fingerprint(), "frame_average": cfg.frame_average}

    def _read_dataset(
        self, projector: nn.Module | None, tokenizer: Llama3Tokenizer | ChatFormat
    ) -> dict[str, Any] | None:
        """Read the data set; returns the fingerprint of its frames, None when all is text."""
        lengths = {} if projector is None else {"output_length": projector.output_length}
        self.dataset = config.instantiate(
            self.cfg.dataset,
            tokenizer=tokenizer,
            max_seq_len=self.cfg.max_seq_len,
            with_answers=False,
            **lengths,
        )
        counts = Counter((sample.id, sample.task) for sample in self.dataset.samples)
        (id_, task), count = counts.most_common(1)[0]
        if count > 1:  # two predictions of one name could not be scored
            raise InputError(
                f"dataset: {count} samples of task {task} have the id {id_!r}; give each its own, "
                "or name each manifest in a run of its own"
            )
        self.mcif_header = self._mcif_header() if self.cfg.mcif_output else None
        if not any(sample.is_speech for sample in self.dataset.samples):
            return None
        if projector is None:
            raise InputError(
                "projector: null, but the data has audio; name its builder, "
                "or set dataset.text_twins=true"
            )
        training.check_projector(projector, self.dataset)
        return dict(self.dataset.store.fingerprint)

    def generate(self) -> None:
        """Answer one file, or the whole data set."""
        with training.autocast(self.process.device, self.dtype):
            if self.cfg.audio is not None:
                answer = self.answer_audio()
                if self.process.is_main:
                    print(answer)
            else:
                self.answer_dataset()

    def answer_audio(self) -> str:
        """The answer to ``audio`` and ``instruction``."""
        cfg = self.cfg
        join = cfg.long_answer == "join"
        if cfg.long_answer == "auto":
            task = mcif_task(cfg.instruction)
            join = task is not None and task[0] in JOINED_TASKS
        return answer_audio(
            self.model,
            self.encoder,
            self.waveform,
            cfg.instruction,
            chat=self.chat,
            templates=PromptTemplates.from_yaml(cfg.templates),
            windows=self.windows,
            join=join,
            speech_tokens_per_second=cfg.speech_tokens_per_second,
            max_seq_len=cfg.max_seq_len,
            batch_size=cfg.batch_size,
            frame_average=cfg.frame_average,
            keep=None if self.keep is None else lambda frames: self.keep(frames)[1],
            settings=self.decoding,
            cache_dtype=self.dtype,
        )

    def answer_dataset(self) -> None:
        """Predictions of all samples, written in manifest order."""
        cfg, process = self.cfg, self.process
        chosen = self._chosen()
        # With split weights all processes decode the same batches, and the first one writes.
        alone = cfg.shard_llm or process.world_size == 1
        rank, world_size = (0, 1) if alone else (process.rank, process.world_size)
        writes = process.is_main or not alone
        partial = PartialPredictions(cfg.output, self._fingerprint(), rank)
        process.barrier()  # all have read what is there before the first writes
        if partial.rows:
            count_done = len(partial.rows)
            utils.log_rank_zero(_log, f"{partial.path}: goes on after {count_done} predictions")
        batches = plan_batches(
            self.dataset,
            [i for i in chosen if i not in partial.rows],
            cfg.batch_size,
            text_apart=not cfg.lora_on_text,
        )[rank::world_size]
        what = "generate" if world_size == 1 else f"generate, 1 of {world_size} processes"
        bar = tqdm(
            total=sum(map(len, batches)), desc=what, unit="sample", disable=not process.is_main
        )
        with bar, partial if writes else contextlib.nullcontext():
            for batch in predict(
                self.model,
                self.dataset,
                batches,
                self.decoding,
                speech_tokens_per_second=cfg.speech_tokens_per_second,
                lora_on_text=cfg.lora_on_text,
                cache_dtype=self.dtype,
            ):
                if writes:
                    partial.add(batch)
                bar.update(len(batch))
        process.barrier()  # all have written before the first gathers
        if process.is_main:
            partial.gather()
            rows = join_segment_rows(partial.rows[i] for i in chosen)
            if cfg.mcif_output:
                texts = {row["id"]: row["prediction"] for row in rows}
                write_mcif_output(
                    cfg.mcif_output, texts, name="torchtune-speech", **self.mcif_header
                )
            partial.finish(rows)
            _log.info("%d predictions written to %s", len(rows), cfg.output)
            if missing := sum("missing_segments" in row for row in rows):
                _log.warning("%d recordings lack windows, see missing_segments", missing)

    def _chosen(self) -> list[int]:
        """The samples to answer: all, or those of `limit` recordings spread over the data."""
        recordings: dict[tuple[str, str], list[int]] = {}
        for i, sample in enumerate(self.dataset.samples):
            whole = sample.extra.get("segment_of", sample.id)
            recordings.setdefault((whole, sample.task), []).append(i)
        groups = list(recordings.values())
        count = len(groups) if self.cfg.limit is None else self.cfg.limit
        return [i for place in spread(count, len(groups)) for i in groups[place]]

    def _mcif_header(self) -> dict[str, Any]:
        """What the official output file says of all its samples."""
        data = self.cfg.dataset
        leaves_out = [key for key in ("on_too_long", "on_bad_sample") if data.get(key) == "skip"]
        leaves_out += ["tasks"] if data.get("tasks") else []
        # Those that name one of several official files leave nothing of it out.
        leaves_out += ["where"] if (data.get("where") or {}).keys() - _NAME_A_TASK else []
        leaves_out = [f"dataset.{key}" for key in leaves_out]
        leaves_out += ["limit"] if self.cfg.limit is not None else []
        if leaves_out:
            raise InputError(
                f"mcif_output: {leaves_out[0]} may leave samples out, and the official scorer "
                "wants all; take it away, or set mcif_output=null"
            )
        samples = self.dataset.samples
        kinds = {(s.extra.get("track"), s.target_lang) for s in samples}
        ((track, language), *more) = kinds
        if more or track is None:
            raise InputError(
                "mcif_output: the samples are not those of one official source file; give one as "
                "dataset.manifest, or set mcif_output=null"
            )
        ids = dict.fromkeys(s.extra.get("segment_of", s.id) for s in samples)
        return {"track": track, "text_lang": language, "expected_ids": ids}

    def _fingerprint(self) -> dict[str, Any]:
        """What decides the predictions: settings, data, prompts, LLM, trained files."""
        settings = OmegaConf.to_container(self.cfg, resolve=True)
        for key in _CHANGE_NOTHING:
            settings.pop(key, None)
        return self.fingerprint | {
            "settings": settings,
            "data": data_fingerprint(self.dataset.samples),
            "prompts": self._prompts_digest(),
        }

    def _prompts_digest(self) -> str:
        """Templates and tokenizer may change in their files, under the same names."""
        digest = hashlib.sha256()
        for sample in self.dataset.samples:
            digest.update(json.dumps(self.dataset.prompt(sample)).encode())
        return digest.hexdigest()


def _files(checkpoint: str | None) -> list[list[str | int]] | None:
    """The trained files of a checkpoint, of a run's newest one, or of a PEFT folder."""
    if not checkpoint:
        return None
    steps = training.list_checkpoints(checkpoint)
    folder = steps[-1] if steps else Path(checkpoint)
    found = sorted(folder.glob("*.safetensors"))
    return [[str(f), f.stat().st_size, f.stat().st_mtime_ns] for f in found]


@config.parse
def recipe_main(cfg: DictConfig) -> None:
    """Entry point of `tune run speech_generate`."""
    config.check_keys(cfg, KEYS)
    recipe = SpeechGenerateRecipe(cfg)
    recipe.setup()
    recipe.generate()
    training.end_process()


if __name__ == "__main__":
    sys.exit(recipe_main())

"""Answers of a SpeechLLM: for the rows of a manifest, or for one audio file.

With `dataset` set, predictions are written as JSON lines in manifest order; a run that was killed
goes on from `NAME.partial.jsonl` beside them when it is started again. With `audio=file.wav
instruction="Transcribe the English content."` the answer to that one file is printed: the audio
goes through the encoder named in the config, so no feature store is needed.
"""

import contextlib
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torchtune import utils
from torchtune.models.llama3 import Llama3Tokenizer
from torchtune.utils import get_logger
from tqdm import tqdm

from torchtune_speech import config, training
from torchtune_speech.data import Llama3ChatFormat, PromptTemplates, data_fingerprint
from torchtune_speech.encoders import load_audio
from torchtune_speech.errors import InputError
from torchtune_speech.generation import PartialPredictions, answer_audio, predict

KEYS = {
    "output": "predictions to write, JSON lines",
    "checkpoint": "run or checkpoint to take projector and LoRA from; short for the next two keys",
    "projector_checkpoint": "run or checkpoint to take the projector from",
    "adapter_checkpoint": "run, checkpoint or PEFT folder to take LoRA from; null for none",
    "llm_dir": "Hugging Face folder of the LLM",
    "model": "component: builder of the SpeechLLM",
    "projector": "component: builder of the projector; null to read text alone",
    "tokenizer": "component: tokenizer of the LLM",
    "dataset": "component: what to answer; null with audio=...",
    "limit": "answer this many samples only, spread over the data; null for all",
    "audio": "one audio file to answer, instead of a data set",
    "instruction": "what to do with that file",
    "encoder": "component: encoder for audio=...; the one the projector was trained on",
    "frame_average": "frames averaged for audio=..., as in the feature store",
    "templates": "prompt set whose wrapping goes around audio and instruction",
    "max_seq_len": "longest prompt, in tokens",
    "max_new_tokens": "longest answer, in tokens",
    "batch_size": "samples decoded together",
    "device": "cpu or cuda",
    "dtype": "fp32 or bf16",
}
_log = get_logger("INFO")


class SpeechGenerateRecipe:
    """Generates; see the module's docstring.

    Args:
        cfg: see ``KEYS``.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg = cfg
        self.process = training.start_process(cfg.device)
        self.dtype = training.compute_dtype(cfg.dtype, self.process.device)

    def setup(self) -> None:
        """Read the data and load the model."""
        cfg = self.cfg
        training.check_settings(cfg)
        found = {"llm": training.llm_fingerprint(cfg.llm_dir), "store": None}
        projector = config.instantiate(cfg.projector)
        tokenizer = config.instantiate(cfg.tokenizer)
        self.chat = Llama3ChatFormat(tokenizer)
        if (cfg.audio is None) == (cfg.dataset is None):
            raise InputError("dataset, audio: give one of the two, and set the other to null")
        if cfg.audio is not None:
            found["store"] = self._read_audio(projector)
        else:
            found["store"] = self._read_dataset(projector, tokenizer)
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
            training.check_checkpoint_fits(projector_from, found, store=True)
        if adapter_from:
            training.check_checkpoint_fits(adapter_from, found, store=False)
        self.model = training.build_speech_llm(
            cfg.model,
            llm_dir=cfg.llm_dir,
            projector=projector,
            projector_checkpoint=projector_from,
            adapter_checkpoint=adapter_from,
            process=self.process,
            dtype=self.dtype,
        )

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
        self.waveform = load_audio(cfg.audio, self.encoder.sampling_rate)
        return {**self.encoder.fingerprint(), "frame_average": cfg.frame_average}

    def _read_dataset(
        self, projector: nn.Module | None, tokenizer: Llama3Tokenizer
    ) -> dict[str, Any] | None:
        """Read the data set; returns the fingerprint of its frames, None when all is text."""
        lengths = {} if projector is None else {"output_length": projector.output_length}
        self.dataset = config.instantiate(
            self.cfg.dataset, tokenizer=tokenizer, max_seq_len=self.cfg.max_seq_len, **lengths
        )
        counts = Counter((sample.id, sample.task) for sample in self.dataset.samples)
        (id_, task), count = counts.most_common(1)[0]
        if count > 1:  # two predictions of one name could not be scored
            raise InputError(
                f"dataset: {count} samples of task {task} have the id {id_!r}; give each its own, "
                "or name each manifest in a run of its own"
            )
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
        return answer_audio(
            self.model,
            self.encoder,
            self.waveform,
            cfg.instruction,
            chat=self.chat,
            templates=PromptTemplates.from_yaml(cfg.templates),
            frame_average=cfg.frame_average,
            max_new_tokens=cfg.max_new_tokens,
            cache_dtype=self.dtype,
        )

    def answer_dataset(self) -> None:
        """Predictions of all samples, written in manifest order."""
        cfg, process = self.cfg, self.process
        total = len(self.dataset)
        count = total if cfg.limit is None else min(cfg.limit, total)
        chosen = torch.linspace(0, total - 1, count).long().tolist()
        partial = PartialPredictions(cfg.output, self._fingerprint())
        process.barrier()  # all have read what is there before the first writes
        done = len(partial.rows)
        if done:
            utils.log_rank_zero(_log, f"{partial.path}: goes on after {done} predictions")
        bar = tqdm(
            total=count,
            initial=done,
            desc="generate",
            unit="sample",
            disable=not process.is_main,
        )
        with bar, partial if process.is_main else contextlib.nullcontext():
            for batch in predict(
                self.model,
                self.dataset,
                [i for i in chosen if i not in partial.rows],
                max_new_tokens=cfg.max_new_tokens,
                batch_size=cfg.batch_size,
                cache_dtype=self.dtype,
            ):
                if process.is_main:
                    partial.add(batch)
                bar.update(len(batch))
        if process.is_main:
            partial.finish(chosen)
            _log.info("%d predictions written to %s", count, cfg.output)

    def _fingerprint(self) -> dict[str, Any]:
        """What decides the predictions: settings, data, LLM, trained files."""
        settings = OmegaConf.to_container(self.cfg, resolve=True)
        settings.pop("output", None)
        return self.fingerprint | {
            "settings": settings,
            "data": data_fingerprint(self.dataset.samples),
        }


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

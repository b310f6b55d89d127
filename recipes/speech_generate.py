"""Answers of a SpeechLLM: for the rows of a manifest, or for one audio file.

With `dataset` set, predictions are written as JSON lines in manifest order. With `audio=file.wav
instruction="Transcribe the English content."` the answer to that one file is printed: the audio
goes through the encoder named in the config, so no feature store is needed.
"""

import sys
from typing import Any

import torch
from omegaconf import DictConfig
from torchtune.utils import get_logger
from tqdm import tqdm

from torchtune_speech import config, training
from torchtune_speech.data import Llama3ChatFormat, PromptTemplates
from torchtune_speech.encoders import load_audio
from torchtune_speech.errors import InputError
from torchtune_speech.files import write_jsonl
from torchtune_speech.generation import answer_audio, predict

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
        if (cfg.audio is None) == (cfg.dataset is None):
            raise InputError("dataset, audio: give one of the two, and set the other to null")
        projector = config.instantiate(cfg.projector)
        tokenizer = config.instantiate(cfg.tokenizer)
        self.chat = Llama3ChatFormat(tokenizer)
        if cfg.dataset is not None:
            lengths = {} if projector is None else {"output_length": projector.output_length}
            self.dataset = config.instantiate(
                cfg.dataset, tokenizer=tokenizer, max_seq_len=cfg.max_seq_len, **lengths
            )
        projector_from = cfg.projector_checkpoint or cfg.checkpoint
        adapter_from = cfg.adapter_checkpoint or cfg.checkpoint
        self._check(projector_from if projector is not None else None, adapter_from)
        self.model = training.build_speech_llm(
            cfg.model,
            llm_dir=cfg.llm_dir,
            projector=projector,
            loaded=training.load_trained(
                projector=projector_from if projector is not None else None,
                adapter=adapter_from,
                llm_dir=cfg.llm_dir,
            ),
            process=self.process,
            dtype=self.dtype,
        )

    def _check(self, projector_from: str | None, adapter_from: str | None) -> None:
        found = {"llm": training.llm_fingerprint(self.cfg.llm_dir), "store": None}
        if self.cfg.dataset is not None and self.dataset.store is not None:
            found["store"] = dict(self.dataset.store.fingerprint)
        if projector_from:
            training.check_checkpoint_fits(projector_from, found, store=True)
        if adapter_from:
            training.check_checkpoint_fits(adapter_from, found, store=False)

    def generate(self) -> None:
        """Answer one file, or the whole data set."""
        with training.autocast(self.process.device, self.dtype):
            if self.cfg.audio is not None:
                print(self.answer_audio())
            else:
                self.answer_dataset()

    def answer_audio(self) -> str:
        """The answer to ``audio`` and ``instruction``."""
        cfg = self.cfg
        if not cfg.instruction:
            raise InputError(
                'instruction: missing; say what to do, e.g. instruction="Transcribe the English '
                'content."'
            )
        encoder = config.instantiate(cfg.encoder)
        waveform = load_audio(cfg.audio, encoder.sampling_rate)
        return answer_audio(
            self.model,
            encoder,
            waveform,
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
        rows: dict[int, dict[str, Any]] = {}
        bar = tqdm(total=count, desc="generate", unit="sample", disable=not process.is_main)
        with bar:
            for batch in predict(
                self.model,
                self.dataset,
                chosen,
                max_new_tokens=cfg.max_new_tokens,
                batch_size=cfg.batch_size,
                cache_dtype=self.dtype,
            ):
                rows.update(batch)
                bar.update(len(batch))
        if process.is_main:
            write_jsonl(cfg.output, [rows[i] for i in chosen])
            _log.info("%d predictions written to %s", count, cfg.output)


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

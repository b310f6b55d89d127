"""SpeechMapper, stage 1: train the projector on ASR data without the LLM.

Each speech vector is taught to be the LLM's embedding of a token of the transcript, and the pad
token's embedding behind the last. Of the LLM only tokenizer and embedding table are read, so that
one small GPU serves; the checkpoint starts recipe `projector` or `multimodal_fuse` through
`projector_checkpoint`. Runs in one process (`tune run speechmapper`) or in many
(`tune run --nproc_per_node 4 speechmapper`), with the same results (to rounding, and without
dropout). Source: https://arxiv.org/abs/2601.20417 and https://arxiv.org/abs/2607.01960
"""

import sys
import time
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch.amp import GradScaler

from torchtune_speech import config, training
from torchtune_speech.data import TranscriptBatches

KEYS = {
    "output_dir": "folder of the run: metrics.jsonl, evaluations.jsonl and checkpoints step_N",
    "llm_dir": "Hugging Face folder of the LLM; only the file with the embedding table is opened",
    "vocab_size": "rows of the embedding table; null takes what llm_dir has",
    "projector": "component: builder of the projector",
    "projector_checkpoint": "run or checkpoint whose projector to start from; null for a fresh one",
    "tokenizer": "component: tokenizer of the LLM",
    "pad_token": "what fills up a transcript: id or name of a token that no text holds",
    "normalizer": "what of a transcript is learnt: basic, whisper, mms, or none for all of it",
    "dataset": "component: training data, transcript_dataset",
    "eval_dataset": "component: dev data transcribed while training; null for none",
    "eval_every_n_steps": "steps between evaluations; null evaluates at the end only",
    "eval_samples": "dev samples to transcribe",
    "eval_batch_size": "dev samples transcribed together",
    "mixture": "weights of tasks and domains; null for a shuffled pass over all samples",
    "spec_augment": "masks over time and bins, arguments of spec_augment; null for none",
    "loss": "weights: squared_error, pad_squared_error, absolute, cosine, contrast, ctc",
    "contrast_temperature": "divides the cosines of the contrast",
    "pad_weight": "what a pad counts in absolute, cosine and contrast; a word's token counts 1",
    "max_frames": "frames of a packed row, and of the longest utterance",
    "rows_per_step": "rows of one optimizer step, over all processes",
    "gradient_accumulation_steps": "batches that a process splits its rows of a step into",
    "max_steps": "optimizer steps; null to give epochs instead",
    "epochs": "passes over the samples; null to give max_steps instead",
    "optimizer": "component: optimizer; its learning rate is set by learning_rate",
    "learning_rate": "projector: lr, schedule (cosine or constant), warmup_steps",
    "clip_grad_norm": "largest norm of all gradients together; null for no clipping",
    "on_nonfinite": "fail, or skip a step whose loss or gradient is not finite",
    "save_every_n_steps": "steps between checkpoints; null saves at the end only",
    "keep_last": "checkpoints to keep; null keeps all",
    "resume": "go on from the newest checkpoint in output_dir",
    "device": "cpu or cuda",
    "dtype": "fp32, bf16, or fp16 with loss scaling: precision of table and matrix products",
    "seed": "of initial values, shuffling, dropout and augmentation",
    "num_workers": "processes that prepare batches; 0 prepares them in the training process",
    "metric_logger": "component: a torchtune metric logger besides metrics.jsonl; null for none",
    "dry_run": "print parameters, memory and the first steps of the plan; load nothing",
}
TRAINED = ("projector",)


class SpeechMapperRecipe:
    """Trains the projector without the LLM; see the module's docstring.

    Args:
        cfg: see ``KEYS``.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg = cfg
        self.process = training.start_process(cfg.device)
        self.dtype = training.compute_dtype(cfg.dtype, self.process.device, scaled_loss=True)
        # In float16 small gradients would vanish; a scale that is too large halves itself.
        self.scaler = GradScaler(self.process.device.type, enabled=cfg.dtype == "fp16")
        self.scores: dict[str, Any] = {}
        self.evaluation_due = False

    def setup(self) -> None:
        """Read the data, plan the run, build the model; go on from a checkpoint if asked to."""
        cfg = self.cfg
        checkpoint = training.resume_point(cfg.output_dir, cfg.resume)
        training.check_settings(cfg)
        self.schedules = training.check_learning_rates(cfg.learning_rate, TRAINED)
        self.loss = training.check_embedding_loss(
            cfg.loss, temperature=cfg.contrast_temperature, pad_weight=cfg.pad_weight
        )
        training.table_fingerprint(cfg.llm_dir)  # is it there? before the data is read
        torch.manual_seed(cfg.seed)
        projector = config.instantiate(cfg.projector)
        self._read_data(projector)
        self.plan = training.build_plan(
            self.dataset,
            max_seq_len=cfg.max_frames,
            rows_per_step=cfg.rows_per_step,
            mixture=cfg.mixture,
            seed=cfg.seed,
        )
        self.max_steps = training.resolve_max_steps(
            self.plan, max_steps=cfg.max_steps, epochs=cfg.epochs
        )
        self.fingerprints = training.fingerprints(
            self.dataset, self.plan, cfg.llm_dir, table_only=True
        )
        if checkpoint is not None:
            training.check_resume(checkpoint, cfg, self.fingerprints, self.max_steps)
        projector_from = checkpoint or cfg.projector_checkpoint
        training.check_checkpoint_fits(
            projector_from, self.fingerprints, store=True, projector=cfg.projector
        )
        self.model = training.build_projector_with_table(
            llm_dir=cfg.llm_dir,
            projector=projector,
            projector_checkpoint=projector_from,
            process=self.process,
            dtype=self.dtype,
            contrast=self.loss.contrast > 0,
        )
        self.groups = training.trainable_groups(self.model, *TRAINED)
        training.check_space(cfg, self.groups, self.max_steps)
        self.optimizer = training.build_optimizer(cfg.optimizer, self.groups)
        if checkpoint is not None:
            self.plan.load_state_dict(training.load_state(checkpoint, self.optimizer, self.groups))
            training.load_scaler(checkpoint, self.scaler)
            stage = training.read_stage(checkpoint)
            self.scores = stage["metrics"]
            self.evaluation_due = stage.get("evaluation_due", False)

    def _read_data(self, projector: torch.nn.Module) -> None:
        cfg = self.cfg
        data = {
            "tokenizer": config.instantiate(cfg.tokenizer),
            "pad_token": cfg.pad_token,
            "output_length": projector.output_length,
            "normalize": training.transcript_normalizer(cfg.normalizer),
            "max_frames": cfg.max_frames,
        }
        self.dataset = config.instantiate(cfg.dataset, **data)
        self.eval_dataset = (
            config.instantiate(cfg.eval_dataset, **data) if cfg.eval_dataset else None
        )
        training.check_mapper(
            projector,
            self.dataset,
            self.eval_dataset,
            ctc_weight=self.loss.ctc,
            llm_dir=cfg.llm_dir,
            vocab_size=cfg.vocab_size,
            pad_token=cfg.pad_token,
        )

    def train(self) -> bool:
        """Take the steps of the plan; evaluate and save on the way.

        Returns:
            Whether SIGTERM ended the run early.
        """
        cfg, process = self.cfg, self.process
        batches = TranscriptBatches(
            self.dataset,
            rank=process.rank,
            world_size=process.world_size,
            accumulation=cfg.gradient_accumulation_steps,
            augment=cfg.spec_augment,
            seed=cfg.seed,
        )
        first = self.plan.number
        loader = training.step_loader(
            self.plan,
            batches,
            steps=self.max_steps - first,
            num_workers=cfg.num_workers,
            device=process.device,
        )
        log = training.TrainingLog(
            cfg.output_dir,
            max_steps=self.max_steps,
            first_step=first,
            enabled=process.is_main,
            name="speechmapper",
            logger=config.instantiate(cfg.metric_logger) if process.is_main else None,
        )
        self.model.train()
        with log, training.StopSignal() as stop:
            if self.evaluation_due:  # the run was stopped before it
                self.evaluate(first, log)
            began = time.perf_counter()
            for step, step_batches in loader:
                training.seed_step(cfg.seed, step.number, process.rank)
                rates = training.set_learning_rates(
                    self.optimizer, self.schedules, step.number, self.max_steps
                )
                sums = training.embedding_forward_backward(
                    self.model,
                    step_batches,
                    process,
                    self.loss,
                    dtype=self.dtype,
                    scaler=self.scaler,
                )
                losses, grad_norm = training.update(
                    self.optimizer,
                    self.groups,
                    sums,
                    step,
                    self.dataset,
                    clip_grad_norm=cfg.clip_grad_norm,
                    on_nonfinite=cfg.on_nonfinite,
                    scaler=self.scaler,
                )
                done, now = step.number + 1, time.perf_counter()
                log.step(
                    done,
                    training.embedding_step_metrics(
                        losses,
                        step,
                        self.dataset,
                        grad_norm=grad_norm,
                        seconds=now - began,
                        rates=rates,
                        scaler=self.scaler,
                    ),
                )
                last = done == self.max_steps
                stopped = process.any(stop.requested)  # whoever sent it kills after some seconds
                evaluation_due = training.is_due(done, cfg.eval_every_n_steps, last)
                # Before the evaluation, which takes long and can fail.
                if stopped or training.is_due(done, cfg.save_every_n_steps, last):
                    self.save(step.state, evaluation_due)
                if stopped:
                    log.say(f"stopped by a signal after step {done}; set resume=true to go on")
                    return True
                if evaluation_due:
                    self.evaluate(done, log)
                began = time.perf_counter()
        return False

    def evaluate(self, done: int, log: training.TrainingLog) -> None:
        """Transcribe some of the dev set by nearest tokens and tell its scores.

        Args:
            done: steps done.
            log: where to, besides the checkpoint of this step if there is one.
        """
        if self.eval_dataset is None:
            return
        self.scores, examples = training.evaluate_embeddings(
            self.model,
            self.eval_dataset,
            self.process,
            num_samples=self.cfg.eval_samples,
            batch_size=self.cfg.eval_batch_size,
            dtype=self.dtype,
        )
        log.evaluation(done, self.scores, examples)
        training.save_evaluation(self.cfg.output_dir, done, self.scores, self.process)

    def save(self, plan_state: dict[str, Any], evaluation_due: bool) -> None:
        """Write a checkpoint.

        Args:
            plan_state: where the plan stands after the last step.
            evaluation_due: whether this step is still to be evaluated.
        """
        training.save_checkpoint(
            self.cfg.output_dir,
            plan_state["number"],
            model=self.model,
            groups=self.groups,
            optimizer=self.optimizer,
            plan_state=plan_state,
            stage=training.stage_info(
                "speechmapper",
                config=OmegaConf.to_container(self.cfg, resolve=True),
                fingerprints=self.fingerprints,
                metrics=self.scores,
                evaluation_due=evaluation_due and self.eval_dataset is not None,
            ),
            llm_dir=self.cfg.llm_dir,
            process=self.process,
            keep_last=self.cfg.keep_last,
            scaler=self.scaler,
        )


@config.parse
def recipe_main(cfg: DictConfig) -> None:
    """Entry point of `tune run speechmapper`."""
    config.check_keys(cfg, KEYS)
    if cfg.dry_run:
        training.embeddings_dry_run(cfg)
        return
    recipe = SpeechMapperRecipe(cfg)
    with training.only_run(cfg.output_dir, recipe.process.is_main):
        recipe.setup()
        stopped = recipe.train()
    training.end_process(stopped)


if __name__ == "__main__":
    sys.exit(recipe_main())

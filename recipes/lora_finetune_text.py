"""Stage B: train LoRA on text alone (translation and question answering), in parallel with stage A.

Speech samples take part as their text twins: the transcript stands in the prompt where stage C will
put the speech. Runs in one process (`tune run lora_finetune_text`) or in many
(`tune run --nproc_per_node 8 lora_finetune_text`), with the same results (to rounding, and without
dropout).
"""

import sys
import time
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from torchtune_speech import config, training
from torchtune_speech.data import StepBatches

KEYS = {
    "output_dir": "folder of the run: metrics.jsonl, evaluations.jsonl and checkpoints step_N",
    "llm_dir": "Hugging Face folder of the frozen LLM",
    "model": "component: builder of the SpeechLLM",
    "adapter_checkpoint": "run, checkpoint or PEFT folder to start from; null for a fresh LoRA",
    "tokenizer": "component: tokenizer of the LLM",
    "dataset": "component: training data",
    "eval_dataset": "component: dev data decoded while training; null for none",
    "eval_every_n_steps": "steps between evaluations; null evaluates at the end only",
    "eval_samples": "dev samples to decode",
    "eval_batch_size": "dev samples decoded together",
    "max_new_tokens": "longest answer when evaluating, in tokens",
    "mixture": "weights of tasks, domains and languages; null for a shuffled pass over all samples",
    "max_seq_len": "length of a packed row, and longest sample, in tokens",
    "rows_per_step": "rows of one optimizer step, over all processes",
    "gradient_accumulation_steps": "batches that a process splits its rows of a step into",
    "max_steps": "optimizer steps; null to give epochs instead",
    "epochs": "passes over the samples; null to give max_steps instead",
    "optimizer": "component: optimizer; learning rates are set by learning_rate",
    "learning_rate": "lora: lr, schedule (cosine or constant), warmup_steps",
    "clip_grad_norm": "largest norm of all gradients together; null for no clipping",
    "on_nonfinite": "fail, or skip a step whose loss or gradient is not finite",
    "save_every_n_steps": "steps between checkpoints; null saves at the end only",
    "keep_last": "checkpoints to keep; null keeps all",
    "resume": "go on from the newest checkpoint in output_dir",
    "device": "cpu or cuda",
    "dtype": "fp32 or bf16: precision of the frozen LLM and of the matrix products",
    "quantize": "nf4 (4 bits) or float8 for the matrices of the frozen LLM; null for neither",
    "seed": "of initial values, shuffling, dropout and augmentation",
    "compile": "compile the decoder's layers; rows then have a fixed length",
    "activation_checkpointing": "recompute layers in the backward pass: true, false or auto",
    "shard_llm": "split the frozen LLM over the processes; false: each holds it whole, if it fits",
    "num_workers": "processes that prepare batches; 0 prepares them in the training process",
    "metric_logger": "component: a torchtune metric logger besides metrics.jsonl; null for none",
    "dry_run": "print parameters, memory and the first steps of the plan; load nothing",
}
TRAINED = ("lora",)


class LoRAFinetuneTextRecipe:
    """Trains LoRA on text; see the module's docstring.

    Args:
        cfg: see ``KEYS``.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg = cfg
        self.process = training.start_process(cfg.device)
        self.dtype = training.compute_dtype(cfg.dtype, self.process.device)
        self.scores: dict[str, Any] = {}
        self.evaluation_due = False

    def setup(self) -> None:
        """Read the data, plan the run, build the model; go on from a checkpoint if asked to."""
        cfg = self.cfg
        checkpoint = training.resume_point(cfg.output_dir, cfg.resume)
        training.check_settings(cfg)
        self.schedules = training.check_learning_rates(cfg.learning_rate, TRAINED)
        training.llm_fingerprint(cfg.llm_dir)  # is it there? before the data is read
        torch.manual_seed(cfg.seed)
        data = {"tokenizer": config.instantiate(cfg.tokenizer), "max_seq_len": cfg.max_seq_len}
        self.dataset = config.instantiate(cfg.dataset, **data)
        self.eval_dataset = (
            config.instantiate(cfg.eval_dataset, **data) if cfg.eval_dataset else None
        )
        training.check_text_only(self.dataset)
        if self.eval_dataset is not None:
            training.check_text_only(self.eval_dataset, key="eval_dataset")
        self.plan = training.build_plan(
            self.dataset,
            max_seq_len=cfg.max_seq_len,
            rows_per_step=cfg.rows_per_step,
            mixture=cfg.mixture,
            seed=cfg.seed,
        )
        self.max_steps = training.resolve_max_steps(
            self.plan, max_steps=cfg.max_steps, epochs=cfg.epochs
        )
        self.fingerprints = training.fingerprints(self.dataset, self.plan, cfg.llm_dir)
        if checkpoint is not None:
            training.check_resume(checkpoint, cfg, self.fingerprints, self.max_steps)
        adapter_from = checkpoint or cfg.adapter_checkpoint
        training.check_checkpoint_fits(adapter_from, self.fingerprints, store=False)
        self.model = training.build_speech_llm(
            cfg.model,
            llm_dir=cfg.llm_dir,
            adapter_checkpoint=adapter_from,
            process=self.process,
            dtype=self.dtype,
            quantize=cfg.quantize,
            seed=cfg.seed,
            activation_checkpointing=training.resolve_activation_checkpointing(
                cfg.activation_checkpointing, cfg, TRAINED, self.process
            ),
            compile=cfg.compile,
            shard_llm=cfg.shard_llm,
        )
        self.groups = training.trainable_groups(self.model, *TRAINED)
        training.check_space(cfg, self.groups, self.max_steps)
        self.optimizer = training.build_optimizer(cfg.optimizer, self.groups)
        if checkpoint is not None:
            self.plan.load_state_dict(training.load_state(checkpoint, self.optimizer, self.groups))
            stage = training.read_stage(checkpoint)
            self.scores = stage["metrics"]
            self.evaluation_due = stage.get("evaluation_due", False)

    def train(self) -> bool:
        """Take the steps of the plan; evaluate and save on the way.

        Returns:
            Whether SIGTERM ended the run early.
        """
        cfg, process = self.cfg, self.process
        # One shape for all batches, or compiled code and flex attention would be compiled again.
        static = cfg.compile or process.device.type == "cuda"
        batches = StepBatches(
            self.dataset,
            rank=process.rank,
            world_size=process.world_size,
            accumulation=cfg.gradient_accumulation_steps,
            seq_len=cfg.max_seq_len if static else None,
            rows_per_step=cfg.rows_per_step if static else None,
            one_row=not static,
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
            name="lora",
            logger=config.instantiate(cfg.metric_logger) if process.is_main else None,
        )
        with log, training.StopSignal() as stop:
            if self.evaluation_due:  # the run was stopped before it
                self.evaluate(first, log)
            began = time.perf_counter()
            for step, step_batches in loader:
                training.seed_step(cfg.seed, step.number, process.rank)
                rates = training.set_learning_rates(
                    self.optimizer, self.schedules, step.number, self.max_steps
                )
                sums = training.forward_backward(
                    self.model, step_batches, process, dtype=self.dtype
                )
                losses, grad_norm = training.update(
                    self.optimizer,
                    self.groups,
                    sums,
                    step,
                    self.dataset,
                    clip_grad_norm=cfg.clip_grad_norm,
                    on_nonfinite=cfg.on_nonfinite,
                )
                done, now = step.number + 1, time.perf_counter()
                log.step(
                    done,
                    training.step_metrics(
                        losses,
                        step,
                        self.dataset,
                        grad_norm=grad_norm,
                        seconds=now - began,
                        rates=rates,
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
        """Decode some of the dev set and tell its scores.

        Args:
            done: steps done.
            log: where to, besides the checkpoint of this step if there is one.
        """
        if self.eval_dataset is None:
            return
        self.scores, examples = training.evaluate(
            self.model,
            self.eval_dataset,
            self.process,
            num_samples=self.cfg.eval_samples,
            max_new_tokens=self.cfg.max_new_tokens,
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
                "lora_finetune_text",
                config=OmegaConf.to_container(self.cfg, resolve=True),
                fingerprints=self.fingerprints,
                metrics=self.scores,
                evaluation_due=evaluation_due and self.eval_dataset is not None,
            ),
            llm_dir=self.cfg.llm_dir,
            process=self.process,
            keep_last=self.cfg.keep_last,
        )


@config.parse
def recipe_main(cfg: DictConfig) -> None:
    """Entry point of `tune run lora_finetune_text`."""
    config.check_keys(cfg, KEYS)
    if cfg.dry_run:
        training.dry_run(cfg, TRAINED)
        return
    recipe = LoRAFinetuneTextRecipe(cfg)
    with training.only_run(cfg.output_dir, recipe.process.is_main):
        recipe.setup()
        stopped = recipe.train()
    training.end_process(stopped)


if __name__ == "__main__":
    sys.exit(recipe_main())

"""What the training recipes share: building, losses, learning rates, checkpoints, progress."""

from torchtune_speech.training._build import build_speech_llm, initial_lora, meta_speech_llm
from torchtune_speech.training._check import (
    check_checkpoint_fits,
    check_embedding_target,
    check_frame_width,
    check_numbers,
    check_projector,
    check_resume,
)
from torchtune_speech.training._checkpoint import (
    find_checkpoint,
    list_checkpoints,
    load_state,
    load_trained,
    lora_settings,
    read_stage,
    save_checkpoint,
    stage_info,
)
from torchtune_speech.training._device import find_device
from torchtune_speech.training._dry_run import (
    dry_run,
    dry_run_report,
    memory_estimate,
    parameter_counts,
)
from torchtune_speech.training._evaluate import evaluate
from torchtune_speech.training._loader import build_plan, resolve_max_steps, step_loader
from torchtune_speech.training._log import TrainingLog, flat_scores
from torchtune_speech.training._objective import (
    StepLoss,
    autocast,
    batch_loss,
    ctc_forward_backward,
    forward_backward,
    to_device,
)
from torchtune_speech.training._optim import (
    build_optimizer,
    check_learning_rates,
    learning_rate,
    set_learning_rates,
    trainable_groups,
)
from torchtune_speech.training._process import (
    Process,
    StopSignal,
    compute_dtype,
    end_process,
    seed_step,
    start_process,
)
from torchtune_speech.training._run import (
    TrainingError,
    check_finite,
    clip_gradients,
    fingerprints,
    is_due,
    llm_fingerprint,
    resume_point,
    step_metrics,
    update,
    warn_if_incoherent,
)

__all__ = [
    "Process",
    "StepLoss",
    "StopSignal",
    "TrainingError",
    "TrainingLog",
    "autocast",
    "batch_loss",
    "build_optimizer",
    "build_plan",
    "build_speech_llm",
    "check_checkpoint_fits",
    "check_numbers",
    "check_embedding_target",
    "check_finite",
    "check_frame_width",
    "check_learning_rates",
    "check_projector",
    "check_resume",
    "clip_gradients",
    "compute_dtype",
    "ctc_forward_backward",
    "dry_run",
    "dry_run_report",
    "end_process",
    "evaluate",
    "find_checkpoint",
    "find_device",
    "fingerprints",
    "flat_scores",
    "forward_backward",
    "initial_lora",
    "is_due",
    "learning_rate",
    "list_checkpoints",
    "llm_fingerprint",
    "load_state",
    "load_trained",
    "lora_settings",
    "memory_estimate",
    "meta_speech_llm",
    "parameter_counts",
    "read_stage",
    "resolve_max_steps",
    "resume_point",
    "save_checkpoint",
    "seed_step",
    "set_learning_rates",
    "stage_info",
    "start_process",
    "step_loader",
    "step_metrics",
    "to_device",
    "trainable_groups",
    "update",
    "warn_if_incoherent",
]

"""Studies: one question, several variants, several seeds, one command."""

from torchtune_speech.study._plot import Panel, draw_panels
from torchtune_speech.study._results import collect, format_table, write_results
from torchtune_speech.study._run import dry_run, run_study, unique_steps
from torchtune_speech.study._step import StudyStep, is_done, run_step
from torchtune_speech.study._student import mean_interval, student_t_quantile
from torchtune_speech.study._study import Study, StudyRun, expand, load_study

__all__ = [
    "Panel",
    "Study",
    "StudyRun",
    "StudyStep",
    "collect",
    "draw_panels",
    "dry_run",
    "expand",
    "format_table",
    "is_done",
    "load_study",
    "mean_interval",
    "run_step",
    "run_study",
    "student_t_quantile",
    "unique_steps",
    "write_results",
]

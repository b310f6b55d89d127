"""Error rates of this package beside those of the official scorer's rule and libraries.

`make official-check` runs it. It ends with code 1 if a difference exceeds 1e-6.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

if __name__ == "__main__":  # as pytest does for the tests
    sys.path.insert(0, str(Path(__file__).parents[2]))

from evaluation.official.files import Case, make_cases, real_cases

from torchtune_speech.data import read_mcif_output
from torchtune_speech.evaluation import mcif_scores, read_mcif_reference, score

ALLOWED = 1e-6
SCRIPT = Path(__file__).with_name("official_wer.py")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table; ``score`` is None where `score` counts otherwise."""

    name: str
    items: int
    official: float
    mcif: float
    score: float | None

    @property
    def difference(self) -> float:
        """The larger one of our two."""
        ours = [self.mcif] if self.score is None else [self.mcif, self.score]
        return max(abs(rate - self.official) for rate in ours)


def official(case: Case, python: str | Path) -> dict:
    """What the script prints: ``wer``, ``items``, ``versions``."""
    words = [python, "-I", SCRIPT, case.output, case.reference, "short", case.lang]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{case.name}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout)


def compare(case: Case, python: str | Path) -> Line:
    """Score a file both ways."""
    theirs = official(case, python)
    texts = read_mcif_output(case.output).texts
    references = read_mcif_reference(case.reference)
    mcif = mcif_scores(texts, references, case.lang)["scores"]["ASR-WER"]
    rate = None
    if case.segments == 1 and case.lang != "zh":  # `score` counts Chinese by characters
        rows = [
            {
                "task": "asr",
                "source_lang": case.lang,
                "target": item.reference,
                "prediction": texts[item.ids[0]],
            }
            for item in references
        ]
        rate = score(rows, by=())["asr"]["wer"]
    return Line(case.name, theirs["items"], theirs["wer"], mcif, rate)


def format_lines(lines: Sequence[Line]) -> str:
    """The table, in Markdown."""
    rows = ["| file | items | official | `mcif_scores` | `score` | difference |"]
    rows.append("|---|--:|--:|--:|--:|--:|")
    for line in lines:
        ours = "-" if line.score is None else f"{line.score:.8f}"
        rows.append(
            f"| {line.name} | {line.items} | {line.official:.8f} | {line.mcif:.8f} | {ours} "
            f"| {line.difference:.0e} |"
        )
    return "\n".join(rows)


def main() -> None:
    """Make the files, compare, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--python", default=".venv-official/bin/python", help="(%(default)s)")
    parser.add_argument("--outputs", type=Path, default=Path("none"), help="real files of answers")
    parser.add_argument("--items", type=int, default=300, help="of each made file (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the made files (%(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cases = make_cases(Path(folder), options.items, options.seed)
        cases += real_cases(Path(folder), options.outputs)
        lines = [compare(case, options.python) for case in cases]
        theirs = official(cases[0], options.python)["versions"]
    ours = {library: version(library) for library in ("jiwer", "whisper_normalizer")}
    for who, versions in (("official", theirs), ("ours", ours)):
        print(f"{who}:", ", ".join(f"{library} {number}" for library, number in versions.items()))
    print(format_lines(lines))
    worst = max(line.difference for line in lines)
    print(f"largest difference {worst:.0e}, allowed {ALLOWED:.0e}")
    sys.exit(worst > ALLOWED)


if __name__ == "__main__":
    main()

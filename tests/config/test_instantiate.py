import dataclasses

import pytest
import torch
from omegaconf import OmegaConf

from torchtune_speech.config import instantiate, locate, signature_problem
from torchtune_speech.errors import InputError


@dataclasses.dataclass
class Settings:
    depth: int


class Part:
    def __init__(self, size, *, rate=0.5, inner=None):
        self.size, self.rate, self.inner = size, rate, inner


def refuse(path):
    raise InputError(f"{path}: is no good; take another")


# The name under which this module can be imported: pytest gives it one of its own.
HERE = __name__


def node(text):
    return OmegaConf.create(text.replace("HERE", HERE)).part


def test_nested_components_are_built_innermost_first():
    cfg = node(
        """
        base: 3
        part:
          _component_: HERE.Part
          size: ${base}
          inner:
            plain: [1, {_component_: HERE.Part, size: a}]
            deep:
              _component_: HERE.Part
              size: {_component_: HERE.Part, size: "${base}"}
        """
    )
    part = instantiate(cfg)
    assert part.size == 3 and part.inner["plain"][0] == 1
    assert part.inner["plain"][1].size == "a"
    assert part.inner["deep"].size.size == 3


def test_objects_of_the_caller_arrive_untouched_and_win():
    cfg = node("part: {_component_: HERE.Part, rate: 1, inner: {_component_: no.such}}")
    settings, size = Settings(3), {"_component_": "left alone", 1: (2,)}
    part = instantiate(cfg, size, inner=settings)
    assert part.size is size and part.inner is settings and part.rate == 1


def test_torch_classes_and_none():
    weight = torch.nn.Parameter(torch.ones(2))
    cfg = node("part: {_component_: torch.optim.AdamW, lr: 0.5, fused: false}")
    assert instantiate(cfg, [weight]).param_groups[0]["lr"] == 0.5
    assert instantiate(None) is None
    assert instantiate({"_component_": "torch.nn.Linear", "in_features": 1, "out_features": 2})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{size: 1}", "part: has no _component_"),
        ("{_component_: HERE.Part, siz: 1}", "part: HERE.Part has no argument 'siz'; did you mean"),
        ("{_component_: HERE.Part, zzz: 1}", "it takes size, rate, inner"),
        ("{_component_: HERE.Part}", "part: HERE.Part needs 'size'; add it"),
        (
            "{_component_: HERE.Part, size: {_component_: HERE.Part, rat: 1}}",
            "part.size: HERE.Part has no argument 'rat'; did you mean 'rate'?",
        ),
        (
            "{_component_: HERE.Part, size: [{_component_: HERE.Part}]}",
            "part.size[0]: HERE.Part needs 'size'",
        ),
        ("{_component_: HERE.Prat}", "part._component_: HERE.Prat: HERE has no 'Prat'; did you"),
        ("{_component_: no_such_thing.x}", "there is no module 'no_such_thing'"),
        ("{_component_: torch.nn.Linaer}", "torch.nn has no 'Linaer'; did you mean 'Linear'"),
        ("{_component_: torch.nn.Linear.x.y}", "torch.nn.Linear has no 'x'"),
        ("{_component_: .x}", "no dotted path"),
        ("{_component_: 3}", "no dotted path"),
        ("{_component_: torch.nn}", "torch.nn is no class or function"),
        ("{_component_: HERE.refuse, path: a.txt}", "a.txt: is no good; take another"),
    ],
)
def test_mistakes_name_key_component_and_cure(text, message):
    with pytest.raises(InputError) as error:
        instantiate(node(f"part: {text}"))
    assert message.replace("HERE", HERE) in str(error.value)
    assert "\n" not in str(error.value)


def test_positional_argument_given_twice():
    with pytest.raises(InputError, match="part: .*Part cannot be called so: multiple values"):
        instantiate(node("part: {_component_: HERE.Part, size: 1}"), 2)


def test_missing_dependency_inside_a_module_is_named(tmp_path, monkeypatch):
    (tmp_path / "needs_more.py").write_text("import not_installed_here\nclass A: pass\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="needs_more.A cannot be imported: No module named 'not_"):
        locate("needs_more.A")
    # A module in the current folder can be named.
    (tmp_path / "in_this_folder.py").write_text("class A: pass\n")
    assert locate("in_this_folder.A").__name__ == "A"


def test_signature_problem():
    assert signature_problem(Part, (), {}, may_miss=True) is None
    assert "'siz'" in signature_problem(Part, (), {"siz": 1}, may_miss=True)
    assert signature_problem(lambda **kw: None, (), {"anything": 1}) is None
    assert signature_problem(dict, (), {"anything": 1}) is None

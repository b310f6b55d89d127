import collections
import dataclasses
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from torchtune_speech.data import (
    AudioCut,
    PromptTemplates,
    Sample,
    find_choice,
    load_manifest,
    text_twin,
)
from torchtune_speech.errors import InputError

CUTS = (AudioCut("a.wav"), AudioCut("b.wav", 1.0, 2.0))
SQA = Sample("1", "sqa", "Hier.", CUTS[:1], target_lang="de", question="Wo?", source_text="Here.")

# The prompts that the task fixes, to the letter.
FIXED = {
    ("asr", "en"): "Transcribe the English content.",
    ("st", "de"): "Übersetze den englischem Inhalt nach Deutsch.",
    ("st", "it"): "Traduci il contenuto inglese in italiano.",
    ("st", "zh"): "将英文内容翻译成中文。",
    ("sqa", "en"): "Answer the following question concisely given the English content: Wo?",
    ("sqa", "de"): "Beantworte die folgende Frage kurz und bündig basierend auf dem englischen "
    "Inhalt: Wo?",
    ("sqa", "it"): "Rispondi in modo conciso alla seguente domanda dato il contenuto inglese: Wo?",
    ("sqa", "zh"): "根据所给的英文内容，简要回答以下问题： Wo?",
}


def templates(tmp_path, **content):
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return path


def contents(message):
    return [(item["type"], item["content"]) for item in message.content]


def prompt(prompts, sample):
    [message] = prompts.messages(sample, with_target=False)
    return contents(message)


@pytest.mark.parametrize(("task", "language"), FIXED)
def test_fixed_prompts_to_the_letter(task, language):
    sample = dataclasses.replace(SQA, task=task, target_lang=language)
    prompts = PromptTemplates.from_yaml("mcif_fixed")
    user, assistant = prompts.messages(sample)
    instruction = FIXED[task, language]
    assert contents(user) == [("speech", "a.wav"), ("text", "\n" + instruction)]
    assert contents(assistant) == [("text", "Hier.")]
    assert (user.role, user.masked, assistant.role, assistant.masked) == (
        "user", True, "assistant", False,
    )  # fmt: skip
    assert [m.role for m in prompts.messages(sample, with_target=False)] == ["user"]
    if task != "asr":
        twin = prompt(prompts, text_twin(sample))
        assert twin == [("text", "Here.\n" + instruction)]


def test_fixed_unanswerable():
    prompts = PromptTemplates.from_yaml("mcif_fixed")
    assert [prompts.unanswerable(lang) for lang in ("en", "de", "it", "zh")] == [
        "Not answerable.", "Nicht zu beantworten.", "Non è possibile rispondere.", "无法回答。",
    ]  # fmt: skip
    with pytest.raises(InputError, match="no unanswerable.fr"):
        prompts.unanswerable("fr")


def test_mixed_pools():
    mixed, fixed = map(PromptTemplates.from_yaml, ("mcif_mixed", "mcif_fixed"))
    everything = []
    for task, languages in mixed.tasks.items():
        assert set(languages) == {"en", "de", "it", "zh"}
        for language in languages:
            pool = mixed.pool(task, language)
            assert len(set(pool)) == 10
            assert all(text == text.strip() for text in pool)
            assert all(("{question}" in text) == (task in ("sqa", "qa")) for text in pool)
            if language in fixed.tasks[task]:
                assert not set(pool) & set(fixed.pool(task, language))
            has_chinese = [bool(re.search("[\u4e00-\u9fff]", text)) for text in pool]
            assert all(has_chinese) if language == "zh" else not any(has_chinese)
            everything += [] if task in ("mt", "qa") else pool
    assert len(set(everything)) == len(everything)
    assert mixed.pool("mt", "de") == mixed.pool("st", "de")
    assert mixed.pool("qa", "zh") == mixed.pool("sqa", "zh")
    assert mixed.unanswerable("it") == fixed.unanswerable("it")


def test_literal_wrapping_of_2026():
    prompts = PromptTemplates.from_yaml("nle_2026")
    sample = dataclasses.replace(SQA, extra={"instruction": "Wo?"})
    assert prompt(prompts, sample) == [
        ("text", "<speech>"), ("speech", "a.wav"),
        ("text", "</speech>\n Question: Wo?\n\nYour answer:"),
    ]  # fmt: skip
    assert prompt(prompts, text_twin(sample)) == [
        ("text", "<speech>Here.</speech>\n Question: Wo?\n\nYour answer:")
    ]
    assert prompts.tasks == PromptTemplates.from_yaml("mcif_mixed").tasks


def test_choice_from_the_pool_hangs_on_the_id_alone():
    prompts = PromptTemplates.from_yaml("mcif_mixed")
    sample = Sample("", "asr", "x", CUTS[:1])
    texts = [prompt(prompts, dataclasses.replace(sample, id=f"utt{i}"))[-1][1] for i in range(400)]
    counts = collections.Counter(texts)
    assert len(counts) == 10 and min(counts.values()) > 15
    # Pinned: a run that resumes elsewhere must see the prompts it began with.
    assert texts[:2] == [
        "\nProvide the written form of the spoken words.",
        "\nWhat is said in the recording? Write it out word for word.",
    ]
    st_sample = dataclasses.replace(SQA, task="st", id="utt7")
    instruction = prompt(prompts, st_sample)[-1][1]
    assert prompt(prompts, text_twin(st_sample)) == [("text", "Here." + instruction)]


def test_several_audios_stand_one_after_the_other():
    sample = Sample("1", "asr", "x", CUTS)
    assert prompt(PromptTemplates.from_yaml("mcif_fixed"), sample)[:2] == [
        ("speech", "a.wav"), ("speech", "b.wav@1.000+2.000"),
    ]  # fmt: skip


def test_choices(tmp_path):
    sample = dataclasses.replace(SQA, choices=("hier", "{question}"))
    text = prompt(PromptTemplates.from_yaml("mcif_fixed"), sample)[-1][1]
    assert text.endswith("Inhalt: Wo?\nA. hier\nB. {question}")
    own = PromptTemplates(
        {"speech": "{speech}{instruction}"}, {"sqa": {"de": "{choices}\n\n{question} Wähle!"}}
    )
    assert prompt(own, sample)[-1] == ("text", "A. hier\nB. {question}\n\nWo? Wähle!")
    with pytest.raises(InputError, match=r"sample '1'.*\{choices\}.*no 'choices'"):
        own.messages(SQA)
    with pytest.raises(InputError, match="more than 26"):
        own.messages(dataclasses.replace(SQA, choices=("x",) * 27))


@pytest.mark.parametrize("target", ["im Mai", "Im Mai.", "B", "b)", "B. im Mai"])
def test_a_choice_is_answered_by_letter_and_text(target):
    sample = dataclasses.replace(SQA, choices=("hier", "im Mai"), target=target)
    prompts = PromptTemplates.from_yaml("nle_2026")
    for one in (sample, text_twin(sample)):
        assert contents(prompts.messages(one)[-1]) == [("text", "B. im Mai")]
    assert len(prompts.messages(dataclasses.replace(sample, target=""), with_target=False)) == 1
    # The task's own prompts leave it as it is written.
    plain = PromptTemplates.from_yaml("mcif_fixed").messages(sample)[-1]
    assert contents(plain) == [("text", target)]


def test_a_refusal_is_no_choice_and_a_choice_must_be_one():
    prompts = PromptTemplates.from_yaml("nle_2026")
    sample = dataclasses.replace(SQA, choices=("hier", "dort", "dort"))
    refusal = dataclasses.replace(sample, target=prompts.unanswerable("de"))
    assert contents(prompts.messages(refusal)[-1]) == [("text", "Nicht zu beantworten.")]
    for target in ("nirgends", "Dort.", "D", "A. dort", "Not answerable."):
        with pytest.raises(InputError, match="sample '1': target .* is none of its choices, or"):
            prompts.messages(dataclasses.replace(sample, target=target))


def test_how_a_choice_is_answered_is_up_to_the_templates(tmp_path):
    sample = dataclasses.replace(SQA, choices=("{letter}", "{option}"), target="A")
    own = templates(tmp_path, extends="nle_2026", choice_answer="({letter}) {option}!")
    answer = PromptTemplates.from_yaml(own).messages(sample)[-1]
    assert contents(answer) == [("text", "(A) {letter}!")]
    off = templates(tmp_path, extends="nle_2026", choice_answer=None)
    assert contents(PromptTemplates.from_yaml(off).messages(sample)[-1]) == [("text", "A")]


@pytest.mark.parametrize(
    ("answer", "index"),
    [
        ("Bob", 1), ("bob.", 1), (" BOB ", 1), ("B", 1), ("B.", 1), ("(b)", 1), ("b) Bob.", 1),
        ("B：Bob", 1), ("B Bob", 1), ("C", 2), ("C. a dog", 2), ("a dog", 2), ("b", 1),
        ("D", None), ("B. Ann", None), ("Bobby", None), ("", None), ("A dog", 2), ("a cat", None),
        ("Ｂ", 1), ("（B）", 1), ("B）Bob。", 1), ("Ｂ．Ｂｏｂ", 1), ("B、Bob", 1), ("B, Bob", 1),
        ("B - Bob", 1), ("B-Bob", 1), ("**B**", 1), ("**B.** Bob", 1), ("*b) Bob.*", 1),
        ("**Bob**", 1), ("A - maybe", None), ("A, Bob", None), ("A doctor", None), ("A*", None),
        ("*a* dog", 2), ("B and C", None),
    ],
)  # fmt: skip
def test_the_option_that_an_answer_means(answer, index):
    assert find_choice(answer, ["Ann", "Bob", "a dog"]) == index


def test_the_text_of_an_option_comes_before_its_letter():
    assert find_choice("A", ["B", "A"]) == 1
    assert find_choice("A. B", ["B", "A"]) == 0
    assert find_choice("same", ["same", "Same."]) is None
    assert find_choice("B. same", ["same", "Same."]) == 1


def test_what_stands_between_letter_and_option_may_begin_the_option():
    assert find_choice("none", [f"option {i}" for i in range(30)]) is None  # letters end at 26
    assert find_choice("B. -5", ["5", "-5"]) == 1
    assert find_choice("B -5", ["5", "-5"]) == 1
    assert find_choice("A", ["Dijkstra", "A* search"]) == 0
    assert find_choice("A* search", ["Dijkstra", "A* search"]) == 1
    assert find_choice("（B）五月", ["三月", "五月"]) == 1


@pytest.mark.parametrize(("choices", "index"), [(("nurse", "doctor"), None), (("doctor",), 0)])
def test_an_article_is_the_letter_a_before_the_text_of_option_a_alone(choices, index):
    assert find_choice("A doctor", choices) == index


def test_own_instruction_is_text_and_needs_no_task():
    prompts = PromptTemplates.from_yaml("mcif_fixed")
    text = "Do {this} with {speech} and {question}"
    sample = Sample("1", "instruct", "", CUTS[:1], extra={"instruction": text})
    assert prompt(prompts, sample) == [("speech", "a.wav"), ("text", "\n" + text)]
    with pytest.raises(InputError, match="sample '1': its instruction"):
        prompts.messages(dataclasses.replace(sample, extra={"instruction": 3}), with_target=False)


TEXT = st.text(min_size=1, max_size=12) | st.sampled_from(
    [
        "{speech}",
        "{question}",
        "{source_text}",
        "{",
        "}{",
        "{0}",
        "%s",
        "\\1",
        "<|eot_id|>",
        "{{x}}",
    ]
)


@settings(max_examples=300, deadline=None)
@given(source=TEXT, question=TEXT, choice=TEXT, own=st.none() | TEXT)
@example(source="{question}", question="{source_text}{speech}", choice="{choices}", own=None)
def test_what_samples_bring_is_only_text(source, question, choice, own):
    prompts = PromptTemplates(
        {"speech": "<{speech}|{instruction}>", "text": "<{source_text}|{instruction}>"},
        {"sqa": {"en": "Q:{question};{choices}!"}, "qa": {"en": "Q:{question};{choices}!"}},
    )
    extra = {} if own is None else {"instruction": own}
    sample = Sample("i", "sqa", "t", CUTS[:1], question=question, choices=(choice,),
                    source_text=source, extra=extra)  # fmt: skip
    instruction = f"Q:{question};A. {choice}!" if own is None else own
    if own is not None and not own.strip():
        with pytest.raises(InputError):
            prompts.messages(sample)
        return
    assert prompt(prompts, sample) == [
        ("text", "<"), ("speech", "a.wav"), ("text", f"|{instruction}>"),
    ]  # fmt: skip
    assert prompt(prompts, text_twin(sample)) == [("text", f"<{source}|{instruction}>")]


def chat(*turns, audio=(), target="T"):
    messages = tuple({"role": role, "content": content} for role, content in turns)
    return Sample("c", "chat", target, audio, messages=messages)


def test_multi_turn_with_two_audios():
    prompts = PromptTemplates.from_yaml("mcif_fixed")
    sample = chat(
        ("system", "Be brief."),
        ("user", "{speech} first{question}"),
        ("assistant", "I heard {speech}."),
        ("user", "Compare with {speech}"),
        audio=CUTS,
        target="Same.",
    )
    got = prompts.messages(sample)
    assert [m.role for m in got] == ["system", "user", "assistant", "user", "assistant"]
    assert [m.masked for m in got] == [True, True, False, True, False]
    assert contents(got[1]) == [("speech", "a.wav"), ("text", " first{question}")]
    assert contents(got[2]) == [("text", "I heard {speech}.")]
    assert contents(got[3]) == [("text", "Compare with "), ("speech", "b.wav@1.000+2.000")]
    assert contents(got[4]) == [("text", "Same.")]
    assert [m.role for m in prompts.messages(sample, with_target=False)][-1] == "user"


def test_final_assistant_turn_is_the_target_once():
    prompts = PromptTemplates.from_yaml("mcif_fixed")
    sample = chat(("user", "Hi"), ("assistant", "T"))
    assert [contents(m) for m in prompts.messages(sample)] == [[("text", "Hi")], [("text", "T")]]
    assert [m.role for m in prompts.messages(sample, with_target=False)] == ["user"]


@pytest.mark.parametrize(
    ("sample", "reason"),
    [
        (chat(("user", "{speech}")), "as many {speech} marks"),
        (chat(("user", "none"), audio=CUTS[:1]), "as many {speech} marks"),
        (chat(("user", "{speech}{speech}{speech}"), audio=CUTS), "as many {speech} marks"),
        (chat(("assistant", "T")), "role 'assistant' out of turn"),
        (chat(("user", "a"), ("user", "b")), "role 'user' out of turn"),
        (chat(("user", "a"), ("system", "b")), "role 'system' out of turn"),
        (chat(("system", "a")), "no user turn"),
    ],
)
def test_wrong_messages(sample, reason):
    with pytest.raises(InputError, match=reason):
        PromptTemplates.from_yaml("mcif_fixed").messages(sample)


def test_samples_that_do_not_fit_the_templates():
    prompts = PromptTemplates.from_yaml("mcif_fixed")
    for change, reason in [
        ({"task": "slu"}, r"mcif_fixed: sample '1': no prompt for task 'slu'.*instructions.slu"),
        ({"target_lang": "fr"}, r"in 'fr', only in en, de, it, zh; correct target_lang"),
        ({"question": None}, r"sample '1'.*\{question\}.*no 'question'"),
        ({"task": "qa", "audio": (), "source_text": None}, r"\{source_text\}.*no 'source_text'"),
        ({"target": ""}, "sample '1': no target"),
    ]:
        with pytest.raises(InputError, match=reason):
            prompts.messages(dataclasses.replace(SQA, **change))


GOOD = {
    "wrapping": {"speech": "{speech} {instruction}", "text": "{source_text} {instruction}"},
    "instructions": {"asr": {"en": ["Write."]}, "slu": {"en": "Intent?"}},
    "unanswerable": {"en": "No."},
}


def test_own_file_and_own_task(tmp_path):
    prompts = PromptTemplates.from_yaml(templates(tmp_path, **GOOD))
    assert prompt(prompts, Sample("1", "slu", "x", CUTS[:1]))[-1] == ("text", " Intent?")
    text = prompt(prompts, Sample("1", "slu", "x", source_text="go {home}"))
    assert text == [("text", "go {home} Intent?")]


def test_own_file_extends_a_packaged_set(tmp_path):
    own = templates(
        tmp_path,
        extends="mcif_fixed",
        instructions={"st": {"fr": "Traduis."}, "asr": {"en": "Write."}},
        unanswerable={"fr": "Sans réponse."},
    )
    prompts = PromptTemplates.from_yaml(own)
    assert prompts.pool("asr", "en") == ["Write."]
    assert prompts.pool("st", "fr") == ["Traduis."]
    assert prompts.pool("st", "it") == [FIXED["st", "it"]]
    assert (prompts.unanswerable("fr"), prompts.unanswerable("en")) == (
        "Sans réponse.", "Not answerable.",
    )  # fmt: skip
    (tmp_path / "second.yaml").write_text("extends: own.yaml\n")  # found beside the file itself
    assert PromptTemplates.from_yaml(tmp_path / "second.yaml").pool("st", "fr") == ["Traduis."]
    with pytest.raises(InputError, match="extends itself"):
        PromptTemplates.from_yaml(templates(tmp_path, extends="own.yaml"))


@pytest.mark.parametrize(
    ("section", "content", "reason"),
    [
        ("wrapping", {"speech": "{instruction}"}, r"wrapping.speech lacks \{speech\}"),
        ("wrapping", {"speech": "{speech}"}, r"wrapping.speech lacks \{instruction\}"),
        ("wrapping", {"speech": "{speech}{speech}{instruction}"}, r"repeats \{speech\}"),
        ("wrapping", {"text": "{source_text}{instruction}"}, "no wrapping.speech.*'asr' needs"),
        ("wrapping", {"speach": "x"}, "unknown key wrapping.speach"),
        ("wrapping", {"speech": "{speach}{instruction}"}, r"unknown field \{speach\}.*'speech'"),
        ("wrapping", {"speech": None}, "wrapping.speech is not a non-empty string"),
        ("wrapping", "x", "wrapping is not a mapping"),
        ("instructions", {"qa": {"en": ["{question}", "What?"]}}, r"qa.en\[1\] lacks \{question\}"),
        ("instructions", {"asr": {"en": "{quest}"}}, r"asr.en has the unknown field \{quest\}"),
        ("instructions", {"asr": {"en": "{instruction}"}}, r"asr.en\[0\] holds \{instruction\}"),
        ("instructions", {"asr": {"en": []}}, "asr.en is not a text or a list"),
        ("instructions", {"asr": {"en": [1]}}, r"asr.en\[0\] is not a non-empty string"),
        ("instructions", {"asr": "Write."}, "instructions.asr is not a mapping"),
        ("instructions", {"asr": {False: "Skriv."}}, "key False .*in quotes"),
        ("unanswerable", {"en": ""}, "unanswerable.en is not"),
        ("choice_answer", "The letter", r"choice_answer lacks \{letter\} and \{option\}"),
        ("choice_answer", "{leter}", r"unknown field \{leter\}; did you mean 'letter'"),
        ("choice_answer", {"en": "x"}, "choice_answer is not a non-empty string"),
        ("instruction", {}, "unknown key 'instruction'; did you mean 'instructions'"),
    ],
)
def test_wrong_template_file_is_refused_when_read(tmp_path, section, content, reason):
    path = templates(tmp_path, **{**GOOD, section: content})
    with pytest.raises(InputError, match=reason) as error:
        PromptTemplates.from_yaml(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_speech_may_stand_in_the_instruction():
    prompts = PromptTemplates({"speech": "{instruction}"}, {"asr": {"en": "In {speech}, what?"}})
    assert prompt(prompts, Sample("1", "asr", "x", CUTS[:1])) == [
        ("text", "In "), ("speech", "a.wav"), ("text", ", what?"),
    ]  # fmt: skip
    # An instruction of the row's own cannot say where the speech goes.
    sample = Sample("1", "asr", "x", CUTS[:1], extra={"instruction": "In {speech}"})
    with pytest.raises(InputError, match=r"no \{speech\}; add it to wrapping.speech"):
        prompts.messages(sample)


def test_broken_or_absent_files(tmp_path):
    with pytest.raises(InputError, match="mcif_fix: no such template file.*mcif_fixed, mcif_mixed"):
        PromptTemplates.from_yaml("mcif_fix")
    (tmp_path / "bad.yaml").write_text("wrapping:\n  speech: {speech}{instruction}\n")
    with pytest.raises(InputError, match=r"bad.yaml:2: not valid YAML"):
        PromptTemplates.from_yaml(tmp_path / "bad.yaml")
    (tmp_path / "empty.yaml").write_text("")
    with pytest.raises(InputError, match="not a mapping"):
        PromptTemplates.from_yaml(tmp_path / "empty.yaml")


def test_examples_of_the_documentation(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    for kind, name in (("json", "m.jsonl"), ("yaml", "t.yaml")):
        block = re.search(f"```{kind}\n(.*?)```", text, re.DOTALL)[1]
        (tmp_path / name).write_text(block, encoding="utf-8")
    prompts = PromptTemplates.from_yaml(tmp_path / "t.yaml")
    assert len(prompts.pool("slu", "en")) == 2
    assert prompts.pool("sqa", "fr") == ["Réponds brièvement : {question}"]
    samples = load_manifest(tmp_path / "m.jsonl", check_audio=False)
    assert [len(prompts.messages(sample)) for sample in samples] == [2, 2, 2, 2, 4]
    assert samples[0].audio[0].key in text

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchtune_speech.data import (
    AudioCut,
    BadRow,
    McifOutput,
    PromptTemplates,
    load_manifest,
    mcif_question,
    mcif_task,
    read_mcif_output,
    read_mcif_source,
    write_mcif_output,
)
from torchtune_speech.errors import InputError

REAL_OUTPUTS = Path(__file__).parents[2] / "../shared/data/mcif_outputs"

SOURCE = """<?xml version='1.0' encoding='utf-8'?>
<testset name="MCIF1.0">
  <task track="short" text_lang="de">
    <sample id="0">
      <audio_path>a.wav</audio_path>
      <video_path>a.mp4</video_path>
      <instruction>Übersetze den englischem Inhalt nach Deutsch.</instruction>
    </sample>
    <sample id="7">
      <audio_path>sub/b.wav</audio_path>
      <instruction>Nutze den Inhalt, um folgende Frage kurz zu beantworten: Was &lt; 3 &amp; 4?</instruction>
    </sample>
    <sample id="8">
      <audio_path>a.wav</audio_path>
      <instruction>Fasse den Inhalt zusammen.</instruction>
    </sample>
  </task>
</testset>
"""  # noqa: E501
SECOND_TASK = """  <task track="short" text_lang="it">
    <sample id="0">
      <audio_path>a.wav</audio_path>
      <instruction>Traduci il contenuto inglese in italiano.</instruction>
    </sample>
  </task>
</testset>
"""


@pytest.fixture
def source(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.wav").touch()
    (tmp_path / "sub/b.wav").touch()
    path = tmp_path / "IF.short.de.src.xml"
    path.write_text(SOURCE, encoding="utf-8")
    return path


@pytest.fixture
def two_tasks(source):
    source.write_text(SOURCE.replace("</testset>\n", SECOND_TASK), encoding="utf-8")
    return source


# ---- source files -------------------------------------------------------------------------------


def test_source_rows(source):
    rows = read_mcif_source(source)
    assert rows[0] == {
        "id": "0",
        "audio": "a.wav",
        "instruction": "Übersetze den englischem Inhalt nach Deutsch.",
        "target_lang": "de",
        "track": "short",
    }
    assert [row["id"] for row in rows] == ["0", "7", "8"]
    assert rows[1]["audio"] == "sub/b.wav"
    assert rows[1]["instruction"].endswith("Was < 3 & 4?")


def test_tasks_of_one_file_are_told_apart(two_tasks):
    assert len(read_mcif_source(two_tasks, "short", "de")) == 3
    [row] = read_mcif_source(two_tasks, lang="it")
    assert (row["target_lang"], row["instruction"][:7]) == ("it", "Traduci")
    with pytest.raises(InputError, match=r"several tasks \(short/de, short/it\)"):
        read_mcif_source(two_tasks, track="short")
    with pytest.raises(InputError, match="no task long/de; .*there: short/de, short/it"):
        read_mcif_source(two_tasks, "long", "de")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<audio_path>sub/b.wav</audio_path>", "", r"xml:2: sample '7' has no audio_path; take"),
        ("<audio_path>a.wav</audio_path>\n      <v", "<v", "xml:1: .*, only video_path; take"),
        ("<instruction>Fasse den Inhalt zusammen.</instruction>", "", "'8' has no instruction"),
        ('id="7"', 'id="0"', "xml:2: sample '0' is there twice"),
        ('id="7"', "", "xml:2: the sample has no id"),
        ("</testset>", "", "not valid XML"),
        ("testset", "tests", "begins with <tests>, not <testset>"),
        ("<testset", '<!DOCTYPE t [<!ENTITY a "b">]><testset', "declares a document type"),
        ("sub/b.wav", "&a;", "not valid XML .undefined entity"),
    ],
)
def test_bad_source_files(source, old, new, message):
    assert old in SOURCE
    source.write_text(SOURCE.replace(old, new), encoding="utf-8")
    with pytest.raises(InputError, match=message) as error:
        read_mcif_source(source)
    assert "\n" not in str(error.value)


def test_files_that_are_no_text(source):
    source.write_bytes(SOURCE.replace("utf-8", "utf-16").encode("utf-16"))
    with pytest.raises(InputError, match="not UTF-8"):
        read_mcif_source(source)
    with pytest.raises(InputError, match="not found"):
        read_mcif_source(source.with_name("nowhere.xml"))


def test_entities_that_grow_are_not_expanded(source):
    entities = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 12))
    bomb = f'<!DOCTYPE t [<!ENTITY e0 "lol">{entities}]><testset>'
    source.write_text(SOURCE.replace('<testset name="MCIF1.0">', bomb + "&e11;"), encoding="utf-8")
    with pytest.raises(InputError, match="declares a document type or entities"):
        read_mcif_source(source)


# ---- as a manifest ------------------------------------------------------------------------------


def test_a_source_file_is_a_manifest(source):
    samples = load_manifest(source, require_target=False)
    assert [sample.task for sample in samples] == ["st", "sqa", "instruct"]
    assert samples[1].audio == (AudioCut("sub/b.wav"),)
    assert samples[1].question == "Was < 3 & 4?"
    assert (samples[0].source_lang, samples[0].target_lang) == ("en", "de")
    assert [sample.target for sample in samples] == ["", "", ""]
    # What is asked is the row's own instruction, not a prompt of the set.
    [message] = PromptTemplates.from_yaml("mcif_fixed").messages(samples[1], with_target=False)
    assert message.content == [
        {"type": "speech", "content": "sub/b.wav"},
        {
            "type": "text",
            "content": "\nNutze den Inhalt, um folgende Frage kurz zu beantworten: Was < 3 & 4?",
        },
    ]


def test_a_manifest_of_several_tasks(two_tasks):
    where = {"track": "short", "target_lang": "it"}
    [sample] = load_manifest(two_tasks, require_target=False, where=where)
    assert (sample.id, sample.task, sample.target_lang) == ("0", "st", "it")
    with pytest.raises(InputError, match="where={track: ..., target_lang: ...}"):
        load_manifest(two_tasks, require_target=False)


def test_a_manifest_with_faults(source):
    (source.parent / "sub/b.wav").unlink()
    text = SOURCE.replace("<instruction>Fasse den Inhalt zusammen.</instruction>", "")
    source.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"xml:2: audio file 'sub/b.wav' not found"):
        load_manifest(source, require_target=False)
    bad = []
    [sample] = load_manifest(source, require_target=False, on_bad_sample="skip", bad=bad)
    assert sample.id == "0"
    assert [row.reason for row in bad] == ["missing audio file", "no instruction"]
    message = f"{source}:3: sample '8' has no instruction; write what is to be done"
    assert bad[1] == BadRow(3, "no instruction", message)
    with pytest.raises(InputError, match="'target' is missing"):
        load_manifest(source, check_audio=False)


# ---- output files -------------------------------------------------------------------------------

OUTPUT = """<?xml version='1.0' encoding='utf-8'?>
<testset name="A &amp; B" type="output">
  <task track="short" text_lang="zh">
    <sample id="10"> a "b" &lt;c&gt;
d </sample>
    <sample id="9" />
    <sample id="11">无法回答。</sample>
  </task>
</testset>"""
TEXTS = {"10": ' a "b" <c>\nd ', "9": "", "11": "无法回答。"}


def test_output_by_hand(tmp_path):
    path = tmp_path / "new" / "out.xml"
    write_mcif_output(path, TEXTS, track="short", text_lang="zh", name="A & B")
    assert path.read_text(encoding="utf-8") == OUTPUT
    assert read_mcif_output(path) == McifOutput("A & B", "short", "zh", TEXTS)
    write_mcif_output(path, TEXTS, track="short", text_lang="zh", name="A & B", declaration=False)
    assert path.read_text(encoding="utf-8") == OUTPUT.split("\n", 1)[1]


def test_output_has_the_expected_ids_in_their_order(tmp_path):
    path = tmp_path / "out.xml"
    words = {"track": "long", "text_lang": "en", "name": "x"}
    write_mcif_output(path, TEXTS, expected_ids=["9", "10", "11"], **words)
    assert list(read_mcif_output(path).texts) == ["9", "10", "11"]
    whole = path.read_bytes()
    with pytest.raises(InputError, match="no text for '1', '2' of 5 ids"):
        write_mcif_output(path, TEXTS, expected_ids=["1", "10", "2", "9", "11"], **words)
    with pytest.raises(InputError, match="'0', '1', '2', '3', '4' and 3 more of 8 ids"):
        write_mcif_output(path, {}, expected_ids=map(str, range(8)), **words)
    with pytest.raises(InputError, match="texts for '10', '9', which the source file does not"):
        write_mcif_output(path, TEXTS, expected_ids=["11"], **words)
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("a\x00b\x08c\x1bd\x7fe\x85f", "abcdef"),
        ("a\r\nb\rc\n\td", "a\nb\nc\n\td"),
        ("a\ud800b\ufffec\uffffd", "abcd"),
        ("]]> <!-- &amp; \u2028 \U0001f600", "]]> <!-- &amp; \u2028 \U0001f600"),
        ("<!DOCTYPE html>", "<!DOCTYPE html>"),
    ],
)
def test_what_xml_cannot_hold(tmp_path, text, read):
    path = tmp_path / "out.xml"
    write_mcif_output(path, {"1": text}, track="short", text_lang="en", name="x\x00")
    assert read_mcif_output(path) == McifOutput("x", "short", "en", {"1": read})


@given(st.dictionaries(st.text("0123456789", min_size=1), st.text(), min_size=1))
def test_any_text_can_be_written_and_stays_as_it_was_read(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("any")
    words = {"track": "short", "text_lang": "en", "name": "x"}
    write_mcif_output(folder / "1.xml", texts, **words)
    first = read_mcif_output(folder / "1.xml")
    assert list(first.texts) == list(texts)
    write_mcif_output(folder / "2.xml", first.texts, **words)
    assert read_mcif_output(folder / "2.xml") == first


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('id="9"', 'id="10"', "sample 2 has the id '10' of an earlier one"),
        ('id="9"', "", "sample 2 has no id"),
        ("&lt;c&gt;", "<c/>", "sample '10' holds an element <c>; write < in a text as &lt;"),
    ],
)
def test_bad_output_files(tmp_path, old, new, message):
    path = tmp_path / "out.xml"
    path.write_text(OUTPUT.replace(old, new), encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_mcif_output(path)


@pytest.mark.skipif(not REAL_OUTPUTS.is_dir(), reason="real output files are not here")
def test_real_output_files_are_written_back_byte_for_byte(tmp_path):
    files = sorted(REAL_OUTPUTS.glob("*.xml"))
    assert len(files) == 12
    for file in files:
        output = read_mcif_output(file)
        assert (output.track, len(output.texts)) == ("short", 890)
        assert f"_{output.text_lang}_" in file.name
        write_mcif_output(
            tmp_path / "out.xml",
            output.texts,
            track=output.track,
            text_lang=output.text_lang,
            name=output.name,
            declaration=False,
        )
        assert (tmp_path / "out.xml").read_bytes() == file.read_bytes()


# ---- which task ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("instruction", "task", "question"),
    [
        ("Transcribe the English content.", ("asr", "en"), None),
        ("  transcribe THE english\n content !", ("asr", "en"), None),
        ("Übersetze den englischem Inhalt nach Deutsch", ("st", "de"), None),
        ("U\u0308bersetze den englischem Inhalt nach Deutsch.", ("st", "de"), None),
        ("将英文内容翻译成中文", ("st", "zh"), None),
        ("根据所给的英文内容，简要回答以下问题：谁？", ("sqa", "zh"), "谁？"),
        (
            "Rispondi in modo conciso alla seguente domanda dato il contenuto inglese:  Chi parla?",
            ("sqa", "it"),
            "Chi parla?",
        ),
        ("Who is it? Answer briefly from the content", ("sqa", "en"), "Who is it?"),
        ("Question about the content: Is\nit? Keep the answer short.", ("sqa", "en"), "Is\nit?"),
        ("Consider the content and answer: {question} [a]*", ("sqa", "en"), "{question} [a]*"),
        # No question in it, words missing, words too many: not a known prompt.
        ("Consider the content and answer:", None, None),
        ("Transcribe the content.", None, None),
        ("Transcribe the English content. In French.", None, None),
        ("", None, None),
    ],
)
def test_the_task_of_an_instruction(instruction, task, question):
    assert mcif_task(instruction) == task
    assert mcif_question(instruction) == question


def test_every_prompt_is_recognised():
    for name in ("mcif_fixed", "mcif_mixed"):
        prompts = PromptTemplates.from_yaml(name)
        for task in ("asr", "st", "sqa"):
            for language in prompts.tasks[task]:
                for prompt in prompts.pool(task, language):
                    instruction = prompt.replace("{question}", "Why 3.5?")
                    assert mcif_task(instruction) == (task, language)
                    assert mcif_question(instruction) == ("Why 3.5?" if task == "sqa" else None)


def test_prompts_of_ones_own(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        'wrapping: {speech: "{speech}{instruction}"}\n'
        "instructions:\n"
        "  sqa:\n"
        '    fr: ["Dis {question}, oui, {question}", "Dis{question}", "Dis-moi : {question}"]\n'
        "  other: {fr: Danse.}\n",
        encoding="utf-8",
    )
    assert mcif_task("dis quoi, oui, quoi", [str(path)]) == ("sqa", "fr")
    assert mcif_question("dis quoi, oui, quoi", [str(path)]) == "quoi"
    assert mcif_question("dis quoi, oui, non", [str(path)]) == "quoi, oui, non"
    assert mcif_task("Danse.", [str(path)]) is None
    # The longer prompt is the likelier one.
    assert mcif_question("Dis-moi : quoi ?", [str(path)]) == "quoi ?"
    assert mcif_task("Transcribe the English content.", ["mcif_mixed"]) is None
    with pytest.raises(InputError, match="no such template file"):
        mcif_task("x", ["nowhere"])

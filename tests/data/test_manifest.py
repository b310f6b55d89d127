import json
import logging
import math
import pickle

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchtune_speech.data import (
    AudioCut,
    BadRow,
    Sample,
    data_fingerprint,
    load_manifest,
    relative_audio_path,
    resolve_audio,
    sample_to_row,
    samples_from_rows,
    text_twin,
    write_manifest,
)
from torchtune_speech.errors import InputError

ASR = {"id": "a", "task": "asr", "audio": "x.wav", "target": "hello"}


@pytest.fixture
def folder(tmp_path):
    for name in ("x.wav", "y.wav"):
        (tmp_path / name).write_bytes(b"not looked into")
    return tmp_path


def write(folder, *rows):
    path = folder / "m.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def rows_of_every_kind():
    return [
        {**ASR, "domain": "d", "speaker": "s", "split": "train", "score": 0.5},
        {
            "id": "b", "task": "st", "audio": "x.wav", "offset": 0.5, "duration": 1.25,
            "target_lang": "de", "source_text": "hello", "target": "Grüß dich \u2028 {speech}",
        },
        {
            "id": "c", "task": "sqa", "audio": ["x.wav", "y.wav"], "offset": [0.0, 2.0],
            "duration": [None, 3.0], "speed": [1.0, 0.9], "question": "Which?",
            "choices": ["one", "two"], "target": "B. two",
        },
        {"id": "d", "task": "mt", "source_text": "yes", "target": "是", "target_lang": "zh"},
        {
            "id": "e", "task": "chat", "audio": "x.wav", "target": "Fine.",
            "messages": [
                {"role": "user", "content": "{speech} How is it?"},
                {"role": "assistant", "content": "Fine."},
            ],
        },
    ]  # fmt: skip


def test_reads_all_columns(folder):
    samples = load_manifest(write(folder, *rows_of_every_kind()))
    assert samples[0] == Sample(
        "a",
        "asr",
        "hello",
        (AudioCut("x.wav"),),
        domain="d",
        speaker="s",
        extra={"split": "train", "score": 0.5},
    )
    assert samples[1].audio == (AudioCut("x.wav", 0.5, 1.25),)
    assert samples[1].target == "Grüß dich \u2028 {speech}"
    assert samples[2].audio == (AudioCut("x.wav"), AudioCut("y.wav", 2.0, 3.0, 0.9))
    assert samples[2].choices == ("one", "two")
    assert not samples[3].is_speech and samples[2].is_speech
    assert samples[4].messages[0] == {"role": "user", "content": "{speech} How is it?"}


def test_jsonl_parquet_and_data_set_give_the_same_samples(folder):
    samples = load_manifest(write(folder, *rows_of_every_kind()))
    simple = samples[:2] + samples[3:]  # one Arrow column cannot hold both a path and a list
    for name in ("again.jsonl", "again.parquet", "sub/../again.parquet"):
        (folder / "sub").mkdir(exist_ok=True)
        assert write_manifest(folder / name, simple) == 4
        assert load_manifest(folder / name) == simple
    assert write_manifest(folder / "two.jsonl", samples[2:3]) == 1
    assert load_manifest(folder / "two.jsonl") == samples[2:3]

    data = datasets.Dataset.from_list(pq.read_table(folder / "again.parquet").to_pylist())
    assert samples_from_rows(data, folder) == simple
    data.save_to_disk(folder / "saved")
    for name in ("x.wav", "y.wav"):
        (folder / "saved" / name).touch()
    assert load_manifest(folder / "saved") == simple
    with pytest.raises(InputError, match="several splits.*train"):
        datasets.DatasetDict(train=data).save_to_disk(folder / "dict")
        load_manifest(folder / "dict")


def test_data_set_with_an_audio_column_is_not_decoded(folder):
    data = datasets.Dataset.from_list([{**ASR, "audio": str(folder / "x.wav")}])
    data = data.cast_column("audio", datasets.Audio())  # the file is no audio: decoding would fail
    [sample] = samples_from_rows(data, "rows")
    assert sample.audio == (AudioCut(str(folder / "x.wav")),)
    with pytest.raises(InputError, match="the sound itself"):
        row = {**ASR, "audio": {"bytes": b"RIFF", "path": "x.wav"}}
        samples_from_rows([row], folder)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"id": None}, "'id' is missing"),
        ({"id": " "}, "'id' is empty"),
        ({"id": 7}, "'id' is int, not a string"),
        ({"task": None}, "'task' is missing"),
        ({"target": None}, "'target' is missing or empty"),
        ({"target": " \n"}, "'target' is missing or empty"),
        ({"target": ["x"]}, "'target' is list"),
        ({"target": "half \ud800"}, "surrogate"),
        ({"audio": None}, "task 'asr' needs 'audio'"),
        ({"task": "sqa", "audio": []}, "task 'sqa' needs 'audio'"),
        ({"task": "mt"}, "text task but the row has 'audio'.*'st'"),
        ({"audio": "z.wav"}, "audio file 'z.wav' not found"),
        ({"audio": "."}, "not found"),
        ({"audio": 3}, "'audio' is int"),
        ({"audio": ["x.wav", None]}, "'audio' is null"),
        ({"audio": "x\0.wav"}, "not the path"),
        ({"audio": ["x.wav", "y.wav"], "duration": 3.0}, "list of 2 numbers"),
        ({"audio": ["x.wav", "y.wav"], "offset": [1.0]}, "list of 2 numbers"),
        ({"duration": 0}, "'duration' is 0,"),
        ({"duration": 0.0001}, "'duration'"),
        ({"duration": -1.0}, "'duration' is -1.0"),
        ({"duration": 86401}, "'duration' is 86401"),
        ({"duration": math.nan}, "'duration' is nan"),
        ({"duration": math.inf}, "'duration' is inf"),
        ({"duration": "3"}, "'duration' is '3'"),
        ({"duration": True}, "'duration' is True"),
        ({"duration": 10**4000}, "'duration' is 1"),
        ({"offset": -0.1}, "'offset' is -0.1"),
        ({"offset": math.nan}, "'offset' is nan"),
        ({"speed": 0}, "'speed' is 0"),
        ({"source_text": 1}, "'source_text' is int"),
        ({"question": {}}, "'question' is dict"),
        ({"choices": "ab"}, "'choices'"),
        ({"choices": ["a", 1]}, "'choices'"),
        ({"instruction": 1}, "'instruction' is int"),
        ({"messages": "hi"}, "'messages' is not a list"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "unknown role 'tool'"),
        ({"messages": [{"role": "user", "content": ""}]}, "turn 1: 'content'"),
        ({"messages": [{"role": "user", "content": "no mark"}]}, "0 {speech} marks .* 1 files"),
        ({"audio": None, "task": "chat", "messages": [{"role": "user", "content": "{speech}"}]},
         "1 {speech} marks .* 0 files"),
        ({"messages": [{"role": "user", "content": "{speech}"},
                       {"role": "assistant", "content": "other"}]}, "differs from the last"),
    ],
)  # fmt: skip
def test_bad_row_is_refused_with_file_line_and_cure(folder, change, reason):
    path = write(folder, {**ASR, "id": "good"}, {**ASR, **change})
    with pytest.raises(InputError, match=reason) as error:
        load_manifest(path)
    message = str(error.value)
    assert message.startswith(f"{path}:2: ")
    assert "; " in message and "\n" not in message


def test_duplicate_id_names_both_lines(folder):
    with pytest.raises(InputError, match=r"m.jsonl:3: id 'a' was already used in line 1"):
        load_manifest(write(folder, ASR, {**ASR, "id": "b"}, ASR))


@pytest.mark.parametrize("line", [b"{", b"[1]", b"3", b'{"id": "\xff"}', b"[" * 100_000])
def test_broken_lines(folder, line):
    path = folder / "m.jsonl"
    good = json.dumps(ASR).encode()
    path.write_bytes(b"\xef\xbb\xbf" + good + b"\n\n" + line + b"\n")
    with pytest.raises(InputError, match=r"m.jsonl:3: "):
        load_manifest(path)
    bad = []
    assert len(load_manifest(path, on_bad_sample="skip", bad=bad)) == 1
    assert [row.line for row in bad] == [3]


def test_skip_counts_by_reason(folder, caplog):
    rows = [ASR, {**ASR, "id": "b", "target": ""}, ASR, {**ASR, "id": "c", "target": None}]
    bad: list[BadRow] = []
    with caplog.at_level(logging.WARNING):
        samples = load_manifest(write(folder, *rows), on_bad_sample="skip", bad=bad)
    assert [s.id for s in samples] == ["a"]
    assert [(row.line, row.reason) for row in bad] == [
        (2, "empty target"), (3, "duplicate id"), (4, "empty target"),
    ]  # fmt: skip
    assert "skipped 3 of 4 rows: 2 empty target, 1 duplicate id" in caplog.text
    with pytest.raises(InputError, match="on_bad_sample: 'ignore' is unknown"):
        load_manifest(folder / "m.jsonl", on_bad_sample="ignore")


def test_filters(folder):
    rows = rows_of_every_kind()
    path = write(folder, *rows, {**ASR, "id": "z", "split": "dev", "fold": 3, "target": ""})
    assert [s.id for s in load_manifest(path, tasks=["mt", "st"])] == ["b", "d"]
    # The row that is filtered out is not checked.
    assert [s.id for s in load_manifest(path, where={"split": "train"})] == ["a"]
    ids = [s.id for s in load_manifest(path, where={"task": ["mt", "sqa"]}, tasks=["mt"])]
    assert ids == ["d"]
    kept = load_manifest(path, where={"fold": 3}, require_target=False)
    assert [(s.id, s.target) for s in kept] == [("z", "")]


def test_empty_result_names_the_filter(folder):
    path = write(folder, ASR, {**ASR, "id": "b", "split": "dev"})
    with pytest.raises(InputError, match=r"tasks=\['st'\] removed all 2; .*asr \(2\)"):
        load_manifest(path, tasks=["st"])
    with pytest.raises(InputError, match=r"where.split=\['test'\] removed all 2.*dev \(1\)"):
        load_manifest(path, tasks=["asr"], where={"task": "asr", "split": "test"})
    with pytest.raises(InputError, match="all 1 were bad"):
        load_manifest(write(folder, {"id": "x"}), on_bad_sample="skip")
    with pytest.raises(InputError, match="no rows"):
        load_manifest(write(folder))


def test_row_without_a_task_is_not_filtered_away_silently(folder):
    with pytest.raises(InputError, match="'task' is missing"):
        load_manifest(write(folder, ASR, {**ASR, "id": "b", "task": None}), tasks=["asr"])


def test_a_row_that_needs_no_task_is_filtered_as_what_it_is(folder):
    own = {"id": "b", "audio": ASR["audio"], "instruction": "Sum up.", "target": "A lot."}
    path = write(folder, ASR, own)
    assert [sample.id for sample in load_manifest(path, tasks=["asr"])] == [ASR["id"]]
    assert [sample.id for sample in load_manifest(path, tasks=["instruct"])] == ["b"]


@pytest.mark.parametrize("name", ["no.jsonl", "m.txt", "junk.parquet", "plain_folder"])
def test_unreadable_manifest(folder, name):
    (folder / "m.txt").touch()
    (folder / "junk.parquet").write_bytes(b"junk")
    (folder / "plain_folder").mkdir()
    with pytest.raises(InputError, match=name) as error:
        load_manifest(folder / name)
    assert "\n" not in str(error.value)


def test_instruction_and_messages_need_no_task_or_target(folder):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "a {speech} mark"}]
    path = write(
        folder,
        {"id": "1", "audio": "x.wav", "instruction": "Transcribe."},
        {"id": "2", "messages": turns},
    )
    first, second = load_manifest(path, require_target=False)
    assert (first.task, first.extra["instruction"]) == ("instruct", "Transcribe.")
    assert second.target == "a {speech} mark"


def test_keys():
    assert AudioCut("an4/a.flac").key == "an4/a.flac"
    assert AudioCut("talk.wav", 12.5, 7.25).key == "talk.wav@12.500+7.250"
    assert AudioCut("talk.wav", 12.5).key == "talk.wav@12.500"
    assert AudioCut("talk.wav", 0.0, 7.25).key == "talk.wav@0.000+7.250"
    assert AudioCut("an4/a.flac", speed=0.9).key == "an4/a.flac~0.9"
    assert AudioCut("talk.wav", 12.5, 7.25, 1.1).key == "talk.wav@12.500+7.250~1.1"


def test_text_twin():
    speech = Sample("1", "st", "Ja", (AudioCut("x"),), target_lang="de", source_text="yes")
    twin = text_twin(speech)
    assert twin == Sample("1", "mt", "Ja", target_lang="de", source_text="yes")
    assert text_twin(twin) is None
    assert text_twin(Sample("1", "sqa", "t", (AudioCut("x"),), source_text="s")).task == "qa"
    assert text_twin(Sample("1", "sqa", "t", (AudioCut("x"),))) is None
    assert text_twin(Sample("1", "asr", "t", (AudioCut("x"),), source_text="t")) is None


def test_fingerprint_sees_content_and_order():
    a, b = Sample("a", "mt", "x", source_text="s"), Sample("b", "mt", "y", source_text="s")
    base = data_fingerprint([a, b])
    assert base == data_fingerprint([a, b]) and len(base) == 64
    # Plans name samples by place, so another order is other data.
    others = [
        [b, a],
        [a],
        [a, Sample("b", "mt", "z", source_text="s")],
        [a, Sample("b", "qa", "y", source_text="s")],
        [a, Sample("b", "mt", "y", source_text="t")],
        [a, Sample("b", "mt", "y", (AudioCut("k"),), source_text="s")],
        [Sample("ab", "mt", "x", source_text="s"), Sample("", "mt", "y", source_text="s")],
    ]
    assert len({base, *map(data_fingerprint, others)}) == len(others) + 1
    seen_by_nobody = Sample("b", "mt", "y", source_text="s", extra={"note": 1})
    assert data_fingerprint([a, seen_by_nobody]) == base


def test_samples_are_values():
    sample = Sample("a", "asr", "x", (AudioCut("k"),))
    assert pickle.loads(pickle.dumps(sample)) == sample
    with pytest.raises(AttributeError):
        sample.target = "y"


def test_relative_paths_survive_linked_folders(tmp_path):
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio" / "x.wav").touch()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "deep")
    manifest = tmp_path / "link" / "m.jsonl"
    written = relative_audio_path(manifest, tmp_path / "audio" / "x.wav")
    assert written == "../../audio/x.wav"
    write_manifest(manifest, [{**ASR, "audio": written}])
    [sample] = load_manifest(manifest)
    assert resolve_audio(manifest, sample.audio[0]).samefile(tmp_path / "audio" / "x.wav")
    assert resolve_audio(manifest, AudioCut("/abs/x.wav")).as_posix() == "/abs/x.wav"


def test_parquet_with_nulls_and_many_batches(folder):
    columns = {
        "id": [str(i) for i in range(70_000)],
        "task": ["mt"] * 70_000,
        "source_text": ["s"] * 70_000,
        "target": ["t"] * 69_999 + [None],
        "audio": pa.nulls(70_000, pa.string()),
    }
    pq.write_table(pa.table(columns), folder / "m.parquet")
    with pytest.raises(InputError, match="m.parquet:70000: field 'target' is missing"):
        load_manifest(folder / "m.parquet")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from(["asr", "st", "mt", "x.wav", "{speech}", "user", "\ud800", 10**400]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["role", "content", "path", "bytes", "x"]), inner),
    max_leaves=6,
)  # fmt: skip
COLUMNS = (
    "id task audio offset duration speed source_lang target_lang source_text question choices "
    "target domain speaker messages instruction other"
).split()


@settings(max_examples=400, deadline=None)
@given(changes=st.dictionaries(st.sampled_from(COLUMNS), VALUES, max_size=4), whole=VALUES)
def test_any_row_is_a_sample_or_an_input_error(changes, whole):
    for row in ({**ASR, **changes}, changes, whole):
        try:
            [sample] = samples_from_rows([row], "rows.jsonl", check_audio=False)
        except InputError as error:
            assert str(error).startswith("rows.jsonl:1: ")
            continue
        assert sample.id and sample.task and sample.target.strip()
        data_fingerprint([sample])
        again = samples_from_rows([sample_to_row(sample)], "rows.jsonl", check_audio=False)
        assert json.dumps(sample_to_row(again[0]), default=str) == json.dumps(
            sample_to_row(sample), default=str
        )


@settings(max_examples=200, deadline=None)
@given(line=st.binary(max_size=60))
def test_any_line_is_a_sample_or_an_input_error(tmp_path_factory, line):
    path = tmp_path_factory.getbasetemp() / "fuzz.jsonl"
    path.write_bytes(line)
    with pytest.raises(InputError, match="fuzz.jsonl"):
        load_manifest(path)

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import extract_features
import numpy as np
import pytest
import soundfile
import torch
from omegaconf import OmegaConf

from torchtune_speech import config
from torchtune_speech.encoders import FilterBankEncoder, filter_bank_encoder, load_audio
from torchtune_speech.errors import InputError
from torchtune_speech.features import FeatureStore, average_frames, verify_store
from torchtune_speech.files import lock_folder, read_jsonl

ROOT = Path(extract_features.__file__).parents[1]
ENCODER = {"_component_": "torchtune_speech.encoders.filter_bank_encoder"}


def _noise(seconds, seed):
    return np.random.default_rng(seed).normal(size=round(16_000 * seconds)) * 0.1


def _manifest(path, rows):
    rows = [{"task": "asr", "target": "x", **row} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A talk of which three cuts are used, and eight files of 0.5 to 1.9 s; 11 stretches."""
    data = tmp_path_factory.mktemp("data")
    (data / "audio").mkdir()
    for n in range(8):
        soundfile.write(data / "audio" / f"{n}.wav", _noise(0.5 + 0.2 * n, n), 16_000)
    soundfile.write(data / "audio" / "talk.flac", _noise(6.0, 99), 16_000)
    rows = [{"id": f"a{n}", "audio": f"audio/{n}.wav", "split": "train"} for n in range(8)]
    rows += [
        {"id": f"b{n}", "audio": "audio/talk.flac", "offset": 1.5 * n, "duration": 1.0 + n / 4}
        for n in range(3)
    ]
    # The same audio again, with another task: stored once.
    rows += [{"id": "again", "task": "st", "target_lang": "de", "audio": "audio/0.wav"}]
    rows += [{"id": "text", "task": "mt", "target_lang": "de", "source_text": "y"}]
    _manifest(data / "manifest.jsonl", rows)
    return data


def _config(data, output_dir, **overrides):
    keys = {"manifest": str(data / "manifest.jsonl"), "output_dir": str(output_dir)}
    return OmegaConf.create({**keys, "encoder": ENCODER, "device": "cpu", **overrides})


def _run(cfg):
    recipe = extract_features.ExtractFeaturesRecipe(cfg)
    recipe.setup(cfg)
    recipe.extract()
    recipe.cleanup()
    return recipe


def _contents(path):
    store = FeatureStore(path)
    return {key: store[key] for key in sorted(store.keys())}


def _assert_same(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


# ---- what is stored -----------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["audio_seconds", "load_audio"])
def test_a_decoder_that_hangs_is_given_up(data, tmp_path, monkeypatch, step):
    goes_on = threading.Event()
    read = getattr(extract_features, step)

    def hanging(path, *arguments):
        if Path(path).name == "3.wav":
            goes_on.wait(60)
        return read(path, *arguments)

    monkeypatch.setattr(extract_features, step, hanging)
    settings = {"read_timeout_s": 0.3, "num_workers": 1}
    try:
        with pytest.raises(InputError, match=r"3.wav: reading it took longer than 0.3 s; restore"):
            _run(_config(data, tmp_path / "fails", **settings))
        _run(_config(data, tmp_path / "store", on_bad_sample="skip", **settings))
    finally:
        goes_on.set()
    assert len(FeatureStore(tmp_path / "store").keys()) == 10
    (bad,) = read_jsonl(tmp_path / "store" / "bad_samples.jsonl")
    assert "3.wav: reading it took longer" in bad["message"]


def test_store_holds_every_stretch_once_as_the_encoder_gives_it(data, tmp_path):
    _run(_config(data, tmp_path / "store", frame_average=3, batch_seconds=4.0))
    store = FeatureStore(tmp_path / "store")
    cuts = [f"audio/talk.flac@{1.5 * n:.3f}+{1 + n / 4:.3f}" for n in range(3)]
    assert sorted(store.keys()) == sorted([f"audio/{n}.wav" for n in range(8)] + cuts)
    encoder = filter_bank_encoder()
    for key, waveform in [
        ("audio/3.wav", load_audio(data / "audio/3.wav")),
        (cuts[2], load_audio(data / "audio/talk.flac", offset_s=3.0, duration_s=1.5)),
    ]:
        expected = average_frames(encoder([waveform])[0], 3).bfloat16()
        assert torch.equal(store[key], expected)
        assert store.seconds(key) == pytest.approx(len(waveform) / 16_000)
    assert store.fingerprint == {**encoder.fingerprint(), "frame_average": 3}
    assert verify_store(tmp_path / "store") == []


def test_speeds_stand_beside_each_other(data, tmp_path):
    _run(_config(data, tmp_path, speeds=[0.9, 1.0, 1.1], where={"split": "train"}))
    store = FeatureStore(tmp_path)
    assert len(store) == 3 * 8
    for speed, key in [(0.9, "audio/5.wav~0.9"), (1.0, "audio/5.wav"), (1.1, "audio/5.wav~1.1")]:
        waveform = load_audio(data / "audio/5.wav", speed=speed)
        assert torch.equal(store[key], filter_bank_encoder()([waveform])[0].bfloat16())


def test_a_second_manifest_adds_to_the_store(data, tmp_path):
    cfg = _config(data, tmp_path, where={"split": "train"})
    _run(cfg)
    before = _contents(tmp_path)
    del cfg.where
    _run(cfg)
    after = _contents(tmp_path)
    assert len(before) == 8 and len(after) == 11
    _assert_same(before, {key: after[key] for key in before})


def _tune_run(data, output_dir, *words):
    command = [sys.executable, "-m", "torchtune._cli.tune", "run", *words]
    command += ["extract_features", "--config", "nano/extract_features"]
    command += [f"manifest={data / 'manifest.jsonl'}", f"output_dir={output_dir}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def test_tune_run_with_one_process_and_two(data, tmp_path):
    one = _tune_run(data, tmp_path / "one")
    two = _tune_run(data, tmp_path / "two", "--nproc_per_node", "2")
    output = one.communicate()[0], two.communicate()[0]
    assert one.returncode == 0, output[0]
    assert two.returncode == 0, output[1]
    assert "x real time" in output[0] and "11 utterances in the store" in output[0]
    assert output[1].count("11 utterances in the store") == 1
    assert len(list((tmp_path / "two").glob("shard-0000[01]-00000.safetensors"))) == 2
    _assert_same(_contents(tmp_path / "one"), _contents(tmp_path / "two"))
    assert (tmp_path / "one/store.json").read_text() == (tmp_path / "two/store.json").read_text()


# ---- interruptions ------------------------------------------------------------------------------


def test_a_second_run_continues_where_the_first_died(data, tmp_path, monkeypatch):
    cfg = _config(data, tmp_path / "store", batch_seconds=1.5, shard_mb=0.05)
    encoded = []
    forward = FilterBankEncoder.forward

    def dying(self, waveforms):
        if len(encoded) >= 5:
            raise RuntimeError("killed")
        encoded.extend(waveforms)
        return forward(self, waveforms)

    monkeypatch.setattr(FilterBankEncoder, "forward", dying)
    with pytest.raises(RuntimeError, match="killed"):
        _run(cfg)
    with pytest.raises(InputError, match="unfinished"):
        FeatureStore(tmp_path / "store")

    encoded_again = []
    monkeypatch.setattr(
        FilterBankEncoder, "forward", lambda s, w: encoded_again.extend(w) or forward(s, w)
    )
    _run(cfg)
    assert 0 < len(encoded_again) < 11
    monkeypatch.undo()
    _run(_config(data, tmp_path / "whole"))
    _assert_same(_contents(tmp_path / "store"), _contents(tmp_path / "whole"))
    assert verify_store(tmp_path / "store") == []


# ---- wrong input --------------------------------------------------------------------------------


def _faulty(tmp_path, *rows):
    folder = tmp_path / "faulty"
    folder.mkdir()
    soundfile.write(folder / "good.wav", _noise(1.0, 0), 16_000)
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("no audio " * 1000)
    nan = _noise(0.5, 1)
    nan[7_000] = np.nan
    soundfile.write(folder / "nan.wav", nan, 16_000, subtype="FLOAT")
    _manifest(folder / "manifest.jsonl", [{"id": str(n), **row} for n, row in enumerate(rows)])
    return folder


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"audio": "no.wav"}, "no.wav"),
        ({"audio": "empty.wav"}, "empty.wav: empty file"),
        ({"audio": "text.wav"}, "text.wav: not readable"),
        ({"audio": "nan.wav"}, "nan.wav: has samples that are not numbers"),
        ({"audio": "good.wav", "offset": 0.5, "duration": 2.0}, "passes the end"),
    ],
)
def test_faulty_audio_is_named_or_skipped(tmp_path, row, message):
    folder = _faulty(tmp_path, {"audio": "good.wav"}, row)
    with pytest.raises(InputError, match=message):
        _run(_config(folder, tmp_path / "store"))
    assert not (tmp_path / "store").exists()
    _run(_config(folder, tmp_path / "store", on_bad_sample="skip"))
    assert FeatureStore(tmp_path / "store").keys() == ["good.wav"]
    [bad] = read_jsonl(tmp_path / "store" / "bad_samples.jsonl")
    assert message in bad["message"] and "on_bad_sample" not in bad["message"]
    (folder / "manifest.jsonl").write_text('{"id": "a", "task": "asr", "audio": "good.wav"}\n')
    _run(_config(folder, tmp_path / "store"))
    assert not (tmp_path / "store" / "bad_samples.jsonl").exists()


def test_nothing_but_faulty_audio(tmp_path):
    folder = _faulty(tmp_path, {"audio": "nan.wav"})
    with pytest.raises(InputError, match="no audio could be read, 1 skipped"):
        _run(_config(folder, tmp_path / "store", on_bad_sample="skip"))
    assert not (tmp_path / "store").exists()


def test_no_audio_in_the_manifest(data, tmp_path):
    cfg = _config(data, tmp_path / "store", where={"task": "mt"})
    with pytest.raises(InputError, match="no row has 'audio'"):
        _run(cfg)


def test_one_name_for_two_files_is_refused(tmp_path):
    manifests = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        soundfile.write(tmp_path / name / "a.wav", _noise(0.5, 0), 16_000)
        rows = [{"id": "a", "audio": "a.wav"}]
        manifests.append(str(_manifest(tmp_path / name / "manifest.jsonl", rows)))
    cfg = _config(tmp_path, tmp_path / "store", manifest=manifests)
    with pytest.raises(InputError, match=r"two/manifest\.jsonl: audio 'a\.wav'.*one/a\.wav"):
        _run(cfg)
    # The same file under the same name is fine.
    _run(_config(tmp_path, tmp_path / "store", manifest=[manifests[0]] * 2))
    assert FeatureStore(tmp_path / "store").keys() == ["a.wav"]


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_store_that_knows_other_audio_by_this_name_is_refused(tmp_path, num_processes):
    configs = []
    for name, seconds in (("one", 0.5), ("two", 0.9)):
        (tmp_path / name).mkdir()
        soundfile.write(tmp_path / name / "a.wav", _noise(seconds, 0), 16_000)
        _manifest(tmp_path / name / "manifest.jsonl", [{"id": "a", "audio": "a.wav"}])
        cfg = _config(tmp_path / name, tmp_path / "store", frame_average=3, dtype="bf16")
        configs.append(cfg)
    _run(configs[0])
    before = _contents(tmp_path / "store")
    if num_processes == 1:
        with pytest.raises(InputError, match=r"two/a\.wav: 0\.90 s.* 0\.50 s as 'a\.wav'"):
            _run(OmegaConf.merge(configs[1], {"on_bad_sample": "skip"}))
    else:
        process = _tune_run(tmp_path / "two", tmp_path / "store", "--nproc_per_node", "2")
        output = process.communicate()[0]
        assert process.returncode == 1 and output.count("holds other audio of 0.50 s") == 1
    assert _contents(tmp_path / "store").keys() == before.keys()
    _run(configs[0])  # the same again is fine


def test_a_store_that_another_run_writes_to_is_left_alone(data, tmp_path):
    cfg = _config(data, tmp_path / "store", where={"split": "train"})
    with (
        lock_folder(tmp_path / "store"),
        pytest.raises(InputError, match="store: another run is writing there"),
    ):
        _run(cfg)
    assert not (tmp_path / "store").exists()
    _run(cfg)
    with lock_folder(tmp_path / "store"):  # free again
        pass


def test_another_encoders_store_is_not_added_to(data, tmp_path):
    _run(_config(data, tmp_path, where={"split": "train"}))
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}
    with pytest.raises(InputError, match="frame_average is 1 where 3 is needed"):
        _run(_config(data, tmp_path, frame_average=3))
    with pytest.raises(InputError, match="dtype is bfloat16"):
        _run(_config(data, tmp_path, dtype="fp32"))
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"manifest": None}, "no manifest"),
        ({"manifest": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"batchseconds": 3}, "unknown key 'batchseconds'; did you mean 'batch_seconds'"),
        ({"frame_average": 0}, "frame_average is 0; it must be a whole number, at least 1"),
        ({"frame_average": 1.5}, "frame_average is 1.5"),
        ({"dtype": "bf"}, "dtype is 'bf'; use one of bf16"),
        ({"speeds": [1.0, 9.0]}, "speeds: .*give a list of factors from 0.25 to 4"),
        ({"speeds": 0.9}, "speeds: 0.9; give a list of factors"),
        ({"on_bad_sample": "ignore"}, "on_bad_sample is 'ignore'"),
        pytest.param(
            {"device": "cuda"},
            "device: cuda: not on this machine",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
        ({"device": "cuda:7"}, "device: cuda:7: not on this machine"),
        ({"encoder": {**ENCODER, "layers": 2}}, "layers"),
    ],
)
def test_wrong_keys(data, tmp_path, overrides, message):
    with pytest.raises(InputError, match=message):
        _run(_config(data, tmp_path / "store", **overrides))
    assert not (tmp_path / "store").exists()


# ---- planning -----------------------------------------------------------------------------------


def test_batches_are_full_of_similar_lengths():
    seconds = [float(s) for s in np.random.default_rng(0).uniform(0.5, 20, size=500)]
    jobs = [extract_features.Job(None, Path(str(n)), s) for n, s in enumerate(seconds)]
    batches = list(extract_features.make_batches(jobs, 60.0))
    assert sorted(job.path for batch in batches for job in batch) == sorted(j.path for j in jobs)
    for batch in batches:
        padded = len(batch) * batch[0].seconds
        assert padded - sum(job.seconds for job in batch) <= 0.03 * padded
    assert len(batches) < 1.4 * sum(seconds) / 60  # three of 20 s leave room
    assert all(len(batch) == 1 or len(batch) * batch[0].seconds <= 60 for batch in batches)
    assert len(list(extract_features.make_batches(jobs, 0.1))) == 500


@pytest.mark.parametrize("manifest", ["manifest.jsonl", "nowhere.jsonl"])
def test_dry_run_writes_nothing(data, tmp_path, manifest, capfd):
    cfg = _config(data, tmp_path / "store", manifest=str(data / manifest), dry_run=True)
    _run(cfg)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    "name", ["nano", "nano-2026", "an4", "llama3_1_8b", "llama3_1_8b-2026", "qwen3_4b"]
)
def test_shipped_configs(name):
    file = ROOT / "configs" / name / "extract_features.yaml"
    assert file.read_text().startswith("# Recipe: extract_features - ")
    cfg = OmegaConf.load(file)
    assert set(cfg) <= set(extract_features.KEYS)
    extract_features.ExtractFeaturesRecipe(cfg)
    encoder = config.instantiate(cfg.encoder, device="meta")
    assert encoder.dim == (160 if "nano" in name or name == "an4" else 1024)

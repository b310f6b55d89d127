import json
import shutil
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import tiny_world
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from torchtune_speech.errors import InputError
from torchtune_speech.evaluation import ask_endpoint, ask_local, judge, parse_verdict
from torchtune_speech.evaluation._given import add_judge


def row(name="r1", question="Where?", target="In Rome.", prediction="Rome"):
    return {"id": name, "question": question, "target": target, "prediction": prediction}


def scripted(*replies):
    """An `ask` whose calls get these lists of replies in turn; `.asked` keeps the questions."""
    turns = iter(replies)

    def ask(conversations):
        ask.asked.append(conversations)
        return next(turns)

    ask.asked = []
    return ask


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("yes", True),
        ("No", False),
        ("YES.", True),
        (" \n**No**", False),
        ("_yes_", True),
        ('"yes"', True),
        ("`no`: the reference says Rome", False),
        ("Yes, there is no contradiction.", True),
        ("No, yes would be too kind.", False),
        ("- no", False),
        ("", None),
        ("...", None),
        ("Not quite", None),
        ("nothing", None),
        ("Yesterday", None),
        ("no2", None),
        ("nö", None),
        ("The answer is yes.", None),
        ("yes or no", None),
        ("yes/no", None),
        ("No or yes?", None),
        ("**yes** or **no**", None),
        ("Yes or not, it is right", True),
        ("是", None),
        ("<think>\n\n</think>\n\nyes", True),
        ("<think>Yes? The clock says noon.</think>No.", False),
        ("<think>yes", None),
    ],
)
def test_only_the_first_word_is_a_verdict(reply, verdict):
    assert parse_verdict(reply) is verdict


def test_verdicts_are_in_the_order_of_the_rows():
    ask = scripted(["Yes.", "no", "**YES**"])
    verdicts = judge([row("a"), row("b"), row("c")], ask)
    assert [(v.id, v.correct) for v in verdicts] == [("a", True), ("b", False), ("c", True)]
    assert (verdicts[2].reply, verdicts[2].prompt) == ("**YES**", "sqa_v1")
    assert len(ask.asked) == 1


def test_the_judge_reads_question_reference_and_answer():
    ask = scripted(["yes"])
    judge([row(question="Wo {answer}?", target="{0} Rom", prediction=" im {question}\n")], ask)
    system, user = ask.asked[0][0]
    assert (system["role"], user["role"]) == ("system", "user")
    assert "exactly one word, yes or no" in system["content"]
    assert user["content"].splitlines() == [
        "Question: Wo {answer}?",
        "Reference answer: {0} Rom",
        "Student's answer: im {question}",
        "",
        "Is the student's answer correct? Reply with exactly yes or no.",
    ]


def test_the_judge_reads_options_as_their_text():
    ask = scripted(["yes", "no"])
    choices = ["in April", "in May"]
    rows = [
        row(question="When?", target="B", prediction="in May") | {"choices": choices},
        row(question="When?", target="in May", prediction="(a)") | {"choices": choices},
    ]
    add_judge(rows, ask, "model", "sqa_v1")
    (asked,) = ask.asked
    said = [conversation[1]["content"] for conversation in asked]
    assert "in May" in said[0] and "Student's answer: in May" in said[0]
    assert "Reference answer: in May" in said[0] and "Student's answer: in April" in said[1]
    assert [r["scores"]["judge"] for r in rows] == [1.0, 0.0]
    assert [r["target"] for r in rows] == ["B", "in May"]  # as they were


def test_an_unclear_reply_is_asked_for_once_more():
    ask = scripted(["yes", "Hm.", "no", ""], ["No.", "yes"])
    verdicts = judge([row(name) for name in "abcd"], ask)
    assert [v.correct for v in verdicts] == [True, False, False, True]
    assert [v.reply for v in verdicts] == ["yes", "No.", "no", "yes"]
    first, second = ask.asked
    assert [len(conversation) for conversation in second] == [4, 4]
    assert second[0][:2] == first[1]
    assert second[0][2] == {"role": "assistant", "content": "Hm."}
    assert second[0][3]["role"] == "user"
    assert "neither yes nor no" in second[0][3]["content"]


def test_an_answer_without_a_verdict_is_an_error_never_a_no():
    ask = scripted(["yes", "Hm."], ["I cannot\nsay."])
    with pytest.raises(InputError) as caught:
        judge([row("a"), row("b")], ask)
    message = str(caught.value)
    assert "row 'b'" in message and r"'I cannot\nsay.'" in message and "\n" not in message


@pytest.mark.parametrize("replies", [[], ["yes"], ["yes"] * 3])
def test_missing_replies_are_an_error(replies):
    with pytest.raises(InputError, match=f"{len(replies)} replies to 2 questions"):
        judge([row("a"), row("b")], scripted(replies))


def test_nothing_to_judge_asks_nothing():
    assert judge([], scripted()) == []


def test_rows_and_prompts_that_do_not_fit():
    ask = scripted()
    with pytest.raises(InputError, match="row 'x' has no 'question'"):
        judge([{"id": "x", "target": "a", "prediction": "b"}], ask)
    with pytest.raises(InputError, match="row 1 has no 'id'"):
        judge([row(), {"question": "?", "target": "a", "prediction": "b"}], ask)
    with pytest.raises(InputError, match="row 'r1' has no 'target'"):
        judge([row(target=None)], ask)
    with pytest.raises(InputError, match="prompt: unknown 'sqa_v0'; did you mean 'sqa_v1'"):
        judge([row()], ask, prompt="sqa_v0")


# An endpoint on this machine.


@pytest.fixture
def endpoint(monkeypatch):
    """A chat endpoint that replies as `server.answer(request body)` says; keeps all requests."""
    monkeypatch.setenv("no_proxy", "*")
    waits = []
    monkeypatch.setattr("torchtune_speech.evaluation._judge_asks.time.sleep", waits.append)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.requests.append((self.path, dict(self.headers), body))
            status, headers, content = server.answer(body)
            if status is None:
                return self.connection.close()  # without a word
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self):
            server.requests.append((self.path, dict(self.headers), None))
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *words):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests, server.waits = [], waits
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def said(text):
    return 200, {}, json.dumps({"choices": [{"message": {"content": text}}]}).encode()


def in_turn(*answers):
    turns = iter(answers)
    return lambda body: next(turns)


def test_endpoint_judges(endpoint):
    endpoint.answer = lambda body: said(
        "Yes." if "Student's answer: 7" in body["messages"][1]["content"] else "no"
    )
    rows = [row(str(i), prediction=str(i % 10)) for i in range(40)]
    verdicts = judge(rows, ask_endpoint(endpoint.url, "some-model"))
    assert [v.id for v in verdicts if v.correct] == ["7", "17", "27", "37"]
    assert len(endpoint.requests) == 40
    path, headers, body = endpoint.requests[0]
    assert path == "/v1/chat/completions"
    assert "Authorization" not in headers
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("some-model", 0, 16)
    assert [message["role"] for message in body["messages"]] == ["system", "user"]


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/", "/v1/chat/completions"])
def test_endpoint_by_any_of_its_addresses(endpoint, path):
    endpoint.answer = lambda body: said("yes")
    judge([row()], ask_endpoint(endpoint.url + path, "m"))
    assert endpoint.requests[0][0] == "/v1/chat/completions"


def test_requests_are_on_their_way_at_once(endpoint):
    meeting = threading.Barrier(3, timeout=20)  # nobody gets a reply before three have asked

    def answer(body):
        meeting.wait()
        return said("yes")

    endpoint.answer = answer
    ask = ask_endpoint(endpoint.url, "m", num_threads=3)
    assert len(judge([row(str(i)) for i in range(6)], ask)) == 6


def test_load_and_broken_connections_are_tried_again(endpoint):
    endpoint.answer = in_turn((429, {}, b"slow down"), (503, {}, b""), (None, {}, b""), said("yes"))
    assert judge([row()], ask_endpoint(endpoint.url, "m"))[0].correct
    assert len(endpoint.requests) == 4
    assert endpoint.waits == [1, 2, 4]


def test_the_server_says_how_long_to_wait(endpoint):
    answers = [(429, {"Retry-After": "7"}, b""), (429, {"Retry-After": "3600"}, b""), said("no")]
    endpoint.answer = in_turn(*answers)
    assert not judge([row()], ask_endpoint(endpoint.url, "m"))[0].correct
    assert endpoint.waits == [7, 60]


def test_retries_end(endpoint):
    endpoint.answer = lambda body: (500, {}, b"out\nof memory")
    with pytest.raises(InputError, match="HTTP 500 out of memory, 3 times"):
        judge([row()], ask_endpoint(endpoint.url, "m", retries=2))
    assert Counter(path for path, *_ in endpoint.requests) == {"/v1/chat/completions": 3}


def test_a_refusal_is_final_and_hides_the_key(endpoint, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "sk-secret")
    endpoint.answer = lambda body: (401, {}, b'{"error": "wrong key sk-secret"}')
    with pytest.raises(InputError) as caught:
        judge([row()], ask_endpoint(endpoint.url, "m", api_key="JUDGE_KEY"))
    assert "HTTP 401" in str(caught.value) and "sk-secret" not in str(caught.value)
    assert endpoint.requests[0][1]["Authorization"] == "Bearer sk-secret"
    assert len(endpoint.requests) == 1


def test_the_key_does_not_follow_a_redirection(endpoint, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "sk-secret")
    endpoint.answer = lambda body: (302, {"Location": f"{endpoint.url}/elsewhere"}, b"")
    with pytest.raises(InputError, match="HTTP 404"):
        judge([row()], ask_endpoint(endpoint.url, "m", api_key="JUDGE_KEY"))
    (_, first, _), (path, second, _) = endpoint.requests
    assert "Authorization" in first
    assert path == "/elsewhere" and "Authorization" not in second


@pytest.mark.parametrize(
    "content",
    [b"<html>", b"[]", b"{}", b'{"choices": []}', b'{"choices": [{"message": {"content": 1}}]}'],
)
def test_what_is_no_chat_completion_is_refused(endpoint, content):
    endpoint.answer = lambda body: (200, {}, content)
    with pytest.raises(InputError, match="is no chat completion"):
        judge([row()], ask_endpoint(endpoint.url, "m"))


@pytest.mark.parametrize("reply", ["I am a teapot.", None])
def test_rubbish_from_an_endpoint_names_the_row(endpoint, reply):
    endpoint.answer = lambda body: said(reply)
    with pytest.raises(InputError, match="row 'r1': the reply"):
        judge([row()], ask_endpoint(endpoint.url, "m"))
    assert len(endpoint.requests) == 2, "asked once more, with the reminder"


def test_nobody_there(endpoint):
    url = "http://127.0.0.1:1"
    with pytest.raises(InputError, match=f"{url}/v1/chat/completions: .*refused, 2 times"):
        judge([row()], ask_endpoint(url, "m", retries=1))


def test_addresses_and_keys_that_cannot_work(monkeypatch):
    with pytest.raises(InputError, match="it begins with http"):
        ask_endpoint("file:///etc/passwd", "m")
    with pytest.raises(InputError) as caught:
        ask_endpoint("http://localhost", "m", api_key="sk-secret")
    assert "give the name" in str(caught.value) and "sk-secret" not in str(caught.value)
    monkeypatch.setenv("EMPTY", "")
    with pytest.raises(InputError, match="set it"):
        ask_endpoint("http://localhost", "m", api_key="EMPTY")


# A model in a folder.


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return tiny_world.make_llm(tmp_path_factory.mktemp("judge") / "llm")


def conversations(*words):
    return [
        [{"role": "system", "content": "The doctor."}, {"role": "user", "content": text}]
        for text in words
    ]


def by_hand(llm, conversation, count):
    """Greedy search, one token at a time, on one conversation."""
    tokenizer, model = AutoTokenizer.from_pretrained(llm), AutoModelForCausalLM.from_pretrained(llm)
    opened = tokenizer.apply_chat_template(
        conversation, add_generation_prompt=True, tokenize=False, return_dict=False
    )
    tokens = tokenizer(opened, add_special_tokens=False, return_tensors="pt")["input_ids"]
    start = tokens.shape[1]
    for _ in range(count):
        with torch.inference_mode():
            best = model(tokens).logits[:, -1].argmax(-1, keepdim=True)
        tokens = torch.cat([tokens, best], 1)
        if best.item() == tokenizer.eos_token_id:
            break
    return tokenizer.decode(tokens[0, start:], skip_special_tokens=True)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_local_replies_are_greedy_in_any_batch(llm, batch_size):
    asked = conversations("The doctor waits in the garden.", "Who?", "The queen works. Who sings?")
    expected = [by_hand(llm, conversation, 5) for conversation in asked]
    assert len(set(expected)) == 3, "the replies tell the conversations apart"
    replies = ask_local(llm, batch_size=batch_size, max_new_tokens=5)(asked)
    assert replies == expected


def test_a_local_model_that_talks_rubbish_fails_loudly(llm):
    with pytest.raises(InputError, match="row 'r1': the reply .* is neither yes nor no"):
        judge([row()], ask_local(llm, max_new_tokens=4))


def test_local_folders_that_cannot_judge(llm, tmp_path):
    with pytest.raises(InputError, match="no config.json"):
        ask_local(tmp_path)
    mute = shutil.copytree(llm, tmp_path / "mute")
    settings = json.loads((mute / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (mute / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match="no chat template"):
        ask_local(mute)

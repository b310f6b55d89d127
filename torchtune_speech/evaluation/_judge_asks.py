"""Where the judge's replies come from: an endpoint on the network, or a model on this machine."""

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from torchtune_speech.errors import InputError
from torchtune_speech.evaluation._judge import Ask, Conversation

_BACKOFF_S = 1.0
_LONGEST_WAIT_S = 60.0
_BUSY = 429


def ask_endpoint(
    url: str,
    model: str,
    api_key: str | None = None,
    timeout_s: float = 60,
    retries: int = 3,
    num_threads: int = 8,
    max_new_tokens: int = 16,
) -> Ask:
    """Makes an `ask` for :func:`judge` that asks an OpenAI-compatible endpoint.

    Refusals for load (429), errors of the server (5xx) and of the connection are tried again after
    1, 2, 4, ... seconds, or what the server wishes, at most a minute.

    Args:
        url: where ``/v1/chat/completions`` is: that address, ``http://HOST/v1`` or
            ``http://HOST``.
        model: name of the model there.
        api_key: name of the environment variable that holds the key, not the key; None for an
            endpoint without.
        timeout_s: longest wait for one reply.
        retries: how often a request is sent again.
        num_threads: requests on their way at once.
        max_new_tokens: longest reply; more, a thousand say, for a model that thinks before it
            replies: what stands in ``<think>...</think>`` is passed over.

    Returns:
        Conversations to replies, at temperature 0.

    Raises:
        InputError: if `url` is no such address or the variable is not set; when asking, if the
            endpoint refuses, stays out of reach or replies with something else.

    Source: https://platform.openai.com/docs/api-reference/chat

    Example:
        >>> ask = ask_endpoint("http://localhost:8000", "qwen", api_key="JUDGE_KEY")
        >>> verdicts = judge(rows, ask)
    """
    endpoint, key = _chat_completions(url), _read_key(api_key)
    send = partial(_send, endpoint, key, timeout_s=timeout_s, retries=retries)
    settings = {"model": model, "temperature": 0, "max_tokens": max_new_tokens}

    def ask(conversations: Sequence[Conversation]) -> list[str]:
        """The endpoint's reply to each conversation, several at a time."""
        bodies = [settings | {"messages": conversation} for conversation in conversations]
        with ThreadPoolExecutor(num_threads) as threads:
            replies = threads.map(send, bodies)
            return list(tqdm(replies, total=len(bodies), desc="judge", unit="answer"))

    return ask


def ask_local(
    path: str | os.PathLike[str],
    device: str = "cpu",
    batch_size: int = 8,
    max_new_tokens: int = 16,
) -> Ask:
    """Makes an `ask` for :func:`judge` that asks a model in a folder on this machine.

    Args:
        path: folder of a causal language model in Hugging Face format whose tokenizer has a chat
            template with a system turn.
        device: where it runs.
        batch_size: conversations decoded together.
        max_new_tokens: longest reply; more, a thousand say, for a model that thinks before it
            replies: what stands in ``<think>...</think>`` is passed over.

    Returns:
        Conversations to replies, decoded greedily.

    Raises:
        InputError: if the folder has no model, or its tokenizer no chat template.

    Example:
        >>> ask = ask_local("models/Llama-3.1-8B-Instruct", device="cuda")
        >>> verdicts = judge(rows, ask)
    """
    # Here, not above: importing these takes seconds that other scores do not need.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not (Path(path) / "config.json").is_file():
        raise InputError(f"{path}: no config.json; give the folder of a Hugging Face model")
    # Padded on the left: what is generated follows each conversation at once.
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left", local_files_only=True)
    if tokenizer.chat_template is None:
        raise InputError(f"{path}: the tokenizer has no chat template; use a model tuned for chat")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(path, dtype="auto", local_files_only=True)
    model = model.to(device).eval()

    @torch.inference_mode()
    def reply(batch: Sequence[Conversation]) -> list[str]:
        """The model's words to each conversation of a batch."""
        inputs = tokenizer.apply_chat_template(
            list(batch),
            add_generation_prompt=True,
            padding=True,
            return_dict=True,
            return_tensors="pt",
        ).to(device)
        # A folder's own sampling settings play no part in a greedy search, but would be warned of.
        greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        tokens = model.generate(
            **inputs,
            **greedy,
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
        )
        prompt_length = inputs["input_ids"].shape[1]
        return tokenizer.batch_decode(tokens[:, prompt_length:], skip_special_tokens=True)

    def ask(conversations: Sequence[Conversation]) -> list[str]:
        """The model's reply to each conversation, batch by batch."""
        replies = []
        with tqdm(total=len(conversations), desc="judge", unit="answer") as progress:
            for start in range(0, len(conversations), batch_size):
                replies += reply(conversations[start : start + batch_size])
                progress.update(len(replies) - start)
        return replies

    return ask


def _chat_completions(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise InputError(f"url: {url!r} is no address; it begins with http:// or https://")
    url = url.rstrip("/")
    if url.endswith("/chat/completions"):
        return url
    return url + ("" if url.endswith("/v1") else "/v1") + "/chat/completions"


def _read_key(variable: str | None) -> str | None:
    if variable is None:
        return None
    if not os.environ.get(variable):
        # Not named: somebody may have given the key itself.
        raise InputError(
            "api_key: there is no such environment variable; give the name of the one that holds "
            "the key, not the key, and set it"
        )
    return os.environ[variable]


def _send(
    endpoint: str, key: str | None, body: dict[str, Any], *, timeout_s: float, retries: int
) -> str:
    """Sends one request until there is a reply."""
    request = urllib.request.Request(
        endpoint, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    if key is not None:
        # "Unredirected": whoever the endpoint refers us to does not get the key.
        request.add_unredirected_header("Authorization", f"Bearer {key}")
    for attempt in range(retries + 1):
        wait_s = _BACKOFF_S * 2**attempt
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as response:
                return _content(response.read(), endpoint)
        except urllib.error.HTTPError as error:
            problem = f"HTTP {error.code} {_excerpt(error, key)}"
            if error.code != _BUSY and error.code < 500:
                raise InputError(f"{endpoint}: {problem}; mend the request") from None
            wished = error.headers.get("Retry-After", "")
            wait_s = float(wished) if wished.isdecimal() else wait_s
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            problem = f"{type(error).__name__} {reason}"
        if attempt < retries:
            time.sleep(min(wait_s, _LONGEST_WAIT_S))
    raise InputError(
        f"{endpoint}: {problem}, {retries + 1} times; is it running and reachable, and are "
        "num_threads not too many for it?"
    )


def _content(answer: bytes, endpoint: str) -> str:
    try:
        content = json.loads(answer)["choices"][0]["message"]["content"]
        if not isinstance(content, str | None):
            raise TypeError
        return content or ""
    except (ValueError, KeyError, IndexError, TypeError):
        raise InputError(
            f"{endpoint}: {answer[:200]!r} is no chat completion; give the address of an "
            "OpenAI-compatible endpoint"
        ) from None


def _excerpt(error: urllib.error.HTTPError, key: str | None) -> str:
    """The beginning of what an error says, in one line and without the key."""
    try:
        text = error.read().decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return error.reason
    text = " ".join(text.split()) or error.reason
    return (text.replace(key, "***") if key else text)[:200]

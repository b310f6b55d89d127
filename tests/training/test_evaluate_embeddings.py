"""Transcripts by nearest tokens, of a projector that says what it is told to."""

import torch
from tiny_world import DIM, FRAME_DIM, make_data, make_llm, make_tokenizer
from torch import nn

from torchtune_speech.datasets import transcript_dataset
from torchtune_speech.models import ProjectorWithTable
from torchtune_speech.training import Process, evaluate_embeddings

ONE = Process(torch.device("cpu"), 0, 1)
PAD = "<|reserved_special_token_1|>"


class Says(nn.Module):
    """Gives the embeddings of one list of tokens to the vectors of every utterance."""

    out_dim, in_dim = DIM, FRAME_DIM

    def __init__(self, embeddings_nd):
        super().__init__()
        self.embeddings_nd = embeddings_nd

    def forward(self, frames_td, frame_lengths_u, return_ctc=False):
        return torch.cat([self.embeddings_nd[:length] for length in frame_lengths_u.tolist()])


def test_what_is_no_text_counts_as_a_pad(tmp_path):
    llm, data = make_llm(tmp_path / "llm"), make_data(tmp_path / "data")
    dataset = transcript_dataset(
        str(data / "manifest.jsonl"),
        tokenizer=make_tokenizer(llm),
        features=str(data / "features"),
        pad_token=PAD,
        output_length=lambda frames: frames,
        normalize=lambda text, lang: "k",
        max_frames=60,
    )
    special = dataset.chat.special_tokens
    no_token = dataset.chat.vocab_size + 3  # which no tokenizer could decode
    table = torch.randn(no_token + 1, DIM, generator=torch.Generator().manual_seed(0))
    (k,) = dataset.chat.encode("k")
    said = [k, special[PAD], special["<|eot_id|>"], no_token, k, *[special[PAD]] * 50]
    model = ProjectorWithTable(Says(table[said]), table)
    scores, examples = evaluate_embeddings(model, dataset, ONE, num_samples=1, batch_size=1)
    length = dataset.lengths[0]
    assert scores["nearest_token"]["pads_found"] == (length - 2) / (length - 1)
    assert examples[0]["prediction"] == "kk"

"""Makes a tiny random XLM-R, two COMET checkpoints and a BERTScore baseline in a folder.

Run as a file by the Python of the COMET environment, which cannot import the project.
"""

import io
import shutil
import sys
from pathlib import Path

import pytorch_lightning
import sentencepiece
import torch
import yaml
from comet.models import ReferencelessRegression, RegressionMetric
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import XLMRobertaConfig, XLMRobertaModel, XLMRobertaTokenizerFast

TEXTS = """The doctor waits in the garden. The nurse sings in the library every year.
Der Arzt wartet im Garten. Die Krankenschwester singt jedes Jahr in der Bibliothek.
Il medico aspetta in giardino. The baker sells six expensive guitars on the island.
Der Bäcker verkauft sechs teure Gitarren auf der Insel. 医生在花园里等。"""


def make_tokenizer(folder: Path) -> int:
    """XLM-R's tokenizer in both its forms, the sentencepiece model and tokenizer.json."""
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS.splitlines()),
        model_writer=trained,
        vocab_size=80,
        minloglevel=2,
    )
    (folder / "sentencepiece.bpe.model").write_bytes(trained.getvalue())
    pieces = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
    # XLM-R numbers four symbols of its own in place of the first three of sentencepiece.
    vocab = [(symbol, 0.0) for symbol in ("<s>", "<pad>", "</s>", "<unk>")]
    vocab += [(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(3, len(pieces))]
    vocab += [("<mask>", 0.0)]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=3))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    XLMRobertaTokenizerFast(tokenizer_object=tokenizer, model_max_length=60).save_pretrained(folder)
    return len(vocab)


def make_encoder(folder: Path) -> None:
    """A Hugging Face folder with a random XLM-R and its tokenizer."""
    folder.mkdir(parents=True)
    config = XLMRobertaConfig(
        vocab_size=make_tokenizer(folder),
        hidden_size=32,
        num_hidden_layers=9,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
        type_vocab_size=1,
        initializer_range=0.3,
    )
    XLMRobertaModel(config).save_pretrained(folder)


def make_checkpoint(folder: Path, metric: type, encoder: Path, **changes: object) -> None:
    """`checkpoints/model.ckpt` and `hparams.yaml`, as a published COMET model has them."""
    model = metric(
        pretrained_model=str(encoder),
        hidden_sizes=[24, 12],
        layer_norm=False,
        layer_transformation="sparsemax",
        **changes,
    )
    with torch.no_grad():  # layers of unequal weight, so that the mixture of layers matters
        for i, weight in enumerate(model.layerwise_attention.scalar_parameters):
            weight.fill_(0.1 * i)
    trainer = pytorch_lightning.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.strategy.connect(model)
    trainer.save_checkpoint(folder / "checkpoints" / "model.ckpt", weights_only=True)
    # The published files name the class and nothing that the checkpoint does not hold.
    (folder / "hparams.yaml").write_text(yaml.safe_dump(dict(model.hparams)))


def publish(folder: Path, name: str, cache: Path) -> None:
    """Puts a folder into a Hugging Face cache, as if it had been downloaded by that name."""
    repository = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, repository / "snapshots" / "0123")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123")


def main(folder: Path) -> None:
    """Writes everything."""
    torch.manual_seed(0)
    make_encoder(folder / "encoder")
    make_checkpoint(folder / "regression", RegressionMetric, folder / "encoder")
    make_checkpoint(folder / "referenceless", ReferencelessRegression, folder / "encoder")
    layers = "".join(f"{i},0.{i}1,0.{i}2,0.{i}3\n" for i in range(10))
    (folder / "baseline.tsv").write_text("LAYER,P,R,F\n" + layers)
    publish(folder / "regression", "Unbabel/tiny-comet-da", folder / "hub")
    # bert_score's own choice for German, of which it takes layer 9.
    publish(folder / "encoder", "bert-base-multilingual-cased", folder / "hub")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

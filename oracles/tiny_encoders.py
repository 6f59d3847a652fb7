"""A tiny BERT-type cross-encoder with its tokenizer, and golden values of CLS pooling, of pair scores and of last-token pooling.

Pinned: python 3.11+, torch 2.15, transformers 5.23, tokenizers. Seed 5. Last-token pooling is of $ALOE_DATA/models/stories260K.
Writes crates/aloe-model/tests/golden/tiny_bert/ (config, f32 weights, tokenizer, 1_Pooling) and tiny_encoders.json beside it.
Run: ALOE_DATA=... python oracles/tiny_encoders.py
"""

import json
import os
import pathlib

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

WORDS = """which nerve supplies the diaphragm ? phrenic vagus a an of in is heart lung liver makes insulin pancreas organ what
does fever mean high temperature blood pressure drug lowers glucose metformin s . , ##s ##ing ##ed treat pain chest""".split()
QUERY = "Which nerve supplies the diaphragm?"
INPUTS = ["input_ids", "token_type_ids", "attention_mask"]
TEXTS = [
    "The phrenic nerve supplies the diaphragm.",
    "Metformin lowers blood glucose.",
    "Fever.",
    "What organ makes insulin? The pancreas makes insulin, " * 6,
]


def tokenizer():
    vocab = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(WORDS)])}
    inner = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = [("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])]
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=special
    )
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=40, model_input_names=INPUTS, **names), len(vocab)


def pool(hidden):
    return [round(float(v), 7) for v in torch.nn.functional.normalize(hidden, dim=0)]


def main():
    torch.set_num_threads(1)
    torch.manual_seed(5)
    target = pathlib.Path(__file__).parent.parent / "crates/aloe-model/tests/golden"
    folder = target / "tiny_bert"
    words, n = tokenizer()
    config = BertConfig(
        vocab_size=n, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
        max_position_embeddings=40, num_labels=1, initializer_range=0.4,
    )
    model = BertForSequenceClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    (folder / "1_Pooling").mkdir(exist_ok=True)
    pooling = {"word_embedding_dimension": 24, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))
    pairs, singles, last = [], [], []
    with torch.no_grad():
        for text in TEXTS:
            encoded = words(QUERY, text, truncation=True, max_length=40, return_tensors="pt")
            logit = float(model(**encoded).logits[0, 0])
            ids, types = encoded["input_ids"][0].tolist(), encoded["token_type_ids"][0].tolist()
            pairs.append({"text": text, "ids": ids, "types": types, "logit": round(logit, 6)})
            encoded = words(text, truncation=True, max_length=40, return_tensors="pt")
            hidden = model.bert(**encoded).last_hidden_state[0]
            singles.append({"text": text, "ids": encoded["input_ids"][0].tolist(), "embedding": pool(hidden[0])})
        stories = pathlib.Path(os.environ["ALOE_DATA"]) / "models/stories260K"
        causal = AutoModelForCausalLM.from_pretrained(stories, dtype=torch.float32, attn_implementation="eager").eval()
        for ids in ([1, 403, 407, 261], [1], [1, 261, 402, 300, 310, 320, 9]):
            hidden = causal.model(input_ids=torch.tensor([ids])).last_hidden_state[0]
            last.append({"ids": ids, "embedding": pool(hidden[-1])})
    golden = {"query": QUERY, "pairs": pairs, "singles": singles, "last": last}
    (target / "tiny_encoders.json").write_text(json.dumps(golden))
    print([pair["logit"] for pair in pairs], sum(file.stat().st_size for file in folder.rglob("*.*")))


main()

"""Small models that transformers saves and opens, with a tokenizer, made without a download."""

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

TEXT = "\n\n".join(
    f"Paragraph {i} of a text that is long enough to be cut into many runs of tokens, and says {i * i} times nothing."
    for i in range(60)
)


def tokenizer():
    """One token for each byte, and the marks of a BERT."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {word: i for i, word in enumerate(["[PAD]", "[CLS]", "[SEP]", *alphabet])}
    made = Tokenizer(models.BPE(vocab=words, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    marks = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **marks)


def llama(**settings):
    torch.manual_seed(0)
    sizes = {"vocab_size": 260, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads, **settings)).eval()


def bert(kind="BertModel"):
    torch.manual_seed(0)
    sizes = {"vocab_size": 260, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    config = transformers.BertConfig(**sizes, num_attention_heads=2, max_position_embeddings=64, num_labels=3)
    return getattr(transformers, kind)(config).eval()


def saved(model, folder, words=True):
    model.save_pretrained(folder)
    if words:
        tokenizer().save_pretrained(folder)
    return str(folder)

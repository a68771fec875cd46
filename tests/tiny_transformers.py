"""Tiny random models of the families that sharing knows."""

import torch
import transformers
from transformers import (
    AlbertConfig,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    T5Config,
)

WORDS = 60


def tiny(kind, seed=0, layers=3):
    torch.manual_seed(seed)
    heads = {"num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 64}
    if kind == "gpt2":
        config = GPT2Config(
            n_embd=32, n_layer=layers, n_head=4, vocab_size=WORDS, n_positions=64
        )
        model = transformers.GPT2LMHeadModel(config)
    elif kind == "llama":
        config = LlamaConfig(
            num_hidden_layers=layers, num_key_value_heads=2, vocab_size=WORDS, **heads
        )
        model = transformers.LlamaForCausalLM(config)
    elif kind == "bert":
        model = transformers.BertModel(
            BertConfig(num_hidden_layers=layers, vocab_size=WORDS, **heads)
        )
    elif kind == "albert":
        config = AlbertConfig(
            num_hidden_layers=layers, embedding_size=16, vocab_size=WORDS, **heads
        )
        model = transformers.AlbertForMaskedLM(config)
    else:
        model = transformers.T5ForConditionalGeneration(
            T5Config(
                d_model=32,
                d_ff=64,
                d_kv=8,
                num_heads=4,
                num_layers=layers,
                vocab_size=WORDS,
                decoder_start_token_id=0,
            )
        )
    for p in model.parameters():
        if p.ndim == 2:
            p.data.mul_(3.0)
    return model.eval()


def ids(seed=1, windows=40, length=16):
    """Windows of a Markov chain, so that there is something to predict."""
    generator = torch.Generator().manual_seed(seed)
    step = torch.randint(1, 4, (windows, length), generator=generator)
    return (step.cumsum(1) + torch.randint(0, WORDS, (windows, 1), generator=generator)) % WORDS


def logits(model, x):
    if model.config.is_encoder_decoder:
        return model(input_ids=x, decoder_input_ids=x).logits
    found = model(input_ids=x)
    return found.logits if hasattr(found, "logits") else found.last_hidden_state

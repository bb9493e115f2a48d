"""Makes DIR/model, a two-layer Llama with random weights, and DIR/lora/ad0 and ad1. usage: make_model.py DIR

The tokenizer is trained on the licences that every Debian machine has, so nothing is downloaded. What the model says is
noise; it takes requests, batches, caches and meters them like any other.
"""

import pathlib
import sys

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "<end>", "pad_token": "<pad>"}
TEMPLATE = (
    "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def make_tokenizer(folder: pathlib.Path) -> PreTrainedTokenizerFast:
    texts = [path.read_text(errors="ignore") for path in pathlib.Path("/usr/share/common-licenses").iterdir()]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1024, special_tokens=list(SPECIAL.values()), initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=4096, **SPECIAL)
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    return fast


def main(home: pathlib.Path) -> None:
    tokenizer = make_tokenizer(home / "model")
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=4096,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(home / "model")
    for seed, name in enumerate(["ad0", "ad1"]):
        torch.manual_seed(seed)
        base = LlamaForCausalLM.from_pretrained(home / "model")
        lora = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        get_peft_model(base, lora).save_pretrained(home / "lora" / name)


main(pathlib.Path(sys.argv[1]))

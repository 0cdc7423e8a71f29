"""The inputs of the stores: tiny models, a tokenizer, corpora, and a sparse autoencoder.

All of them are our own, generated with fixed seeds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

WIDTH = 16
FEATURES = 24
SAE_HOOKPOINT = "resid_post.1"
_ANIMALS = ("fox", "hare", "heron", "otter", "собака", "möwe")
_WEATHER = ("rain", "fog", "snow", "wind", "ветер", "dégel")
_DOES = ("crosses", "leaves", "finds", "follows", "forgets")
_PLACES = ("the bridge", "a narrow lane", "the mill", "an old harbour", "the 3rd field")
_HOW = ("slowly", "before noon", "without a sound", "again", "at last")
_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
)


def make(folder: Path) -> None:
    """Write ``model``, ``vision``, ``sae``, ``corpus.jsonl``, ``chat.jsonl`` and ``images``."""
    texts = write_corpora(folder)
    save_language_model(folder / "model", texts)
    save_vision_model(folder / "vision")
    save_images(folder / "images")
    save_sae(folder / "codes")


def write_corpora(folder: Path) -> list[str]:
    """Write labelled records with labelled spans, and conversations; return the records' texts."""
    rng = np.random.default_rng(12)
    texts = []
    with (folder / "corpus.jsonl").open("w", encoding="utf-8") as file:
        for i in range(28):
            kind, words = (("animals", _ANIMALS), ("weather", _WEATHER))[i % 2]
            n_sentences = 0 if i == 7 else int(rng.integers(1, 7))
            sentences, parts, at = [], [], 0
            for _ in range(n_sentences):
                subject, place = str(rng.choice(words)), str(rng.choice(_PLACES))
                sentence = f"The {subject} {rng.choice(_DOES)} {place} {rng.choice(_HOW)}."
                parts.append({"start": at + 4, "stop": at + 4 + len(subject), "label": "subject"})
                place_at = at + sentence.index(place)
                parts.append({"start": place_at, "stop": place_at + len(place), "label": "place"})
                sentences.append(sentence)
                at += len(sentence) + 1
            texts.append(" ".join(sentences))
            made = {"text": texts[-1], "meta": {"kind": kind}, "parts": parts}
            file.write(json.dumps(made, ensure_ascii=False) + "\n")
    with (folder / "chat.jsonl").open("w", encoding="utf-8") as file:
        for i in range(8):
            question = f"Who {rng.choice(_DOES)} {rng.choice(_PLACES)}?"
            answer = f"The {rng.choice(_ANIMALS)}, {rng.choice(_HOW)}."
            messages = [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ]
            file.write(json.dumps({"messages": messages[: 1 + (i != 3)]}) + "\n")
    return texts


def save_language_model(folder: Path, texts: list[str]) -> None:
    """Save a Llama of two blocks and a byte-level tokenizer, which adds ``<s>`` before a text."""
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text.replace("собака", "") for text in texts], trainer)
    start = ("<s>", tokenizer.token_to_id("<s>"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[start]
    )
    fast: Any = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", chat_template=_TEMPLATE
    )
    fast.save_pretrained(folder)
    config = transformers.LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=WIDTH,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        dtype="float32",
    )
    _drawn(transformers.LlamaForCausalLM(config), torch).save_pretrained(folder)


def save_vision_model(folder: Path) -> None:
    """Save a ViT of two blocks, with four patches per image, and its image processor."""
    import torch
    import transformers

    config = transformers.ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=16,
        patch_size=8,
        dtype="float32",
    )
    made: Any = transformers.ViTModel(config, add_pooling_layer=False)
    _drawn(made, torch).save_pretrained(folder)
    processor: Any = transformers.ViTImageProcessorPil(size={"height": 16, "width": 16})
    processor.save_pretrained(folder)


def _drawn(model: Any, torch: Any) -> Any:
    """Draw random weights, large enough that attention and position matter."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * 0.3 if parameter.ndim > 1 else 1 + noise * 0.1)
            if "bias" in name:
                parameter.copy_(noise * 0.1)
    return model.eval()


def save_images(folder: Path) -> None:
    """Save images of noise with two labels, in which red or blue is brighter."""
    from PIL import Image

    rng = np.random.default_rng(8)
    for label, channel in (("blue", 2), ("red", 0)):
        (folder / label).mkdir(parents=True)
        for i in range(5):
            pixels = rng.integers(0, 120, (9 + i, 12, 3), dtype=np.uint8)
            pixels[..., channel] += 120
            Image.fromarray(pixels).save(folder / label / f"{i}.png")


def save_sae(folder: Path) -> None:
    """Save a ReLU autoencoder in SAELens's format: feature 0 never fires, the last one always."""
    from safetensors.numpy import save_file

    rng = np.random.default_rng(4)
    encoder = rng.standard_normal((WIDTH, FEATURES)).astype(np.float32)
    weights = {
        "W_enc": encoder,
        "b_enc": rng.normal(-3, 2, FEATURES).astype(np.float32),
        "W_dec": np.ascontiguousarray(encoder.T),
        "b_dec": (rng.standard_normal(WIDTH) * 0.1).astype(np.float32),
    }
    weights["b_enc"][0], weights["b_enc"][-1] = -1e6, 40
    folder.mkdir(parents=True)
    save_file(weights, folder / "sae_weights.safetensors")
    config = {
        "d_in": WIDTH,
        "d_sae": FEATURES,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "architecture": "standard",
        "metadata": {
            "hook_name": f"blocks.{SAE_HOOKPOINT.partition('.')[2]}.hook_resid_post",
            "model_name": "fixture",
        },
    }
    (folder / "cfg.json").write_text(json.dumps(config, indent=1) + "\n")

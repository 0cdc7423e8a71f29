"""Tiny models that read images, pictures on disk, and what transformers gives for each alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from actlas.pipeline.model.config import quiet

torch.set_num_threads(1)

SIDE = 40
"""Pixels of a model's input; patches are 8 x 8."""
SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": SIDE,
    "patch_size": 8,
}
TEXT_SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 40], "depths": [1, 2, 1, 1]}
SQUARE = {"height": SIDE, "width": SIDE}
CROP = {"size": {"shortest_edge": SIDE}, "crop_size": SQUARE}


def _random(model: Any, seed: int = 0) -> Any:
    """Weights large enough that attention and position matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.3 if parameter.ndim > 1 else 0.1
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return model.eval()


def save_vision(kind: str, folder: Path) -> Any:
    """Save a tiny model with its image processor, and return it.

    ``clip`` is a model with two towers, of which the one for images is returned.
    """
    import transformers as t

    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        square: Any = t.ViTImageProcessorPil(size=SQUARE)  # type: ignore[no-untyped-call]
        crop: Any = t.CLIPImageProcessorPil(**CROP)  # type: ignore[no-untyped-call]
        made: dict[str, tuple[Any, Any]] = {
            "vit": (lambda: t.ViTModel(t.ViTConfig(**SHAPE)), square),
            "deit": (lambda: t.DeiTModel(t.DeiTConfig(**SHAPE)), square),
            "yolos": (
                lambda: t.YolosModel(
                    t.YolosConfig(**{**SHAPE, "image_size": [SIDE, SIDE]}, num_detection_tokens=5)
                ),
                square,
            ),
            "dinov2_registers": (
                lambda: t.Dinov2WithRegistersModel(t.Dinov2WithRegistersConfig(**SHAPE)),
                square,
            ),
            "clip_vision": (lambda: t.CLIPVisionModel(t.CLIPVisionConfig(**SHAPE)), crop),
            "clip": (
                lambda: t.CLIPModel(
                    t.CLIPConfig(
                        text_config={**TEXT_SHAPE, "vocab_size": 50, "hidden_size": 16},
                        vision_config=SHAPE,
                        projection_dim=8,
                    )
                ),
                crop,
            ),
            "siglip": (lambda: t.SiglipVisionModel(t.SiglipVisionConfig(**SHAPE)), square),
            "mobilenet": (lambda: t.MobileNetV2Model(t.MobileNetV2Config()), square),
            "resnet": (lambda: t.ResNetModel(t.ResNetConfig(**RESNET)), square),
        }
        build, processor = made[kind]
        model = _random(build())
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return model.vision_model if kind == "clip" else model


def picture(rng: np.random.Generator, colour: int | None = None) -> NDArray[np.uint8]:
    """Noise of a random size; of one colour channel (0 red, 2 blue) more than of the others."""
    height, width = (int(n) for n in rng.integers(20, 90, 2))
    pixels = rng.integers(0, 120, (height, width, 3), dtype=np.uint8)
    if colour is not None:
        pixels[..., colour] += 120
    return pixels


def image_folder(
    root: Path, n_each: int, labels: Sequence[str] = ("blue", "red"), seed: int = 0
) -> None:
    """Write ``root/label/i.png``: pictures in which one colour prevails."""
    rng = np.random.default_rng(seed)
    for label in labels:
        (root / label).mkdir(parents=True)
        for i in range(n_each):
            pixels = picture(rng, {"red": 0, "blue": 2}[label])
            Image.fromarray(pixels).save(root / label / f"{i:03}.png")


def states_of(model: Any, processor: Any, path: Path) -> list[NDArray[Any]]:
    """Transformers' own ``hidden_states`` of one picture alone; each [position, unit]."""
    with Image.open(path) as image:
        inputs = processor(images=[image.convert("RGB")], return_tensors="pt")
    with torch.no_grad(), quiet():
        states = model(**inputs, output_hidden_states=True).hidden_states
    return [state[0].numpy() for state in states]


def save_llava(folder: Path) -> tuple[Any, Any]:
    """Save a tiny LLaVA with its processor, the embedded model's tokenizer; return both."""
    import transformers as t

    from actlas.pipeline.model.describe import load_tokenizer

    tokenizer = load_tokenizer("builtin:actlas-6m")
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = t.LlavaConfig(
            vision_config=t.CLIPVisionConfig(**SHAPE),
            text_config=t.LlamaConfig(
                **TEXT_SHAPE,
                num_key_value_heads=2,
                vocab_size=len(tokenizer),
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            ),
            image_token_index=image_id,
            image_seq_length=(SIDE // 8) ** 2,
        )
        model = _random(t.LlavaForConditionalGeneration(config))
        crop: Any = t.CLIPImageProcessorPil(**CROP)  # type: ignore[no-untyped-call]
        processor = t.LlavaProcessor(
            image_processor=crop,
            tokenizer=tokenizer,
            patch_size=8,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
        )
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return model, processor

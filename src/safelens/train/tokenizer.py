"""Learns the byte-level BPE that all small models share, and saves it twice.

Knows how Qwen's and Florence-2's processors expect a tokenizer to look (special tokens, chat
template, attributes). Does not know what the texts are about or which model reads the result.

The two saves share every ordinary token id; only the special tokens after them differ.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QWEN_SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""Special tokens of the Qwen save, in the order of their ids (after all ordinary tokens)."""

FLORENCE_SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>", "<image>")
"""Special tokens of the Florence-2 save, in the order of their ids."""

CHAT_TEMPLATE = """\
{%- for message in messages %}
    {%- if message.role not in ['system', 'user', 'assistant'] %}
        {{- raise_exception('role must be system, user or assistant, got ' + message.role) }}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for part in message.content %}
            {%- if part.type == 'text' %}
                {{- part.text }}
            {%- elif part.type == 'video' %}
                {{- '<|vision_start|><|video_pad|><|vision_end|>' }}
            {%- elif part.type == 'image' %}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' }}
            {%- else %}
                {{- raise_exception('content type must be text, image or video, got ' + part.type) }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
"""Renders system, user and assistant turns as Qwen3-VL's own template does without tools."""

_MAX_LENGTH = 32_768


def train_tokenizer(
    texts: Iterable[str], out_dir: str | Path, vocab_size: int = 2048
) -> PreTrainedTokenizerBase:
    """Learn a byte-level BPE from `texts` and save it as a Qwen tokenizer.

    Text is cut before merging as Qwen2's tokenizer cuts it (each digit alone), so the result has
    no unknown character: a byte never seen in `texts` is its own token.

    Args:
        texts: Training texts, one or many lines each; read once.
        out_dir: Directory to write (made when missing); `AutoTokenizer.from_pretrained` reads it.
        vocab_size: Most tokens in all, including 256 bytes and the special tokens. A small corpus
            may give fewer.

    Returns:
        The saved tokenizer: `eos_token` is `<|im_end|>`, `pad_token` is `<|endoftext|>`, and the
        vision tokens are attributes (`video_token_id`, `vision_start_token_id` ...).

    Raises:
        ValueError: `vocab_size` has no room for a single merge, or `texts` is empty.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    fixed = 256 + len(QWEN_SPECIAL_TOKENS)
    if vocab_size <= fixed:
        raise ValueError(
            f"vocab_size must be more than {fixed} (bytes, special tokens): {vocab_size}"
        )

    pattern = Qwen2Tokenizer().backend_tokenizer
    learner = Tokenizer(models.BPE())
    learner.normalizer = pattern.normalizer
    learner.pre_tokenizer = pattern.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(QWEN_SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    seen = 0

    def counted() -> Iterable[str]:
        nonlocal seen
        for text in texts:
            seen += len(text)
            yield text

    learner.train_from_iterator(counted(), trainer)
    if not seen:
        raise ValueError(
            "texts holds no text: pass the captions, prompts and answers of the corpus"
        )

    vocab, merges = _bpe_parts(learner.to_str())
    tokenizer = Qwen2Tokenizer(
        vocab={**vocab, **_numbered(QWEN_SPECIAL_TOKENS, len(vocab))},
        merges=merges,
        unk_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=_MAX_LENGTH,
        extra_special_tokens={
            "im_start_token": "<|im_start|>",
            "vision_start_token": "<|vision_start|>",
            "vision_end_token": "<|vision_end|>",
            "image_token": "<|image_pad|>",
            "video_token": "<|video_pad|>",
        },
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(str(out_dir))
    return tokenizer


def florence_tokenizer(
    tokenizer_dir: str | Path, out_dir: str | Path | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer saved in `tokenizer_dir`, with the special tokens that Florence-2 needs.

    Args:
        tokenizer_dir: What `train_tokenizer` wrote.
        out_dir: Where to save the result; not saved when None.

    Returns:
        A tokenizer with `<s>`, `</s>`, `<pad>` and `<image>` (attribute `image_token`) and no
        location tokens. Ordinary ids equal those of `tokenizer_dir`; `<s> ... </s>` is added
        when special tokens are asked for.

    Raises:
        FileNotFoundError: `tokenizer_dir` holds no `tokenizer.json`.
    """
    from tokenizers import Tokenizer, models, processors
    from transformers import PreTrainedTokenizerFast

    source = Path(tokenizer_dir) / "tokenizer.json"
    if not source.is_file():
        raise FileNotFoundError(
            f"{source}: no tokenizer here; write one with train_tokenizer first"
        )
    original = Tokenizer.from_file(str(source))
    vocab, merges = _bpe_parts(original.to_str())
    ordinary = {token: i for token, i in vocab.items() if token not in QWEN_SPECIAL_TOKENS}
    backend = Tokenizer(models.BPE(vocab=ordinary, merges=merges))
    backend.normalizer = original.normalizer
    backend.pre_tokenizer = original.pre_tokenizer
    backend.decoder = original.decoder
    backend.add_special_tokens(list(FLORENCE_SPECIAL_TOKENS))
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[(token, backend.token_to_id(token)) for token in ("<s>", "</s>")],
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=1024,
        extra_special_tokens={"image_token": "<image>"},
    )
    if out_dir is not None:
        tokenizer.save_pretrained(str(out_dir))
    return tokenizer


def _bpe_parts(serialized: str) -> tuple[dict[str, int], Any]:
    """Vocabulary and merges of a serialized BPE tokenizer, without its added tokens."""
    import json

    content = json.loads(serialized)
    vocab: dict[str, int] = content["model"]["vocab"]
    merges = [(left, right) for left, right in content["model"]["merges"]]
    return vocab, merges


def _numbered(tokens: tuple[str, ...], first: int) -> dict[str, int]:
    return {token: first + offset for offset, token in enumerate(tokens)}

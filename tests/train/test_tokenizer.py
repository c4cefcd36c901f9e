import pytest
from transformers import AutoTokenizer

from safelens.train.tokenizer import QWEN_SPECIAL_TOKENS, florence_tokenizer, train_tokenizer

TEXTS = [
    f'A man in a red shirt strikes the green car, sign {n}. GUARDRAIL: {{"Abuse": false}}'
    for n in range(200)
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer") / "qwen"
    train_tokenizer(iter(TEXTS), directory, vocab_size=400)
    return directory


def test_loads_offline_and_decodes_what_it_encodes(saved):
    tokenizer = AutoTokenizer.from_pretrained(saved)
    for text in (TEXTS[0], "never seen: ß 漢字 🙂\n\ttab", "  two  spaces "):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert len(tokenizer) <= 400
    assert len(tokenizer(TEXTS[0]).input_ids) < len(TEXTS[0]) / 3


def test_digits_stand_alone(saved):
    tokenizer = AutoTokenizer.from_pretrained(saved)
    assert tokenizer.tokenize("123") == ["1", "2", "3"]


def test_special_tokens_close_the_vocabulary(saved):
    tokenizer = AutoTokenizer.from_pretrained(saved)
    ids = tokenizer.convert_tokens_to_ids(list(QWEN_SPECIAL_TOKENS))
    assert ids == list(range(len(tokenizer) - len(ids), len(tokenizer)))
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token == "<|endoftext|>"
    assert tokenizer.video_token_id == tokenizer.convert_tokens_to_ids("<|video_pad|>")


def test_chat_template(saved):
    tokenizer = AutoTokenizer.from_pretrained(saved)
    turns = [
        {"role": "system", "content": "policy"},
        {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "safe?"}]},
        {"role": "assistant", "content": "yes"},
    ]
    assert tokenizer.apply_chat_template(turns, tokenize=False) == (
        "<|im_start|>system\npolicy<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>safe?<|im_end|>\n"
        "<|im_start|>assistant\nyes<|im_end|>\n"
    )
    opened = tokenizer.apply_chat_template(turns[:2], tokenize=False, add_generation_prompt=True)
    assert opened.endswith("<|im_start|>assistant\n")
    with pytest.raises(Exception, match="content type"):
        tokenizer.apply_chat_template([{"role": "user", "content": [{"type": "audio"}]}])


def test_the_florence_save_shares_ordinary_ids(saved, tmp_path):
    florence_tokenizer(saved, tmp_path)
    qwen, florence = AutoTokenizer.from_pretrained(saved), AutoTokenizer.from_pretrained(tmp_path)
    plain = florence(TEXTS[3], add_special_tokens=False).input_ids
    assert plain == qwen(TEXTS[3]).input_ids
    framed = florence(TEXTS[3]).input_ids
    assert framed == [florence.bos_token_id, *plain, florence.eos_token_id]
    assert florence.decode(framed, skip_special_tokens=True) == TEXTS[3]
    assert florence("<image>", add_special_tokens=False).input_ids == [florence.image_token_id]
    assert not any("<loc_" in token for token in florence.get_vocab())


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="vocab_size must be more than 263"):
        train_tokenizer(TEXTS, tmp_path, vocab_size=200)
    with pytest.raises(ValueError, match="no text"):
        train_tokenizer([], tmp_path)
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        florence_tokenizer(tmp_path / "nothing")

from small_tokenizers import HARD_TEXTS, with_control_tokens

from llama_jax.data.tokenizers import Tokenizer


def test_bytes_of_tokens_laid_end_to_end_are_the_text(every_tokenizer):
    for tokenizer in every_tokenizer:
        each = tokenizer.token_bytes()
        assert len(each) == tokenizer.vocab_size
        for text in HARD_TEXTS:
            joined = b"".join(each[token] for token in tokenizer.encode(text)).decode()
            assert joined in (text, f" {text}"), type(tokenizer)


def test_every_byte_has_a_token_and_control_tokens_have_no_bytes(every_tokenizer):
    for tokenizer in every_tokenizer:
        each = tokenizer.token_bytes()
        assert {bytes([byte]) for byte in range(256)} <= {*each}
        assert all(each[token] == b"" for token in tokenizer.special_tokens.values())


def test_bytes_of_tokens_that_were_added_and_of_a_model_with_fewer_rows(json_tokenizer: Tokenizer):
    assert json_tokenizer.token_bytes()[2] == b"<think>"
    larger = with_control_tokens(json_tokenizer, ["<|call|>"])
    assert larger.token_bytes()[-1] == b""
    assert json_tokenizer._cut(300).token_bytes() == json_tokenizer.token_bytes()[:300]

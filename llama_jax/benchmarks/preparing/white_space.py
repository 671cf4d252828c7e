"""datatrove's cheapest words: what white space parts. By itself, for its worker processes to import."""

from datatrove.utils.word_tokenizers import WordTokenizer


class WhiteSpace(WordTokenizer):
    """Splits simplified text, in which nothing but words and spaces is left."""

    def word_tokenize(self, text: str) -> list[str]:
        return text.split()

    def sent_tokenize(self, text: str) -> list[str]:
        raise NotImplementedError

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        raise NotImplementedError

"""Token ids to text, one id at a time, never cutting a character."""

from __future__ import annotations

import codecs

from model.contract.tokenizer import Tokenizer


class Detokenizer:
    """Turns a stream of ids into a stream of text.

    `push` returns the text that became complete; bytes of an unfinished character wait. `flush` ends the
    stream: what is still unfinished becomes U+FFFD.

    Args:
        show_special_tokens: write control tokens by name instead of dropping them.
    """

    def __init__(self, tokenizer: Tokenizer, *, show_special_tokens: bool = False) -> None:
        self._tokenizer = tokenizer
        self._show_special_tokens = show_special_tokens
        self._is_inside = False  # between the bytes of a character
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """Returns the text this id completes, possibly empty."""
        if self._show_special_tokens and self._tokenizer.is_special(token_id):
            name = self._tokenizer.token_name(token_id)
            # A character that a control token interrupts can no longer be completed.
            return self.flush() + name if name else ""
        if not self._is_inside:
            text = self._tokenizer.token_text(token_id)
            if text is not None:
                return text
        text = self._decoder.decode(self._tokenizer.token_bytes(token_id))
        self._is_inside = bool(self._decoder.getstate()[0])
        return text

    def flush(self) -> str:
        """Returns U+FFFD for an unfinished character, else nothing; the detokenizer is new afterwards."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        self._is_inside = False
        return text

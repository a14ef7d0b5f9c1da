"""From the token ids of one choice to the pieces of text a client may see.

Ids pass the detokenizer, the parser of calls, and the stop strings, which are matched on the text that a client sees.
The text of a choice is decided here and nowhere else, for streams and for unstreamed replies alike.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from model.contract.detokenizer import Detokenizer
from model.contract.messages import SequenceOutput, TokenLogprob
from model.contract.tokenizer import Tokenizer
from prompts.reply_events import CallStart, Content, Event
from prompts.stop import StopMatcher, StopStrings
from prompts.tool_format import ReplyParser
from server.replies.token_text import TokenAligner, TokenEntry

STOP = "stop"
LENGTH = "length"
TOOL_CALLS = "tool_calls"


@dataclass(slots=True)
class ChoiceDelta:
    """New text, calls and tokens of one choice.

    Attributes:
        index: the choice's number.
        text: new text, where replies are shown as they are.
        events: new events, where a parser reads calls out of the reply.
        token_ids: ids generated since the last delta, an ending id included; not those after a stop string.
        logprobs: scores of the tokens whose text is decided on, when asked for.
        prompt_logprobs: scores of the prompt's tokens but the first, in the first delta, when asked for.
        finish_reason: None while it goes on, else "stop", "length" or "tool_calls".
        stop_reason: the stop string, or the id from `stop_token_ids`, that ended it.
    """

    index: int
    text: str = ""
    events: list[Event] | None = None
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenEntry] | None = None
    prompt_logprobs: list[TokenLogprob] | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None

    def as_events(self) -> list[Event]:
        """Returns the events, or the text as one event, which may be empty, where no parser makes events."""
        return [Content(self.text)] if self.events is None else self.events

    def extend(self, later: ChoiceDelta) -> None:
        """Appends a later delta of the same choice."""
        self.text += later.text
        if later.events is not None:
            self.events = [*(self.events or ()), *later.events]
        self.token_ids = [*self.token_ids, *later.token_ids]  # the first list is the engine message's own
        if later.logprobs is not None:
            self.logprobs = [*(self.logprobs or ()), *later.logprobs]
        self.prompt_logprobs = self.prompt_logprobs or later.prompt_logprobs
        self.finish_reason = later.finish_reason
        self.stop_reason = later.stop_reason


class ChoiceProcessor:
    """The text of one choice.

    Args:
        index: the choice's number.
        stops: strings that end it, in text that is shown; the text of a call is not searched.
        include_stop_str_in_output: leave the stop string, or the ordinary token, that ended it in the text.
        min_tokens: text of this many first tokens cannot end it.
        stop_token_ids: ids the request asked to stop at, reported as `stop_reason`.
        with_logprobs: pair the text with its tokens.
        show_special_tokens: control tokens are text, by name.
        parser: reads calls out of the text; None shows it as it is.

    Attributes:
        num_tokens: generated so far; those after a stop string do not count.
        finished: nothing more will come.
    """

    def __init__(
        self,
        index: int,
        tokenizer: Tokenizer,
        *,
        stops: StopStrings | None = None,
        include_stop_str_in_output: bool = False,
        min_tokens: int = 0,
        stop_token_ids: tuple[int, ...] = (),
        with_logprobs: bool = False,
        show_special_tokens: bool = False,
        parser: ReplyParser | None = None,
    ) -> None:
        self._index = index
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(tokenizer, show_special_tokens=show_special_tokens)
        self._show_special_tokens = show_special_tokens
        self._matcher = None if stops is None else StopMatcher(stops, include_stop_str_in_output)
        self._include_stop = include_stop_str_in_output
        self._min_tokens = min_tokens
        self._stop_token_ids = stop_token_ids
        self._aligner = TokenAligner() if with_logprobs else None
        self._parser = parser
        self._has_call = False
        self._num_chars = 0
        self._num_chars_back = 0  # given to the matcher, and not let through
        self.num_tokens = 0
        self.finished = False

    def push(self, output: SequenceOutput) -> ChoiceDelta:
        """Takes a step's output, with a finish reason of "stop" or "length", or none.

        Sets `finished`, also when a stop string was found.
        """
        delta = ChoiceDelta(self._index, "", None, output.token_ids, None, output.prompt_logprobs)
        if self._aligner is not None:
            delta.logprobs = []
        num_ids = len(output.token_ids)
        ends_by_token = output.stop_token_id is not None
        may_end = self._matcher is not None or self._parser is not None
        for position, token_id in enumerate(output.token_ids):
            is_ending = ends_by_token and position == num_ids - 1
            logprob = output.logprobs[position] if output.logprobs is not None else None
            self._read(self._push_token(token_id, is_ending, logprob), delta)
            if may_end and self._is_over():
                delta.token_ids = output.token_ids[: position + 1]
                return self._finish(delta, STOP, None)
        if output.finish_reason is None:
            if self._aligner is not None:
                delta.logprobs = self._aligner.release(self._num_chars - self._num_chars_back)
            return delta
        stopped_by = output.stop_token_id if output.stop_token_id in self._stop_token_ids else None
        return self._finish(delta, output.finish_reason, stopped_by)

    @property
    def _matched(self) -> str | None:
        return None if self._matcher is None else self._matcher.matched

    def _is_over(self) -> bool:
        """Tells whether a stop string was found, or the parser needs no more text."""
        return self._matched is not None or (self._parser is not None and self._parser.done)

    def _push_token(self, token_id: int, is_ending: bool, logprob: TokenLogprob | None) -> str:
        self.num_tokens += 1
        shown = not is_ending or self._include_stop
        if self._aligner is not None and logprob is not None:
            self._aligner.push(token_id, self._shown_bytes(token_id) if shown else None, logprob)
        return self._detokenizer.push(token_id) if shown else ""

    def _shown_bytes(self, token_id: int) -> bytes:
        if self._show_special_tokens and self._tokenizer.is_special(token_id):
            return self._tokenizer.token_name(token_id).encode()
        return self._tokenizer.token_bytes(token_id)

    def _read(self, text: str, delta: ChoiceDelta) -> None:
        self._num_chars += len(text)
        if self._parser is None:
            delta.text += text if self._matcher is None else self._match(text)
        else:
            self._add_events(self._parser.push(text), delta)

    def _match(self, text: str) -> str:
        """Returns the part of the next text that may be shown already."""
        if self._matcher is None or self.num_tokens <= self._min_tokens:
            return text
        shown = self._matcher.push(text)
        self._num_chars_back += len(text) - len(shown)
        return shown

    def _release(self) -> str:
        """Returns the text that the matcher held back, since no text follows."""
        text = "" if self._matcher is None else self._matcher.flush()
        self._num_chars_back -= len(text)
        return text

    def _add_events(self, events: list[Event], delta: ChoiceDelta) -> None:
        shown: list[Event] = []
        for event in events:
            if self._matched is not None:
                break
            if isinstance(event, Content):
                text = self._match(event.text)
                shown += [Content(text)] if text else []
                continue
            if isinstance(event, CallStart):
                self._has_call = True
                text = self._release()
                shown += [Content(text)] if text else []
            shown.append(event)
        delta.events = [*(delta.events or ()), *shown]

    def _flush(self, delta: ChoiceDelta, *, is_cut: bool) -> None:
        self._read(self._detokenizer.flush(), delta)
        if self._parser is not None:
            self._add_events(self._parser.flush(is_cut=is_cut), delta)
        if self._matched is not None:
            return
        if self._parser is None:
            delta.text += self._release()
        elif text := self._release():
            delta.events = [*(delta.events or ()), Content(text)]

    def _finish(self, delta: ChoiceDelta, finish_reason: str, stop_reason: str | int | None) -> ChoiceDelta:
        self.finished = True
        if self._matched is None:
            self._flush(delta, is_cut=finish_reason == LENGTH)
        if self._matched is not None:
            finish_reason, stop_reason = STOP, self._matched
        elif finish_reason == STOP and self._has_call and self._parser is not None:
            finish_reason = STOP if self._parser.unfinished_call else TOOL_CALLS
        delta.finish_reason = finish_reason
        delta.stop_reason = stop_reason
        if self._aligner is not None:
            delta.logprobs = self._aligner.finish(self._num_chars - self._num_chars_back)
        return delta

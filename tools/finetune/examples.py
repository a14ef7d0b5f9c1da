"""Makes token ids of conversations, and marks the learned ones: each reply behind the very prompt the server makes.

A reply is learned from where the server lets the model begin to where generation stops: an answer to the end of the
turn, a call to `Observation:`. Neighbouring replies share an example as long as the later prompt is the earlier one
with its reply; where it is not (the description of the tools moves from question to question), the next example begins.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from model.contract.tokenizer import Tokenizer
from prompts.call_results import Step, in_steps
from prompts.messages import Message
from prompts.react.line_format import OBSERVATION
from prompts.react.render import render
from prompts.segments import Segment, Special, Text
from tools.finetune.conversations import Conversation

IGNORED = -100


@dataclass(frozen=True, slots=True)
class Example:
    """One sample: token ids, and labels, which are the ids where they are learned and IGNORED elsewhere."""

    ids: list[int]
    labels: list[int]

    @property
    def num_learned(self) -> int:
        """Tokens that are learned."""
        return len(self.labels) - self.labels.count(IGNORED)


@dataclass(slots=True)
class _Draft:
    """An example while replies are added to it.

    Attributes:
        segments: the newest prompt, its open turn's text last, and the reply to it.
        learned: index of a segment -> the stretches of its text that are learned.
        ends: indices of control tokens that are learned.
    """

    segments: list[Segment] = field(default_factory=list)
    learned: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    ends: set[int] = field(default_factory=set)

    def leads_to(self, prompt: list[Segment]) -> bool:
        """Whether a prompt continues this draft."""
        *before, last = self.segments or [Text("")]
        if not self.segments or prompt[: len(before)] != before or len(prompt) <= len(before):
            return False
        found = prompt[len(before)]
        if isinstance(last, Text) and isinstance(found, Text):
            return found.text.startswith(last.text)
        return found == last

    def add(self, prompt: list[Segment], reply: str, *, ends_turn: bool, is_learned: bool) -> None:
        """Continues with a prompt, whose last segment is the open turn's text, and its reply."""
        *before, turn = prompt
        assert isinstance(turn, Text)
        begin = len(turn.text)
        self.segments = [*before, Text(turn.text + reply)]
        if is_learned:
            self.learned.setdefault(len(before), []).append((begin, begin + len(reply)))
        if ends_turn:
            self.segments.append(Special("<|im_end|>"))
            if is_learned:
                self.ends.add(len(before) + 1)

    def encode(self, tokenizer: Tokenizer) -> Example:
        """Encodes each stretch on its own, as the server encodes prompt and reply."""
        example = Example([], [])
        for index, segment in enumerate(self.segments):
            if isinstance(segment, Special):
                _append(example, [tokenizer.special_id(segment.name)], index in self.ends)
                continue
            place = 0
            for begin, end in self.learned.get(index, ()):
                _append(example, tokenizer.encode(segment.text[place:begin]), False)
                _append(example, tokenizer.encode(segment.text[begin:end]), True)
                place = end
            _append(example, tokenizer.encode(segment.text[place:]), False)
        return example


def _append(example: Example, ids: list[int], is_learned: bool) -> None:
    example.ids.extend(ids)
    example.labels.extend(ids if is_learned else [IGNORED] * len(ids))


def examples_of(conversation: Conversation, tokenizer: Tokenizer) -> Iterator[Example]:
    """Yields the examples of a conversation, at least one."""
    messages, learned = _one_call_at_a_time(conversation)
    draft = _Draft()
    for index, message in enumerate(messages):
        if message.role != "assistant":
            continue
        prompt = _with_open_turn(render(messages[:index], conversation.tools, continue_final=False).segments)
        said = _last_turn(render(messages[: index + 1], conversation.tools, open_turn=False).segments)
        before = prompt[-1]
        assert isinstance(before, Text)
        if not said.startswith(before.text):
            # What the message adds cannot be told apart from what was there: shown, not learned.
            learned.discard(index)
            prompt = [*prompt[:-1], before := Text("")]
        if draft.segments and not draft.leads_to(prompt):
            if draft.learned:
                yield draft.encode(tokenizer)
            draft = _Draft()
        reply = said[len(before.text) :] + (f"\n{OBSERVATION}" if message.calls else "")
        draft.add(prompt, reply, ends_turn=not message.calls, is_learned=index in learned)
    if draft.learned:
        yield draft.encode(tokenizer)


def _one_call_at_a_time(conversation: Conversation) -> tuple[list[Message], set[int]]:
    """Gives each call a message of its own, with its result behind it, as the server renders several calls.

    Returns:
        the messages, and the indices of the learned ones.
    """
    unlearned = [conversation.messages[index] for index in conversation.unlearned]
    skipped = {id(message) for message in unlearned} | {id(call) for message in unlearned for call in message.calls}
    messages: list[Message] = []
    learned = set()
    for said in in_steps(conversation.messages):
        if isinstance(said, Step):
            is_learned = id(said.call) not in skipped
            messages.append(Message("assistant", said.thought, calls=(said.call,)))
        else:
            is_learned = said.role == "assistant" and id(said) not in skipped
            messages.append(said)
        if is_learned:
            learned.add(len(messages) - 1)
        if isinstance(said, Step):
            messages += [Message("tool", result, tool_call_id=said.call.id) for result in said.results]
    return messages, learned


def _with_open_turn(prompt: list[Segment]) -> list[Segment]:
    """Ends a prompt with the open turn's text, an empty one where the turn has none yet."""
    opening: list[Segment] = [Special("<|im_start|>"), Text("assistant"), Text("\n")]
    return [*prompt, Text("")] if prompt[-3:] == opening else prompt


def _last_turn(segments: list[Segment]) -> str:
    """Returns the text of a conversation's last turn."""
    text = segments[-2]
    assert isinstance(text, Text)
    return text.text

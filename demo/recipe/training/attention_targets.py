"""Finds, in the text of a conversation with tools, where a few attention heads should look.

To write a call, the model looks up three things: the tool that the question asks for, the names of its parameters, and
the words of the question that are their values. The corpus knows all three places. It also knows which words of a
question occur in the description of only one tool, and when no tool fits. Teaching heads of the right layers these
places (`attention_loss.py`) teaches the look-ups long before the loss of the text could: as long as a head looks
elsewhere, a wrong word hardly says where it should have looked.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np

from demo.recipe.corpus.split import TRAIN
from demo.recipe.corpus.templates import texts
from demo.recipe.corpus.tools import related
from demo.recipe.corpus.tools.domains import domains_of, trained_lines
from demo.recipe.corpus.tools.invented import invent_domain
from demo.recipe.corpus.tools.purpose_words import NOUNS, PROPERTIES, VERBS
from demo.recipe.training.conversation_text import END, ConversationText, Place
from model.contract.tokenizer import Tokenizer

TOOL_OF_LINE, CHOSEN_TOOL, COPIED, WORD_OF_TOOL, TELLING_WORD, IDLE_WORD, DECIDED = range(7)
NOWHERE = (0, 1)  # the first token, which a head should see if there is nothing to look up
LINE_STRIDE = 3  # one in so many tokens of a tool's line gets a hint

_LINE = re.compile(rb"\n\n([^\n:]+): Call this tool to interact with the [^\n]*")
_CALL = re.compile(rb"Action: ([^\n]+)\nAction Input: ([^\n]*)\nObservation:")
_KEY = re.compile(rb'"([^"\\]+)": ')
_VALUE = re.compile(rb'"((?:[^"\\]|\\.)*)"(:?)|(?<![\w".-])(-?\d+(?:\.\d+)?)')
_ANSWER = re.compile(rb"Observation: ([^\n]*)\nThought: [^\n]*\nFinal Answer: ((?:(?!<\|im_end\|>).)*)", re.DOTALL)
_FINAL = re.compile(rb"Thought: I now know the final answer\.\nFinal Answer:")
# Where a question clearly continues with a second request.
_JOINT = re.compile("; also |[.?] (?:Then|And|Also:) |[. ]Also, | and then |，然后|还有，|另外，".encode())
_THOUGHT = len(b"Thought:")
_USER, _BEGIN = b"<|im_start|>user\n", b"Begin!\n\nQuestion: "
# Words that are too common to tell tools apart.
_IDLE = frozenset(
    "call this tool interact with the api what useful for and you your are how can does that from his her its our "
    "please hello tell give want need could would about any some there have has was were will may should me not all "
    "的 是 在 我 你 了 和 一 个 有 吗 请 这 那 它 为 多 少 什 么 一个 一下".split()
)
# A word that occurs in the questions of at most so many purposes identifies a purpose, even if no description has it.
TELLING_PURPOSES = 6
Hint = tuple[int, int, int, int, int]


def find_hints(ids: Sequence[int], tokenizer: Tokenizer) -> np.ndarray:
    """Returns hints [n, 5] int32; several with the same kind and place are alternatives.

    The columns are: kind, query position, first token to see, one past the last, and the position of the token that
    should be known afterwards, or -1.

    Args:
        ids: token ids of a whole conversation.
        tokenizer: the tokenizer of these ids.
    """
    text = ConversationText(ids, tokenizer)
    lines = {match[1]: match.span() for match in _LINE.finditer(text.bytes)}
    if not lines:
        return np.zeros((0, 5), np.int32)
    hints = list(_of_lines(text, lines))
    calls = [call for call in _CALL.finditer(text.bytes) if call[1] in lines]
    for call in calls:
        hints += _of_call(text, call, lines[call[1]])
    hints += _of_questions(text, lines, calls)
    hints += _of_decisions(text, lines, calls)
    for answer in _ANSWER.finditer(text.bytes):
        hints += _of_answer(text, answer)
    return np.array(hints, np.int32).reshape(-1, 5)


def _of_lines(text: ConversationText, lines: dict[bytes, Place]) -> Iterator[Hint]:
    for begin, end in lines.values():
        first = text.token_at(begin + 2)
        last = text.token_at(end - 1)
        for place in range(first + 2, last + 1, LINE_STRIDE):
            yield TOOL_OF_LINE, place, first, first + 1, first


def _of_call(text: ConversationText, call: re.Match[bytes], line: Place) -> Iterator[Hint]:
    name = call[1]
    token = text.token_at(_name_place(text, call))
    yield CHOSEN_TOOL, token - 1, text.token_at(line[0] + 2), text.token_at(line[1] - 1) + 1, token
    for source in text.copies(name, token, (line[0], text.bytes.rfind(_BEGIN, 0, call.start()))):
        yield COPIED, token - 1, source, source + 1, -1
    parameters = (text.bytes.find(b"Parameters: ", *line), line[1])
    for key in _KEY.finditer(text.bytes, *call.span(2)):
        token = text.token_at(key.start(1))
        for source in text.copies(key[1] + b'"', token, parameters):
            yield COPIED, token - 1, source, source + 1, -1
    question = _last_question(text, call.start())
    for value, at in _values(text, call.span(2)):
        token = text.token_at(at)
        places = text.copies(value, token, question) or text.copies(value, token, line)
        if not places and len(value) > 2:
            places = text.copies(value, token, (line[1], call.start()))[-1:]
        for source in places:
            yield COPIED, token - 1, source, source + 1, -1


def _name_place(text: ConversationText, call: re.Match[bytes]) -> int:
    """Returns where a reply first names the tool: in the thought, if there is one."""
    at = text.bytes.find(call[1], _thought_place(text, call) + _THOUGHT, call.start())
    return at if at >= 0 else call.start(1)


def _thought_place(text: ConversationText, call: re.Match[bytes]) -> int:
    return text.bytes.rfind(b"Thought: ", 0, call.start())


def _of_decisions(text: ConversationText, lines: dict[bytes, Place], calls: list[re.Match[bytes]]) -> Iterator[Hint]:
    """Yields hints for the decision between a tool and a final answer, before the words that reveal it."""
    for call in calls:
        begin, end = lines[call[1]]
        for token in _deciding(text, _thought_place(text, call)):
            yield DECIDED, token, text.token_at(begin + 2), text.token_at(end - 1) + 1, -1
    for final in _FINAL.finditer(text.bytes):
        for token in _deciding(text, final.start()):
            yield DECIDED, token, *NOWHERE, -1
            yield TELLING_WORD, token, *NOWHERE, -1


def _deciding(text: ConversationText, thought: int) -> range:
    """Returns tokens at "Thought:" where a call and an answer look alike (`I should` and `I now` share one more)."""
    says_i = text.bytes.startswith(b" I ", thought + _THOUGHT)
    return range(text.token_at(thought + _THOUGHT - 1), text.token_at(thought + _THOUGHT + (3 if says_i else 1)))


def _of_questions(text: ConversationText, lines: dict[bytes, Place], calls: list[re.Match[bytes]]) -> Iterator[Hint]:
    """Yields hints for the words of questions: which tool a word belongs to, if to only one."""
    descriptions = {name: (line[0], text.bytes.find(b" Parameters: ", *line)) for name, line in lines.items()}
    owners: dict[str, dict[bytes, list[int]]] = {}
    for name, place in descriptions.items():
        for token, word in _words(text, place):
            owners.setdefault(word, {}).setdefault(name, []).append(token)
    header_end = text.bytes.rfind(_BEGIN)
    begin = header_end + len(_BEGIN)
    while begin > header_end >= 0:  # a truncated conversation may have no question
        end = text.bytes.find(END, begin)
        if end < 0:
            return
        following = text.bytes.find(_USER, begin)
        limit = following if following >= 0 else len(text.bytes)
        mine = [call for call in calls if begin < call.start() < limit]
        parts = _parts(text, (begin, end), mine)
        telling: dict[bytes, list[int]] = {}
        for token, word in _words(text, (begin, end)):
            places = owners.get(word, {})
            asked = next((name for (low, high), name in parts if low <= text.starts[token] < high), b"")
            if not places and asked and word in _purposeful():
                telling.setdefault(asked, []).append(token)
                first = text.token_at(lines[asked][0] + 2)
                yield WORD_OF_TOOL, token, first, text.token_at(descriptions[asked][1] - 1) + 1, first
            elif not places:
                yield IDLE_WORD, token, *NOWHERE, -1
            elif len(places) == 1 and word not in _IDLE:
                ((name, sources),) = places.items()
                telling.setdefault(name, []).append(token)
                for source in sources:
                    yield WORD_OF_TOOL, token, source, source + 1, text.token_at(lines[name][0] + 2)
        for call in mine:
            decisions = [*_deciding(text, _thought_place(text, call)), text.token_at(_name_place(text, call)) - 1]
            for token in telling.get(call[1], []):
                for decision in decisions:
                    yield TELLING_WORD, decision, token, token + 1, -1
        begin = following + len(_USER) if following >= 0 else -1


def _parts(text: ConversationText, question: Place, calls: list[re.Match[bytes]]) -> list[tuple[Place, bytes]]:
    """Returns which part of a question asks for which tool, as far as that is clear."""
    begin, end = question
    if len(calls) == 1:
        return [(question, calls[0][1])]
    joints = list(_JOINT.finditer(text.bytes, begin, end))
    if len(calls) != 2 or len(joints) != 1:
        return []
    return [((begin, joints[0].start()), calls[0][1]), ((joints[0].end(), end), calls[1][1])]


def _words(text: ConversationText, within: Place) -> Iterator[tuple[int, str]]:
    """Yields tokens that end a word, with the word in lower case, in the tables' English where they translate it."""
    meanings, same = {}, related.meanings()[0]
    for match in _chinese().finditer(text.bytes, *within):
        meanings[text.token_at(match.end() - 1)] = _meaning()[match[0]]
    for token in range(text.token_at(within[0]), text.token_at(within[1] - 1) + 1):
        word = meanings.get(token, text.words[token])
        word = same.get(word, word)
        if len(word) > 2 or any(ord(c) > 0x2E80 and c.isalnum() for c in word):
            yield token, word


@lru_cache(maxsize=1)
def _meaning() -> dict[bytes, str]:
    """Maps Chinese verbs, nouns and properties of invented tools to the first word of the English ones."""
    others = {zh.encode(): en for zh, en in related.meanings()[1].items()}
    return others | {zh.encode(): en.split()[0] for en, zh in (*VERBS, *NOUNS, *PROPERTIES)}


@lru_cache(maxsize=1)
def _chinese() -> re.Pattern[bytes]:
    escaped: list[bytes] = [re.escape(word) for word in _meaning()]
    escaped.sort(key=len, reverse=True)
    return re.compile(b"|".join(escaped))


def _values(text: ConversationText, within: Place) -> Iterator[tuple[bytes, int]]:
    """Yields the strings (except keys) and numbers of a piece of JSON, with their positions."""
    for match in _VALUE.finditer(text.bytes, *within):
        if match[3]:
            yield match[3], match.start(3)
        elif match[1] and not match[2]:
            yield match[1], match.start(1)


def _of_answer(text: ConversationText, answer: re.Match[bytes]) -> Iterator[Hint]:
    values = [value for value, _ in _values(text, answer.span(1))]
    if answer[1][:1] not in b'[{"':  # not JSON: reported verbatim
        values = [answer[1].rstrip(b".")]
    for value in values:
        at = text.bytes.find(value, *answer.span(2))
        if at < 0 or len(value) < 2:
            continue
        token = text.token_at(at)
        for source in text.copies(value, token, answer.span(1)):
            yield COPIED, token - 1, source, source + 1, -1


def _last_question(text: ConversationText, before: int) -> Place:
    begin = max(text.bytes.rfind(lead, 0, before) + len(lead) for lead in (_BEGIN, _USER))
    return begin, text.bytes.find(END, begin, before)


@lru_cache(maxsize=1)
def _purposeful() -> frozenset[str]:
    """Returns words that occur in the training questions of few purposes only; in Chinese, one or two characters."""
    domains = domains_of(TRAIN)
    for number in range(20):  # words that invented purposes have in common count for many purposes
        domains[f"invented {number}"] = invent_domain(random.Random(number), TRAIN)
    asked = {key: [line for mark in "qQ" for line in trained_lines(d.lines[mark])] for key, d in domains.items()}
    purposes: dict[str, set[str]] = {}
    for key, lines in (asked | related.properties()).items():
        for said in (piece.lower() for line in lines for piece in texts(line)):
            found = re.findall(r"[a-z]{3,}", said)
            for run in re.findall(r"[\u4e00-\u9fff]+", said):
                found += [*run, *map("".join, pairwise(run))]
            for word in found:
                purposes.setdefault(word, set()).add(key)
    return frozenset(word for word, keys in purposes.items() if len(keys) <= TELLING_PURPOSES) - _IDLE

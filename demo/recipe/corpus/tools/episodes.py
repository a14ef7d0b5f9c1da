"""Kinds of conversations with tools: one call, none, two, chained ones, many turns."""

from __future__ import annotations

import random

from demo.recipe.corpus.chat.exchanges import plain_exchange
from demo.recipe.corpus.document import DEFAULT_SYSTEM, Document
from demo.recipe.corpus.tools import results
from demo.recipe.corpus.tools.domains import all_domains
from demo.recipe.corpus.tools.invented import commander
from demo.recipe.corpus.tools.questions import Request, polite
from demo.recipe.corpus.tools.react import Episode, call_spans, final_span, header
from demo.recipe.corpus.tools.results import Result
from demo.recipe.corpus.tools.tools import Tool
from demo.recipe.corpus.values import Value


def system_text(rng: random.Random) -> str:
    """A system message that changes nothing."""
    if rng.random() < 0.85:
        return DEFAULT_SYSTEM
    return rng.choice(
        [
            "You are terse.",
            "You are a helpful AI.",
            "你是一个有用的助手。",
            "Be polite.",
            "Use the tools when they help.",
            "You are a friendly agent.",
        ]
    )


def single(episode: Episode, after: float = 0.75) -> Document:
    """One question and one call, mostly with its result and the answer."""
    rng = episode.rng
    request = episode.request()
    question = polite(request.question, rng, episode.lang)
    doc = Document("tools").system(system_text(rng)).user(*header(episode.tools), question)
    if rng.random() > after:
        return doc.assistant(*call_spans(request, episode.lang, None, True))
    result = episode.result(request.tool)
    said = rng.choice([None, None, None, ""])  # a client may send a call back without its thought
    spans = call_spans(request, episode.lang, result, True, said)
    doc.assistant(*spans, final_span(result.answer, False))
    return doc


def no_call(episode: Episode) -> Document:
    """A question that none of the tools fits."""
    question, answer = episode.unfit()
    return (
        Document("tools no call")
        .system(system_text(episode.rng))
        .user(*header(episode.tools), question)
        .assistant(final_span(answer, True))
    )


def _then(first: str, second: str, lang: str, rng: random.Random) -> str:
    first = first.rstrip(".。")
    if first[-1] in "?？":
        return (
            first
            + (
                rng.choice([" And ", " Then ", " Also: ", " "])
                if lang == "en"
                else rng.choice(["", "另外，", "还有，"])
            )
            + second
        )
    if second[1:2].islower() and not second.startswith("I "):
        second = second[0].lower() + second[1:]
    joint = (
        [", and ", ". Then ", " and then ", "; also ", " Also, "]
        if lang == "en"
        else ["，然后", "，再", "，还有，", "。另外，"]
    )
    return first + rng.choice(joint) + second


def two_calls(episode: Episode) -> Document:
    """Two requests in one question, with one call after the other."""
    rng, lang = episode.rng, episode.lang
    first = episode.request()
    others = [t for t in episode.tools if t is not first.tool]
    second = episode.request(rng.choice(others) if others else first.tool)
    doc = (
        Document("tools two calls")
        .system(system_text(rng))
        .user(*header(episode.tools), _then(first.question, second.question, lang, rng))
    )
    one, two = episode.result(first.tool, 0.02), episode.result(second.tool, 0.02)
    spans = [*call_spans(first, lang, one, True), *call_spans(second, lang, two, False)]
    return doc.assistant(
        *spans, final_span(f"{one.answer} {two.answer}" if lang == "en" else one.answer + two.answer, False)
    )


_LOOKUPS = {
    "email": "email address/邮箱",
    "phone": "phone number/电话",
    "city": "city/城市",
    "user": "username/用户名",
    "order": "order number/订单号",
    "url": "website/网址",
}


def chained(episode: Episode) -> Document:
    """The second call needs the result of the first."""
    rng, lang = episode.rng, episode.lang
    carriers = [(t, p) for t in episode.tools for p in t.parameters if p.required and p.slot.key in _LOOKUPS]
    if not carriers:
        return two_calls(episode)
    target, parameter = rng.choice(carriers)
    en, zh = _LOOKUPS[parameter.slot.key].split("/")
    domain = commander(rng, episode.split)
    domain.key, domain.nouns, domain.verbs = (
        f"lookup_{parameter.slot.key}",
        [en.replace(" ", "_")],
        ["get", "find", "lookup"],
    )
    domain.human, domain.human_zh, domain.slots = en.capitalize(), zh, ["person!"]
    domain.lines = {
        "d": [f"(Get|Find|Look up) the {en} of a person."],
        "D": [f"(查询|获取)某人的{zh}"],
        "q": [f"(find|get|look up) the {en} of {{person}}"],
        "Q": [f"(查一下|查找|获取){{person}}的{zh}"],
    }
    lookup = episode.add_tool(domain)
    if lookup is None:
        return two_calls(episode)
    rng.shuffle(episode.tools)
    first = episode.request(lookup)
    found = episode.request(target).values.get(parameter.template_name)
    if found is None:
        return two_calls(episode)
    it = rng.choice(["it", f"that {en}", f"this {en}"]) if lang == "en" else rng.choice([f"这个{zh}", f"该{zh}"])
    second = episode.request(target, {parameter.template_name: Value(found.data, it)})
    text = results.shown(found.data)
    observation = rng.choice([text, f'{{"{parameter.name}": "{text}"}}', f'{{"result": "{text}"}}'])
    one, two = Result(observation, ""), episode.result(target, 0.02)
    doc = (
        Document("tools chained")
        .system(system_text(rng))
        .user(*header(episode.tools), _then(first.question, second.question, lang, rng))
    )
    return doc.assistant(
        *call_spans(first, lang, one, True), *call_spans(second, lang, two, False), final_span(two.answer, False)
    )


def _follow_up(request: Request, episode: Episode) -> Request:
    """A short follow-up with one value changed, or a new question."""
    rng = episode.rng
    names = [n for n, v in request.values.items() if isinstance(v.data, str) and v.surface]
    if len(names) != 1 or rng.random() < 0.4:
        return episode.request(request.tool if rng.random() < 0.4 else None)
    fresh = episode.request(request.tool)
    if list(fresh.values) != names:
        return fresh
    surface = fresh.values[names[0]].surface
    forms = [f"And {surface}?", f"What about {surface}?", f"How about {surface}?", f"The same for {surface}."]
    if episode.lang == "zh":
        forms = [f"那{surface}呢？", f"{surface}呢？", f"换成{surface}呢？"]
    return Request(request.tool, rng.choice(forms), fresh.arguments, fresh.values)


def conversation(episode: Episode) -> Document:
    """Plain turns, then the header with the tools, then several turns.

    The server moves the header along as turns are added, so many turns after one header are rare in service. But they
    give several times as many calls for one reading of the header.
    """
    rng, lang = episode.rng, episode.lang
    doc = Document("tools conversation").system(system_text(rng))
    for _ in range(rng.choice([0, 0, 0, 1, 2])):
        question, answer = plain_exchange(rng, lang, episode.split)
        doc.user(question).assistant(final_span(answer, True, 0.0))
    request: Request | None = None
    for turn in range(rng.choice([2, 3, 4, 5, 6, 8])):
        lead = header(episode.tools) if turn == 0 else []
        if rng.random() < 0.25:
            question, answer = episode.unfit()
            doc.user(*lead, question).assistant(final_span(answer, True))
            continue
        request = _follow_up(request, episode) if request else episode.request()
        result = episode.result(request.tool)
        doc.user(*lead, request.question if turn else polite(request.question, rng, lang))
        doc.assistant(*call_spans(request, lang, result, True), final_span(result.answer, False))
    return doc


def drill(episode: Episode) -> Document:
    """Many questions, each followed only by its call.

    No client sends this. But choosing a tool and filling in its arguments takes longest to learn, and here one
    reading of the header is followed by three times as many calls as elsewhere.
    """
    rng, lang = episode.rng, episode.lang
    doc = Document("tools drill").system()
    unasked: list[Tool] = []
    for turn in range(rng.randint(5, 12)):
        lead = header(episode.tools) if turn == 0 else []
        if rng.random() < 0.18:
            question, answer = episode.unfit()
            doc.user(*lead, question).assistant(final_span(answer, True))
            continue
        # Prefer tools that were not called yet: a second call could copy from the first.
        unasked = unasked or rng.sample(episode.tools, len(episode.tools))
        request = episode.request(unasked.pop())
        doc.user(*lead, polite(request.question, rng, lang)).assistant(*call_spans(request, lang, None, True))
    return doc


def calculator(episode: Episode) -> Document:
    """Sums with a calculator among the tools: it must be called, however easy the sum."""
    rng, lang = episode.rng, episode.lang
    tool = episode.add_tool(all_domains()["calculator"])
    rng.shuffle(episode.tools)
    doc = Document("tools calculator").system(system_text(rng))
    for turn in range(rng.choice([1, 1, 2, 3])):
        request = episode.request(tool if rng.random() < 0.75 else None)
        result = episode.result(request.tool)
        doc.user(*(header(episode.tools) if turn == 0 else []), polite(request.question, rng, lang))
        doc.assistant(*call_spans(request, lang, result, True), final_span(result.answer, False))
    return doc

"""The shapes of conversations with tools: one call, none, several, one after the other, many turns, sums."""

from __future__ import annotations

import random

from demo.recipe.corpus import values
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
    """One question, one call, and mostly its result and the answer."""
    rng = episode.rng
    request = episode.request()
    question = polite(request.question, rng, episode.lang)
    doc = Document("tools").system(system_text(rng)).user(*header(episode.tools), question)
    if rng.random() > after:
        return doc.assistant(*call_spans(request, episode.lang, None, True))
    result = episode.result(request.tool)
    said = rng.choice([None, None, None, ""])  # a client may hand back a call without its thought
    spans = call_spans(request, episode.lang, result, True, said)
    doc.assistant(*spans, final_span(result.answer, False))
    return doc


def no_call(episode: Episode) -> Document:
    """A question that no tool is for."""
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
    """Two things asked at once, one call after the other."""
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
    """The second call needs what the first brought."""
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
    """The same again with one thing changed, said briefly; else a fresh question."""
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
    """Plain turns, the header, and several turns after it.

    The server moves the header along as turns are added; so many turns behind one header are seldom served, but they
    give several times as many calls to learn from for the same reading.
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
    """One question after the other, each with its call and nothing more.

    No client sends this; but choosing a tool and filling it in is what takes longest to learn, and here a reading of
    the header is followed by three times as many calls as anywhere else.
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
        # A tool called for the first time is what clients ask for; a second call can lean on the first.
        unasked = unasked or rng.sample(episode.tools, len(episode.tools))
        request = episode.request(unasked.pop())
        doc.user(*lead, polite(request.question, rng, lang)).assistant(*call_spans(request, lang, None, True))
    return doc


def calculator(episode: Episode) -> Document:
    """Sums with a calculator at hand: it is the one to ask, however easy the sum."""
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


_MATH = {
    "add": ("+", "add plus sum addition", "Add two numbers.", "两数相加"),
    "subtract": ("-", "subtract minus difference", "Subtract b from a.", "两数相减"),
    "multiply": ("*", "multiply times product", "Multiply two numbers.", "两数相乘"),
}


def math_tools(rng: random.Random, split: str) -> Document:
    """The tools every agent tutorial begins with: sums of two numbers, perhaps one after the other."""
    lang = "zh" if rng.random() < 0.35 else "en"
    keys = rng.sample(list(_MATH), rng.choice([1, 2, 2, 3]))
    tools: dict[str, tuple[Tool, list[str]]] = {}
    params = rng.choice([["a", "b"], ["x", "y"], ["first", "second"], ["num1", "num2"], ["left", "right"]])
    kind = rng.choice(["integer", "number"])
    for key in keys:
        domain = commander(rng, split)
        domain.key = key
        name = rng.choice(
            [key, key, f"{key}_numbers", rng.choice(_MATH[key][1].split()), f"{values.pseudo_word(rng)}_{key}"]
        )
        description = _MATH[key][2] if lang == "en" or rng.random() < 0.5 else _MATH[key][3]
        tool = Tool(domain, name, name, description, [])
        schema = {"type": "object", "properties": {p: {"type": kind} for p in params}, "required": params}
        tool.schema = lambda schema=schema: schema  # type: ignore[method-assign,misc]
        tools[key] = (tool, params)
    episode_tools = [t for t, _ in tools.values()]

    def request(key: str, a: int, b: int) -> tuple[Request, int]:
        value = {"+": a + b, "-": a - b, "*": a * b}[_MATH[key][0]]
        return Request(tools[key][0], "", dict(zip(params, (a, b), strict=True)), {}), value

    a, b, c = (rng.choice([rng.randint(1, 20), rng.randint(1, 200), rng.randint(10, 9999)]) for _ in range(3))
    first, second = rng.choice(keys), rng.choice(keys)
    one, value = request(first, a, b)
    if lang == "en":
        question = {
            "add": [f"What is {a} + {b}?", f"What is {a} plus {b}?", f"Add {a} and {b}", f"the sum of {a} and {b}"],
            "subtract": [f"What is {a} - {b}?", f"What is {a} minus {b}?", f"Subtract {b} from {a}"],
            "multiply": [
                f"What is {a} * {b}?",
                f"What is {a} times {b}?",
                f"Multiply {a} by {b}",
                f"Multiply {a} and {b}",
            ],
        }
        more = {"add": f"add {c}", "subtract": f"subtract {c}", "multiply": f"multiply by {c}"}
    else:
        question = {
            "add": [f"{a}加{b}等于多少？", f"{a}+{b}等于几？", f"计算{a}加{b}"],
            "subtract": [f"{a}减{b}等于多少？", f"{a}-{b}是多少？"],
            "multiply": [f"{a}乘以{b}等于多少？", f"{a}*{b}是多少？", f"计算{a}乘{b}"],
        }
        more = {"add": f"再加{c}", "subtract": f"再减{c}", "multiply": f"再乘以{c}"}
    text = rng.choice(question[first])
    doc = Document("tools math").system(system_text(rng))
    spans = call_spans(one, lang, Result(_shown_number(value, rng), ""), True)
    if rng.random() < 0.5:
        two, value = request(second, value, c)
        text = text.rstrip("?？") + (
            rng.choice([", then ", " and then ", ". Then "]) + more[second]
            if lang == "en"
            else rng.choice(["，", "，然后"]) + more[second]
        )
        spans += call_spans(two, lang, Result(_shown_number(value, rng), ""), False)
    doc.user(*header(episode_tools), text)
    return doc.assistant(*spans, final_span(f"The result is {value}." if lang == "en" else f"结果是{value}。", False))


def _shown_number(value: int, rng: random.Random) -> str:
    return rng.choice([str(value), str(value), f'{{"result": {value}}}'])

"""Sample rows for a demo, a load test or a benchmark: believable, reproducible, endless.

Row `number` of a resource depends on (resource, seed, number) alone: the first 100 rows of a
thousand are the 100 rows of a hundred, and a stream may start anywhere. Numbers start at 1 and
ids carry the number, not the seed (`session-0000001`): loading another seed changes the contents
of the same rows, so it is an update of (nearly) all of them and not a second set.

The rows of one seed fit together. A session, its messages and its memories share user, agent,
topic and wording, and nobody speaks before the day they were created:

- messages are the messages of session 1, then those of session 2 and so on, in order
- memories 4k + 1 to 4k + 3 come from session k + 1; memory 4k + 4 belongs to no session
- users and agents are drawn with a skew (Zipf-Mandelbrot) from a population that grows with the
  session's number (`population`): a small load is not thinned out over 10,000 users

Dates lie in the year before 2026-11-01, never now: the output is the same on every day.
"""

import hashlib
import struct
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from functools import lru_cache
from itertools import count, islice
from typing import Any, NamedTuple

import msgspec

from agentmem_site.samples.texts import (
    AMOUNTS,
    BLOCK_LABELS,
    CANCELLATIONS,
    CHANNELS,
    COMPANIES,
    FIRST_NAMES,
    FOLLOW_UPS,
    JOBS,
    LAST_NAMES,
    LEADS,
    LEVELS,
    LOCALES,
    LOOKING,
    MEMORY_TYPES,
    MESSAGES_BEFORE,
    MODELS,
    MONTHS,
    OPENERS,
    PLANS,
    PROBLEMS,
    REGIONS,
    ROLES,
    RUN_STATUS,
    SCENARIOS,
    SCOPES,
    SHAPES,
    TAILS,
    TIMEZONES,
    TOOLS,
    TURN_CHOICES,
    WEEKDAYS,
    Scenario,
)

Row = dict[str, Any]
Draw = Callable[[], int]  # the next of a row's 16-bit random numbers

USERS = 10_000
AGENTS = 200
DAYS = 365
FIRST_DAY = date(2025, 11, 1)

# ------------------------------------------------------------------------------------ drawing

DRAWS = struct.Struct("<64H")
SCENARIOS_OF = {
    topic: tuple(s for s in SCENARIOS if s.topic == topic) for topic in {s.topic for s in SCENARIOS}
}
DATES = tuple(FIRST_DAY + timedelta(days=day) for day in range(DAYS))
DATE_TEXTS = tuple(f"{day.day} {MONTHS[day.month - 1]} {day.year}" for day in DATES)
DAY_STAMPS = tuple(f"{day.isoformat()}T" for day in DATES)
MINUTE_STAMPS = tuple(f"{minute // 60:02}:{minute % 60:02}:" for minute in range(1440))
SECOND_STAMPS = tuple(f"{second:02}Z" for second in range(60))
# People talk to agents by day; an hour stands here as often as its share of the talks.
HOURS = tuple(
    hour for hour, share in enumerate("111001246789678988765432") for _ in range(int(share))
)


def _draws(resource: str, seed: int, number: int) -> Draw:
    """The 64 random 16-bit numbers of one row, the next with each call."""
    # A hash, not a generator: it needs no state from the row before, and seeding
    # random.Random for each row costs three times as much.
    digest = hashlib.shake_128(f"{resource} {seed} {number}".encode()).digest(DRAWS.size)
    return iter(DRAWS.unpack(digest)).__next__


def _skewed(draw: Draw, population: int) -> int:
    """A number of 1..population; the probability falls as 1 / (number + 2)."""
    uniform = (draw() << 16 | draw()) / 2**32
    return 1 + int(3 * (1 + population / 3) ** uniform - 3)


def _stamp(second: int) -> str:
    """ISO 8601 of a second counted from the first day's midnight, UTC."""
    day, rest = divmod(second, 86400)
    return f"{DAY_STAMPS[day]}{MINUTE_STAMPS[rest // 60]}{SECOND_STAMPS[rest % 60]}"


def _second_of_day(draw: Draw) -> int:
    return HOURS[draw() % len(HOURS)] * 3600 + draw() % 3600


def population(session: int) -> tuple[int, int]:
    """How many users and agents may take part in sessions 1 to `session`."""
    return min(USERS, 25 + session // 10), min(AGENTS, len(ROLES) + session // 500)


# ------------------------------------------------------------------------------------- people


class _User(NamedTuple):
    first: str
    name: str
    day: int  # created on


class _Agent(NamedTuple):
    name: str
    topic: str
    provider: str
    model: str
    day: int


@lru_cache(maxsize=USERS)
def _user(seed: int, number: int) -> _User:
    draw = _draws("users", seed, number)
    first = FIRST_NAMES[draw() % len(FIRST_NAMES)]
    last = LAST_NAMES[draw() % len(LAST_NAMES)]
    # Squared: most users were there early, so that their sessions can spread over the year.
    return _User(first, f"{first} {last}", int(300 * (draw() / 65536) ** 2))


@lru_cache(maxsize=AGENTS)
def _agent(seed: int, number: int) -> _Agent:
    draw = _draws("agents", seed, number)
    round_, place = divmod(number - 1, len(ROLES))
    name, _, topic, _ = ROLES[place]
    if round_:
        name = f"{name} {REGIONS[(round_ - 1) % len(REGIONS)]}"
    if round_ > len(REGIONS):
        name = f"{name} {(round_ - 1) // len(REGIONS) + 1}"
    return _Agent(name, topic, *MODELS[draw() % len(MODELS)], draw() % 45)


def _user_id(number: int) -> str:
    return f"user-{number:05}"


def _agent_id(number: int) -> str:
    return f"agent-{number:03}"


def _session_id(number: int) -> str:
    return f"session-{number:07}"


def _users(seed: int, start: int) -> Iterator[Row]:
    for number in count(start):
        user = _user(seed, number)
        draw = _draws("users.more", seed, number)
        ascii_name = unicodedata.normalize("NFKD", user.name.lower().replace("ø", "o"))
        address = ascii_name.encode("ascii", "ignore").decode().replace(" ", ".")
        created = user.day * 86400 + _second_of_day(draw)
        row: Row = {
            "external_id": _user_id(number),
            "name": user.name,
            "email": f"{address}{number}@example.com",
            "timezone": TIMEZONES[draw() * draw() * len(TIMEZONES) >> 32],
            "metadata": {
                "company": COMPANIES[draw() % len(COMPANIES)],
                "job": JOBS[draw() % len(JOBS)],
                "plan": PLANS[draw() % len(PLANS)],
            },
            "created_at": _stamp(created),
            "updated_at": _stamp(created + draw() * 80),
        }
        chance = draw() % 16
        if chance == 0:
            row["status"] = "inactive"
        elif chance < 12:
            row["status"] = "active"
        if draw() % 12 == 0:
            del row["email"]
        yield row


def _agents(seed: int, start: int) -> Iterator[Row]:
    for number in count(start):
        agent = _agent(seed, number)
        draw = _draws("agents.more", seed, number)
        _, agent_type, topic, purpose = ROLES[(number - 1) % len(ROLES)]
        tools = [name for name, _, _, tag in TOOLS if tag == topic]
        created = agent.day * 86400 + _second_of_day(draw)
        row: Row = {
            "external_id": _agent_id(number),
            "name": agent.name,
            "agent_type": agent_type,
            "description": f"{agent.name}: {purpose}.",
            "system": (
                f"You are {agent.name}, an agent that {purpose}. Be brief and friendly, ask when "
                "something is unclear, use your tools before you guess, and store what will "
                "matter next time in memory."
            ),
            "topic": topic,
            "llm_config": {
                "provider": agent.provider,
                "model": agent.model,
                "temperature": draw() % 11 / 10,
                "max_tokens": (1024, 2048, 4096)[draw() % 3],
            },
            "tool_rules": [
                {"type": "run_first" if place == 0 else "optional", "tool_name": name}
                for place, name in enumerate(tools[: draw() % 3])
            ],
            "metadata": {"team": topic, "release": f"{1 + draw() % 4}.{draw() % 10}"},
            "created_at": _stamp(created),
            "updated_at": _stamp(created + draw() * 300),
        }
        if draw() % 3:
            row["embedding_config"] = {"model": "all-MiniLM-L6-v2", "dim": 384}
        if draw() % 4 == 0:
            row["mcp_tools"] = [{"server": f"{topic}-mcp", "tool": name} for name in tools]
        if draw() % 2:
            row["state"] = ("idle", "idle", "idle", "running", "paused")[draw() % 5]
        yield row


def _blocks(seed: int, start: int) -> Iterator[Row]:
    for number in count(start):
        draw = _draws("blocks", seed, number)
        label = BLOCK_LABELS[draw() % len(BLOCK_LABELS)]
        users, agents = population(number)
        user_number = _skewed(draw, users)
        user, agent = _user(seed, user_number), _agent(seed, 1 + draw() % agents)
        scenarios = SCENARIOS_OF[agent.topic]
        scenario = scenarios[draw() % len(scenarios)]
        day = max(user.day, agent.day)
        slots = _slots(scenario, user.first, day, draw)
        core, working, context = (
            scenario.memories[MEMORY_TYPES.index(kind)].format_map(slots)
            for kind in ("core", "working", "contextual")
        )
        if label == "persona":
            value = (
                f"I am {agent.name}. I help with {agent.topic}, keep answers short, say so when I "
                "do not know something, and remember what people tell me about themselves."
            )
        elif label == "style":
            value = (
                "Plain words, short paragraphs, no emojis. Numbers with their units, dates with "
                f"the day of the week. Ask at most one question at a time about {agent.topic}."
            )
        elif label == "project":
            value = f"{scenario.title.format_map(slots)}. {working} {context}"
        elif label == "human":
            job, company = JOBS[draw() % len(JOBS)], COMPANIES[draw() % len(COMPANIES)]
            value = f"Name: {user.name}. Work: {job} at {company}. {core}"
        else:
            value = f"{core} {context}"
        created = day * 86400 + _second_of_day(draw)
        row: Row = {
            "external_id": f"block-{number:05}",
            "label": label,
            "value": value,
            "description": f"What {agent.name} keeps in view about: {label}.",
            "metadata": {"topic": agent.topic},
            "created_at": _stamp(created),
            "updated_at": _stamp(created + draw() * 80),
        }
        if label not in ("persona", "style"):
            row["user_id"] = _user_id(user_number)
        if draw() % 3 == 0:
            row["limit"] = (1000, 2000, 4000, 5000)[draw() % 4]
        if label == "persona" and draw() % 3 == 0:
            row["is_template"] = True
            row["template_name"] = f"{agent.topic}-persona"
        if label == "style":
            row["read_only"] = True
        yield row


def _tools(seed: int, start: int) -> Iterator[Row]:
    for number in count(start):
        draw = _draws("tools", seed, number)
        round_, place = divmod(number - 1, len(TOOLS))
        base, description, arguments, tag = TOOLS[place]
        name = f"{base}_v{round_ + 1}" if round_ else base
        names = arguments.split()
        source_type = ("python", "python", "json", "mcp")[draw() % 4]
        created = draw() % 120 * 86400 + _second_of_day(draw)
        row: Row = {
            "name": name,
            "description": description,
            "json_schema": {
                "name": name,
                "description": description,
                "parameters": {
                    "type": "object",
                    "properties": {argument: {"type": "string"} for argument in names},
                    "required": names[: 1 + draw() % len(names)],
                },
            },
            "source_type": source_type,
            "tags": sorted({tag, ("read", "write", "beta", "internal")[draw() % 4]}),
            "metadata": {"owner": f"{tag}-team", "release": f"{1 + draw() % 4}.{draw() % 10}"},
            "created_at": _stamp(created),
            "updated_at": _stamp(created + draw() * 200),
        }
        if source_type == "python":
            # `from` is an argument of some tools and a keyword of Python.
            parameters = ", ".join(f"{argument}_: str" for argument in names)
            row["source_code"] = (
                f'def {name}({parameters}) -> dict:\n    """{description}"""\n'
                f'    return client.post("/{tag}/{base}", json=locals())\n'
            )
        yield row


# -------------------------------------------------------------------------------------- talks


class _Talk(NamedTuple):
    """What a session, its messages and its memories have in common."""

    draw: Draw
    number: int
    user_number: int
    user: _User
    agent_number: int
    agent: _Agent
    scenario: Scenario
    slots: dict[str, str]
    second: int


def _slots(scenario: Scenario, first: str, day: int, draw: Draw) -> dict[str, str]:
    slots = {key: pool[draw() % len(pool)] for key, pool in scenario.pools.items()}
    slots["first"] = first
    slots["number"] = str(10_000 + draw())
    slots["date"] = DATE_TEXTS[day]
    slots["weekday"] = WEEKDAYS[draw() % 7]
    slots["month"] = MONTHS[draw() % 12]
    slots["amount"] = AMOUNTS[draw() % len(AMOUNTS)]
    return slots


def _talk(resource: str, seed: int, number: int, session: int) -> _Talk:
    """Draw who talks about what, with the population of session `session`."""
    draw = _draws(resource, seed, number)
    users, agents = population(session)
    user_number, agent_number = _skewed(draw, users), _skewed(draw, agents)
    user, agent = _user(seed, user_number), _agent(seed, agent_number)
    scenarios = SCENARIOS_OF[agent.topic]
    scenario = scenarios[draw() % len(scenarios)]
    # The last day stays free: runs follow the start of a session, and none may pass the year.
    first_day = max(user.day, agent.day) + 1
    day = first_day + draw() % (DAYS - 1 - first_day)
    slots = _slots(scenario, user.first, day, draw)
    second = day * 86400 + _second_of_day(draw)
    return _Talk(draw, number, user_number, user, agent_number, agent, scenario, slots, second)


def _runs(talk: _Talk) -> tuple[list[Row], list[int], int]:
    """The runs of a session, the second each of them starts, and the second the last one ends."""
    draw, scenario, slots = talk.draw, talk.scenario, talk.slots
    shape = SHAPES[(talk.number - 1) % len(SHAPES)]
    choices = TURN_CHOICES[len(shape)]
    model = talk.agent.model
    runs: list[Row] = []
    starts: list[int] = []
    second = ended = talk.second
    asked: tuple[str, ...] = OPENERS
    tokens = 400  # the system prompt; each run sends the conversation so far again
    for place, (kind, turn) in enumerate(
        zip(shape, choices[draw() % len(choices)], strict=True), 1
    ):
        question, answer = scenario.turns[2 * turn : 2 * turn + 2]
        chance = draw()
        question = asked[chance % len(asked)] + question.format_map(slots)
        asked = FOLLOW_UPS
        messages: list[Row] = [{"role": "user", "content": question}]
        run: Row = {
            "run_id": f"run-{talk.number:07}-{place}",
            "status": RUN_STATUS[kind],
            "started_at": _stamp(second),
            "model": model,
            "messages": messages,
        }
        tokens += len(question) // 4
        # Room for four messages, one a second.
        ended = second + 4 + chance % 20
        if kind == "p" or kind == "t":
            if kind == "t":
                call = f"call_{talk.number:07}_{place}"
                arguments = {
                    key: text.format_map(slots) for key, text in scenario.arguments.items()
                }
                result = {key: text.format_map(slots) for key, text in scenario.result.items()}
                messages.append(
                    {
                        "role": "assistant",
                        "content": LOOKING[chance % len(LOOKING)],
                        "tool_calls": [_tool_call(call, scenario.tool, arguments)],
                    }
                )
                messages.append(
                    {
                        "role": "tool",
                        "content": msgspec.json.encode(result).decode(),
                        "name": scenario.tool,
                        "tool_call_id": call,
                    }
                )
                run["events"] = [{"event": "tool_call", "tool": scenario.tool, "ok": True}]
            answer = (LEADS[chance // 8 % len(LEADS)] + answer).format_map(slots)
            messages.append({"role": "assistant", "content": answer})
            run["content"] = answer
            run["completed_at"] = _stamp(ended)
            output = len(answer) // 4
            run["metrics"] = {
                "input_tokens": tokens,
                "output_tokens": output,
                "total_tokens": tokens + output,
                "duration_ms": (ended - second) * 1000 - chance % 997,
            }
            tokens += output
        elif kind == "f":
            problem = PROBLEMS[chance % len(PROBLEMS)]
            run["completed_at"] = _stamp(ended)
            run["events"] = [{"event": "error", "code": problem}]
            run["metadata"] = {"error": problem, "retryable": chance % 2 == 0}
        elif kind == "c":
            run["completed_at"] = _stamp(ended)
            run["cancellation_reason"] = CANCELLATIONS[chance % len(CANCELLATIONS)]
        runs.append(run)
        starts.append(second)
        second = ended + 20 + draw() % 400
    return runs, starts, ended


def _tool_call(call: str, tool: str, arguments: dict[str, str]) -> Row:
    function = {"name": tool, "arguments": msgspec.json.encode(arguments).decode()}
    return {"id": call, "type": "function", "function": function}


def _sessions(seed: int, start: int) -> Iterator[Row]:
    for number in count(start):
        talk = _talk("sessions", seed, number, number)
        runs, _, ended = _runs(talk)
        draw, agent, slots = talk.draw, talk.agent, talk.slots
        title = talk.scenario.title.format_map(slots)
        created_at, updated_at = _stamp(talk.second), _stamp(ended)
        row: Row = {
            "session_id": _session_id(number),
            "agent_id": _agent_id(talk.agent_number),
            "user_id": _user_id(talk.user_number),
            "name": title,
            "metadata": {
                "channel": CHANNELS[draw() % len(CHANNELS)],
                "locale": LOCALES[draw() % len(LOCALES)],
                "topic": agent.topic,
            },
            "state": {"step": len(runs), "reference": slots["number"], "due": slots["weekday"]},
            "agent_data": {
                "name": agent.name,
                "model": {"provider": agent.provider, "id": agent.model},
            },
            "runs": runs,
            "created_at": created_at,
            "updated_at": updated_at,
        }
        chance = draw() % 32
        if chance == 0:
            # A team has no single agent.
            del row["agent_id"], row["agent_data"]
            row["team_id"] = f"team-{agent.topic}"
        elif chance == 1:
            row["workflow_id"] = f"{agent.topic}-intake"
        if chance > 7:
            total = sum(run["metrics"]["total_tokens"] for run in runs if "metrics" in run)
            row["summary"] = {
                "content": f"{talk.user.first} and {agent.name} talked about: {title}.",
                "run_count": len(runs),
                "total_tokens": total,
                "created_at": updated_at,
            }
        yield row


def _messages(seed: int, start: int) -> Iterator[Row]:
    cycle, offset = divmod(start - 1, MESSAGES_BEFORE[-1])
    place = bisect_right(MESSAGES_BEFORE, offset) - 1
    number, skip = start, offset - MESSAGES_BEFORE[place]
    for session in count(cycle * len(SHAPES) + place + 1):
        talk = _talk("sessions", seed, session, session)
        session_id, user_id = _session_id(session), _user_id(talk.user_number)
        agent_id, agent_name = _agent_id(talk.agent_number), talk.agent.name
        runs, starts, _ = _runs(talk)
        for run, started in zip(runs, starts, strict=True):
            for second, message in enumerate(run["messages"], started):
                if skip:
                    skip -= 1
                    continue
                role, text = message["role"], message["content"]
                row: Row = {
                    "external_id": f"message-{number:08}",
                    "session_id": session_id,
                    "run_id": run["run_id"],
                    "agent_id": agent_id,
                    "user_id": user_id,
                    "role": role,
                    "text": text,
                    "created_at": _stamp(second),
                }
                if role == "assistant":
                    row["model"] = run["model"]
                    row["name"] = agent_name
                    if "tool_calls" in message:
                        row["tool_calls"] = message["tool_calls"]
                elif role == "tool":
                    row["name"] = message["name"]
                    row["tool_call_id"] = message["tool_call_id"]
                else:
                    row["name"] = talk.user.first
                    row["content"] = [{"type": "text", "text": text}]
                    row["metadata"] = {"length": len(text), "topic": talk.agent.topic}
                yield row
                number += 1


def _memories(seed: int, start: int) -> Iterator[Row]:
    group, skip = divmod(start - 1, 4)
    number = start
    for session in count(group + 1):
        talk = _talk("sessions", seed, session, session)
        draw = _draws("memories", seed, session)
        first_kind = draw()
        for place in range(4):
            chance, weight, tail = draw(), draw(), draw()
            if skip:
                skip -= 1
                continue
            kind = MEMORY_TYPES[(first_kind + 3 * place) % len(MEMORY_TYPES)]
            if place == 3:
                talk = _talk("memories.alone", seed, session, session)
            scenario, slots = talk.scenario, talk.slots
            tails = TAILS[kind]
            content = f"{scenario.memories[MEMORY_TYPES.index(kind)]} {tails[tail % len(tails)]}"
            second = talk.second + 3600 + 60 * place
            row: Row = {
                "external_id": f"memory-{number:08}",
                "agent_id": _agent_id(talk.agent_number),
                "content": content.format_map(slots),
                "memory_type": kind,
                "created_at": _stamp(second),
                "updated_at": _stamp(second + chance % 3600),
            }
            scope = SCOPES.get(kind, "user")
            # What holds for everybody belongs to no user.
            if scope != "organization":
                row["user_id"] = _user_id(talk.user_number)
            if place < 3:
                row["session_id"] = _session_id(session)
            elif scope == "session":
                scope = "user"
            if chance % 8:
                row["scope"] = scope
                row["level"] = LEVELS.get(kind, "operational")
            if chance % 9:
                row["importance"] = weight % 101 / 100
            if chance % 5:
                row["metadata"] = {"topic": scenario.topic, "reference": slots["number"]}
            if kind == "episodic":
                row["speaker"] = talk.user.name
                row["context"] = f"{talk.agent.name}: {scenario.turns[1].format_map(slots)}"
            yield row
            number += 1


RESOURCES: dict[str, Callable[[int, int], Iterator[Row]]] = {
    "users": _users,
    "agents": _agents,
    "blocks": _blocks,
    "tools": _tools,
    "sessions": _sessions,
    "messages": _messages,
    "memories": _memories,
}


def rows(resource: str, *, seed: int = 0, start: int = 1) -> Iterator[Row]:
    """The rows of a resource from number `start` on, without end."""
    if start < 1:
        raise ValueError(f"Rows are numbered from 1, not from {start}.")
    return RESOURCES[resource](seed, start)


def lines(resource: str, *, row_count: int, seed: int = 0, start: int = 1) -> Iterator[bytes]:
    """`row_count` rows as JSON lines, in pieces of up to 256 whole lines."""
    if row_count < 0:
        raise ValueError(f"The number of rows cannot be negative: {row_count}.")
    encoder = msgspec.json.Encoder()
    stream = islice(rows(resource, seed=seed, start=start), row_count)
    while piece := list(islice(stream, 256)):
        yield encoder.encode_lines(piece)

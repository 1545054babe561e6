"""LoCoMo dialogues as rows for bulk_upsert, and their questions.

`python -m tests.benchmarks.locomo.convert FILE OUTDIR` writes sessions.jsonl, messages.jsonl and
memories.jsonl. The dialogues are CC BY-NC 4.0: the rows made of them stay out of this repository.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

Row = dict[str, Any]
Conversation = dict[str, Any]  # one item of the file: conversation, qa, sample_id


class DialogueError(Exception):
    """The dialogue is not in the form that LoCoMo has."""


class Question(NamedTuple):
    question: str
    answer: str | None  # None for an adversarial question: the dialogue does not tell
    evidence: list[str]  # dia_ids of the turns that hold the answer, each one once
    category: int  # 1 multi-hop, 2 temporal, 3 open-domain, 4 single-hop, 5 adversarial


class Session(NamedTuple):
    number: int
    started_at: datetime
    turns: list[Row]


def conversation_id(conversation: Conversation, position: int) -> str:
    """`sample_id`, or conv-<position> (from 1) where there is none."""
    return str(conversation.get("sample_id") or f"conv-{position}")


def questions(conversation: Conversation) -> Iterator[Question]:
    for qa in conversation.get("qa", []):
        yield Question(
            question=qa["question"],
            answer=str(qa["answer"]) if "answer" in qa else None,
            evidence=repair_evidence(qa.get("evidence", [])),
            category=qa["category"],
        )


def repair_evidence(evidence: Sequence[str]) -> list[str]:
    """The dia_ids meant: "D8:6; D9:17" is two, "D:11:26" is D11:26, "D30:05" is D30:5, "D" none."""
    found = (
        f"D{int(session)}:{int(turn)}"
        for text in evidence
        for session, turn in re.findall(r"D:?(\d+):(\d+)", text)
    )
    return list(dict.fromkeys(found))


def dialogue_sessions(conversation: Conversation) -> Iterator[Session]:
    """The sessions in the order of their numbers. A date without turns (it happens) is none.

    Raises: DialogueError for a session without a date, or with one that cannot be read.
    """
    dialogue = conversation["conversation"]
    numbers = (re.fullmatch(r"session_(\d+)", key) for key in dialogue)
    for number in sorted(int(match[1]) for match in numbers if match):
        text = dialogue.get(f"session_{number}_date_time", "")
        try:
            started_at = datetime.strptime(text, "%I:%M %p on %d %B, %Y").replace(tzinfo=UTC)
        except ValueError as error:
            raise DialogueError(
                f"session_{number}_date_time is {text!r}, not like '1:56 pm on 8 May, 2023'."
            ) from error
        yield Session(number, started_at, dialogue[f"session_{number}"])


def session_rows(conversation: Conversation, name: str) -> Iterator[Row]:
    dialogue = conversation["conversation"]
    speakers = [dialogue["speaker_a"], dialogue["speaker_b"]]
    for session in dialogue_sessions(conversation):
        ended_at = session.started_at + timedelta(seconds=max(0, len(session.turns) - 1))
        yield {
            "session_id": _session_id(name, session),
            "user_id": name,
            "name": f"{' and '.join(speakers)}, session {session.number}",
            "metadata": {
                "source": "locomo",
                "session": session.number,
                "speakers": speakers,
                "turns": len(session.turns),
            },
            "created_at": _stamp(session.started_at),
            "updated_at": _stamp(ended_at),
        }


def message_rows(conversation: Conversation, name: str) -> Iterator[Row]:
    """One message per turn. Raises: DialogueError for a speaker who is neither a nor b."""
    dialogue = conversation["conversation"]
    roles = {dialogue["speaker_b"]: "assistant", dialogue["speaker_a"]: "user"}
    for session in dialogue_sessions(conversation):
        for second, turn in enumerate(session.turns):
            speaker = turn["speaker"]
            if speaker not in roles:
                raise DialogueError(f"{turn['dia_id']}: {speaker!r} is no speaker of {name}.")
            metadata = {"source": "locomo", "dia_id": turn["dia_id"]}
            if turn.get("blip_caption"):
                metadata["photo"] = turn["blip_caption"]
            yield {
                "external_id": f"{name}:{turn['dia_id']}",
                "session_id": _session_id(name, session),
                "user_id": name,
                "role": roles[speaker],
                "name": speaker,
                "text": turn["text"],
                "metadata": metadata,
                "created_at": _stamp(session.started_at + timedelta(seconds=second)),
            }


def memory_rows(conversation: Conversation, name: str) -> Iterator[Row]:
    """One memory per turn; its context is what was said just before in the same session."""
    for session in dialogue_sessions(conversation):
        context = None
        for second, turn in enumerate(session.turns):
            row: Row = {
                "external_id": f"{name}:{turn['dia_id']}",
                "user_id": name,
                "session_id": _session_id(name, session),
                "speaker": turn["speaker"],
                "content": _content(turn),
                "metadata": {"source": "locomo", "dia_id": turn["dia_id"]},
                "created_at": _stamp(session.started_at + timedelta(seconds=second)),
            }
            if context is not None:
                row["context"] = context
            context = f"{turn['speaker']}: {turn['text']}"
            yield row


def convert(conversations: Sequence[Conversation], directory: Path) -> dict[str, int]:
    """Writes the three files into `directory` (created if missing); returns the rows of each.

    Raises: DialogueError, before anything is written, when two conversations share an id.
    """
    names = [conversation_id(each, place) for place, each in enumerate(conversations, 1)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DialogueError(f"More than one conversation is called {', '.join(twice)}.")
    directory.mkdir(parents=True, exist_ok=True)
    written = {}
    for resource, rows in (
        ("sessions", session_rows),
        ("messages", message_rows),
        ("memories", memory_rows),
    ):
        written[resource] = 0
        with (directory / f"{resource}.jsonl").open("wb") as file:
            for name, conversation in zip(names, conversations, strict=True):
                for row in rows(conversation, name):
                    file.write(msgspec.json.encode(row) + b"\n")
                    written[resource] += 1
    return written


def _session_id(name: str, session: Session) -> str:
    return f"{name}:session_{session.number}"


def _content(turn: Row) -> str:
    if not turn.get("blip_caption"):
        return str(turn["text"])
    return f"{turn['text']} (shares a photo: {turn['blip_caption']})".lstrip()


def _stamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Turn LoCoMo dialogues into bulk_upsert files.")
    parser.add_argument("file", type=Path, help="JSON list of LoCoMo conversations")
    parser.add_argument("outdir", type=Path, help="folder for the three .jsonl files")
    options = parser.parse_args(arguments)
    try:
        written = convert(msgspec.json.decode(options.file.read_bytes()), options.outdir)
    except (OSError, msgspec.DecodeError, DialogueError) as error:
        parser.exit(1, f"{error}\n")
    for resource, rows in written.items():
        sys.stdout.write(f"{options.outdir / resource}.jsonl: {rows}\n")


if __name__ == "__main__":
    main()

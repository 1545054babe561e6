import os
from copy import deepcopy
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.benchmarks.locomo.convert import DialogueError, convert, main, questions, repair_evidence

ROOT = Path(__file__).resolve().parents[2]
REAL_FILE = Path(os.environ.get("AGENTMEM_DEV_DATA") or ROOT.parent / "shared/data/locomo_dev.json")

DIALOGUE: dict[str, Any] = {
    "sample_id": "tea",
    "conversation": {
        "speaker_a": "Alice",
        "speaker_b": "Bob",
        # Ten sorts before two as text: the order of the rows must be that of the numbers.
        "session_10_date_time": "12:05 am on 1 March, 2024",
        "session_10": [{"speaker": "Bob", "dia_id": "D10:1", "text": "The kettle is fixed."}],
        "session_2_date_time": "1:07 pm on 29 February, 2024",
        "session_2": [
            {"speaker": "Bob", "dia_id": "D2:1", "text": "My kettle broke."},
            {
                "speaker": "Alice",
                "dia_id": "D2:2",
                "text": "Take mine!",
                "blip_caption": "a red kettle",
                "img_url": ["https://example.com/kettle.jpg"],
            },
            {"speaker": "Bob", "dia_id": "D2:3", "text": "Thanks."},
        ],
        "session_11_date_time": "1:00 pm on 2 March, 2024",
    },
    "qa": [
        {"question": "What broke?", "answer": "the kettle", "evidence": ["D2:1"], "category": 4},
        {"question": "How many?", "answer": 1, "evidence": ["D2:01; D10:1"], "category": 1},
        {
            "question": "Whose cup?",
            "adversarial_answer": "Bob's",
            "evidence": ["D"],
            "category": 5,
        },
    ],
}


def dialogue(**over: Any) -> dict[str, Any]:
    copy = deepcopy(DIALOGUE)
    copy["conversation"] |= over
    return copy


def read(directory: Path, resource: str) -> list[dict[str, Any]]:
    lines = (directory / f"{resource}.jsonl").read_bytes().splitlines()
    return [msgspec.json.decode(line) for line in lines]


def test_a_session_per_dialogue_session(tmp_path: Path) -> None:
    assert convert([dialogue()], tmp_path) == {"sessions": 2, "messages": 4, "memories": 4}
    assert read(tmp_path, "sessions") == [
        {
            "session_id": "tea:session_2",
            "user_id": "tea",
            "name": "Alice and Bob, session 2",
            "metadata": {
                "source": "locomo",
                "session": 2,
                "speakers": ["Alice", "Bob"],
                "turns": 3,
            },
            "created_at": "2024-02-29T13:07:00Z",
            "updated_at": "2024-02-29T13:07:02Z",
        },
        {
            "session_id": "tea:session_10",
            "user_id": "tea",
            "name": "Alice and Bob, session 10",
            "metadata": {
                "source": "locomo",
                "session": 10,
                "speakers": ["Alice", "Bob"],
                "turns": 1,
            },
            "created_at": "2024-03-01T00:05:00Z",
            "updated_at": "2024-03-01T00:05:00Z",
        },
    ]


def test_a_message_per_turn(tmp_path: Path) -> None:
    convert([dialogue()], tmp_path)
    messages = read(tmp_path, "messages")
    assert [(row["external_id"], row["role"], row["name"], row["text"]) for row in messages] == [
        ("tea:D2:1", "assistant", "Bob", "My kettle broke."),
        ("tea:D2:2", "user", "Alice", "Take mine!"),
        ("tea:D2:3", "assistant", "Bob", "Thanks."),
        ("tea:D10:1", "assistant", "Bob", "The kettle is fixed."),
    ]
    assert [row["created_at"] for row in messages] == [
        "2024-02-29T13:07:00Z",
        "2024-02-29T13:07:01Z",
        "2024-02-29T13:07:02Z",
        "2024-03-01T00:05:00Z",
    ]
    assert messages[1]["metadata"]["photo"] == "a red kettle"
    assert messages[3]["session_id"] == "tea:session_10"
    assert {row["user_id"] for row in messages} == {"tea"}


def test_a_memory_per_turn_with_what_was_said_before(tmp_path: Path) -> None:
    convert([dialogue()], tmp_path)
    memories = read(tmp_path, "memories")
    assert [(row["speaker"], row["content"], row.get("context")) for row in memories] == [
        ("Bob", "My kettle broke.", None),
        ("Alice", "Take mine! (shares a photo: a red kettle)", "Bob: My kettle broke."),
        ("Bob", "Thanks.", "Alice: Take mine!"),
        ("Bob", "The kettle is fixed.", None),
    ]
    # Absent, not null: a line is the whole row, and an absent field takes its default.
    assert "context" not in memories[0]
    assert [row["external_id"] for row in memories] == [
        row["external_id"] for row in read(tmp_path, "messages")
    ]
    assert {(row["user_id"], row["session_id"]) for row in memories} == {
        ("tea", "tea:session_2"),
        ("tea", "tea:session_10"),
    }


def test_a_conversation_without_a_name_is_called_by_its_place(tmp_path: Path) -> None:
    unnamed = dialogue()
    del unnamed["sample_id"]
    convert([dialogue(), unnamed], tmp_path)
    assert read(tmp_path, "memories")[-1]["external_id"] == "conv-2:D10:1"


def test_questions_are_repaired() -> None:
    assert list(questions(DIALOGUE)) == [
        ("What broke?", "the kettle", ["D2:1"], 4),
        ("How many?", "1", ["D2:1", "D10:1"], 1),
        ("Whose cup?", None, [], 5),
    ]


@pytest.mark.parametrize(
    ("evidence", "repaired"),
    [
        (["D1:3", "D2:4"], ["D1:3", "D2:4"]),
        (["D8:6; D9:17"], ["D8:6", "D9:17"]),
        (["D:11:26"], ["D11:26"]),
        (["D30:05"], ["D30:5"]),
        (["D"], []),
        (["D1:10 D1:12"], ["D1:10", "D1:12"]),
        (["D4:2", "D4:02"], ["D4:2"]),
        ([], []),
    ],
)
def test_evidence_is_repaired(evidence: list[str], repaired: list[str]) -> None:
    assert repair_evidence(evidence) == repaired


def test_two_conversations_of_one_name_are_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    with pytest.raises(DialogueError, match=r"More than one conversation is called tea\."):
        convert([dialogue(), dialogue()], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_date_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    message = r"session_2_date_time is '2024-02-29', not like '1:56 pm on 8 May, 2023'\."
    with pytest.raises(DialogueError, match=message):
        convert([dialogue(session_2_date_time="2024-02-29")], tmp_path)


def test_a_speaker_who_does_not_take_part_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DialogueError, match=r"D2:1: 'Bob' is no speaker of tea\."):
        convert([dialogue(speaker_b="Mallory")], tmp_path)


def test_the_command_line_reports_what_it_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.json").write_bytes(msgspec.json.encode([DIALOGUE]))
    main([str(tmp_path / "in.json"), str(tmp_path / "out")])
    assert [line.rsplit("/", 1)[1] for line in capsys.readouterr().out.splitlines()] == [
        "sessions.jsonl: 2",
        "messages.jsonl: 4",
        "memories.jsonl: 4",
    ]


def test_the_command_line_names_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path / "absent.json"), str(tmp_path / "out")])
    assert stopped.value.code == 1
    assert "No such file or directory" in capsys.readouterr().err


@pytest.mark.skipif(
    not REAL_FILE.is_file(),
    reason=f"the development dialogues are not at {REAL_FILE} (set AGENTMEM_DEV_DATA)",
)
def test_the_development_dialogues(tmp_path: Path) -> None:
    conversations = msgspec.json.decode(REAL_FILE.read_bytes())
    written = convert(conversations, tmp_path)
    turns = sum(
        len(value)
        for each in conversations
        for value in each["conversation"].values()
        if isinstance(value, list)
    )
    assert written["messages"] == written["memories"] == turns > 0
    assert written["sessions"] == len({row["session_id"] for row in read(tmp_path, "memories")})
    known = {row["external_id"] for row in read(tmp_path, "memories")}
    assert len(known) == turns
    asked = 0
    for each in conversations:
        for question in questions(each):
            asked += 1
            assert {f"{each['sample_id']}:{dia_id}" for dia_id in question.evidence} <= known
    assert asked == sum(len(each["qa"]) for each in conversations)

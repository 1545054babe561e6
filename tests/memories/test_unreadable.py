"""Texts that the encoder cannot read have no vector: they are found by their words, and never
duplicates."""

import io
from uuid import uuid4

import pytest
from django.core.management import call_command

from accounts.tenancy import tenant
from memories.embeddings import MIN_KNOWN_SHARE, get_encoder
from memories.models import CachedVector, Memory, content_hash
from memories.services.embedding import embed, keep_vectors
from tests.api.conftest import client_with
from tests.bulk.loading import load
from tests.makers import make_memory, make_user

STRANGERS = {
    "Thai": ("ฉันแพ้ถั่วลิสงอย่างรุนแรง", "ประชุมวันจันทร์เวลาเก้าโมงเช้า"),
    "Thai, dated": ("2024-05-12: ฉันแพ้ถั่วลิสง!", "2024-05-12: ประชุมวันจันทร์!"),
    "Khmer": ("ខ្ញុំចូលចិត្តកាហ្វេ", "ប្រជុំនៅថ្ងៃច័ន្ទ"),
    "Lao": ("ຂ້ອຍມັກກາເຟ", "ປະຊຸມວັນຈັນ"),
    "Burmese": ("ကျွန်တော်ကော်ဖီကြိုက်တယ်", "တနင်္လာနေ့အစည်းအဝေး"),
    "Punjabi": ("ਮੈਨੂੰ ਕੌਫੀ ਪਸੰਦ ਹੈ", "ਸੋਮਵਾਰ ਨੂੰ ਮੀਟਿੰਗ ਹੈ"),
    "Telugu": ("నాకు వేరుశెనగ అలర్జీ ఉంది", "సోమవారం తొమ్మిది గంటలకు సమావేశం"),
    "emoji": ("🥜🚫", "📅9️⃣"),
    "emoji!": ("🥜!!!", "📅!!!"),
    "base64": ("QUJD" * 60, "WFla" * 60),
    "hex": ("a3f1" * 40, "09be" * 40),
    "long": ("ฉันแพ้ถั่วลิสง " * 900, "ประชุมวันจันทร์ " * 900),
}
READ = [
    "I am allergic to peanuts",
    "We had a great party 🎉🎉 thanks everyone 🥳",
    "Love it 😍😍😍😍😍",
    "Grzegorz Brzęczyszczykiewicz met Þórður and Nguyễn Văn Anh",
    "def f(x): return {k: v for k, v in x.items() if v is not None}",
    "The commit 3f786850e387550fdab836ed7e6dc881de23001b broke the build",
    "The key that Bob rotated in May after the incident in Frankfurt is " + "a3f1" * 40,
    "https://example.com/a/very/long/path?with=query&and=%E0%B8%89%E0%B8%B1%E0%B8%99",
    "ฉันชอบดื่ม coffee ทุกเช้า",
    "ประชุมกับ John Smith ที่ London",
    "Ich trinke meinen Kaffee ohne Zucker, aber mit Milch. Schöne Grüße",
    "我喜欢喝咖啡,不加糖。",
    "私はピーナッツアレルギーです",
    "저는 땅콩 알레르기가 있어요",
    "أنا أعاني من حساسية الفول السوداني",
    "मुझे मूंगफली से एलर्जी है",
    "У меня аллергия на арахис",  # noqa: RUF001
    "Είμαι αλλεργικός στα φιστίκια",
    "אני אלרגי לבוטנים",
    "12345",
    "...",
]


@pytest.fixture(autouse=True, params=["minilm-int8", "static"])
def encoder(request, settings):
    settings.ENCODER = request.param
    return get_encoder()


@pytest.fixture
def api(acme_key):
    return client_with(acme_key)


def add(api, *contents, **rest):
    items = [{"content": content, **rest} for content in contents]
    answer = api.post("memories/batch", {"memories": items}).json()
    assert answer["created"] == len(items), answer
    return answer


def find(api, query, **rest):
    answer = api.post("memories/search", {"query": query, **rest})
    assert answer.status_code == 200, answer.content
    return answer.json()


def states(organization):
    with tenant(organization):
        rows = Memory.objects.for_organization(organization).order_by("created_at", "pk")
        return list(rows.values_list("embedding_state", flat=True))


def run(command, **options):
    out = io.StringIO()
    call_command(command, no_progress=True, stdout=out, **options)
    return out.getvalue().strip()


@pytest.mark.django_db
@pytest.mark.parametrize("text", READ)
def test_texts_with_known_words_are_embedded(text, encoder):
    (share,) = encoder.known_shares([text])
    assert share >= MIN_KNOWN_SHARE


@pytest.mark.parametrize("script", STRANGERS)
@pytest.mark.parametrize("speaker", [None, "Alice Miller"])
def test_unreadable_texts_are_not_duplicates_of_each_other(api, acme, script, speaker):
    answer = add(api, *STRANGERS[script], speaker=speaker)
    assert answer["embedded"] is True  # none waits for a worker
    assert states(acme) == ["unreadable"] * 2
    assert api.get("memories/duplicates?threshold=0.5").json()["results"] == []
    for mode in ("hybrid", "semantic"):
        hits = find(api, "peanuts", mode=mode)
        assert {hit["similarity"] for hit in hits["results"]} == {None}
        assert "the encoder cannot read them" in hits["notice"]
    with tenant(acme):
        assert not CachedVector.objects.for_organization(acme).exists()


def test_unreadable_texts_are_found_by_their_words(api, acme):
    add(api, "ฉันแพ้ ถั่วลิสง อย่างรุนแรง", "ประชุม วันจันทร์")
    answer = find(api, "ถั่วลิสง")
    assert [hit["memory"]["content"] for hit in answer["results"]] == ["ฉันแพ้ ถั่วลิสง อย่างรุนแรง"]
    assert answer["mode"] == "keyword"
    assert "knows nearly no word of the query: searched by keyword only" in answer["notice"]
    assert answer["results"][0]["similarity"] is None
    assert answer["results"][0]["memory"]["embedding_state"] == "unreadable"
    assert answer["results"][0]["memory"]["embedding_model"]


def test_a_semantic_search_with_an_unreadable_query_finds_nothing_and_says_so(api):
    add(api, "I am allergic to peanuts")
    for query in ("x" * 200, "ถั่วลิสง", "🥜"):
        answer = find(api, query, mode="semantic")
        assert (answer["results"], answer["mode"]) == ([], "semantic")
        assert "cannot be searched by meaning. Search by keyword" in answer["notice"]
    assert find(api, "peanuts", mode="semantic")["results"][0]["similarity"] > 0.3


def test_in_a_batch_each_search_has_its_own_notice(api, acme):
    ann = make_user(acme, external_id="ann")
    add(api, "ฉันแพ้ถั่วลิสง", user_id="ann")
    add(api, "I am allergic to peanuts", user_id="bob")
    searches = [
        {"query": "peanuts", "user_id": str(ann.pk)},
        {"query": "peanuts", "user_id": "bob"},
        {"query": "ถั่วลิสง", "user_id": "bob"},
        {"query": "peanuts", "user_id": "ann", "types": ["core"]},
        {"query": "peanuts", "user_id": "ann", "mode": "keyword"},
    ]
    answer = api.post("memories/search/batch", {"searches": searches}).json()["results"]
    notices = ["cannot read them", "", "knows nearly no word of the query", "", ""]
    for result, words in zip(answer, notices, strict=True):
        assert words in result["notice"] if words else "notice" not in result


def test_a_supplied_vector_is_used(api, acme):
    one, other = STRANGERS["Thai"]
    vector = [1.0] + [0.0] * 383
    add(api, one, other, embedding=vector)
    assert states(acme) == ["ready"] * 2
    (pair,) = api.get("memories/duplicates").json()["results"]
    assert pair["similarity"] == 1.0
    assert run("reembed", unreadable=True).startswith("0 of 2 lost their vector")
    assert states(acme) == ["ready"] * 2


def test_loads_and_the_worker_treat_them_alike(api, acme, tmp_path):
    lines = [{"content": text} for text in STRANGERS["Lao"]]
    load(tmp_path, "memories", lines)
    assert states(acme) == ["unreadable"] * 2
    later = {"content": STRANGERS["Thai"][0], "embed": "later"}
    assert api.post("memories", later).json()["embedding_state"] == "pending"
    api.post("memories", {"content": "Tea", "embed": "later"})
    assert run("embed_worker", once=True).startswith("1 embedded, 1 unreadable, ")
    assert run("embed_worker", once=True).startswith("0 embedded, ")
    assert sorted(states(acme)) == ["ready", "unreadable", "unreadable", "unreadable"]
    load(tmp_path, "memories", lines)
    with tenant(acme):
        assert set(Memory.objects.for_organization(acme).values_list("version", flat=True)) == {1}
    stats = api.get("memories/stats").json()
    assert stats["embedding_state"] == {"unreadable": 3, "ready": 1}
    assert sum(stats["embedding_model"].values()) == 1


def test_changed_texts_are_embedded_again(api, acme):
    memory = api.post("memories", {"content": STRANGERS["Thai"][0]}).json()
    assert (memory["embedding_state"], memory["embedded"]) == ("unreadable", False)
    api.patch(f"memories/{memory['id']}", {"content": "Tea"})
    run("embed_worker", once=True)
    assert states(acme) == ["ready"]
    api.patch(f"memories/{memory['id']}", {"content": STRANGERS["Thai"][1]})
    run("embed_worker", once=True)
    assert states(acme) == ["unreadable"]


def test_reembed_removes_old_vectors_of_unreadable_texts(api, acme, encoder):
    vector = encoder.encode(["Ann: " + STRANGERS["Thai"][0]])[0]
    padded = [*vector.tolist(), *[0.0] * (384 - encoder.dim)]
    for text in STRANGERS["Thai"]:
        make_memory(
            acme, content=text, speaker="Ann", embedding=padded, embedding_model=encoder.name
        )
    kept = make_memory(acme, content=STRANGERS["Lao"][0], embedding=padded, embedding_model="ours")
    add(api, "Tea")
    keep_vectors(
        {
            content_hash("Ann", STRANGERS["Thai"][0]): embed(
                [(None, "Tea")], organization=acme
            ).rows[0]
        },
        organization=acme,
        encoder=encoder.name,
    )
    assert len(api.get("memories/duplicates").json()["results"]) == 1
    assert run("reembed", unreadable=True) == (
        f"2 of 3 lost their vector: {encoder.name} cannot read them."
    )
    assert api.get("memories/duplicates").json()["results"] == []
    assert states(acme) == ["unreadable", "unreadable", "ready", "ready"]
    with tenant(acme):
        cached = CachedVector.objects.for_organization(acme)
        assert not cached.filter(hash=content_hash("Ann", STRANGERS["Thai"][0])).exists()
        assert Memory.objects.for_organization(acme).get(pk=kept.pk).embedding_model == "ours"
    assert run("reembed", unreadable=True).startswith("0 of 1 lost their vector")


def test_another_encoder_tries_unreadable_texts(api, acme, monkeypatch, encoder):
    add(api, *STRANGERS["Thai"], "Tea")
    other = "static" if encoder.name == "minilm-int8" else "minilm-int8"
    assert run("reembed", encoder=other).splitlines() == [
        f"1 re-embedded by {other}.",
        f"2 have no vector: {other} cannot read them.",
    ]
    reader = get_encoder()
    monkeypatch.setattr(type(reader), "known_shares", lambda self, texts: [1.0] * len(texts))
    assert run("reembed") == f"3 re-embedded by {reader.name}."
    assert states(acme) == ["ready"] * 3


def test_an_export_keeps_the_state(acme, tmp_path):
    line = {"id": str(uuid4()), "content": STRANGERS["Lao"][0], "embedding_state": "unreadable"}
    line |= {"embedding": None, "embedding_model": "minilm-int8"}
    load(tmp_path, "memories", [line], preserve_ids=True, preserve_timestamps=True)
    with tenant(acme):
        row = Memory.objects.for_organization(acme).get()
    assert (row.embedding_state, row.embedding_model) == ("unreadable", "minilm-int8")

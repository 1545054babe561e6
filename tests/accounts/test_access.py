"""Keys, members, roles, commands and the audit log."""

import json
import secrets
from contextlib import nullcontext
from datetime import timedelta
from importlib import import_module
from unittest import mock
from uuid import UUID, uuid4

import pytest
from django.core.management import CommandError, call_command
from django.db import connections
from django.utils import timezone

from accounts.access import (
    authenticate_key,
    hash_key,
    member_actor,
    member_by_email,
    organization_by_id,
    organization_by_slug,
)
from accounts.actors import Actor
from accounts.errors import Conflict, Forbidden, Invalid, NotFound
from accounts.models import ApiKey, AuditEvent, Member, Organization
from accounts.roles import ALL_PERMISSIONS, PERMISSIONS, Role
from accounts.services.keys import api_keys, issue_key, record_use, revoke_key
from accounts.services.organizations import members, organizations
from accounts.services.users import users
from accounts.tenancy import platform, tenant
from memories.models import Memory
from memories.services.agents import agents
from memories.services.memories import memories
from tests.makers import TESTER, make_agent, make_key, make_member, make_memory, make_user

pytestmark = pytest.mark.django_db

PASSWORD = "correct horse battery"
ALL = frozenset(ALL_PERMISSIONS)


@pytest.fixture(autouse=True)
def quick_passwords(settings):
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]


def issue(organization, **over):
    values = {"name": "key", "scopes": ["memory:read"], **over}
    with tenant(organization):
        return issue_key(organization=organization, actor=TESTER, **values)


# -- keys ---------------------------------------------------------------------------------------


def test_a_key_opens_its_organization_with_its_scopes(acme, globex):
    key, secret = issue(acme, scopes=["memory:write", "memory:read", "memory:read"])
    holder = authenticate_key(secret)
    assert holder.organization == acme
    assert (holder.actor.kind, holder.actor.id, holder.actor.name) == ("api_key", key.pk, "key")
    assert holder.actor.permissions == {"memory:read", "memory:write"}
    assert not holder.actor.may("memory:delete")
    assert holder.is_use_due


def test_the_secret_is_not_kept(acme):
    key, secret = issue(acme)
    with tenant(acme):
        stored = ApiKey.objects.for_organization(acme).values().get(pk=key.pk)
    assert bytes(stored["hash"]) == hash_key(secret)
    assert len(secret) > 50
    assert secret.startswith(f"{stored['prefix']}_")
    text = json.dumps(stored, default=str)
    assert secret not in text
    assert secret.rpartition("_")[2] not in text


def test_generated_keys_are_unique(acme):
    assert len({issue(acme)[1] for _ in range(5)}) == 5


@pytest.mark.parametrize("wrong", ["", "agm_", "agm_12345678_nonsense", "x" * 10_000, "é\u0001'--"])
def test_an_unknown_key_opens_nothing(acme_key, wrong):
    assert authenticate_key(wrong) is None
    assert authenticate_key(acme_key + "x") is None
    assert authenticate_key(acme_key[:-1]) is None


def test_a_revoked_key_opens_nothing(acme):
    key, secret = issue(acme)
    with tenant(acme):
        revoke_key(key, organization=acme, actor=TESTER)
    assert authenticate_key(secret) is None


def test_a_key_opens_until_it_expires(acme):
    now = timezone.now()
    assert authenticate_key(issue(acme, expires_at=now + timedelta(hours=1))[1])
    assert authenticate_key(issue(acme, expires_at=now - timedelta(seconds=1))[1]) is None


def test_a_deleted_key_opens_nothing_and_a_restored_one_does(acme):
    key, secret = issue(acme)
    with tenant(acme):
        rows = ApiKey.objects.for_organization(acme).filter(pk=key.pk)
        api_keys.delete(rows, organization=acme, actor=TESTER)
    assert authenticate_key(secret) is None
    with tenant(acme):
        api_keys.restore(rows, organization=acme, actor=TESTER)
    assert authenticate_key(secret).actor.id == key.pk


def test_a_deleted_organizations_keys_and_members_open_nothing(acme, globex_key):
    _, secret = issue(acme)
    make_member(acme, "alice")
    with platform():
        rows = Organization.objects.filter(pk=acme.pk)
        organizations.delete(rows, organization=acme, actor=TESTER)
    assert authenticate_key(secret) is None
    assert authenticate_key(globex_key)
    for look_up in (
        lambda: member_by_email("alice@acme.example"),
        lambda: organization_by_slug("acme"),
        lambda: organization_by_id(acme.pk),
    ):
        with pytest.raises(NotFound):
            look_up()


def test_the_last_use_of_a_key_is_recorded_once_a_minute(acme):
    key, secret = issue(acme)
    with tenant(acme):
        record_use(authenticate_key(secret).actor, organization=acme)
        first = ApiKey.objects.for_organization(acme).get(pk=key.pk).last_used_at
        assert timezone.now() - first < timedelta(minutes=1)
        record_use(authenticate_key(secret).actor, organization=acme)
        assert ApiKey.objects.for_organization(acme).get(pk=key.pk).last_used_at == first
    assert not authenticate_key(secret).is_use_due


def test_nobody_grants_a_scope_they_lack(acme):
    reader = Actor(kind="api_key", name="reader", permissions=frozenset({"memory:read"}))
    refused = r"You cannot grant scopes that you do not have: memory:delete, memory:write\."
    with tenant(acme):
        with pytest.raises(Forbidden, match=refused):
            issue_key(
                organization=acme,
                actor=reader,
                name="more",
                scopes=["memory:write", "memory:read", "memory:delete"],
            )
        assert not ApiKey.objects.for_organization(acme).exists()
    with pytest.raises(Forbidden, match="everything"):
        issue(acme, scopes=["everything"])  # there is no such scope


# -- roles --------------------------------------------------------------------------------------


def test_the_table_of_roles():
    everything = frozenset(ALL_PERMISSIONS)
    assert len(everything) == 5 * 3 + 5
    assert PERMISSIONS.keys() == set(Role)
    assert PERMISSIONS[Role.OWNER] == PERMISSIONS[Role.ADMIN] == everything
    reads = {f"{thing}:read" for thing in ("memory", "session", "agent", "user", "organization")}
    assert PERMISSIONS[Role.VIEWER] == reads
    assert PERMISSIONS[Role.USER] == reads | {"memory:write", "session:write"}


def test_an_absent_permission_denies(acme):
    assert not any(Actor(kind="system", name="").may(scope) for scope in ALL_PERMISSIONS)
    viewer = member_actor(make_member(acme, "vera", role="viewer"))
    assert {scope for scope in ALL_PERMISSIONS if viewer.may(scope)} == PERMISSIONS[Role.VIEWER]


# -- members ------------------------------------------------------------------------------------


def make(organization, actor=TESTER, **over) -> Member:
    values = {"email": "bob@acme.example", "name": "Bob", "password": PASSWORD, **over}
    with tenant(organization):
        return members.create(organization=organization, actor=actor, values=values)


def test_a_member_signs_in_with_the_password_given(acme):
    member = make(acme)
    assert member.check_password(PASSWORD)
    assert PASSWORD not in member.password
    assert (member.organization, member.role, member.is_superuser) == (acme, "viewer", False)
    assert not make(acme, email="no@acme.example", password="").has_usable_password()


@pytest.mark.parametrize(
    ("password", "message"),
    [
        ("short", "at least 12 characters"),
        ("password1234", "too common"),
        ("918273645546", "entirely numeric"),
        ("bob@acme.example", "too similar to the email"),
    ],
)
def test_a_weak_password_is_refused(acme, password, message):
    with pytest.raises(Invalid, match=message) as caught:
        make(acme, password=password)
    assert caught.value.field == "password"
    assert not Member.objects.for_organization(acme).exists()
    member = make(acme)
    with pytest.raises(Invalid, match=message), tenant(acme):
        values = {"password": password}
        members.update(member, organization=acme, actor=TESTER, values=values)
    assert member_by_email("bob@acme.example").check_password(PASSWORD)


@pytest.mark.parametrize("email", ["", "bob", "bob@", "@acme.example", "a b@acme.example"])
def test_an_invalid_address_is_refused(acme, email):
    with pytest.raises(Invalid) as caught:
        make(acme, email=email)
    assert caught.value.field == "email"


def test_addresses_do_not_differ_by_case_alone(acme, globex):
    bob = make(acme, email=" Bob@ACME.example ")
    assert bob.email == "bob@acme.example"
    with pytest.raises(Conflict, match="another member with this email") as caught:
        make(acme, email="BOB@acme.example")
    assert caught.value.field == "email"
    assert member_by_email("BOB@Acme.Example") == bob


def test_organizations_may_have_members_with_the_same_address(acme, globex):
    here, there = make(acme), make(globex, role="user")
    assert (here.email, here.role) == ("bob@acme.example", "viewer")
    assert member_by_email(here.email, slug="globex") == there
    with pytest.raises(
        Conflict, match="is a member of several organizations: name one of acme, globex"
    ):
        member_by_email(here.email)
    with pytest.raises(NotFound, match=r"no active member 'bob@acme.example' of initech"):
        member_by_email(here.email, slug="initech")
    root = Member.objects.create_superuser(here.email, PASSWORD)
    assert member_by_email(here.email, slug="-") == root
    secret = mock.patch.dict("os.environ", {"DJANGO_SUPERUSER_PASSWORD": PASSWORD})
    with (
        secret,
        pytest.raises(CommandError, match="There is a platform superuser with this email"),
    ):
        call_command("createsuperuser", "--no-input", email=here.email, name="Bob")


HR = "members:manage"


def key_actor(*permissions) -> Actor:
    return Actor(kind="api_key", name="hr", permissions=frozenset({HR, *permissions}))


def change(member, actor, **values) -> Member:
    organization = member.organization
    with tenant(organization):
        return members.update(member, organization=organization, actor=actor, values=values)


def test_granting_and_revoking_roles_requires_the_permission(acme):
    maker = key_actor(*(ALL - {"roles:manage"}))
    bob = make(acme, actor=maker)
    assert bob.role == Role.VIEWER
    giving = "Assigning or revoking the role .* needs the permission roles:manage"
    with pytest.raises(Forbidden, match=giving):
        make(acme, actor=maker, email="eve@acme.example", role="admin")
    clerk = make(acme, email="clara@acme.example", role="user")
    for member, role in ((bob, "admin"), (bob, "user"), (clerk, "viewer"), (clerk, "admin")):
        with pytest.raises(Forbidden, match=giving):
            change(member, maker, role=role)
    # A form has changed the object before the service sees it.
    bob.role = "owner"
    with pytest.raises(Forbidden, match=giving):
        change(bob, maker, role="owner")
    for values in ({"email": "mine@acme.example"}, {"is_active": False}, {"password": PASSWORD}):
        with pytest.raises(Forbidden, match=giving):
            change(clerk, maker, **values)
    with pytest.raises(Forbidden, match=giving), tenant(acme):
        rows = Member.objects.for_organization(acme).filter(pk=clerk.pk)
        members.delete(rows, organization=acme, actor=maker)
    assert change(clerk, maker, name="Clara").name == "Clara"  # he may do all that she may
    assert change(bob, maker, name="Robert", role="viewer").name == "Robert"  # the role it has
    assert change(bob, TESTER, role="admin").role == "admin"


@pytest.mark.parametrize("role", Role.values)
@pytest.mark.parametrize("more", [(), ("roles:manage",), PERMISSIONS["viewer"]], ids=len)
def test_nobody_changes_a_member_with_more_permissions(acme, role, more):
    """Each kind of caller, on a member of each role: whatever adds permissions is refused."""
    make(acme, email="first@acme.example", role="owner")
    member = make(acme, role=role)
    actor = key_actor(*more)
    may = PERMISSIONS[role] <= actor.permissions
    rows = Member.objects.for_organization(acme).filter(pk=member.pk)
    by = {"organization": acme, "actor": actor}
    acts = {
        "create": lambda: make(acme, actor=actor, email="new@acme.example", role=role),
        "rename": lambda: change(member, actor, name="x"),
        "password": lambda: change(member, actor, password="another horse battery"),
        "address": lambda: change(member, actor, email="mine@acme.example"),
        "inactive": lambda: change(member, actor, is_active=False),
        "console": lambda: change(member, actor, is_staff=False),
        "delete": lambda: members.delete(rows, **by),
        "restore": lambda: members.restore(rows, **by),
    }
    for name, act in acts.items():
        if name == "restore":
            with tenant(acme):
                members.delete(rows, organization=acme, actor=TESTER)
        refusal = nullcontext() if may else pytest.raises(Forbidden)
        with refusal, tenant(acme) if name in ("delete", "restore") else nullcontext():
            act()
    assert may == (role == "viewer" and more == PERMISSIONS["viewer"])


def test_changing_ones_own_password_needs_no_permission(acme):
    clerk = make(acme, role="user")
    changed = change(clerk, member_actor(clerk), password="another horse battery")
    assert changed.check_password("another horse battery")
    with pytest.raises(Forbidden):
        change(clerk, member_actor(clerk), password=PASSWORD, role="admin")


@pytest.mark.parametrize(
    "lost", [{"is_active": False}, {"is_staff": False}, {"role": "admin"}, {}], ids=str
)
def test_the_last_active_owner_cannot_be_removed(acme, lost):
    owner = make(acme, role="owner")
    make(acme, email="idle@acme.example", role="owner", is_active=False)
    rows = Member.objects.for_organization(acme).filter(pk=owner.pk)

    def lose():
        if lost:
            return change(owner, TESTER, **lost)
        with tenant(acme):
            return members.delete(rows, organization=acme, actor=TESTER)

    with pytest.raises(Conflict, match="This is the last active owner: make another") as caught:
        lose()
    assert caught.value.code == "last_owner"
    owner.refresh_from_db()
    assert (owner.is_deleted, owner.is_active, owner.role) == (False, True, "owner")
    assert change(owner, TESTER, name="Olga", password="another horse battery").name == "Olga"
    make(acme, email="next@acme.example", role="owner")
    assert lose()


# -- keys of members ------------------------------------------------------------------------------


def test_a_members_key_grants_what_the_role_allows_now(acme):
    ann = make(acme, role="admin")
    _, secret = issue(acme, scopes=["memory:read", "memory:delete"], member=ann)
    assert authenticate_key(secret).actor.permissions == {"memory:read", "memory:delete"}
    change(ann, TESTER, role="viewer")
    assert authenticate_key(secret).actor.permissions == {"memory:read"}
    change(ann, TESTER, role="admin")
    assert authenticate_key(secret).actor.may("memory:delete")
    change(ann, TESTER, role="user")
    change(ann, TESTER, is_active=False)
    assert authenticate_key(secret) is None
    change(ann, TESTER, is_active=True)
    assert authenticate_key(secret)
    with tenant(acme):
        rows = Member.objects.for_organization(acme).filter(pk=ann.pk)
        members.delete(rows, organization=acme, actor=TESTER)
    assert authenticate_key(secret) is None


def test_a_members_key_is_issued_within_the_role(acme):
    vera = make(acme)
    refused = r"The role of the key's member \(viewer\) does not allow: memory:write\."
    with pytest.raises(Forbidden, match=refused):
        issue(acme, scopes=["memory:read", "memory:write"], member=vera)
    assert issue(acme, member=vera)


def test_nobody_changes_a_key_with_more_scopes(acme):
    key, _ = issue(acme, scopes=["memory:read", "memory:delete"])
    rows = ApiKey.objects.for_organization(acme).filter(pk=key.pk)
    clerk = Actor(kind="api_key", name="c", permissions=frozenset({"keys:manage", "memory:read"}))
    by = {"organization": acme, "actor": clerk}
    acts = (
        lambda: api_keys.update(key, values={"name": "mine"}, **by),
        lambda: revoke_key(key, **by),
        lambda: api_keys.delete(rows, **by),
        lambda: api_keys.restore(rows, **by),
    )
    for act in acts:
        if act is acts[-1]:
            with tenant(acme):
                api_keys.delete(rows, organization=acme, actor=TESTER)
        refused = "This key has permissions that you lack: memory:delete."
        with pytest.raises(Forbidden, match=refused), tenant(acme):
            act()
    own, _ = issue(acme, scopes=["memory:read"])
    with tenant(acme):
        assert revoke_key(own, **by).revoked_at


def test_a_member_cannot_be_moved_to_another_organization(acme, globex):
    bob = make(acme)
    user = make_user(acme)
    for records, row in ((members, bob), (users, user)):
        for values in ({"organization": globex}, {"organization_id": globex.pk}):
            for door in (tenant(acme), platform()):
                with pytest.raises(Invalid, match="cannot move to another organization"), door:
                    records.update(row, organization=acme, actor=TESTER, values=values)
    with platform():
        user = users.create(
            organization=acme,
            actor=TESTER,
            values={"external_id": "u", "organization_id": globex.pk},
        )
    assert user.organization_id == acme.pk
    assert member_by_email("bob@acme.example").organization == acme


def test_a_member_of_another_organization_cannot_be_updated(acme, mallory):
    with pytest.raises(NotFound), tenant(acme):
        members.update(mallory, organization=acme, actor=TESTER, values={"name": "x"})


def test_a_member_cannot_become_a_platform_superuser(acme):
    with pytest.raises(Invalid, match="belongs to one organization"):
        make(acme, is_superuser=True)


def test_a_member_who_left_is_not_found(acme):
    bob = make(acme)
    with tenant(acme):
        members.update(bob, organization=acme, actor=TESTER, values={"is_active": False})
    with pytest.raises(NotFound, match=r"no active member 'bob@acme.example'"):
        member_by_email("bob@acme.example")


def test_a_superuser_belongs_to_no_organization():
    root = Member.objects.create_superuser("Root@Example.com", PASSWORD, name="Root")
    assert (root.email, root.organization, root.is_superuser) == ("root@example.com", None, True)
    assert root.check_password(PASSWORD)


# -- organizations ------------------------------------------------------------------------------


@pytest.mark.parametrize("slug", ["", "Acme", "-acme", "acme-", "a_b", "a b", "ä", "a" * 64])
def test_an_invalid_slug_is_refused(slug):
    with pytest.raises(Invalid) as caught, platform():
        organizations.create(actor=TESTER, values={"name": "A", "slug": slug})
    assert caught.value.field == "slug"
    assert not Organization.objects.exists()


def test_a_wrong_slug_is_explained():
    message = r"A slug has 1 to 63 lower-case letters, digits and inner hyphens\."
    with pytest.raises(Invalid, match=message), platform():
        organizations.create(actor=TESTER, values={"name": "A", "slug": "Not A Slug"})


def test_a_slug_is_unique(acme):
    with pytest.raises(Conflict, match="another organization with this slug") as caught, platform():
        organizations.create(actor=TESTER, values={"name": "Acme", "slug": "acme"})
    assert (caught.value.field, caught.value.code) == ("slug", "duplicate")


def test_an_unknown_organization_is_named():
    with pytest.raises(NotFound, match="There is no organization 'nowhere'"):
        organization_by_slug("nowhere")
    with pytest.raises(NotFound):
        organization_by_id(uuid4())


# -- commands -----------------------------------------------------------------------------------


@pytest.fixture
def manage(monkeypatch, capsys):
    """`manage.py NAME ARGUMENTS` as from a shell: (exit code, stdout, stderr)."""
    monkeypatch.setattr(connections, "close_all", lambda: None)  # it would end the test's own

    def run(name, *arguments):
        command = import_module(f"accounts.management.commands.{name}").Command()
        code = 0
        try:
            command.run_from_argv(["manage.py", name, *arguments])
        except SystemExit as leaving:
            code = leaving.code
        return (code, *capsys.readouterr())

    return run


def test_create_organization_prints_its_id_alone(manage):
    code, out, err = manage("create_organization", "acme-labs")
    organization = Organization.objects.get()
    assert (code, out, err) == (0, f"{organization.pk}\n", "")
    assert (organization.slug, organization.name) == ("acme-labs", "Acme Labs")
    code, out, _ = manage("create_organization", "globex", "--name", "Globex GmbH")
    assert Organization.objects.get(pk=UUID(out.strip())).name == "Globex GmbH"


def test_create_organization_refuses_in_one_line(manage, acme):
    taken = "CommandError: There is another organization with this slug, perhaps in the trash.\n"
    assert manage("create_organization", "acme") == (1, "", taken)
    code, out, err = manage("create_organization", "Not A Slug")
    assert (code, out) == (1, "")
    assert err.startswith("CommandError: A slug has 1 to 63 lower-case letters")
    assert Organization.objects.get() == acme


def test_create_member_prints_a_password_that_works(manage, acme):
    code, out, err = manage(
        "create_member", "Ann@acme.example", "--organization=acme", "--role=owner", "--name=Ann"
    )
    ann = member_by_email("ann@acme.example")
    assert (code, err, len(out.splitlines())) == (0, "", 1)
    assert ann.check_password(out.strip())
    assert (ann.organization, ann.role, ann.name) == (acme, "owner", "Ann")


def test_create_member_refuses_in_one_line(manage, alice, globex):
    def run(email, organization):
        return manage("create_member", email, f"--organization={organization}")

    nowhere = "CommandError: There is no organization 'nowhere'. To create it: `create_organization"
    code, out, err = run("bob@acme.example", "nowhere")
    assert (code, out, err.startswith(nowhere)) == (1, "", True)
    taken = "CommandError: There is another member with this email, perhaps in the trash.\n"
    assert run("alice@acme.example", "acme") == (1, "", taken)
    code, out, _ = run("ALICE@acme.example", "globex")  # without mentioning acme
    assert (code, len(out.splitlines())) == (0, 1)
    assert run("nobody", "acme") == (1, "", "CommandError: Enter a valid email address.\n")


def test_changepassword_requires_the_organization_if_several_have_the_address(manage, acme, globex):
    here, there = make(acme), make(globex)
    prompts = mock.patch(
        "accounts.management.commands.changepassword.getpass",
        side_effect=["short", "short", "one horse battery", "another", *["a new pass phrase"] * 2],
    )
    code, out, err = manage("changepassword", "bob@acme.example")
    assert (code, out) == (1, "")
    assert "is a member of several organizations: name one of acme, globex.\n" in err
    with prompts:
        code, out, err = manage("changepassword", "BOB@acme.example", "--organization=globex")
    assert (code, out) == (0, "The password of bob@acme.example was changed.\n")
    assert "at least 12 characters" in err
    assert "The two passwords do not match." in err
    here.refresh_from_db()
    there.refresh_from_db()
    assert here.check_password(PASSWORD)
    assert there.check_password("a new pass phrase")
    assert [e.actor_name for e in events(globex) if e.action == "updated"] == ["changepassword"]


def test_create_api_key_prints_a_key_that_opens(manage, acme):
    for role in ("admin", "user", "viewer"):
        code, out, err = manage(
            "create_api_key", "--organization=acme", f"--name={role}", f"--role={role}"
        )
        assert (code, err, len(out.splitlines())) == (0, "", 1)
        holder = authenticate_key(out.strip())
        assert (holder.organization, holder.actor.name) == (acme, role)
        assert holder.actor.permissions == PERMISSIONS[role]


def test_create_api_key_refuses_in_one_line(manage, acme):
    code, out, err = manage("create_api_key", "--organization=nowhere", "--name=x")
    assert (code, out) == (1, "")
    assert err.startswith("CommandError: There is no organization 'nowhere'")
    code, out, err = manage("create_api_key", "--organization=acme", "--name=x", "--role=root")
    assert (code, out) == (2, "")
    assert "invalid choice: 'root' (choose from 'admin', 'user', 'viewer')" in err
    with pytest.raises(CommandError, match="--organization"):
        call_command("create_api_key", name="x")
    with tenant(acme):
        assert not ApiKey.objects.for_organization(acme).exists()


# -- the audit log ------------------------------------------------------------------------------

VISITOR = Actor(
    kind="member",
    name="alice@acme.example",
    id=uuid4(),
    permissions=frozenset(ALL_PERMISSIONS),
).at(request_id="r-1", ip="192.0.2.7", user_agent="curl/8 " + "x" * 400)


def events(organization) -> list[AuditEvent]:
    with tenant(organization):
        return list(AuditEvent.objects.for_organization(organization).order_by("created_at", "id"))


def news(organization, seen) -> list[AuditEvent]:
    return [event for event in events(organization) if event not in seen]


def test_a_change_is_one_event_with_actor_action_time_and_address(acme, globex):
    seen, before = events(acme), timezone.now()
    with tenant(acme):
        agent = agents.create(organization=acme, actor=VISITOR, values={"name": "Ada"})
    (event,) = news(acme, seen)
    assert (event.action, event.resource_type, event.resource_id) == ("created", "agent", agent.pk)
    assert (event.actor_kind, event.actor_id) == ("member", VISITOR.id)
    assert event.actor_name == "alice@acme.example"
    assert (event.request_id, event.ip) == ("r-1", "192.0.2.7")
    assert event.user_agent.startswith("curl/8 x")
    assert len(event.user_agent) == 300
    assert before <= event.created_at <= timezone.now()
    assert (event.status, event.organization_id) == ("success", acme.pk)
    assert [e.action for e in events(globex)] == ["created"]  # of globex itself


def test_each_verb_is_one_event(acme):
    seen = events(acme)
    with tenant(acme):
        agent = agents.create(organization=acme, actor=VISITOR, values={"name": "Ada"})
        rows = type(agent).objects.for_organization(acme).filter(pk=agent.pk)
        changed = {"name": "Bea", "state": "busy"}
        agents.update(agent, organization=acme, actor=VISITOR, values=changed)
        agents.update(agent, organization=acme, actor=VISITOR, values=changed)  # nothing changes
        agents.delete(rows, organization=acme, actor=VISITOR)
        agents.delete(rows, organization=acme, actor=VISITOR)  # no row matches
        agents.restore(rows, organization=acme, actor=VISITOR)
        agents.purge(rows, organization=acme, actor=VISITOR)
    logged = news(acme, seen)
    assert [event.action for event in logged] == [
        "created", "updated", "deleted", "restored", "purged"
    ]  # fmt: skip
    assert {event.resource_id for event in logged} == {agent.pk}
    assert logged[1].changes == {"fields": {"name": None, "state": None}}
    assert logged[2].changes == {"rows": {"agent": 1}}


def test_a_change_of_many_rows_is_one_event_with_their_ids(acme):
    created = [make_agent(acme) for _ in range(3)]
    seen = events(acme)
    with tenant(acme):
        rows = type(created[0]).objects.for_organization(acme)
        agents.delete(rows, organization=acme, actor=VISITOR)
    (event,) = news(acme, seen)
    assert event.resource_id is None
    assert set(event.changes["ids"]) == {str(agent.pk) for agent in created}


def test_a_failed_change_leaves_no_event(acme):
    make_user(acme, external_id="u1")
    seen = events(acme)
    with pytest.raises(Conflict), tenant(acme):
        users.create(organization=acme, actor=VISITOR, values={"external_id": "u1"})
    assert news(acme, seen) == []


def test_the_audit_log_contains_no_content_and_no_secret(acme):
    secret_words = [f"canary{secrets.token_hex(8)}" for _ in range(8)]
    content, again, speaker, context, note, mail, name, external = secret_words
    memory = make_memory(
        acme, content=content, speaker=speaker, context=context, external_id=external
    )
    with tenant(acme):
        values = {"content": again, "metadata": {note: note}, "importance": 0.9, "speaker": name}
        memories.update(memory, organization=acme, actor=VISITOR, values=values)
        rows = Memory.objects.for_organization(acme)
        memories.delete(rows, organization=acme, actor=VISITOR)
        memories.restore(rows, organization=acme, actor=VISITOR)
        memories.purge(rows, organization=acme, actor=VISITOR)
    user = make_user(acme, name=name, email=f"{mail}@acme.example", external_id=external)
    with tenant(acme):
        users.update(user, organization=acme, actor=VISITOR, values={"name": content})
    bob = make(acme)
    with tenant(acme):
        change = {"password": f"{content} battery", "name": note, "role": "user"}
        members.update(bob, organization=acme, actor=VISITOR, values=change)
    api_key = make_key(acme)
    with tenant(acme):
        log = json.dumps(list(AuditEvent.objects.for_organization(acme).values()), default=str)
    assert "purged" in log
    hidden = [*secret_words, PASSWORD, api_key, api_key.split("_", 2)[2], hash_key(api_key).hex()]
    assert [word for word in hidden if word in log] == []
    # Values that are not content are recorded, old and new.
    (changed,) = [e for e in events(acme) if (e.resource_type, e.action) == ("memory", "updated")]
    assert changed.changes["fields"]["importance"] == [0.5, 0.9]
    (role,) = [e for e in events(acme) if (e.resource_type, e.action) == ("member", "updated")]
    assert role.changes["fields"] == {"password": None, "name": None, "role": ["viewer", "user"]}


def test_issuing_and_revoking_keys_is_audited(acme):
    seen = events(acme)
    key, _ = issue(acme)
    with tenant(acme):
        revoke_key(key, organization=acme, actor=VISITOR)
    issued, revoked = news(acme, seen)
    assert (issued.action, issued.resource_id) == ("created", key.pk)
    assert (revoked.action, revoked.actor_id) == ("updated", VISITOR.id)
    assert list(revoked.changes["fields"]) == ["revoked_at"]

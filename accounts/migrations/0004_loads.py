"""How far loads are; what each row's last line in a file was."""

import django.db.models.deletion
import django.db.models.lookups
import django.utils.timezone
from django.db import migrations, models

import agentmem_site.db.fields
import agentmem_site.db.ids
import agentmem_site.db.walls


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0003_uuid7"),
    ]

    operations = [
        migrations.AddField(
            model_name="user",
            name="line_hash",
            field=models.BinaryField(max_length=24, null=True),
        ),
        migrations.CreateModel(
            name="LoadPart",
            fields=[
                (
                    "created_at",
                    models.DateTimeField(default=django.utils.timezone.now, editable=False),
                ),
                (
                    "updated_at",
                    models.DateTimeField(default=django.utils.timezone.now, editable=False),
                ),
                ("created_by_id", models.UUIDField(editable=False, null=True)),
                ("last_updated_by_id", models.UUIDField(editable=False, null=True)),
                ("is_deleted", models.BooleanField(default=False, editable=False)),
                ("deleted_at", models.DateTimeField(editable=False, null=True)),
                (
                    "id",
                    models.UUIDField(
                        default=agentmem_site.db.ids.uuid7,
                        editable=False,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                (
                    "metadata",
                    models.JSONField(
                        blank=True, db_default=models.Value({}, models.JSONField()), default=dict
                    ),
                ),
                ("job", models.CharField(max_length=255)),
                ("part", models.SmallIntegerField()),
                ("parts", models.SmallIntegerField()),
                ("resource", models.CharField(max_length=32)),
                ("line", models.BigIntegerField(default=0)),
                ("checked_line", models.BigIntegerField(default=0)),
                ("digest", models.BinaryField(default=b"", max_length=32)),
                ("tally", models.JSONField(default=dict)),
                (
                    "organization",
                    agentmem_site.db.fields.OrganizationKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to="accounts.organization",
                    ),
                ),
            ],
            options={
                "indexes": [
                    models.Index(
                        fields=["organization", "created_at", "id"],
                        name="accounts_loadpart_created",
                    ),
                    models.Index(
                        condition=models.Q(("is_deleted", True)),
                        fields=["organization", "deleted_at"],
                        name="accounts_loadpart_trash",
                    ),
                ],
                "constraints": [
                    agentmem_site.db.walls.TenantWall(name="accounts_loadpart_wall"),
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("deleted_at__isnull", True), ("is_deleted", False)),
                            models.Q(("deleted_at__isnull", False), ("is_deleted", True)),
                            _connector="OR",
                        ),
                        name="accounts_loadpart_deleted_at",
                    ),
                    models.CheckConstraint(
                        condition=django.db.models.lookups.Exact(
                            models.Func(
                                "metadata", function="jsonb_typeof", output_field=models.TextField()
                            ),
                            models.Value("object"),
                        ),
                        name="accounts_loadpart_metadata_object",
                        violation_error_message="Metadata must be a JSON object.",
                    ),
                    models.UniqueConstraint(
                        fields=("organization", "job", "part"), name="accounts_loadpart_unique"
                    ),
                ],
            },
        ),
    ]

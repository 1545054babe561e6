"""Texts that the encoder cannot read have no vector; when a worker last came is known."""

import django.db.models.deletion
import django.db.models.lookups
import django.utils.timezone
from django.db import migrations, models

import agentmem_site.db.fields
import agentmem_site.db.ids
import agentmem_site.db.walls


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0004_loads"),
        ("memories", "0005_loads"),
    ]

    operations = [
        migrations.CreateModel(
            name="EmbedVisit",
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
                    "organization",
                    agentmem_site.db.fields.OrganizationKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to="accounts.organization",
                    ),
                ),
                (
                    "metadata",
                    models.JSONField(
                        blank=True, db_default=models.Value({}, models.JSONField()), default=dict
                    ),
                ),
                ("is_failing", models.BooleanField(default=False)),
            ],
        ),
        migrations.RemoveConstraint(
            model_name="memory",
            name="memories_memory_embedding_state",
        ),
        migrations.AlterField(
            model_name="memory",
            name="embedding_state",
            field=models.CharField(
                choices=[
                    ("pending", "Pending"),
                    ("ready", "Ready"),
                    ("failed", "Failed"),
                    ("unreadable", "Unreadable"),
                ],
                default="pending",
                editable=False,
                max_length=16,
            ),
        ),
        migrations.AddIndex(
            model_name="memory",
            index=models.Index(
                condition=models.Q(
                    ("embedding_state__in", ["failed", "unreadable"]), ("is_deleted", False)
                ),
                fields=["organization", "embedding_state", "embedding_model"],
                name="memories_memory_without",
            ),
        ),
        migrations.AddConstraint(
            model_name="memory",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("embedding__isnull", False), ("embedding_state", "ready")),
                    models.Q(
                        ("embedding__isnull", True),
                        ("embedding_state__in", ["pending", "failed", "unreadable"]),
                    ),
                    _connector="OR",
                ),
                name="memories_memory_embedding_state",
            ),
        ),
        migrations.AddIndex(
            model_name="embedvisit",
            index=models.Index(
                fields=["organization", "created_at", "id"], name="memories_embedvisit_created"
            ),
        ),
        migrations.AddIndex(
            model_name="embedvisit",
            index=models.Index(
                condition=models.Q(("is_deleted", True)),
                fields=["organization", "deleted_at"],
                name="memories_embedvisit_trash",
            ),
        ),
        migrations.AddConstraint(
            model_name="embedvisit",
            constraint=agentmem_site.db.walls.TenantWall(name="memories_embedvisit_wall"),
        ),
        migrations.AddConstraint(
            model_name="embedvisit",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("deleted_at__isnull", True), ("is_deleted", False)),
                    models.Q(("deleted_at__isnull", False), ("is_deleted", True)),
                    _connector="OR",
                ),
                name="memories_embedvisit_deleted_at",
            ),
        ),
        migrations.AddConstraint(
            model_name="embedvisit",
            constraint=models.CheckConstraint(
                condition=django.db.models.lookups.Exact(
                    models.Func(
                        "metadata", function="jsonb_typeof", output_field=models.TextField()
                    ),
                    models.Value("object"),
                ),
                name="memories_embedvisit_metadata_object",
                violation_error_message="Metadata must be a JSON object.",
            ),
        ),
        migrations.AddConstraint(
            model_name="embedvisit",
            constraint=models.UniqueConstraint(
                fields=("organization",), name="memories_embedvisit_organization_unique"
            ),
        ),
    ]

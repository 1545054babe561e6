"""Memories that are found: search documents by language, vectors in an HNSW index, a cache."""

import django.contrib.postgres.indexes
import django.contrib.postgres.search
import django.db.models.deletion
import django.db.models.lookups
import django.utils.timezone
import pgvector.django.halfvec
import pgvector.django.indexes
from django.db import migrations, models

import agentmem_site.db.fields
import agentmem_site.db.ids
import agentmem_site.db.walls


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0002_functions"),
        ("memories", "0001_initial"),
    ]

    operations = [
        migrations.CreateModel(
            name="CachedVector",
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
                ("encoder", models.CharField(max_length=64)),
                ("hash", models.BinaryField(max_length=32)),
                ("embedding", pgvector.django.halfvec.HalfVectorField(dimensions=384)),
            ],
        ),
        migrations.AddField(
            model_name="memory",
            name="embedding_due_at",
            field=models.DateTimeField(editable=False, null=True),
        ),
        migrations.AddField(
            model_name="memory",
            name="is_indexed",
            field=models.BooleanField(default=False, editable=False),
        ),
        migrations.AddField(
            model_name="memory",
            name="language",
            field=models.CharField(default="english", editable=False, max_length=32),
        ),
        # A generated column stands last, and its expression cannot be altered: it is made anew.
        migrations.RemoveIndex(model_name="memory", name="memories_memory_document"),
        migrations.RemoveField(model_name="memory", name="document"),
        migrations.AddField(
            model_name="memory",
            name="document",
            field=models.GeneratedField(
                db_persist=True,
                expression=django.contrib.postgres.search.SearchVector(
                    "speaker",
                    "content",
                    "context",
                    config=models.Case(
                        models.When(
                            language="arabic",
                            then=django.contrib.postgres.search.SearchConfig(
                                models.Value("arabic")
                            ),
                        ),
                        models.When(
                            language="armenian",
                            then=django.contrib.postgres.search.SearchConfig(
                                models.Value("armenian")
                            ),
                        ),
                        models.When(
                            language="basque",
                            then=django.contrib.postgres.search.SearchConfig(
                                models.Value("basque")
                            ),
                        ),
                        models.When(
                            language="catalan",
                            then=django.contrib.postgres.search.SearchConfig(
                                models.Value("catalan")
                            ),
                        ),
                        models.When(
                            language="danish",
                            then=django.contrib.postgres.search.SearchConfig(
                                models.Value("danish")
                            ),
                        ),
                        models.When(
                            language="dutch",
                            then=django.contrib.postgres.search.SearchConfig(models.Value("dutch")),
                        ),
                        models.When(
                            language="english",
                            then=django.contrib.postgres.search.SearchConfig(
                                models.Value("english")
                            ),
                        ),
                        models.When(
                            language="finnish",
                            then=django.contrib.postgres.search.SearchConfig(
                                models.Value("finnish")
                            ),
                        ),
                        models.When(
                            language="french",
                            then=django.contrib.postgres.search.SearchConfig(
                                models.Value("french")
                            ),
                        ),
                        models.When(
                            language="german",
                            then=django.contrib.postgres.search.SearchConfig(
                                models.Value("german")
                            ),
                        ),
                        models.When(
                            language="greek",
                            then=django.contrib.postgres.search.SearchConfig(models.Value("greek")),
                        ),
                        models.When(
                            language="hindi",
                            then=django.contrib.postgres.search.SearchConfig(models.Value("hindi")),
                        ),
                        models.When(
                            language="hungarian",
                            then=django.contrib.postgres.search.SearchConfig(
                                models.Value("hungarian")
                            ),
                        ),
                        models.When(
                            language="indonesian",
                            then=django.contrib.postgres.search.SearchConfig(
                                models.Value("indonesian")
                            ),
                        ),
                        models.When(
                            language="irish",
                            then=django.contrib.postgres.search.SearchConfig(models.Value("irish")),
                        ),
                        models.When(
                            language="italian",
                            then=django.contrib.postgres.search.SearchConfig(
                                models.Value("italian")
                            ),
                        ),
                        models.When(
                            language="lithuanian",
                            then=django.contrib.postgres.search.SearchConfig(
                                models.Value("lithuanian")
                            ),
                        ),
                        models.When(
                            language="nepali",
                            then=django.contrib.postgres.search.SearchConfig(
                                models.Value("nepali")
                            ),
                        ),
                        models.When(
                            language="norwegian",
                            then=django.contrib.postgres.search.SearchConfig(
                                models.Value("norwegian")
                            ),
                        ),
                        models.When(
                            language="portuguese",
                            then=django.contrib.postgres.search.SearchConfig(
                                models.Value("portuguese")
                            ),
                        ),
                        models.When(
                            language="romanian",
                            then=django.contrib.postgres.search.SearchConfig(
                                models.Value("romanian")
                            ),
                        ),
                        models.When(
                            language="russian",
                            then=django.contrib.postgres.search.SearchConfig(
                                models.Value("russian")
                            ),
                        ),
                        models.When(
                            language="serbian",
                            then=django.contrib.postgres.search.SearchConfig(
                                models.Value("serbian")
                            ),
                        ),
                        models.When(
                            language="simple",
                            then=django.contrib.postgres.search.SearchConfig(
                                models.Value("simple")
                            ),
                        ),
                        models.When(
                            language="spanish",
                            then=django.contrib.postgres.search.SearchConfig(
                                models.Value("spanish")
                            ),
                        ),
                        models.When(
                            language="swedish",
                            then=django.contrib.postgres.search.SearchConfig(
                                models.Value("swedish")
                            ),
                        ),
                        models.When(
                            language="tamil",
                            then=django.contrib.postgres.search.SearchConfig(models.Value("tamil")),
                        ),
                        models.When(
                            language="turkish",
                            then=django.contrib.postgres.search.SearchConfig(
                                models.Value("turkish")
                            ),
                        ),
                        models.When(
                            language="yiddish",
                            then=django.contrib.postgres.search.SearchConfig(
                                models.Value("yiddish")
                            ),
                        ),
                        default=django.contrib.postgres.search.SearchConfig(models.Value("simple")),
                    ),
                ),
                output_field=django.contrib.postgres.search.SearchVectorField(),
            ),
        ),
        migrations.AddIndex(
            model_name="memory",
            index=django.contrib.postgres.indexes.GinIndex(
                fields=["document"], name="memories_memory_document"
            ),
        ),
        migrations.AddIndex(
            model_name="memory",
            index=pgvector.django.indexes.HnswIndex(
                condition=models.Q(("is_deleted", False), ("is_indexed", True)),
                ef_construction=64,
                fields=["embedding"],
                m=16,
                name="memories_memory_embedding",
                opclasses=["halfvec_cosine_ops"],
            ),
        ),
        migrations.AddIndex(
            model_name="memory",
            index=models.Index(
                condition=models.Q(("embedding_state", "ready"), ("is_deleted", False)),
                fields=["organization", "embedding_model", "is_indexed"],
                name="memories_memory_vectors",
            ),
        ),
        migrations.AddIndex(
            model_name="cachedvector",
            index=models.Index(
                fields=["organization", "created_at", "id"], name="memories_cachedvector_created"
            ),
        ),
        migrations.AddIndex(
            model_name="cachedvector",
            index=models.Index(
                condition=models.Q(("is_deleted", True)),
                fields=["organization", "deleted_at"],
                name="memories_cachedvector_trash",
            ),
        ),
        migrations.AddConstraint(
            model_name="cachedvector",
            constraint=agentmem_site.db.walls.TenantWall(name="memories_cachedvector_wall"),
        ),
        migrations.AddConstraint(
            model_name="cachedvector",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("deleted_at__isnull", True), ("is_deleted", False)),
                    models.Q(("deleted_at__isnull", False), ("is_deleted", True)),
                    _connector="OR",
                ),
                name="memories_cachedvector_deleted_at",
            ),
        ),
        migrations.AddConstraint(
            model_name="cachedvector",
            constraint=models.CheckConstraint(
                condition=django.db.models.lookups.Exact(
                    models.Func(
                        "metadata", function="jsonb_typeof", output_field=models.TextField()
                    ),
                    models.Value("object"),
                ),
                name="memories_cachedvector_metadata_object",
                violation_error_message="Metadata must be a JSON object.",
            ),
        ),
        migrations.AddConstraint(
            model_name="cachedvector",
            constraint=models.UniqueConstraint(
                fields=("organization", "hash", "encoder"), name="memories_cachedvector_unique"
            ),
        ),
    ]

"""What has expired is found by an index."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0002_functions"),
        ("memories", "0003_search"),
    ]

    operations = [
        migrations.AddIndex(
            model_name="memory",
            index=models.Index(
                condition=models.Q(("expires_at__isnull", False), ("is_deleted", False)),
                fields=["organization", "expires_at"],
                name="memories_memory_expires",
            ),
        ),
    ]

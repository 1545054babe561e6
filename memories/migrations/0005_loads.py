"""What each row's last line in a file was."""

from importlib import import_module

from django.db import migrations, models

_made = import_module("memories.migrations.0002_vectors").Migration.operations


def _as_made(name):
    """The operation that made the field or index of that name, to make it again."""
    return next(
        op
        for op in _made
        if name in (getattr(op, "name", ""), getattr(getattr(op, "index", None), "name", ""))
        and not isinstance(op, migrations.RemoveField | migrations.RemoveIndex)
    )


class Migration(migrations.Migration):
    dependencies = [
        ("memories", "0004_memory_expires"),
    ]

    operations = [
        migrations.AddField(
            model_name="agent",
            name="line_hash",
            field=models.BinaryField(max_length=24, null=True),
        ),
        migrations.AddField(
            model_name="block",
            name="line_hash",
            field=models.BinaryField(max_length=24, null=True),
        ),
        # A generated column stands last.
        migrations.RemoveIndex(model_name="memory", name="memories_memory_document"),
        migrations.RemoveField(model_name="memory", name="document"),
        migrations.AddField(
            model_name="memory",
            name="line_hash",
            field=models.BinaryField(max_length=24, null=True),
        ),
        migrations.AddField(
            model_name="tool",
            name="line_hash",
            field=models.BinaryField(max_length=24, null=True),
        ),
        _as_made("document"),
        _as_made("memories_memory_document"),
    ]

"""What each row's last line in a file was."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("agent_sessions", "0001_initial"),
    ]

    operations = [
        migrations.AddField(
            model_name="message",
            name="line_hash",
            field=models.BinaryField(max_length=24, null=True),
        ),
        migrations.AddField(
            model_name="session",
            name="line_hash",
            field=models.BinaryField(max_length=24, null=True),
        ),
    ]
